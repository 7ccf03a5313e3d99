"""Models without behaviour are told apart from models with it, beyond chance."""

from dataclasses import replace

import torch

from circuits.gate import behaviour, constant_accuracy, crossed_accuracy, mean_interval, per_unit, share
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
