"""CPR and CMD on numbers worked out by hand, bootstrap over sequences, and the best circuit of every size."""

from itertools import product

import pytest
import torch

from circuits.circuit_tests import completeness
from circuits.faithfulness import (
    FRACTIONS,
    area,
    cmd,
    cpr,
    curve,
    log_area,
    mib_areas,
    optimal_frontier,
    retained,
    share_kept,
    sizes_for,
)
from circuits.problem import Problem
from interp.rng import generator
from tests.unit.own_answers import own_pairs, own_problem
from tests.unit.small_decoders import small_decoder

LATE = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.2, 0.5, 0.9, 1.0)  # shares at MIB's ten fractions


def small_problem():
    """One layer with one head and an MLP: few enough edges to run every circuit."""
    decoder = small_decoder("preset", n_layers=1, n_heads=1).to(torch.float32)
    return Problem(decoder, own_pairs(decoder))


def test_the_fractions_are_those_of_mib():
    assert FRACTIONS == (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def test_cpr_is_the_sum_of_trapezoids_on_a_linear_axis():
    by_hand = 0.05 * 0.1 + 0.1 * 0.35 + 0.3 * 0.7 + 0.5 * 0.95  # .05-.1, .1-.2, .2-.5, .5-1; zero before
    assert by_hand == pytest.approx(0.725)
    assert cpr(LATE) == pytest.approx(0.725)


def test_cmd_is_the_area_of_the_distance_from_one():
    by_hand = 0.049 * 1 + 0.05 * 0.9 + 0.1 * 0.65 + 0.3 * 0.3 + 0.5 * 0.05
    assert by_hand == pytest.approx(0.274)
    assert cmd(LATE) == pytest.approx(0.274)


def test_the_whole_model_gives_999_thousandths_since_there_is_no_point_at_zero():
    assert cpr([1.0] * 10) == pytest.approx(0.999)
    assert cmd([1.0] * 10) == 0.0
    assert cmd([0.0] * 10) == pytest.approx(0.999)
    assert log_area([1.0] * 10) == pytest.approx(1.0)


def test_a_circuit_that_beats_the_model_gains_cpr_and_loses_cmd():
    beats = (*[1.0] * 7, 0.5, 1.5, 1.0)
    assert cpr(beats) == pytest.approx(0.999 - 0.1 * 0.25 + 0.3 * 0 + 0.5 * 0.25)
    assert cmd(beats) == pytest.approx(0.1 * 0.25 + 0.3 * 0.5 + 0.5 * 0.25), "distances at the points; not split at 1"


def test_the_log_axis_weighs_each_factor_alike():
    only_first = [1.0, 1.0, *[0.0] * 8]
    widths = torch.tensor(FRACTIONS).log().diff() / torch.tensor(1000.0).log()
    assert log_area(only_first) == pytest.approx(float(widths[0] + widths[1] / 2), abs=1e-6)


def test_area_of_one_trapezoid():
    assert area([2, 4], [1, 3]) == 6


def test_share_kept_is_a_ratio_of_means():
    values, clean, ablated = torch.tensor([3.0, 5.0]), torch.tensor([5.0, 9.0]), torch.tensor([1.0, 1.0])
    assert float(share_kept(values, clean, ablated)) == 0.5
    assert float(share_kept(2 * clean, clean, ablated)) == pytest.approx(13 / 6), "not clipped"


def test_the_interval_counts_sequences_not_prompts():
    stream = generator(0, "test")
    clean = 4 + torch.rand(12, generator=stream)
    values, ablated = clean * torch.rand(12, generator=stream), torch.zeros(12)
    alone = retained(values, clean, ablated, torch.arange(12), generator(1, "draws"))
    doubled = [x.repeat_interleave(5) for x in (values, clean, ablated, torch.arange(12))]
    again = retained(*doubled, generator(1, "draws"))
    assert alone.n == again.n == 12
    assert (again.value, again.low, again.high) == pytest.approx((alone.value, alone.low, alone.high))
    assert alone.low < alone.value < alone.high
    prompts_as_units = retained(*doubled[:3], torch.arange(60), generator(1, "draws"))
    assert prompts_as_units.high - prompts_as_units.low < 0.7 * (alone.high - alone.low)


def test_no_ratio_where_the_model_itself_may_do_nothing():
    clean = torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert retained(clean, clean, torch.zeros(4), torch.arange(4), generator(0, "draws")) is None


def test_the_curve_ends_at_the_model_and_counts_edges_on_paths():
    problem = small_problem()
    runs = problem.parts["evaluate"].runs
    n_live = int(problem.live.sum())
    scores = torch.rand(problem.live.shape, generator=generator(0, "scores")) * problem.live
    found = curve(runs, scores, problem.live, sizes_for(n_live))
    assert found.size == tuple(range(1, n_live + 1)), "every size below 1,000 live edges"
    assert found.share[-1] == pytest.approx(1.0, abs=1e-5) and found.kept[-1] == n_live
    assert all(kept <= size for kept, size in zip(found.kept, found.size, strict=True))
    assert len(sizes_for(5000)) <= 40 and sizes_for(5000)[-1] == 5000


def test_mib_sizes_are_fractions_of_all_edges_and_cpr_ranks_by_sign():
    problem = small_problem()
    runs, live = problem.parts["evaluate"].runs, problem.live
    scores = torch.randn(live.shape, generator=generator(0, "scores")) * live
    n_edges = int(runs.graph.exists.sum())
    sizes = [int(fraction * n_edges) for fraction in FRACTIONS]
    areas = mib_areas(runs, scores, live, n_edges)
    assert areas.cmd == pytest.approx(cmd(curve(runs, scores, live, sizes).share))
    signed = torch.where(live, scores - scores[live].min() + 1, 0.0)
    assert areas.cpr == pytest.approx(cpr(curve(runs, signed, live, sizes).share))
    assert sizes[:5] == [0] * 5 and str(areas).startswith("CMD ")


def test_the_optimal_frontier_is_that_of_every_single_subset():
    problem = small_problem()
    runs, live = problem.parts["evaluate"].runs, problem.live
    places, n = live.nonzero(), int(live.sum())
    assert 4 < n <= 10
    best: dict[int, float] = {}
    for chosen in product((False, True), repeat=n):
        kept = torch.zeros_like(live)
        kept[tuple(places[torch.tensor(chosen)].T)] = True
        share = float(share_kept(runs.values(kept[None])[0], runs.clean, runs.ablated))
        best[sum(chosen)] = max(share, best.get(sum(chosen), -torch.inf))
    frontier = optimal_frontier(runs, live, batch=7)
    assert frontier.size == tuple(range(n + 1))
    assert frontier.share == pytest.approx([best[size] for size in range(n + 1)], abs=1e-5)
    ranked = curve(runs, torch.rand(live.shape, generator=generator(0, "any")), live, range(1, n + 1))
    assert all(mine <= top + 1e-5 for mine, top in zip(ranked.share, frontier.share[1:], strict=True))


def test_above_sixteen_edges_there_is_no_exhaustive_frontier():
    problem = own_problem()
    assert int(problem.live.sum()) > 16
    assert optimal_frontier(problem.parts["evaluate"].runs, problem.live) is None


def test_the_whole_graph_is_complete():
    problem = small_problem()
    found = completeness(problem.parts["evaluate"].runs, problem.live, problem.live, generator(0, "halves"), 4)
    assert found.statistic == 0.0 and found.n == 4 and "0 is complete" in found.reading
