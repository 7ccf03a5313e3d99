"""95 % intervals for shares and means, with the count of independent units behind them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest, t
from torch import Generator, Tensor


@dataclass(frozen=True)
class Estimate:
    """A value with its two-sided 95 % interval; `n` is the number of independent units."""

    value: float
    low: float
    high: float
    n: int
    method: str


def share(successes: int, n: int, method: str = "wilson") -> Estimate:
    """Share of successes with a Wilson interval (or `exact` for Clopper-Pearson); [0, 1] and NaN value at n = 0.

    Source: Wilson 1927, as implemented by scipy.
    """
    if n == 0:
        return Estimate(float("nan"), 0.0, 1.0, 0, method)
    bounds = binomtest(int(successes), int(n)).proportion_ci(0.95, method=method)
    return Estimate(successes / n, float(bounds.low), float(bounds.high), int(n), method)


def clustered_share(
    hits: Bool[Tensor, "case"],
    cell: Int[Tensor, "case"],
    kind: Int[Tensor, "case"],
    generator: Generator,
    draws: int = 1000,
) -> Estimate:
    """Share of hits where cases of one cell are alike: a bootstrap that draws whole cells; n counts cells.

    Where every case agrees the bootstrap has no spread. A Wilson interval is given then, whose n counts the different
    (cell, kind) pairs: with no failure at all, nothing shows that the kinds within a cell are alike.

    Args:
        kind: what else tells cases of a cell apart, such as the answer that is asked for.
    """
    cells, index = cell.unique(return_inverse=True)
    n = len(cells)
    if n == 0:
        return Estimate(float("nan"), 0.0, 1.0, 0, "bootstrap over cells")
    if bool(hits.all()) or not bool(hits.any()):
        different = len(torch.stack([cell, kind], 1).unique(dim=0))
        whole = share(different if bool(hits.all()) else 0, different)
        return Estimate(whole.value, whole.low, whole.high, different, "wilson over cells and answers")
    right = torch.zeros(n, dtype=torch.float64).index_add(0, index, hits.double())
    total = torch.zeros(n, dtype=torch.float64).index_add(0, index, torch.ones_like(hits, dtype=torch.float64))
    rows = torch.randint(n, (draws, n), generator=generator)
    shares = (right[rows].sum(1) / total[rows].sum(1)).numpy()
    low, high = np.quantile(shares, [0.025, 0.975])
    return Estimate(float(hits.double().mean()), float(low), float(high), n, "bootstrap over cells")


def mean(values: Float[Tensor, "unit"], generator: Generator, draws: int = 1000) -> Estimate:
    """Mean over independent units with a percentile bootstrap; units are sequences unless the caller says otherwise.

    Where every unit is exactly 0 or exactly 1 the values are taken as shares, with a Wilson interval.
    """
    units = values.detach().double().cpu()
    n = len(units)
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0, "bootstrap over sequences")
    if bool((units == units[0]).all()):
        only = float(units[0])
        if only in (0.0, 1.0):  # shares without spread: the bootstrap would claim certainty
            return share(round(only * n), n)
        return Estimate(only, only, only, n, "bootstrap over sequences")
    rows = torch.randint(n, (draws, n), generator=generator)
    means = units[rows].mean(1).numpy()
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(units.mean()), float(low), float(high), n, "bootstrap over sequences")


def mean_of_strata(strata: Sequence[Float[Tensor, "unit"]]) -> Estimate:
    """Mean of the means of fixed strata, such as lengths, with Student's interval over the units within each.

    The degrees of freedom are those of the units less one for each stratum; without any, the interval is the value.
    """
    units = [one.detach().double().cpu() for one in strata]
    n, freedom = sum(map(len, units)), sum(len(one) - 1 for one in units)
    value = sum(float(one.mean()) for one in units) / len(units)
    variance = sum(float(one.var()) / len(one) for one in units if len(one) > 1) / len(units) ** 2
    half = float(t.ppf(0.975, freedom)) * variance**0.5 if freedom else 0.0
    return Estimate(value, value - half, value + half, n, "t over sequences within lengths")
