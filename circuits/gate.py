"""Whether a model does the task at all: without behaviour there is no circuit to look for."""

import math

import torch
from pydantic import Field
from scipy.stats import binomtest, t
from torch import Tensor

from circuits.detectors.base import Interval
from circuits.metrics import metric_rows
from circuits.problem import Part
from interp.config import Frozen

LEVEL = 0.999  # of each of the two intervals, so that untrained models pass less than once in a thousand
NO_BEHAVIOUR = "no behaviour to explain"


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
    reasons = []
    if not accuracy.low > constant:
        reasons.append(
            f"accuracy {accuracy.value:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}] is not above the {constant:.3f} "
            "of the best constant answer"
        )
    if not difference.low > 0:
        reasons.append(
            f"clean minus ablated is {difference.value:.3g} [{difference.low:.3g}, {difference.high:.3g}], not above 0"
        )
    said = f"accuracy {accuracy.value:.3f}, above the {constant:.3f} of the best constant answer"
    return Gate(
        accuracy=accuracy,
        constant=constant,
        difference=difference,
        passed=not reasons,
        reason="; ".join(reasons) or said,
    )


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
