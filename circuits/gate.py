"""Whether a model does the task at all: without behaviour there is no circuit to look for."""

import math

import torch
from pydantic import Field
from scipy.stats import binomtest, norm, t
from torch import Tensor

from circuits.detectors.base import Interval
from circuits.faithfulness import metric_tie
from circuits.metrics import metric_rows
from circuits.problem import Part
from interp.config import Frozen

LEVEL = 0.999  # of each of the two intervals, so that untrained models pass less than once in a thousand
SPREAD = 0.5  # of a perfect result's fall of the metric: standard deviation over sequences as a share of the mean
BEYOND = 10  # times as many units as were given: a fall of the metric that would take more is as good as none
Z = float(norm.ppf(0.5 + LEVEL / 2))
NO_BEHAVIOUR = "no behaviour to explain"
TOO_FEW = "too few prompts to tell"


class Gate(Frozen):
    """Clean accuracy against the best constant answer, and the sign of clean minus ablated."""

    accuracy: Interval = Field(description="share of answers that beat every wrong one; units are sequences")
    constant: float = Field(
        description="accuracy without a look at the prompt: of the most frequent answer, of a fair guess, or of the "
        "model's own logits for other prompts"
    )
    difference: Interval = Field(description="metric of the clean run minus that of the ablated one, mean over units")
    passed: bool
    reason: str
    needed: int | None = Field(
        None,
        description="units with which a perfect result passes: every answer right, and a fall of the metric whose "
        "standard deviation is half its mean, or more where more is seen with every answer right; null: no number is "
        "enough, or not known",
    )

    @property
    def too_few(self) -> bool:
        """Whether so few units say nothing, since even a perfect result would not pass with them."""
        return not self.passed and self.needed is not None and self.accuracy.n < self.needed


def behaviour(part: Part) -> Gate:
    """Does the model answer better than a constant, and worse when everything is ablated?

    Both must hold beyond their 99.9 % intervals over units: an untrained model prefers some answer at random, and so
    can be right more often than a fair guess on any one set of prompts, but not more often than the best constant.
    Where a right answer need only beat some wrong ones, the best constant is an order of all tokens: the model's own
    logits for other prompts stand for it.
    """
    runs, pairs = part.runs, part.pairs
    full = runs.graph.exists[None]
    right = per_unit(runs.values(full, part.accuracy)[0], pairs.unit)
    moved = per_unit(runs.clean - runs.ablated, pairs.unit)
    accuracy, difference, constant = (
        share(right),
        mean_interval(moved),
        max(constant_accuracy(part), crossed_accuracy(part.problem.parts["score"])),
    )
    passed = accuracy.low > constant, difference.low > metric_tie(runs)
    seen = float(moved.std() / moved.mean()) if len(moved) > 1 and accuracy.value == 1 else math.inf
    spread = max(SPREAD, seen) if 0 < seen < math.sqrt(BEYOND * len(moved)) / Z else SPREAD
    least = fewest(0.0, spread)  # of fewer prompts some one answer may be right for all
    return Gate(
        accuracy=accuracy,
        constant=constant,
        difference=difference,
        passed=all(passed),
        reason=_reason(accuracy, difference, constant, *passed),
        needed=fewest(constant, spread) or (None if len(moved) >= least else least),
    )


def _reason(accuracy: Interval, difference: Interval, constant: float, is_right: bool, falls: bool) -> str:
    """What failed, or the accuracy where nothing did."""
    interval = f"the lower end of its {100 * LEVEL:g} % interval"
    reasons = []
    if not is_right:
        reasons.append(
            f"accuracy is {accuracy.value:.3f}, and {interval} [{accuracy.low:.3f}, {accuracy.high:.3f}] is not above "
            f"{constant:.3f}, that of the best constant answer"
        )
    if not falls and difference.n < 2:
        reasons.append(f"clean minus ablated is {difference.value:.3g}, and one sequence gives no interval")
    elif not falls:
        reasons.append(
            f"clean minus ablated is {difference.value:.3g}, and {interval} [{difference.low:.3g}, "
            f"{difference.high:.3g}] is not above 0"
        )
    return "; ".join(reasons) or f"accuracy {accuracy.value:.3f}, above the {constant:.3f} of the best constant answer"


