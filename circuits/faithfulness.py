"""How much of a model's behaviour circuits keep: the retained share, its curve over sizes, and the areas of MIB."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.detectors.base import Interval
from circuits.live import connected
from circuits.masked import MaskedRuns
from circuits.pruning import order_of, read_positions, top

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of all edges, as MIB's evaluation takes them
EXHAUSTIVE = 16  # live edges up to which every subset is run
EVERY_SIZE = 1000  # live edges below which every size is run
DRAWS = 2000
ROUNDINGS = 32  # of the largest logit, by which two runs of one circuit may differ: they depend on the batch


def metric_tie(runs: MaskedRuns) -> float:
    """Values of the metric that differ by no more than this are equal: 32 roundings of the largest logit.

    The same circuit gives values that differ by a few roundings where another number of circuits is run beside it.
    """
    return ROUNDINGS * torch.finfo(runs.base_logits.dtype).eps * float(runs.base_logits.abs().max())


def share_tie(runs: MaskedRuns) -> float:
    """Shares of the metric that differ by no more than this are equal: `metric_tie` over clean minus ablated."""
    return metric_tie(runs) / abs(float((runs.clean.double() - runs.ablated.double()).mean()))


def share_kept(
    values: Float[Tensor, "*circuit prompt"], clean: Float[Tensor, "prompt"], ablated: Float[Tensor, "prompt"]
) -> Float[Tensor, "*circuit"]:
    """f = (m(C) - m(0)) / (m(N) - m(0)): ratio of means over prompts, unclipped; 1 for the model, 0 for nothing kept.

    C is the circuit, N the model, 0 the empty circuit under the same ablation. Means are taken in float64; the metric
    itself has the precision of the runs, see `share_tie`. Source: Mueller et al. 2025, "MIB", section 3.1.
    """
    values, clean, ablated = (one.detach().cpu().double() for one in (values, clean, ablated))
    return (values.mean(-1) - ablated.mean()) / (clean.mean() - ablated.mean())


def retained(
    values: Float[Tensor, "prompt"],
    clean: Float[Tensor, "prompt"],
    ablated: Float[Tensor, "prompt"],
    unit: Int[Tensor, "prompt"],
    generator: torch.Generator,
) -> Interval | None:
    """The share kept with a percentile bootstrap over units; None where the model's own effect may be 0.

    Numerator and denominator are drawn together, so that prompts on which the model itself does little weigh little.
    """
    index = unit.unique(return_inverse=True)[1]
    n = int(index.max()) + 1
    sums = torch.zeros(2, n, dtype=torch.float64)
    for row, difference in enumerate((values - ablated, clean - ablated)):
        sums[row] = sums[row].index_add(0, index, difference.double().cpu())
    rows = torch.randint(n, (DRAWS, n), generator=generator)
    kept, whole = sums[0][rows].sum(1), sums[1][rows].sum(1)
    low, high = np.quantile(whole.numpy(), [0.025, 0.975])
    if low <= 0 <= high:
        return None
    bounds = np.quantile((kept / whole).numpy(), [0.025, 0.975])
    return Interval(
        value=float(sums[0].sum() / sums[1].sum()),
        low=float(bounds[0]),
        high=float(bounds[1]),
        n=n,
        method="bootstrap over sequences, ratio of means",
    )


@dataclass(frozen=True)
class Curve:
    """Share kept by the top edges of a ranking at several sizes.

    Attributes:
        size: edges taken from the top.
        kept: of these, edges on a path from the embedding to the metric.
        values: the metric of each circuit on each prompt; None where it was not kept.
    """

    size: tuple[int, ...]
    kept: tuple[int, ...]
    share: tuple[float, ...]
    values: Float[Tensor, "size prompt"] | None = field(default=None, compare=False, repr=False)


def curve(
    runs: MaskedRuns,
    scores: Float[Tensor, "sender receiver *place"],
    live: Bool[Tensor, "sender receiver *place"],
    sizes: Sequence[int],
    signed: bool = False,
) -> Curve:
    """The share kept by the top edges at each size, after edges off any path are dropped.

    Args:
        signed: take the largest scores, not the largest magnitudes: edges that hurt come last.
    """
    ranked = scores - scores[live].min() + 1 if signed and bool(live.any()) else scores
    order, read = order_of(ranked, live), read_positions(runs)
    masks = [connected(runs.decoder, runs.graph, top(order, size, live), read, runs.resamples) for size in sizes]
    values = runs.values(torch.stack(masks))
    share = share_kept(values, runs.clean, runs.ablated)
    return Curve(tuple(sizes), tuple(int(mask.sum()) for mask in masks), tuple(share.tolist()), values)


def sizes_for(n_live: int) -> list[int]:
    """Every size below 1,000 live edges, else a logarithmic grid."""
    if n_live < EVERY_SIZE:
        return list(range(1, n_live + 1))
    return sorted({round(size) for size in np.geomspace(1, n_live, 40)})


def area(values: Sequence[float], at: Sequence[float]) -> float:
    """Trapezoid rule."""
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(zip(at, values, strict=True)))


def cpr(shares: Sequence[float], fractions: Sequence[float] = FRACTIONS) -> float:
    """Circuit performance ratio: area under f over MIB's fixed fractions on a linear axis; 0.999 for f = 1.

    No point is added at 0 and nothing is rescaled. It rewards circuits that beat the model, so that it never stands
    alone. MIB's code before 2025-05-10 took a logarithmic axis of edges left after pruning: older numbers differ.
    """
    return area(shares, fractions)


def cmd(shares: Sequence[float], fractions: Sequence[float] = FRACTIONS) -> float:
    """Circuit-model distance: area of |1 - f| at the same points; 0 is best, 0.999 for f = 0."""
    return area([abs(1 - share) for share in shares], fractions)


def log_area(shares: Sequence[float], fractions: Sequence[float] = FRACTIONS) -> float:
    """Mean of f over the logarithm of the fraction: small circuits weigh as much as large ones."""
    at = [math.log(fraction) for fraction in fractions]
    return area(shares, at) / (at[-1] - at[0])


@dataclass(frozen=True)
class Areas:
    """MIB's areas, and the curves that they are of; `str` puts CMD first."""

    cmd: float
    cpr: float
    log_area: float
    largest: float
    signed: Curve
    absolute: Curve

    def __str__(self) -> str:
        beats = f"; circuits beat the model (f up to {self.largest:.2f})" if self.largest > 1.005 else ""
        return f"CMD {self.cmd:.3f}, CPR {self.cpr:.3f}, log-axis area {self.log_area:.3f}{beats}"


