"""Exact patching of several sites at once: circuits, knock-outs and groups of heads, one branch per set."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.engine.bookkeeping import ordinary, without_autograd
from circuits.engine.finish import Scores
from circuits.engine.plan import Plan, SetChunk, product_speed
from circuits.engine.rows import Span
from circuits.engine.runs import Given, Options, Runs, ablated, as_decoder, runs_for
from circuits.engine.set_plan import Place, Sets, plan_of
from circuits.engine.sets import by_layer_and_site, carry
from circuits.engine.sites import BY_COMPONENT, SITES, n_components
from circuits.engine.sweep import Branches, rows_to_read
from circuits.metrics import Metric, UserMetric
from circuits.patch_result import Verification, described
from interp.decoder import Decoder
from interp.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from circuits.patch_verify import Checks


class At(NamedTuple):
    """One site of a set; a position or component of None stands for all of them."""

    site: str
    layer: int
    component: int | None = None
    position: int | None = None


@dataclass(frozen=True)
class SetResult:
    """Effects of sets of patches.

    Attributes:
        effect: [prompt, set], metric(all patches of the set in place) - metric(base).
        base, source: metric of the run that is patched into, and of the run that is patched from (None for ablations).
        plan: chunks, floating-point operations and memory as predicted before the run.
        flops: floating-point operations of both runs and of the sets as counted in the run, 2 per multiply-add.
        backend: which implementation ran, by operation.
        drift: metric of the base run minus its value in the model's own 16-bit format; None for 32-bit weights.
    """

    effect: Float[Tensor, "prompt set"]
    sets: tuple[tuple[At, ...], ...]
    base: Float[Tensor, "prompt"]
    source: Float[Tensor, "prompt"] | None
    direction: str
    ablation: str
    precision: str
    plan: Plan
    flops: int
    seconds: float
    kind: str = "several sites at once, everything downstream recomputed"
    backend: str = ""
    drift: Float[Tensor, "prompt"] | None = None
    patches: Any = field(default=None, repr=False)

    def __str__(self) -> str:
        """What was done, by what and at which cost; in tf32 and bf16 with the error of `verify`, which reruns some."""
        return described(self, f"{self.plan.patches:,} effects of sets")

    def to_frame(self) -> "pd.DataFrame":
        """One row per (prompt, set)."""
        import pandas as pd

        index = pd.MultiIndex.from_product([range(len(self.effect)), range(len(self.sets))], names=["prompt", "set"])
        sites = [len(one) for _ in range(len(self.effect)) for one in self.sets]
        return pd.DataFrame({"effect": self.effect.flatten().cpu().numpy(), "sites": sites}, index=index).reset_index()

    @property
    def runs(self) -> Runs:
        """The two runs, recorded."""
        return self.patches.runs

    def verify(self, n: int = 32, seed: int = 0) -> Verification:
        """Rerun n random sets that were run (for all prompts each) by one plain forward each, in float64.

        The values put in are those of plain runs of the decoder, and go through the model's own hooks. A model that
        cannot be copied to float64 (a bridge) runs in its own format.
        """
        from circuits.patch_verify import verify

        return verify([self.checks()], n, seed)

    def checks(self) -> "Checks":
        """What `verify` can rerun."""
        from circuits.patch_verify_edges import set_checks

        return set_checks(self)


@torch.no_grad()
def patch_sets(
    model: Any,
    sets: Sequence[Sequence[At | tuple]],
    *,
    clean: Int[Tensor, "batch pos"],
    metric: Metric | UserMetric | Callable[[Tensor], Tensor],
    corrupted: Int[Tensor, "batch pos"] | None = None,
    **options: Unpack[Options],
) -> SetResult:
    """What each set of patches, all in place at once, does to the metric.

    A later patch of a set overwrites what the earlier ones caused there, as hooks would. The arguments that are not
    named here are those of `circuits.patching.patch_heads`.

    Args:
        sets: for each branch its sites, as `At` or (site, layer, component, position). An empty set has no effect.
            With padding on the left, positions count from each prompt's first token.
        options: `max_bytes` parts the sets; one set, for all prompts, is never parted.

    Raises:
        UsageError: naming the argument that is wrong.
        NotExpressible: for a model that cannot be written exactly as a Decoder.
    """
    started, decoder = time.perf_counter(), as_decoder(model)
    with without_autograd(metric):
        result = _patched(*_checked(model, decoder, sets, clean, corrupted, metric, Given(**options)), started)
    return ordinary(result)


def _patched(named: tuple[tuple[At, ...], ...], found: Sets, started: float) -> SetResult:
    """Run the sets; `started` is when the call began, by `time.perf_counter`."""
    runs, plan = found.runs, plan_of(found)
    scores = Scores(runs.decoder, runs.base, runs.metric, runs.rows, len(named))
    _run(found, plan.chunks, scores)
    base, other = runs.values
    return SetResult(
        effect=scores.effect,
        sets=named,
        base=base,
        source=other,
        direction=runs.given.direction,
        ablation=runs.given.ablation,
        precision=runs.given.precision,
        plan=plan,
        flops=runs.mul.flops + runs.recording_flops,
        seconds=time.perf_counter() - started,
        backend=runs.mul.by,
        drift=runs.drift,
        patches=found,
    )


@torch.no_grad()
def plan_sets(
    model: Any,
    sets: Sequence[Sequence[At | tuple]],
    *,
    clean: Int[Tensor, "batch pos"],
    metric: Metric | UserMetric | Callable[[Tensor], Tensor],
    corrupted: Int[Tensor, "batch pos"] | None = None,
    **options: Unpack[Options],
) -> Plan:
    """What `patch_sets` with these arguments would cost: chunks, operations, memory and seconds; nothing is patched.

    The two runs are recorded. The seconds are as uncertain as those of `circuits.patching.plan_heads`.

    Raises:
        UsageError, NotExpressible: as `patch_sets`.
    """
    _, found = _checked(model, as_decoder(model), sets, clean, corrupted, metric, Given(**options))
    plan = plan_of(found)
    return replace(plan, seconds=plan.flops / product_speed(found.runs.decoder, max(1, plan.rows)))


def _checked(
    model: Any,
    decoder: Decoder,
    sets: Sequence[Sequence[At | tuple]],
    clean: Tensor,
    corrupted: Tensor | None,
    metric: Metric | UserMetric | Callable[[Tensor], Tensor],
    given: Given,
) -> tuple[tuple[tuple[At, ...], ...], Sets]:
    """The sets as they are named, and their single places with both runs."""
    runs = runs_for(model, decoder, clean, corrupted, metric, given)
    named = tuple(tuple(At(*one) for one in patches) for patches in sets)
    return named, Sets(runs, [_expanded(runs, index, patches) for index, patches in enumerate(named)])


def _run(sets: Sets, chunks: Sequence[SetChunk], scores: Scores) -> None:
    """Carry the sets of every chunk to the metric."""
    runs, device = sets.runs, sets.runs.base.final.device
    source = runs.other if runs.other is not None else ablated(runs)
    prompts = torch.arange(len(runs.base.final), device=device)
    for done, chunk in enumerate(chunks, 1):
        span = Span(chunk.start, sets.stop)
        out, events = rows_to_read(runs.read, span), by_layer_and_site(sets.kept(chunk), device)
        delta = carry(runs.decoder, runs.base, source, events, len(chunk.sets), span, out, runs.mul)
        slot = torch.tensor(chunk.sets, device=device)
        scores.add(Branches(delta, torch.full_like(slot, span.start), slot), out, runs.base, prompts, runs.mul)
        if (progress := runs.given.progress) is not None:
            progress(done, len(chunks))


def _expanded(runs: Runs, index: int, patches: tuple[At, ...]) -> list[Place]:
    """Single places of a set; None stands for every component or position.

    Raises:
        UsageError: for a place that the model or the prompts do not have.
    """
    decoder, n_pos, places = runs.decoder, runs.base.final.shape[1], []
    for one in patches:
        if one.site not in SITES or not 0 <= one.layer < len(decoder.layers):
            raise UsageError(f"sets: {tuple(one)} in set {index}: expected one of {', '.join(SITES)} and a known layer")
        layer = decoder.layers[one.layer]
        missing = layer.mlp is None and one.site in ("mlp_out", "mlp_post")
        if missing or (one.site == "resid_mid" and (layer.parallel or layer.mlp is None)):
            raise UsageError(f"sets: {one.site} in set {index} does not exist in this model")
        count = n_components(decoder, one.site)
        split = one.site in BY_COMPONENT
        components = range(count if split else 1) if one.component is None else (one.component,)
        positions = range(n_pos) if one.position is None else (one.position,)
        if any(not 0 <= c < count for c in components) or any(not 0 <= p < n_pos for p in positions):
            raise UsageError(
                f"sets: {tuple(one)} in set {index}: the site has {count} components and {n_pos} positions"
            )
        places += [(one.site, one.layer, c, p) for c in components for p in positions]
    return places
