"""Exact patching of several sites at once: circuits, knock-outs and groups of heads, one branch per set."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.engine.finish import Scores
from circuits.engine.plan import CACHE_ROWS, LARGEST_ROWS, free_memory, row_bytes
from circuits.engine.record import Record
from circuits.engine.rows import Span
from circuits.engine.runs import Given, Options, Runs, ablated, as_decoder, runs_for
from circuits.engine.sets import by_layer_and_site, carry
from circuits.engine.sites import BY_COMPONENT, SITES, n_components
from circuits.engine.sweep import Branches, rows_to_read
from circuits.metrics import Metric, UserMetric
from interp.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd


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
    flops: int
    seconds: float
    kind: str = "several sites at once, everything downstream recomputed"
    backend: str = ""
    drift: Float[Tensor, "prompt"] | None = None
    runs: Any = field(default=None, repr=False)

    def to_frame(self) -> "pd.DataFrame":
        """One row per (prompt, set)."""
        import pandas as pd

        index = pd.MultiIndex.from_product([range(len(self.effect)), range(len(self.sets))], names=["prompt", "set"])
        sites = [len(one) for _ in range(len(self.effect)) for one in self.sets]
        return pd.DataFrame({"effect": self.effect.flatten().cpu().numpy(), "sites": sites}, index=index).reset_index()


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

    Raises:
        UsageError: naming the argument that is wrong.
        NotExpressible: for a model that cannot be written exactly as a Decoder.
    """
    started = time.perf_counter()
    given = Given(**options)
    runs = runs_for(model, as_decoder(model), clean, corrupted, metric, given)
    named = tuple(tuple(At(*one) for one in patches) for patches in sets)
    expanded = [_expanded(runs, index, patches) for index, patches in enumerate(named)]
    scores = Scores(runs.decoder, runs.base, runs.metric, runs.rows, len(named))
    source = runs.other if runs.other is not None else ablated(runs)
    _run(runs, source, expanded, scores, given.max_bytes, given.progress)
    base, other = runs.values
    return SetResult(
        effect=scores.effect,
        sets=named,
        base=base,
        source=other,
        direction=given.direction,
        ablation=given.ablation,
        precision=given.precision,
        flops=runs.mul.flops,
        seconds=time.perf_counter() - started,
        backend=runs.mul.by,
        drift=runs.drift,
        runs=runs,
    )


def _run(
    runs: Runs,
    source: Record,
    sets: list[list[tuple[str, int, int, int]]],
    scores: Scores,
    max_bytes: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Branches in order of their first position, in chunks that fit the budget."""
    base, read = runs.base.final, runs.read
    prompts = torch.arange(len(base), device=base.device)
    stop = int(read.any(0).nonzero().max()) + 1
    start_of = [min((one[3] for one in patches), default=stop) for patches in sets]
    order = sorted((i for i in range(len(sets)) if start_of[i] < stop), key=lambda i: start_of[i])
    budget = free_memory(base.device) // 4 if max_bytes is None else max_bytes
    most = CACHE_ROWS if base.device.type == "cpu" else LARGEST_ROWS
    max_rows = min(most, budget // row_bytes(runs.decoder, base.element_size()))
    done = 0
    while done < len(order):
        span = Span(start_of[order[done]], stop)
        size = max(1, max_rows // (span.count * len(base)))
        chunk = order[done : done + size]
        kept = [[one for one in sets[i] if one[3] < stop] for i in chunk]
        out, events = rows_to_read(read, span), by_layer_and_site(kept, base.device)
        delta = carry(runs.decoder, runs.base, source, events, len(chunk), span, out, runs.mul)
        slot = torch.tensor(chunk, device=base.device)
        scores.add(Branches(delta, torch.full_like(slot, span.start), slot), out, runs.base, prompts, runs.mul)
        done += len(chunk)
        if progress is not None:
            progress(done, len(order))


def _expanded(runs: Runs, index: int, patches: tuple[At, ...]) -> list[tuple[str, int, int, int]]:
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
