"""Hypothesis tests about a circuit after Shi et al. 2024, arXiv 2410.13032, with completeness after Wang et al."""

import torch
from jaxtyping import Bool, Float
from scipy.stats import binomtest
from torch import Tensor

from circuits.discovery_result import TestSummary
from circuits.faithfulness import share_kept
from circuits.gate import per_unit
from circuits.masked import MaskedRuns
from circuits.problem import Part

LEVEL = 0.05
PERMUTATIONS = 999
EDGES = 60  # kept edges of which minimality is tested, the least effective ones

Mask = Bool[Tensor, "sender receiver *place"]


def equivalence(part: Part, circuit: Float[Tensor, "prompt"]) -> TestSummary:
    """Does the circuit score above the model about as often as below it?

    Null: on a random sequence the circuit's metric exceeds the model's with probability one half. Sign test, two-sided;
    a small p says that the circuit is systematically better or worse. Keeping the null proves no equality.
    """
    difference = per_unit(circuit - part.runs.clean, part.pairs.unit)
    above, n = int((difference > 0).sum()), int((difference != 0).sum())
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
    knows something of the task.
    """
    x, y = (per_unit(values, part.pairs.unit).double() for values in (complement, part.runs.clean))
    n = len(x)
    one, two = _kernel(x), _kernel(y)
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


def _kernel(x: Float[Tensor, "unit"]) -> Float[Tensor, "unit unit"]:
    distance = (x[:, None] - x) ** 2
    positive = distance[distance > 0]
    width = positive.median() if len(positive) else distance.new_tensor(1.0)
    return torch.exp(-distance / (2 * width))


def minimality(
    runs: MaskedRuns, kept: Mask, scores: Tensor, randoms: tuple[Mask, ...], generator: torch.Generator
) -> TestSummary:
    """Does leaving out a kept edge cost more than leaving out an edge of a random path added to the circuit?

    For each of the lowest ranked kept edges: |change of the share kept| without it, against the same for random edges
    of random paths joined to the circuit. The statistic is the share of the tested edges above the random ones' 95 %
    quantile; p is that of the least of them: since all must exceed chance, it needs no factor for their number.
    """
    places = kept.nonzero()
    places = places[scores[kept].abs().argsort(stable=True)[:EDGES]]
    base = share_kept(runs.values(kept[None])[0], runs.clean, runs.ablated)
    less = kept.repeat(len(places), *([1] * kept.dim()))
    less[(torch.arange(len(places)), *places.T)] = False
    effects = (share_kept(runs.values(less), runs.clean, runs.ablated) - base).abs().sort().values
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
        return TestSummary(
            name="minimality",
            hypothesis="kept edges matter no more than random ones",
            statistic=0.0,
            p_value=None,
            n=0,
            reading="not tested: no random path adds an edge",
        )
    shares = [share_kept(runs.values(torch.stack(some)), runs.clean, runs.ablated) for some in (inflated, without)]
    chance = (shares[1] - shares[0]).abs()
    quantile = float(chance.quantile(1 - LEVEL))
    above = float((effects > quantile).float().mean())
    p = (1 + int((chance >= effects[0]).sum())) / (1 + len(chance))  # all edges must pass, so the least decides alone
    return TestSummary(
        name="minimality",
        hypothesis="kept edges matter no more than random ones",
        statistic=above,
        p_value=p,
        n=len(effects),
        reading=f"{above:.0%} of the {len(effects)} weakest kept edges exceed 95 % of {len(chance)} random ones",
    )


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
