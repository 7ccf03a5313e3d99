"""Intervals against formulas written out here, hand numbers, and their coverage on simulated data."""

import math

import pytest
import torch

from probes.intervals import clustered_share, mean, mean_of_strata, share

Z = 1.959963984540054  # 97.5 % point of the standard normal


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (1, 1), (8, 10), (10, 10), (37, 128), (0, 300)])
def test_wilson_interval_equals_its_formula(k: int, n: int):
    p = k / n
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    found = share(k, n)
    assert (found.value, found.n, found.method) == (p, n, "wilson")
    assert (found.low, found.high) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-12)


def test_eight_of_ten_as_printed_in_textbooks():
    found = share(8, 10)
    assert (round(found.low, 4), round(found.high, 4)) == (0.4902, 0.9433)


def test_exact_interval_of_all_successes_is_the_tenth_root():
    found = share(10, 10, "exact")
    assert found.low == pytest.approx(0.025 ** (1 / 10)) and found.high == 1.0


def test_no_detection_in_300_bounds_the_rate_near_one_per_cent():
    assert share(0, 300, "exact").high == pytest.approx(1 - 0.025 ** (1 / 300)) and share(0, 300, "exact").high < 0.0123


def test_nothing_observed_leaves_the_whole_range():
    found = share(0, 0)
    assert math.isnan(found.value) and (found.low, found.high, found.n) == (0.0, 1.0, 0)


@pytest.mark.parametrize("method", ["wilson", "exact"])
def test_wilson_covers_a_true_share_about_95_per_cent_of_the_time(method: str):
    n, p = 40, 0.3
    chance = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    coverage = sum(c for k, c in enumerate(chance) if share(k, n, method).low <= p <= share(k, n, method).high)
    assert 0.94 <= coverage <= (0.96 if method == "wilson" else 0.99)


def test_bootstrap_mean_and_interval_on_a_large_sample_match_the_normal_formula():
    values = torch.randn(2000, generator=stream(), dtype=torch.float64)
    found = mean(values, stream(1))
    half = Z * values.std().item() / math.sqrt(2000)
    assert found.value == pytest.approx(values.mean().item(), abs=1e-12) and found.n == 2000
    assert found.low == pytest.approx(found.value - half, rel=0, abs=0.1 * half)
    assert found.high == pytest.approx(found.value + half, rel=0, abs=0.1 * half)


def test_bootstrap_covers_the_true_mean_about_95_per_cent_of_the_time():
    draws = torch.randn(120, 30, generator=stream(2))
    hits = sum(found.low <= 0 <= found.high for found in (mean(row, stream(3), 300) for row in draws))
    assert 0.88 <= hits / 120 <= 0.98


def test_bootstrap_is_a_pure_function_of_its_generator():
    values = torch.arange(20.0)
    assert mean(values, stream(5)) == mean(values, stream(5)) != mean(values, stream(6))


def test_equal_values_have_an_interval_of_no_width():
    found = mean(torch.full((7,), 0.25), stream())
    assert (found.value, found.low, found.high, found.n) == (0.25, 0.25, 0.25, 7)


def test_mean_of_nothing_is_not_a_number():
    found = mean(torch.zeros(0), stream())
    assert math.isnan(found.value) and math.isnan(found.low) and found.n == 0


def test_clustered_share_counts_cells_not_cases():
    hits = torch.tensor([True] * 30 + [False] * 10)
    cell = torch.arange(4).repeat_interleave(10)
    found = clustered_share(hits, cell, torch.arange(40), torch.Generator().manual_seed(0))
    assert (found.value, found.n) == (0.75, 4)
    assert found.low <= 0.25 and found.high == 1.0  # 40 independent cases would give about [.6, .86]


def test_clustered_share_without_spread_is_wilson_on_the_cells():
    hits, cell, alike = torch.ones(50, dtype=torch.bool), torch.arange(5).repeat(10), torch.zeros(50, dtype=torch.long)
    found = clustered_share(hits, cell, alike, torch.Generator())
    assert (found.value, found.n, found.high) == (1.0, 5, 1.0)
    assert found.low == pytest.approx(0.5655, abs=1e-4)
    other = clustered_share(hits, cell, torch.arange(50) // 5 % 2, torch.Generator())
    assert other.n == 10  # two answers in each of the five cells


def test_a_mean_of_identical_shares_is_not_certain():
    found = mean(torch.ones(5), torch.Generator())
    assert (found.value, found.method) == (1.0, "wilson")
    assert found.low == pytest.approx(0.5655, abs=1e-4)


def test_a_mean_over_lengths_varies_only_within_them():
    found = mean_of_strata([torch.tensor([0.2, 0.4]), torch.tensor([0.8, 1.0])])
    half = 4.302653 * (2 * 0.02 / 2) ** 0.5 / 2  # t of 2 degrees of freedom; variance .02 within each length
    assert (found.value, found.n) == (pytest.approx(0.6), 4)
    assert (found.low, found.high) == (pytest.approx(0.6 - half), pytest.approx(0.6 + half))
    apart = mean_of_strata([torch.full((8,), 0.2), torch.full((8,), 0.9)])
    assert apart.low == apart.value == apart.high == pytest.approx(0.55), "lengths differ, sequences do not"


def test_a_mean_over_lengths_covers_the_true_mean_about_95_per_cent_of_the_time():
    draws = torch.rand(2000, 3, 8, generator=stream()) + torch.arange(3)[:, None]
    found = [mean_of_strata(list(one)) for one in draws]
    assert 0.93 <= sum(one.low <= 1.5 <= one.high for one in found) / 2000 <= 0.97