def mib_areas(
    runs: MaskedRuns,
    scores: Float[Tensor, "sender receiver *place"],
    live: Bool[Tensor, "sender receiver *place"],
    n_edges: int,
) -> Areas:
    """CPR by signed score and CMD by magnitude at MIB's ten fractions, kept = int(fraction * all edges).

    Args:
        n_edges: edges of the graph, live or not.
    """
    sizes = [int(fraction * n_edges) for fraction in FRACTIONS]
    signed, absolute = curve(runs, scores, live, sizes, signed=True), curve(runs, scores, live, sizes)
    largest = max(*signed.share, *absolute.share)
    return Areas(cmd(absolute.share), cpr(signed.share), log_area(absolute.share), largest, signed, absolute)


def optimal_frontier(runs: MaskedRuns, live: Bool[Tensor, "sender receiver *place"], batch: int = 256) -> Curve | None:
    """The most that any circuit of each size keeps, from all subsets of up to 16 live edges; None for more."""
    places = live.nonzero(as_tuple=True)
    n = len(places[0])
    if not 0 < n <= EXHAUSTIVE:
        return None
    best = torch.full((n + 1,), -torch.inf)
    for start in range(0, 2**n, batch):
        code = torch.arange(start, min(start + batch, 2**n))
        chosen = (code[:, None] >> torch.arange(n)) & 1  # [circuit edge]
        kept = torch.zeros(len(code), *live.shape, dtype=torch.bool)
        kept[(torch.arange(len(code))[:, None], *(axis[None] for axis in places))] = chosen.bool()
        shares = share_kept(runs.values(kept), runs.clean, runs.ablated).float()
        best = best.scatter_reduce(0, chosen.sum(1), shares, "amax")
    sizes = tuple(range(n + 1))
    return Curve(sizes, sizes, tuple(best.tolist()))
