"""Hypothesis tests about a circuit after Shi et al. 2024, arXiv 2410.13032, with completeness after Wang et al."""

import torch
from jaxtyping import Bool, Float
from scipy.stats import binom, binomtest
from torch import Tensor

from circuits.discovery_result import TestSummary
from circuits.faithfulness import metric_tie, share_kept, share_tie
from circuits.gate import per_unit
from circuits.masked import MaskedRuns
from circuits.problem import Part

LEVEL = 0.05
PERMUTATIONS = 999
QUANTILE = 0.9  # of random edges, which a kept one has to exceed, as Shi et al. ask
EDGES = 60  # kept edges of which minimality is tested, the least effective ones

Mask = Bool[Tensor, "sender receiver *place"]


def equivalence(part: Part, circuit: Float[Tensor, "prompt"]) -> TestSummary:
    """Does the circuit score above the model about as often as below it?

    Null: on a random sequence the circuit's metric exceeds the model's with probability one half. Sign test, two-sided;
    a small p says that the circuit is systematically better or worse. Keeping the null proves no equality. Sequences on
    which both are equal within `metric_tie` are left out.
    """
    difference = per_unit(circuit - part.runs.clean, part.pairs.unit)
    tie = metric_tie(part.runs)
    above, n = int((difference > tie).sum()), int((difference.abs() > tie).sum())
    p = float(binomtest(above, n).pvalue) if n else 1.0
    differs = p < LEVEL
    reading = "systematically above or below the model" if differs else "no difference seen, which proves none"
    return TestSummary(
        name="equivalence",
        hypothesis="circuit above the model as often as below",
        statistic=above / n if n else 0.5,
        p_value=p,
        n=n,
        reading=reading,
    )


def independence(part: Part, complement: Float[Tensor, "prompt"], generator: torch.Generator) -> TestSummary:
    """Is what the complement does unrelated to what the model does?

    Null: the metric of the complement (all live edges but the circuit's) and that of the model are independent over
    sequences. HSIC with Gaussian kernels of median width, by permutation. A small p says that the complement still
    knows something of the task. Values that differ by no more than `metric_tie` are equal.
    """
    x, y = (per_unit(values, part.pairs.unit).double() for values in (complement, part.runs.clean))
    n = len(x)
    tie = metric_tie(part.runs)
    one, two = _kernel(x, tie), _kernel(y, tie)
    centre = torch.eye(n, dtype=torch.float64) - 1 / n
    one = centre @ one @ centre
    observed = float((one * two).mean())
    orders = [torch.randperm(n, generator=generator) for _ in range(PERMUTATIONS)]
    as_large = sum(float((one * two[order][:, order]).mean()) >= observed - 1e-12 for order in orders)  # with ties
    p = (1 + as_large) / (1 + PERMUTATIONS)
    return TestSummary(
        name="independence",
        hypothesis="the complement's metric is independent of the model's",
        statistic=observed,
        p_value=p,
        n=n,
        reading="the complement still knows of the task" if p < LEVEL else "no dependence seen, which proves none",
    )


def _kernel(x: Float[Tensor, "unit"], tie: float) -> Float[Tensor, "unit unit"]:
    apart = x[:, None] - x
    distance = torch.where(apart.abs() <= tie, 0.0, apart) ** 2  # or the width would be that of rounding
    positive = distance[distance > 0]
    width = positive.median() if len(positive) else distance.new_tensor(1.0)
    return torch.exp(-distance / (2 * width))


