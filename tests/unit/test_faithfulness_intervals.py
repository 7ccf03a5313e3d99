"""Intervals beside the share kept: over sequences, on numbers that can be worked out by hand."""

from types import SimpleNamespace

import pytest
import torch

from circuits.faithfulness import Areas, Curve, cmd, cpr, share_kept
from circuits.faithfulness_intervals import Draws, share_intervals
from circuits.find import Settings, find_circuit
from circuits.judge import judged
from interp.rng import generator
from tests.unit.own_answers import own_problem


def draws(unit: torch.Tensor) -> Draws:
    return Draws(unit, generator(1, "draws"))


def test_a_mean_is_drawn_by_sequence_and_keeps_its_value():
    values = torch.rand(12, generator=generator(0, "values"))
    alone = draws(torch.arange(12)).means({"kl": values})["kl"]
    again = draws(torch.arange(12).repeat_interleave(5)).means({"kl": values.repeat_interleave(5)})["kl"]
    assert alone.value == pytest.approx(float(values.mean())) and alone.low < alone.value < alone.high
    assert alone.n == again.n == 12, "five prompts of one sequence are one unit"
    assert (again.low, again.high) == pytest.approx((alone.low, alone.high))


def test_a_share_has_a_wilson_interval_that_counts_each_sequence_once():
    right = torch.ones(64)
    right[:2] = 0.0
    found = share_intervals({"accuracy_circuit": right}, torch.arange(32).repeat_interleave(2))["accuracy_circuit"]
    assert (found.value, found.n) == (pytest.approx(62 / 64), 32)
    assert (found.low, found.high) == (pytest.approx(0.8426, abs=5e-5), pytest.approx(0.9945, abs=5e-5)), "31 of 32"


def test_areas_are_drawn_as_ratios_of_sums_over_the_same_sequences():
    stream = generator(0, "areas")
    runs = SimpleNamespace(clean=2 + torch.rand(16, generator=stream), ablated=torch.rand(16, generator=stream))
    steps = torch.linspace(0, 1, 10)[:, None]
    values = runs.ablated + steps * (runs.clean - runs.ablated)  # exactly a step kept on every sequence
    share = tuple(share_kept(values, runs.clean, runs.ablated).tolist())
    one = Curve(tuple(range(10)), tuple(range(10)), share, values)
    found = draws(torch.arange(16)).areas(Areas(cmd(share), cpr(share), 0.0, 1.0, one, one), runs)
    for name in ("cmd", "cpr"):
        assert found[name].high - found[name].low < 1e-6, "the same share everywhere: no draw differs"
        assert found[name].low == pytest.approx(found[name].value, abs=1e-6)
    noisy = values + torch.randn(values.shape, generator=stream)
    share = tuple(share_kept(noisy, runs.clean, runs.ablated).tolist())
    other = Curve(one.size, one.kept, share, noisy)
    found = draws(torch.arange(16)).areas(Areas(cmd(share), cpr(share), 0.0, 1.0, other, other), runs)
    assert found["cpr"].low < found["cpr"].value < found["cpr"].high


def test_a_judgement_has_an_interval_for_each_number_beside_the_share_kept():
    problem, settings = own_problem(n=96), Settings(method="exact", controls=2)
    found = find_circuit(problem, settings, look_for_interactions=False)
    one = judged(problem, found, settings, lambda *_: None, 40).faithfulness
    shares = {"accuracy_model", "accuracy_circuit"}
    assert set(one.intervals) == shares | {"metric_model", "metric_circuit", "metric_ablated", "kl", "cmd", "cpr"}
    for name, interval in one.intervals.items():
        assert interval.n == one.retained.n and interval.value == pytest.approx(getattr(one, name), abs=1e-5), name
        assert interval.low <= interval.value + 1e-6 or name == "cmd"
