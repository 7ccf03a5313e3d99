"""Models without behaviour are told apart from models with it, beyond chance."""

from dataclasses import replace

import pytest
import torch

from circuits.gate import behaviour, constant_accuracy, crossed_accuracy, fewest, mean_interval, per_unit, share
from circuits.problem import Problem
from tests.unit.own_answers import own_pairs, own_problem
from tests.unit.small_decoders import small_decoder


def test_a_model_that_gives_its_own_answers_passes():
    gate = behaviour(own_problem(n=96).parts["score"])
    assert gate.passed and gate.accuracy.value == 1.0 and gate.accuracy.n == 48


def test_twenty_untrained_models_have_no_behaviour():
    answers = torch.randint(7, (96,), generator=torch.Generator().manual_seed(5))
    passed = []
    for seed in range(20):
        decoder = small_decoder("grouped").to(torch.float32)
        pairs = own_pairs(decoder, n=96, seed=seed, answers=answers)
        passed.append(behaviour(Problem(decoder, pairs).parts["score"]).passed)
    assert not any(passed)


def test_always_giving_one_answer_is_no_behaviour():
    decoder = small_decoder("grouped").to(torch.float32)
    constant = torch.full((96,), 3)
    part = Problem(decoder, own_pairs(decoder, n=96, answers=constant)).parts["score"]
    gate = behaviour(part)
    assert constant_accuracy(part) == 1.0 and not gate.passed and "best constant" in gate.reason


def test_a_fixed_order_of_tokens_is_no_behaviour():
    """Where an answer need only beat some tokens, one order of all tokens can be right without a look at the prompt."""
    decoder = small_decoder("grouped").to(torch.float32)
    order = torch.arange(decoder.W_U.shape[1], 0.0, -1)
    blind = replace(decoder, W_U=torch.zeros_like(decoder.W_U), b_U=order)
    drawn = torch.Generator().manual_seed(5)
    answers = torch.randint(0, 3, (96,), generator=drawn)
    pairs = replace(own_pairs(blind, n=96, answers=answers), wrong=(answers + 3)[:, None, None])
    part = Problem(blind, pairs).parts["score"]
    assert constant_accuracy(part) < 0.6 and crossed_accuracy(part) == 1.0
    assert behaviour(part).accuracy.value == 1.0 and not behaviour(part).passed


def test_units_count_once():
    values, unit = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([7, 7, 9, 9])
    assert per_unit(values, unit).tolist() == [0.5, 1.0]
    assert share(per_unit(values, unit)).n == 2


def test_one_unit_has_no_interval_that_excludes_zero():
    found = mean_interval(torch.tensor([5.0]))
    assert found.low < 0 < found.high and found.n == 1


def test_with_too_few_sequences_even_a_perfect_result_does_not_pass():
    assert [fewest(constant) for constant in (0.0, 0.125, 0.5, 0.75, 1.0)] == [8, 8, 11, 33, None]
    for constant in (0.125, 0.5, 0.75):
        n = fewest(constant)
        fall = 1 + 0.5 * torch.tensor([(-1.0) ** i for i in range(n)])
        fall = 1 + (fall - fall.mean()) * 0.5 / fall.std()
        assert share(torch.ones(n)).low > constant and mean_interval(fall).low > 0
        fewer = share(torch.ones(n - 1)).low <= constant or n == 8
        assert fewer, "one less would not do; of the fall, 7 are too few where its standard deviation is half its mean"
    seven = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 0.0])
    assert mean_interval(1 + seven * 0.5 / seven.std()).low < 0


@pytest.mark.parametrize(("n", "part", "units"), [(4, "evaluate", 1), (8, "evaluate", 2), (16, "evaluate", 4)])
def test_a_model_that_is_right_on_too_few_sequences_is_not_called_without_behaviour(n, part, units):
    gate = behaviour(own_problem(n=n).parts[part])
    assert gate.accuracy.value == 1.0 and gate.accuracy.n == units and not gate.passed
    assert gate.too_few and gate.needed >= 8, "even where one answer is right for all of so few prompts"
    assert ("one sequence gives no interval" in gate.reason) is (units == 1)


def test_with_all_answers_right_the_spread_that_is_seen_says_how_many_it_takes():
    gate = behaviour(own_problem(n=48).parts["score"])
    assert gate.accuracy.value == 1.0 and gate.accuracy.n == 24 and gate.difference.low < 0
    assert gate.too_few and gate.needed == 25
    assert behaviour(own_problem(n=50).parts["score"]).passed, "25 of these sequences do"


def test_a_failed_gate_names_the_end_of_the_interval_and_its_level():
    decoder = small_decoder("grouped").to(torch.float32)
    answers = torch.randint(7, (96,), generator=torch.Generator().manual_seed(5))
    gate = behaviour(Problem(decoder, own_pairs(decoder, n=96, answers=answers)).parts["score"])
    assert not gate.passed and not gate.too_few
    accuracy = gate.accuracy
    said = f"the lower end of its 99.9 % interval [{accuracy.low:.3f}, {accuracy.high:.3f}] is not above"
    assert gate.reason.startswith(f"accuracy is {accuracy.value:.3f}, and {said} {gate.constant:.3f}, that of the best")


def test_a_fall_that_rounding_can_have_made_is_none():
    """Where every answer is right and no ablation changes anything, recomputing alone gives a difference."""
    part = own_problem(n=96).parts["score"]
    part.runs.ablated = part.runs.clean - 1e-6
    gate = behaviour(part)
    assert gate.difference.low > 0 and not gate.passed and "is not above 0" in gate.reason