def minimality(
    runs: MaskedRuns, kept: Mask, scores: Tensor, randoms: tuple[Mask, ...], generator: torch.Generator
) -> TestSummary:
    """Is there a kept edge that matters no more than random ones?

    Null of an edge: leaving it out changes the share kept by more than leaving out a random edge does, in at least 90 %
    of draws. A random edge is one of a random path joined to the circuit. Tested are the lowest ranked kept edges, each
    by a one-sided binomial test over the draws; an effect that is equal to a random one within twice `share_tie` does
    not exceed it. The statistic is the smallest share of draws that one of them exceeds, p that edge's times the number
    of tested edges (Bonferroni), at most 1: a small p says that the circuit holds an edge that stands out too little
    from random ones. Keeping the null proves no minimality. Source: Shi et al. 2024, minimality test; their published
    code leaves the correction out.
    """
    chance = _chance(runs, kept, randoms, generator)
    places = kept.nonzero()
    places = places[scores[kept].abs().argsort(stable=True)[:EDGES]]
    hypothesis = f"each of the weakest kept edges exceeds {QUANTILE:.0%} of random ones"
    if not len(chance) or not len(places):
        why = "no random path adds an edge" if len(places) else "no edge is kept"
        return TestSummary(
            name="minimality", hypothesis=hypothesis, statistic=0.0, p_value=None, n=0, reading=f"not tested: {why}"
        )
    base = share_kept(runs.values(kept[None])[0], runs.clean, runs.ablated)
    less = kept.repeat(len(places), *([1] * kept.dim()))
    less[(torch.arange(len(places)), *places.T)] = False
    effects = (share_kept(runs.values(less), runs.clean, runs.ablated) - base).abs()
    above = (effects[:, None] > chance + 2 * share_tie(runs)).sum(1)  # [edge]; each effect is of two runs
    p = [min(1.0, len(above) * float(binom.cdf(int(count), len(chance), QUANTILE))) for count in above]
    idle = sum(one < LEVEL for one in p)
    said = f"tested edges that exceed fewer than {QUANTILE:.0%} of random ones: {idle} of {len(p)}"
    said += "" if idle else ", proving none"
    return TestSummary(
        name="minimality",
        hypothesis=hypothesis,
        statistic=float(above.min()) / len(chance),
        p_value=min(p),
        n=len(p),
        reading=f"{said}; p corrected for {len(p)} edges (Bonferroni), {len(chance)} draws",
    )


def _chance(
    runs: MaskedRuns, kept: Mask, randoms: tuple[Mask, ...], generator: torch.Generator
) -> Float[Tensor, "draw"]:
    """|Change of the share kept| when one edge of a random path that was joined to the circuit is left out again."""
    inflated, without = [], []
    for control in randoms:
        extra = (control & ~kept).nonzero()
        if not len(extra):
            continue
        edge = tuple(extra[int(torch.randint(len(extra), (1,), generator=generator))].tolist())
        inflated.append(kept | control)
        without.append(inflated[-1].clone())
        without[-1][edge] = False
    if not inflated:
        return runs.clean.new_zeros(0)
    shares = [share_kept(runs.values(torch.stack(some)), runs.clean, runs.ablated) for some in (inflated, without)]
    return (shares[1] - shares[0]).abs()


def completeness(runs: MaskedRuns, live: Mask, kept: Mask, generator: torch.Generator, n: int = 20) -> TestSummary:
    """Does the model without some of the circuit's edges behave as the circuit without them?

    Mean over random halves K of the kept edges of |f(C without K) - f(N without K)|; 0 where the circuit holds all that
    the model can fall back on. Source: Wang et al. 2022, "Interpretability in the Wild", section 4.
    """
    places = kept.nonzero()
    circuits, models = [], []
    for _ in range(n):
        some = places[torch.rand(len(places), generator=generator) < 0.5]
        for masks, start in ((circuits, kept), (models, live)):
            masks.append(start.clone())
            masks[-1][tuple(some.T)] = False
    shares = [share_kept(runs.values(torch.stack(masks)), runs.clean, runs.ablated) for masks in (circuits, models)]
    gap = (shares[0] - shares[1]).abs()
    return TestSummary(
        name="completeness",
        hypothesis="without parts of the circuit, model and circuit do alike",
        statistic=float(gap.mean()),
        p_value=None,
        n=n,
        reading=f"mean distance {float(gap.mean()):.3f}, largest {float(gap.max()):.3f}; 0 is complete",
    )
