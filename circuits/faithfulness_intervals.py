"""Intervals over sequences of what stands beside the share kept: metric, divergence, accuracy, and the areas of MIB."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from circuits.detectors.base import Interval
from circuits.faithfulness import DRAWS, FRACTIONS, Areas
from circuits.gate import per_unit
from circuits.masked import MaskedRuns
from probes.intervals import share


def share_intervals(values: Mapping[str, Float[Tensor, "prompt"]], unit: Int[Tensor, "prompt"]) -> dict[str, Interval]:
    """95 % Wilson intervals of shares in [0, 1], by name.

    Each sequence counts as one, right or wrong. Sequences that are partly right vary less, so that the interval is too
    wide for them and never too narrow.
    """
    found = {}
    for name, one in values.items():
        right = per_unit(one, unit)
        whole = share(round(float(right.sum())), len(right))
        bounds = {"low": whole.low, "high": whole.high, "n": whole.n}
        found[name] = Interval(value=float(one.mean()), **bounds, method="wilson over sequences")
    return found


class Draws:
    """Sequences drawn with replacement, the same draws for everything that is measured on them."""

    def __init__(self, unit: Int[Tensor, "prompt"], generator: Generator):
        self.index = unit.unique(return_inverse=True)[1].cpu()
        self.n = int(self.index.max()) + 1
        rows = torch.randint(self.n, (DRAWS, self.n), generator=generator)
        self.times = torch.zeros(DRAWS, self.n, dtype=torch.float64)  # [draw unit]
        self.times.scatter_add_(1, rows, torch.ones_like(rows, dtype=torch.float64))

    def sums(self, values: Float[Tensor, "row prompt"]) -> Float[Tensor, "draw row"]:
        """Sum over the drawn sequences of each row."""
        by_unit = torch.zeros(len(values), self.n, dtype=torch.float64)
        return self.times @ by_unit.index_add(1, self.index, values.detach().cpu().double()).T

    def means(self, values: Mapping[str, Float[Tensor, "prompt"]]) -> dict[str, Interval]:
        """95 % intervals of means over prompts, by name."""
        rows = torch.stack([one.detach().cpu().double() for one in values.values()])
        drawn = self.sums(rows) / self.sums(torch.ones_like(rows[:1]))
        return {
            name: self.interval(float(row.mean()), drawn[:, place], "bootstrap over sequences")
            for place, (name, row) in enumerate(zip(values, rows, strict=True))
        }

    def areas(self, areas: Areas, runs: MaskedRuns) -> dict[str, Interval]:
        """95 % intervals of CMD and CPR, by name; numerator, denominator and all sizes are drawn together."""
        ablated = runs.ablated.detach().cpu().double()
        whole = self.sums((runs.clean.detach().cpu().double() - ablated)[None])
        signed, absolute = (
            self.sums(one.values.detach().cpu().double() - ablated) / whole for one in (areas.signed, areas.absolute)
        )
        at, method = torch.tensor(FRACTIONS, dtype=torch.float64), "bootstrap over sequences, ratio of means"
        return {
            "cmd": self.interval(areas.cmd, torch.trapezoid((1 - absolute).abs(), at), method),
            "cpr": self.interval(areas.cpr, torch.trapezoid(signed, at), method),
        }

    def interval(self, value: float, drawn: Float[Tensor, "draw"], method: str) -> Interval:
        """A value with the 2.5 % and 97.5 % quantiles of the draws."""
        low, high = np.quantile(drawn.numpy(), [0.025, 0.975])
        return Interval(value=value, low=float(low), high=float(high), n=self.n, method=method)
