"""Exact patching of single edges: one sender's output into one receiver's input, everything downstream recomputed."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.engine.edges import EdgeWave, Wanted
from circuits.engine.edges_pooled import PooledWave, WantedPooled
from circuits.engine.finish import Scores
from circuits.engine.one_column import Queries
from circuits.engine.plan import CACHE_ROWS, LARGEST_ROWS, free_memory, row_bytes
from circuits.engine.record import Record
from circuits.engine.rows import OneRow, Rows, Span
from circuits.engine.runs import Given, Options, Runs, ablated, as_decoder, runs_for
from circuits.engine.sweep import Branches, rows_to_read, sweep
from circuits.graph import EdgeGraph, edge_graph
from circuits.metrics import Metric, UserMetric
from interp.errors import UnknownName, UsageError
from kernels.one_column import State

if TYPE_CHECKING:
    import pandas as pd

Resolve = Literal["position", "query", "pooled"]


@dataclass(frozen=True)
class EdgeResult:
    """Effects of single edges.

    Attributes:
        effect: [prompt, sender, receiver, pos]; with a further axis of queries where resolved by query; without
            positions where pooled. The position is the sender's: for a query edge that of the query, for a key or value
            edge that of the key. Exactly 0 for pairs that are no edge and for edges that cannot reach the metric.
        asked: [sender, receiver], the edges that were asked for.
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
    flops: int
    branches: int
    seconds: float
    kind: str = "single edge, everything downstream of the receiver recomputed"
    backend: str = ""
    drift: Float[Tensor, "prompt"] | None = None
    runs: Any = field(default=None, repr=False)

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

    Raises:
        UsageError: naming the argument that is wrong.
        NotExpressible: for a model that cannot be written exactly as a Decoder.
        UnknownName: for a sender, receiver or edge that the model does not have.
    """
    started = time.perf_counter()
    if resolve not in ("position", "query", "pooled"):
        raise UsageError(f"resolve: {resolve!r}: expected position, query or pooled")
    given = Given(**options)
    runs = runs_for(model, as_decoder(model), clean, corrupted, metric, given, trimmed=True)
    graph = edge_graph(runs.decoder)
    asked = asked_edges(graph, senders, receivers, edges).to(runs.base.final.device)
    slots = _slots(asked, runs.base.final.shape[1], resolve)
    scores = Scores(runs.decoder, runs.base, runs.metric, runs.rows, slots.numel())
    source = runs.other if runs.other is not None else ablated(runs)
    branches = (_run_pooled if resolve == "pooled" else _run)(runs, source, graph, asked, slots, scores)
    axes = {"position": 3, "query": 4, "pooled": 2}[resolve]
    base, other = runs.values
    return EdgeResult(
        effect=scores.effect.view(len(clean), *slots.shape[:axes]),
        asked=asked,
        graph=graph,
        base=base,
        source=other,
        direction=given.direction,
        ablation=given.ablation,
        precision=given.precision,
        flops=runs.mul.flops,
        branches=branches,
        seconds=time.perf_counter() - started,
        backend=runs.mul.by,
        drift=runs.drift,
        runs=runs,
    )


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


@dataclass(frozen=True)
class EdgeChunk:
    """Edges that run together."""

    positions: tuple[int, ...]
    receivers: tuple[int, ...]


def rows_of(receiver: str, n_layers: int, suffix: int, out_rows: int, by_query: bool) -> int:
    """Rows that the branches of one sender and position need at most, when every row of the suffix may change."""
    if receiver == "logits":
        return 1
    layer, spreads = int(receiver[1:].split(".")[0]), receiver[-2:] in (".k", ".v")
    if spreads and by_query:
        reached = out_rows if layer == n_layers - 1 else suffix
        return reached * _rows_of_one(layer, n_layers, suffix, out_rows)
    if spreads:
        return out_rows if layer == n_layers - 1 else suffix
    return _rows_of_one(layer, n_layers, suffix, out_rows)


def _rows_of_one(layer: int, n_layers: int, suffix: int, out_rows: int) -> int:
    """Rows that a branch of one row in this layer grows to."""
    return {n_layers - 1: 1, n_layers - 2: out_rows}.get(layer, suffix)


def chunks_of(
    rows: Callable[[int, int], int], receivers: Sequence[int], positions: Sequence[int], stop: int, max_rows: int
) -> Iterator[EdgeChunk]:
    """Cut positions x receivers so that no chunk has many more than `max_rows` rows at once.

    Args:
        rows: rows per position of a receiver, for a suffix of so many rows.
    """
    index = 0
    while index < len(positions):
        suffix = stop - positions[index]
        cost = {receiver: rows(receiver, suffix) for receiver in receivers}
        whole = sum(cost.values())
        if whole <= max_rows:
            count = max(1, max_rows // max(1, whole))
            yield EdgeChunk(tuple(positions[index : index + count]), tuple(receivers))
            index += count
            continue
        group: list[int] = []
        for receiver in receivers:
            if group and sum(cost[r] for r in group) + cost[receiver] > max_rows:
                yield EdgeChunk((positions[index],), tuple(group))
                group = []
            group.append(receiver)
        yield EdgeChunk((positions[index],), tuple(group))
        index += 1


def _run(
    runs: Runs,
    source: Record,
    graph: EdgeGraph,
    asked: Bool[Tensor, "sender receiver"],
    slots: Int[Tensor, "sender receiver pos query"],
    scores: Scores,
) -> int:
    """Run every chunk; returns how many branches there were."""
    stop = int(runs.read.any(0).nonzero().max()) + 1
    first = 0 if runs.other is None else int(runs.prompts.first_difference.min())
    max_rows, n_layers, by_query = _limits(runs), len(runs.decoder.layers), slots.shape[-1] > 1
    senders, out_rows = asked.sum(0).tolist(), int(runs.read.sum(1).max())

    def rows(receiver: int, suffix: int) -> int:
        return senders[receiver] * rows_of(graph.receivers[receiver], n_layers, suffix, min(out_rows, suffix), by_query)

    # Receivers whose branches stay few rows run at many positions at once, apart from those that need whole suffixes.
    wanted = [receiver for receiver, count in enumerate(senders) if count]
    short = [r for r in wanted if rows(r, stop) <= senders[r] * max(1, out_rows)]
    long = [r for r in wanted if r not in short]
    chunks = [
        chunk for some in (short, long) if some for chunk in chunks_of(rows, some, range(first, stop), stop, max_rows)
    ]
    queries = Queries(runs.decoder.layers, runs.base, len(chunks) > 1, runs.mul)
    branches = 0
    for done, chunk in enumerate(chunks, 1):
        branches += _run_chunk(runs, source, graph, asked, slots, scores, chunk, stop, queries)
        if (progress := runs.given.progress) is not None:
            progress(done, len(chunks))
    return branches


def _run_chunk(
    runs: Runs,
    source: Record,
    graph: EdgeGraph,
    asked: Bool[Tensor, "sender receiver"],
    slots: Int[Tensor, "sender receiver pos query"],
    scores: Scores,
    chunk: EdgeChunk,
    stop: int,
    queries: Queries,
) -> int:
    base = runs.base
    device, prompts = base.final.device, torch.arange(len(base.final), device=base.final.device)
    span, used = Span(chunk.positions[0], stop), asked[:, list(chunk.receivers)].any(1).tolist()
    wanted = Wanted(
        senders={name: i for i, name in enumerate(graph.senders) if used[i]},
        receivers={graph.receivers[i]: i for i in chunk.receivers},
        slots=slots,
        positions=torch.tensor(chunk.positions, device=device),
        read=runs.read.any(0)[:stop],
    )
    counted = 0

    def finish(branches: Branches, where: OneRow | Rows) -> None:
        nonlocal counted
        counted += len(branches.p)
        scores.add(branches, where, base, prompts, runs.mul)

    def state(number: int, rows: Rows) -> State:
        return queries.at(number, None, base.layers[number], rows, stop)

    wave = EdgeWave(runs.decoder, base, source, wanted, state, runs.mul)
    sweep(runs.decoder, base, wave.joining, span, rows_to_read(runs.read, span), finish, state, runs.mul)
    if (direct := wave.logits()) is not None:
        finish(*direct)
    return counted


def _limits(runs: Runs) -> int:
    """Rows of one prompt in a chunk that fits."""
    base, max_bytes = runs.base.final, runs.given.max_bytes
    budget = free_memory(base.device) // 4 if max_bytes is None else max_bytes
    most = CACHE_ROWS if base.device.type == "cpu" else LARGEST_ROWS
    return max(1, min(most, budget // row_bytes(runs.decoder, base.element_size())) // len(base))


def _run_pooled(
    runs: Runs,
    source: Record,
    graph: EdgeGraph,
    asked: Bool[Tensor, "sender receiver"],
    slots: Int[Tensor, "sender receiver 1 1"],
    scores: Scores,
) -> int:
    """Edges at all positions at once, receivers in groups that fit; returns how many branches there were."""
    base, mul = runs.base, runs.mul
    prompts = torch.arange(len(base.final), device=base.final.device)
    stop = int(runs.read.any(0).nonzero().max()) + 1
    first = 0 if runs.other is None else int(runs.prompts.first_difference.min())
    if first >= stop:
        return 0
    span = Span(first, stop)
    out, max_rows = rows_to_read(runs.read, span), _limits(runs)
    senders = asked.sum(0).tolist()
    wanted = [receiver for receiver, count in enumerate(senders) if count]
    chunks = chunks_of(lambda receiver, suffix: senders[receiver] * suffix, wanted, [first], stop, max_rows)
    groups = [chunk.receivers for chunk in chunks]
    counted = 0

    def finish(branches: Branches, where: OneRow | Rows) -> None:
        nonlocal counted
        counted += len(branches.p)
        scores.add(branches, where, base, prompts, mul)

    def state(number: int, rows: Rows) -> State:
        raise AssertionError("a pooled branch never has a single changed row")

    for done, receivers in enumerate(groups, 1):
        used = asked[:, list(receivers)].any(1).tolist()
        asked_for = WantedPooled(
            senders={name: i for i, name in enumerate(graph.senders) if used[i]},
            receivers={graph.receivers[i]: i for i in receivers},
            slots=slots[:, :, 0, 0],
        )
        wave = PooledWave(runs.decoder, base, source, asked_for, span, out, mul)
        sweep(runs.decoder, base, wave.joining, span, out, finish, state, mul)
        if (direct := wave.logits()) is not None:
            finish(direct, out)
        if (progress := runs.given.progress) is not None:
            progress(done, len(groups))
    return counted
