"""Hypothesis tests about circuits reject where they should, and say what was not tested."""

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


def test_minimality_without_a_random_edge_is_not_tested(part, found):
    kept, scores = found
    result = minimality(part.runs, kept, scores, (kept,), generator(0, "edges"))
    assert result.p_value is None and "not tested" in result.reading


def test_an_edge_that_does_nothing_fails_minimality(problem, part):
    kept, scores = problem.live.clone(), torch.ones(problem.live.shape)
    idle = part.runs.graph.index("embed->logits")
    scores[idle] = 0.0
    only = torch.zeros_like(kept)
    only[idle] = True
    result = minimality(part.runs, kept, scores, (only,), generator(0, "edges"))
    assert result.p_value is None, "no random path adds an edge to the whole graph"


def test_completeness_grows_with_what_the_circuit_lacks(problem, part, found):
    kept, _ = found
    lacking = completeness(part.runs, problem.live, kept, generator(0, "halves"), 5)
    whole = completeness(part.runs, problem.live, problem.live, generator(0, "halves"), 5)
    assert lacking.statistic > whole.statistic == 0.0
