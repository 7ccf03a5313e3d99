"""Pair effects and roles count only what rounding cannot have made."""

import torch

from circuits.faithfulness import share_tie
from circuits.interactions import Measure
from tests.unit.own_answers import own_problem


def test_an_interaction_that_rounding_can_have_made_does_not_exclude_zero():
    problem = own_problem(n=80)
    part = problem.parts["score"]
    measure, tie = Measure(part.runs, part.pairs.unit, problem.live), share_tie(part.runs)
    mean, low, high = measure.interval(torch.full((40,), 0.5 * tie), 28)
    assert low < 0 < mean < high, "the same in every sequence, and yet no more than a tie"
    _, low, _ = measure.interval(torch.full((40,), 3 * tie), 28)
    assert low > 0
