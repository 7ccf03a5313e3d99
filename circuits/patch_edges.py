"""Exact patching of single edges: one sender's output into one receiver's input, everything downstream recomputed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.engine.bookkeeping import ordinary, without_autograd
from circuits.engine.edge_plan import Edges, Resolve, plan_of
from circuits.engine.edge_sweep import run_edges
from circuits.engine.finish import Scores
from circuits.engine.plan import Plan, product_speed
from circuits.engine.runs import Given, Options, Runs, as_decoder, runs_for
from circuits.graph import EdgeGraph, edge_graph
from circuits.metrics import Metric, UserMetric
from circuits.patch_result import Verification, described
from interp.decoder import Decoder
from interp.errors import UnknownName, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from circuits.patch_verify import Checks


@dataclass(frozen=True)
class EdgeResult:
    """Effects of single edges.

    Attributes:
        effect: [prompt, sender, receiver, pos]; with a further axis of queries where resolved by query; without
            positions where pooled. The position is the sender's: for a query edge that of the query, for a key or value
            edge that of the key. Exactly 0 for pairs that are no edge and for edges that cannot reach the metric.
        asked: [sender, receiver], the edges that were asked for.
        plan: chunks, floating-point operations and memory as predicted before the run.
        flops: floating-point operations of both runs and of the branches as counted in the run, 2 per multiply-add.
        branches: effects that were run, each for all prompts.
        backend: which implementation ran, by operation.
        drift: metric of the base run minus its value in the model's own 16-bit format; None for 32-bit weights.
        kind: what an effect is.
    """

    effect: Float[Tensor, "prompt sender receiver *place"]
    asked: Bool[Tensor, "sender receiver"]
    graph: EdgeGraph
    base: Float[Tensor, "prompt"]
    source: Float[Tensor, "prompt"] | None
    direction: str
    ablation: str
    precision: str
    plan: Plan
    flops: int
    branches: int
    seconds: float
    kind: str = "single edge, everything downstream of the receiver recomputed"
    backend: str = ""
    drift: Float[Tensor, "prompt"] | None = None
    edges: Any = field(default=None, repr=False)

    def __str__(self) -> str:
        """What was done, by what and at which cost; in tf32 and bf16 with the error of `verify`, which reruns some."""
        return described(self, f"{self.plan.patches:,} effects of edges")

    def score(self, edge: str) -> Float[Tensor, "prompt *place"]:
        """The effects of one edge by its name, such as `L0.H1->L1.H3.q`.

        Raises:
            UnknownName: for an edge that the model does not have.
        """
        sender, receiver = self.graph.index(edge)
        return self.effect[:, sender, receiver]

    def to_frame(self) -> "pd.DataFrame":
        """One row per (prompt, edge, position) and, where resolved, query, for the edges that were asked for."""
        import pandas as pd

        sender, receiver = self.asked.nonzero(as_tuple=True)
        names = [self.graph.name(s, r) for s, r in zip(sender.tolist(), receiver.tolist(), strict=True)]
        picked = self.effect[:, sender, receiver]  # [prompt edge pos *query]
        axes = [range(len(picked)), names, *(range(size) for size in picked.shape[2:])]
        labels = ["prompt", "edge", "pos", "query"][: len(axes)]
        index = pd.MultiIndex.from_product(axes, names=labels)
        return pd.DataFrame({"effect": picked.flatten().cpu().numpy()}, index=index).reset_index()

    @property
    def runs(self) -> Runs:
        """The two runs, recorded."""
        return self.edges.runs

    def verify(self, n: int = 32, seed: int = 0) -> Verification:
        """Rerun n random effects that were run (for all prompts each) by one plain forward each, in float64.

        The receiver's changed input is written down from two plain runs, put into the model's own hooks, and everything
        after it runs as the model runs it. A model that cannot be copied to float64 (a bridge) runs in its own format.
        """
        from circuits.patch_verify import verify

        return verify([self.checks()], n, seed)

    def checks(self) -> "Checks":
        """What `verify` can rerun."""
        from circuits.patch_verify_edges import edge_checks

        return edge_checks(self)


@torch.no_grad()
def patch_edges(
    model: Any,
    *,
    clean: Int[Tensor, "batch pos"],
    metric: Metric | UserMetric | Callable[[Tensor], Tensor],
    corrupted: Int[Tensor, "batch pos"] | None = None,
    senders: Sequence[str] | None = None,
    receivers: Sequence[str] | None = None,
    edges: Sequence[str] | None = None,
    resolve: Resolve = "position",
    **options: Unpack[Options],
) -> EdgeResult:
    """What each single edge does to the metric when its sender's output is that of the other run.

    The receiver alone sees the change: its input is that of the base run plus what the sender writes differently,
    carried through the residual stream with all attention and MLP outputs on the way frozen, and normalised anew.
    Whatever follows the receiver is recomputed. The arguments not named here are those of `patch_heads`.

    Args:
        senders, receivers: names as in `circuits.graph.edge_graph`; None for all.
        edges: names of single edges such as `L0.H1->L1.H3.q`, to patch no others; None for all.
        resolve: "position" lets a changed key or value act on all later queries at once; "query" gives each (key
            position, query position) its own effect; "pooled" patches the sender at all positions at once.
        options: `max_bytes` parts receivers, positions and senders; the rows of one sender at one position into one
            receiver, for all prompts, are never parted.

    Raises:
        UsageError: naming the argument that is wrong.
        NotExpressible: for a model that cannot be written exactly as a Decoder.
        UnknownName: for a sender, receiver or edge that the model does not have.
    """
    started, decoder, named = time.perf_counter(), as_decoder(model), (senders, receivers, edges)
    with without_autograd(metric):
        found = _checked(model, decoder, clean, corrupted, metric, named, resolve, Given(**options))
        result = _patched(found, started)
    return ordinary(result)


def _patched(found: Edges, started: float) -> EdgeResult:
    """Run what is asked for; `started` is when the call began, by `time.perf_counter`."""
    runs, plan = found.runs, plan_of(found)
    slots = _slots(found.asked, runs.base.final.shape[1], found.resolve)
    scores = Scores(runs.decoder, runs.base, runs.metric, runs.rows, slots.numel())
    branches = run_edges(found, plan.chunks, slots, scores)
    axes = {"position": 3, "query": 4, "pooled": 2}[found.resolve]
    base, other = runs.values
    return EdgeResult(
        effect=scores.effect.view(len(base), *slots.shape[:axes]),
        asked=found.asked,
        graph=found.graph,
        base=base,
        source=other,
        direction=runs.given.direction,
        ablation=runs.given.ablation,
        precision=runs.given.precision,
        plan=plan,
        flops=runs.mul.flops + runs.recording_flops,
        branches=branches,
        seconds=time.perf_counter() - started,
        backend=runs.mul.by,
        drift=runs.drift,
        edges=found,
    )


@torch.no_grad()
def plan_edges(
    model: Any,
    *,
    clean: Int[Tensor, "batch pos"],
    metric: Metric | UserMetric | Callable[[Tensor], Tensor],
    corrupted: Int[Tensor, "batch pos"] | None = None,
    senders: Sequence[str] | None = None,
    receivers: Sequence[str] | None = None,
    edges: Sequence[str] | None = None,
    resolve: Resolve = "position",
    **options: Unpack[Options],
) -> Plan:
    """What `patch_edges` with these arguments would cost: chunks, operations, memory and seconds; nothing is patched.

    The two runs are recorded. The seconds are as uncertain as those of `circuits.patching.plan_heads`.

    Raises:
        UsageError, NotExpressible, UnknownName: as `patch_edges`.
    """
    decoder, named = as_decoder(model), (senders, receivers, edges)
    found = _checked(model, decoder, clean, corrupted, metric, named, resolve, Given(**options))
    plan = plan_of(found)
    return replace(plan, seconds=plan.flops / product_speed(found.runs.decoder, max(1, plan.rows)))


def _checked(
    model: Any,
    decoder: Decoder,
    clean: Tensor,
    corrupted: Tensor | None,
    metric: Metric | UserMetric | Callable[[Tensor], Tensor],
    named: tuple[Sequence[str] | None, Sequence[str] | None, Sequence[str] | None],
    resolve: Resolve,
    given: Given,
) -> Edges:
    """Both runs and the edges that are asked for; `named` are senders, receivers and edges."""
    if resolve not in ("position", "query", "pooled"):
        raise UsageError(f"resolve: {resolve!r}: expected position, query or pooled")
    runs = runs_for(model, decoder, clean, corrupted, metric, given, trimmed=True)
    graph = edge_graph(runs.decoder)
    return Edges(runs, graph, asked_edges(graph, *named).to(runs.base.final.device), resolve)


def _slots(
    asked: Bool[Tensor, "sender receiver"], n_pos: int, resolve: Resolve
) -> Int[Tensor, "sender receiver pos query"]:
    """Where each result goes, -1 for edges that are not asked for; axes that are not resolved have one entry."""
    places = {"position": (n_pos, 1), "query": (n_pos, n_pos), "pooled": (1, 1)}[resolve]
    shape = torch.Size((*asked.shape, *places))
    slots = torch.arange(shape.numel(), device=asked.device).view(shape)
    return slots.masked_fill(~asked[:, :, None, None], -1)


def asked_edges(
    graph: EdgeGraph,
    senders: Sequence[str] | None,
    receivers: Sequence[str] | None,
    edges: Sequence[str] | None = None,
) -> Bool[Tensor, "sender receiver"]:
    """Edges between the named nodes, or those of them that are named themselves."""
    asked = graph.exists.clone()
    for kind, wanted, known in (("sender", senders, graph.senders), ("receiver", receivers, graph.receivers)):
        if wanted is None:
            continue
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise UnknownName(kind, unknown[0], known)
        keep = torch.tensor([name in set(wanted) for name in known])
        asked &= keep[:, None] if kind == "sender" else keep
    if edges is None:
        return asked
    named = torch.zeros_like(asked)
    for edge in edges:
        named[graph.index(edge)] = True
    return asked & named
