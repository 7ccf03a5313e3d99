"""Hypothesis tests about circuits reject where they should, and say what was not tested."""

from math import comb

import pytest
import torch

from circuits.circuit_tests import EDGES, completeness, equivalence, independence, minimality
from circuits.controls import random_paths
from circuits.pruning import joined, order_of, top
from interp.rng import generator
from tests.unit.own_answers import own_problem


@pytest.fixture(scope="module")
def problem():
    return own_problem(n=80)


@pytest.fixture(scope="module")
def part(problem):
    return problem.parts["evaluate"]


@pytest.fixture(scope="module")
def found(problem):
    scores = torch.rand(problem.live.shape, generator=generator(0, "found"))
    order = order_of(scores, problem.live)
    return joined(problem, top(order, len(order) // 2, problem.live)), scores


def test_equivalence_is_a_sign_test_over_sequences(part):
    above = equivalence(part, part.runs.clean + 0.1)
    assert (above.statistic, above.n) == (1.0, 20) and above.p_value == pytest.approx(2 * 0.5**20)
    same = equivalence(part, part.runs.clean.clone())
    assert (same.statistic, same.p_value, same.n) == (0.5, 1.0, 0) and "proves none" in same.reading
    sign = torch.tensor([1.0, -1.0]).repeat(10)
    assert equivalence(part, part.runs.clean + sign).p_value == 1.0


def test_sequences_on_which_rounding_alone_separates_circuit_and_model_decide_nothing(part):
    rounding = torch.linspace(-2e-7, 4e-7, 20) * part.runs.base_logits.abs().max()
    same = equivalence(part, part.runs.clean + rounding)
    assert (same.statistic, same.p_value, same.n) == (0.5, 1.0, 0)
    better = torch.cat((rounding[:10], torch.ones(10)))
    assert equivalence(part, part.runs.clean + better).n == 10


def test_rounding_of_a_constant_complement_tells_nothing(part):
    """Its Gaussian kernel would have the width of the rounding, and rounding can follow the model's metric."""
    noise = (part.runs.clean - part.runs.clean.mean()).sign() * 1e-7
    assert independence(part, noise, generator(0, "permutations")).p_value == 1.0


def test_independence_sees_a_complement_that_still_knows_the_task(part):
    stream = generator(0, "permutations")
    knows = independence(part, part.runs.clean**2, stream)
    assert knows.p_value < 0.05 and "still knows" in knows.reading
    assert independence(part, torch.zeros(20), stream).p_value == 1.0, "a constant tells nothing"


def test_independence_rejects_noise_about_as_rarely_as_it_says(part):
    noises = torch.randn(20, 20, generator=generator(0, "noise"))
    p = [independence(part, noise, generator(0, "permutations")).p_value for noise in noises]
    assert sum(value < 0.05 for value in p) <= 4, "more than 4 of 20 has probability .003"


def test_minimality_compares_weak_edges_with_random_ones(problem, part, found):
    kept, scores = found
    randoms = random_paths(part.runs, problem.live, kept, 10, generator(0, "paths")).circuits
    result = minimality(part.runs, kept, scores, randoms, generator(0, "edges"))
    assert result.n == min(EDGES, int(kept.sum())) and 0 <= result.statistic <= 1 and 0 < result.p_value <= 1


class Added:
    """Runs of a model in which each kept edge adds its weight to the metric of every prompt."""

    def __init__(self, weights: torch.Tensor):
        self.weights, self.ablated = weights, torch.zeros(2)
        self.clean = self.ablated + weights.sum()
        self.base_logits = self.clean[:, None]

    def values(self, kept: torch.Tensor) -> torch.Tensor:
        return (kept * self.weights).sum((1, 2))[:, None].expand(-1, 2)


def added(kept: list[float], random: list[float]) -> tuple[Added, torch.Tensor, tuple[torch.Tensor, ...]]:
    """A circuit of edges with some weights, and random circuits that each add one edge of a weight to it."""
    weights = torch.tensor([kept + random])
    circuit = torch.zeros_like(weights, dtype=torch.bool)
    circuit[0, : len(kept)] = True
    others = []
    for index in range(len(random)):
        others.append(circuit.clone())
        others[-1][0, len(kept) + index] = True
    return Added(weights), circuit, tuple(others)


def minimal(kept: list[float], random: list[float]):
    runs, circuit, others = added(kept, random)
    return minimality(runs, circuit, runs.weights, others, generator(0, "edges"))


def test_the_p_value_of_minimality_is_that_of_the_weakest_edge_times_the_number_of_edges():
    random = [0.01 * step for step in range(1, 21)]
    result = minimal([0.9, 0.5, 0.155], random)  # the last exceeds 15 of 20
    expected = sum(comb(20, k) * 0.9**k * 0.1 ** (20 - k) for k in range(16))
    assert 0.04 < expected < 0.05, "without the correction the weakest edge would be called idle"
    assert result.p_value == pytest.approx(3 * expected, rel=1e-6)
    assert (result.n, result.statistic) == (3, 15 / 20)
    assert ": 0 of 3, proving none" in result.reading
    assert "p corrected for 3 edges (Bonferroni), 20 draws" in result.reading


def test_an_edge_that_does_nothing_is_called_idle_and_the_circuit_not_minimal():
    result = minimal([0.9, 0.5, 0.0], [0.01] * 20)
    assert result.p_value == pytest.approx(3 * 0.1**20) and result.statistic == 0
    assert result.reading.startswith("tested edges that exceed fewer than 90% of random ones: 1 of 3")
    assert minimal([0.9, 0.5, 0.1], [0.01] * 20).p_value == 1.0, "corrected p-values stay probabilities"


def test_an_edge_that_rounding_alone_lifts_above_random_ones_exceeds_none_of_them():
    result = minimal([0.9, 0.5, 0.01 + 2e-6], [0.01] * 20)
    assert (result.statistic, result.p_value) == (0, pytest.approx(3 * 0.1**20))


def test_minimality_is_rejected_about_as_rarely_as_it_says():
    """Kept edges that exceed exactly 90 % of random ones are the border of the null."""
    stream, rejected = generator(0, "border"), 0
    for _ in range(200):
        draws = torch.rand(60, generator=stream).tolist()
        rejected += minimal([0.9] * 5, draws).p_value < 0.05
    assert rejected <= 16, "more than 16 of 200 has probability .024 at a level of .05"


def test_minimality_without_a_random_edge_is_not_tested(problem, part, found):
    kept, scores = found
    result = minimality(part.runs, kept, scores, (kept,), generator(0, "edges"))
    assert result.p_value is None and "not tested" in result.reading
    whole = minimality(part.runs, problem.live, scores, (kept,), generator(0, "edges"))
    assert whole.p_value is None, "no random path adds an edge to the whole graph"


def test_completeness_grows_with_what_the_circuit_lacks(problem, part, found):
    kept, _ = found
    lacking = completeness(part.runs, problem.live, kept, generator(0, "halves"), 5)
    whole = completeness(part.runs, problem.live, problem.live, generator(0, "halves"), 5)
    assert lacking.statistic > whole.statistic == 0.0
