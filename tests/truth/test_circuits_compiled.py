"""Circuit discovery against eight compiled algorithms, plain and in their hardest form."""

from functools import cache

import pytest

from benchmarks.circuit_truth import compiled
from tests.truth.circuit_measuring import Known
from tests.truth.compiled_circuits import ALGORITHMS

known = cache(compiled)


def test_there_are_at_least_five_algorithms():
    assert len(ALGORITHMS) >= 5


@pytest.mark.parametrize("form", ["plain", "all"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rankings_find_compiled_algorithms(algorithm, form):
    case: Known = known(algorithm, form)
    share, _ = case.behaviour()
    assert share >= 0.95
    assert bool(case.scored[case.edges].all()), "an edge of the circuit is not exercised by the prompts"
    assert case.score("exact").auroc >= 0.99
    assert case.score("eap_ig").auroc >= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_pipeline_finds_compiled_algorithms(algorithm):
    assert known(algorithm, "all").score("pipeline").auroc >= 0.99


@pytest.mark.parametrize("seed", [1, 2])
def test_algorithms_move_to_other_heads_with_the_seed(seed):
    drawn = {algorithm: make(0).true != make(seed).true for algorithm, make in ALGORITHMS.items()}
    assert sum(drawn.values()) >= 5
