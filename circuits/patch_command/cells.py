"""Mean effect of each patch over prompts, with its 95 % interval and its share of the whole difference."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from circuits.patch_command.run import RunPatches, StepPatches
from circuits.patch_result import REASONS
from interp.rng import generator
from probes.intervals import Estimate, mean, share

DRAWS = 1000
UNREACHED = "nothing that differs reaches the metric"
METHOD = "bootstrap over prompts"
AT_A_TIME = 4096  # effects whose resampled means are in memory together
SHARED = ("logit-diff", "log-prob")  # metrics whose effects are told as shares of the whole difference
# Resolution over the size of the metric: eight spacings of the format, as sums round many times; in the coarse
# precisions one, as only products are coarse there.
ROUNDING = {"fp64": 8 * 2.0**-52, "fp32": 8 * 2.0**-23, "tf32": 2.0**-10, "bf16": 2.0**-7}


@dataclass(frozen=True)
class Cell:
    """The effect of one patch at one step of the task, over its prompts.

    Attributes:
        pos: position; None where the patch acts on all of them.
        effect: mean over prompts. One that is not resolved keeps its value, and its interval takes in the resolution.
        share: effect / (metric of the source run - metric of the base run), as a ratio of means; None where there is no
            source run, where the two runs do not differ surely, where the effect is not resolved, and for clock pairs,
            whose donor answers neither.
        skipped: why the effect is exactly zero for every prompt and was not computed; empty if it was for some.
        resolved: whether the effect is larger than `resolution`; what is not may be rounding and counts as 0.
    """

    t: int
    component: str
    place: str
    pos: int | None
    effect: Estimate
    share: Estimate | None
    skipped: str
    resolved: bool = True

    @property
    def is_sure(self) -> bool:
        """Whether the effect is resolved and its interval leaves zero out."""
        return not self.skipped and self.resolved and not self.effect.low <= 0 <= self.effect.high


Cells = list[list[list[Cell]]]  # by step, component and place


def cells_of(found: RunPatches) -> Cells:
    """Cells by step, component and place."""
    return [_step_cells(found, step) for step in found.steps]


def resolution(found: RunPatches, step: StepPatches) -> float:
    """Largest size of an effect that rounding alone may give, in the unit of the metric; 0 for accuracy, which counts.

    ROUNDING of the precision times the size of the metric: its largest absolute value in the base or the source run
    over the prompts of the step, and at least 1, for a metric near 0 is still made of logits that are not.
    """
    if found.request.metric == "accuracy":
        return 0.0
    sizes = [float(run.abs().max()) for run in (step.base, step.source) if run is not None]
    return ROUNDING[found.request.precision] * max(1.0, *sizes)


def strongest(cells: Cells, count: int) -> list[Cell]:
    """The patches with the largest effects among those that are resolved and whose interval leaves zero out."""
    sure = [cell for step in cells for row in step for cell in row if cell.is_sure]
    return sorted(sure, key=lambda cell: -abs(cell.effect.value))[:count]


def _step_cells(found: RunPatches, step: StepPatches) -> list[list[Cell]]:
    effect = step.effect.double().flatten(1)  # [prompt cell]
    drawn = resampled(len(effect), generator(found.request.seed, "patch intervals", step.t))
    estimates = _estimates(effect, drawn)
    if found.request.metric == "accuracy":
        estimates = [of_shares(effect[:, index], one) for index, one in enumerate(estimates)]
    whole = _whole_difference(found, step, drawn)
    shares = [None] * len(estimates) if whole is None else _estimates(effect, drawn, whole)
    reasons, width = _reasons(step, found.request.metric), len(step.places)
    has_place, least = found.request.unit.endswith("position"), resolution(found, step)

    def cell(component: int, place: int) -> Cell:
        i, position = component * width + place, place if has_place else None
        about = (step.t, step.components[component], step.places[place], position)
        return _resolved(Cell(*about, estimates[i], shares[i], reasons[i]), least)

    return [[cell(row, place) for place in range(width)] for row in range(len(step.components))]


def _resolved(cell: Cell, least: float) -> Cell:
    """The cell; where its effect may be rounding, with an interval that says so and without a share."""
    if cell.skipped or abs(cell.effect.value) > least or not least:
        return cell
    wide = replace(cell.effect, low=min(cell.effect.low, -least), high=max(cell.effect.high, least))
    return replace(cell, effect=wide, share=None, resolved=False)


def _estimates(
    effect: Float[Tensor, "prompt cell"], drawn: Float[Tensor, "draw prompt"], whole: Tensor | None = None
) -> list[Estimate]:
    """Means with their intervals, or ratios of means."""
    values = effect.mean(0) / (1 if whole is None else whole.mean())
    ends = zip(values.tolist(), *bounds(effect, drawn, whole), strict=True)
    return [Estimate(value, low, high, len(effect), METHOD) for value, low, high in ends]


def _whole_difference(found: RunPatches, step: StepPatches, drawn: Tensor) -> Float[Tensor, "prompt"] | None:
    """metric(source run) - metric(base run) where effects are told as shares of it; it must surely not be zero."""
    if step.source is None or found.request.metric not in SHARED or found.request.pairs == "clock":
        return None
    whole = (step.source - step.base).double()
    (low,), (high,) = bounds(whole[:, None], drawn)
    return None if low <= 0 <= high else whole


def _reasons(step: StepPatches, metric: str) -> list[str]:
    """For each cell the commonest reason, where no prompt was computed; the engine has none for edges."""
    reason = step.reason.flatten(1)
    ran = (reason == 0).any(0).tolist()
    words = ["" if some else REASONS[index] for some, index in zip(ran, reason.mode(0).values.tolist(), strict=True)]
    if "->" not in step.components[0]:
        return words
    unreached = (step.effect == 0).flatten(1).all(0) & (metric != "accuracy")  # accuracy may stay for other causes
    return [UNREACHED if zero else "" for zero in unreached.tolist()]


def resampled(n: int, stream: Generator, draws: int = DRAWS) -> Float[Tensor, "draw prompt"]:
    """Weights of each prompt in each bootstrap sample; the same draws as `probes.intervals.mean` for one cell."""
    rows: Int[Tensor, draw_prompt] = torch.randint(n, (draws, n), generator=stream)
    weights = torch.zeros(draws, n, dtype=torch.float64)
    return weights.scatter_add_(1, rows, torch.full(rows.shape, 1 / n, dtype=torch.float64))


def bounds(
    values: Float[Tensor, "prompt cell"],
    drawn: Float[Tensor, "draw prompt"],
    whole: Float[Tensor, "prompt"] | None = None,
) -> tuple[list[float], list[float]]:
    """2.5 % and 97.5 % quantiles of each cell's mean over bootstrap samples.

    Args:
        whole: divide each sample's mean by that of this, for the interval of a ratio of means.
    """
    low: list[float] = []
    high: list[float] = []
    for first in range(0, values.shape[1], AT_A_TIME):
        means = drawn @ values[:, first : first + AT_A_TIME].cpu()  # [draw cell]
        means = means if whole is None else means / (drawn @ whole.cpu())[:, None]
        ends = np.quantile(means.numpy(), [0.025, 0.975], axis=0)
        low += ends[0].tolist()
        high += ends[1].tolist()
    return low, high


def of_shares(values: Float[Tensor, "prompt"], bootstrapped: Estimate) -> Estimate:
    """A change of accuracy: where all prompts agree the bootstrap has no spread, and a Wilson interval is given."""
    first = float(values[0])
    if not bool((values == first).all()):
        return bootstrapped
    agreed = share(len(values), len(values))
    if first == 0:
        return Estimate(0.0, agreed.low - 1, 1 - agreed.low, len(values), "wilson")
    ends = sorted((first * agreed.low, first * agreed.high))
    return Estimate(first, ends[0], ends[1], len(values), "wilson")


def of_runs(found: RunPatches, steps: Sequence[StepPatches] | None = None) -> dict[str, Estimate]:
    """The metric of the base run and of the source run, if any, and the share of right clean answers.

    Args:
        steps: whose prompts to take; None for those of all steps.
    """
    steps = steps or found.steps
    stream = generator(found.request.seed, "patch runs")
    values = {"base": torch.cat([step.base for step in steps])}
    if steps[0].source is not None:
        values["source"] = torch.cat([step.source for step in steps])
    right = torch.cat([step.right for step in steps])
    estimates = {name: _of_values(some, found.request.metric, stream) for name, some in values.items()}
    return estimates | {"right": share(int(right.sum()), len(right))}


def _of_values(values: Float[Tensor, "prompt"], metric: str, stream: Generator) -> Estimate:
    if metric == "accuracy":
        return share(int(values.sum()), len(values))
    if bool((values == values[0]).all()):  # such as the divergence of the base run from itself
        return Estimate(float(values[0]), float(values[0]), float(values[0]), len(values), METHOD)
    return replace(mean(values, stream), method=METHOD)