def fewest(constant: float, spread: float = SPREAD) -> int | None:
    """Units with which a perfect result passes at the gate's level; None where no number would do.

    With n units all right the Wilson interval begins at n / (n + z^2). That of the fall of the metric excludes 0 where
    its mean exceeds t / sqrt(n) of its standard deviations.

    Args:
        constant: accuracy of the best constant answer.
        spread: standard deviation of the fall over units, as a share of its mean.
    """
    if constant >= 1:
        return None
    n = max(2, math.floor(constant * Z**2 / (1 - constant)) + 1)
    while spread * float(t.ppf(0.5 + LEVEL / 2, n - 1)) >= math.sqrt(n):
        n += 1
    return n


def per_unit(values: Tensor, unit: Tensor) -> Tensor:
    """Mean over the prompts of each unit."""
    index = unit.unique(return_inverse=True)[1].to(values.device)
    total = values.new_zeros(int(index.max()) + 1).index_add(0, index, values)
    return total / torch.bincount(index).to(values)


def share(values: Tensor) -> Interval:
    """Mean of shares over units with a Wilson interval that counts each unit once."""
    n, mean = len(values), float(values.mean())
    bounds = binomtest(round(mean * n), n).proportion_ci(LEVEL, method="wilson")
    return Interval(
        value=mean, low=float(bounds.low), high=float(bounds.high), n=n, method="wilson over units", level=LEVEL
    )


def mean_interval(values: Tensor) -> Interval:
    """Mean over units with Student's interval; without bounds for a single unit."""
    n, mean = len(values), float(values.mean())
    if n < 2:
        spread = abs(mean) + 1.0
        return Interval(value=mean, low=mean - spread, high=mean + spread, n=n, method="one unit: no interval")
    spread = float(t.ppf(0.5 + LEVEL / 2, n - 1)) * float(values.std()) / math.sqrt(n)
    return Interval(value=mean, low=mean - spread, high=mean + spread, n=n, method="t over units", level=LEVEL)


def constant_accuracy(part: Part) -> float:
    """The best that always giving one token can do, and at least a fair guess among the choices."""
    pairs = part.pairs
    rows = metric_rows(part.metric, pairs.lengths)
    answers = pairs.answers[rows.prompt, rows.column]  # [row choice]
    counted = torch.zeros(pairs.d_vocab, dtype=torch.float64)
    for tokens in answers:
        counted[tokens[tokens >= 0].unique()] += 1
    wrong = (pairs.wrong[rows.prompt, rows.column] >= 0).sum(1) if pairs.wrong.shape[-1] else torch.zeros(len(answers))
    choices = torch.where(wrong > 0, wrong + (answers >= 0).sum(1), torch.tensor(pairs.d_vocab))
    guess = ((answers >= 0).sum(1) / choices).mean()
    return max(float(counted.max()) / len(answers), float(guess))


def crossed_accuracy(part: Part, most: int = 32) -> float:
    """Accuracy with the logits that the model has for other sequences at the same read position.

    Args:
        most: other prompts tried for each.
    """
    rows, unit, logits = part.runs.rows, part.pairs.unit, part.runs.base_logits
    found, counted = 0.0, 0
    for column in rows.column.unique():
        own = (rows.column == column).nonzero()[:, 0]
        for by in range(1, min(len(own), most + 1)):
            order = torch.arange(len(rows.column), device=own.device)
            order[own] = own.roll(by)
            right = part.accuracy.of_logits(logits[order], rows, logits[order])[own]
            fair = unit[rows.prompt[own].cpu()] != unit[rows.prompt[order[own]].cpu()]
            found, counted = found + float(right[fair.to(right.device)].sum()), counted + int(fair.sum())
    return found / counted if counted else 0.0
