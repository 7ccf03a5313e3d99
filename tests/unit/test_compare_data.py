"""Accuracy of two sides by length: n from the log, intervals that can be looked up."""

import pytest
from scipy.stats import binomtest

from circuits.detectors.base import Interval, NullSummary
from dashboards.compare_data import GAP, accuracy_table, mass_row, newcombe, sequences_of, wilson

METRICS = [{"step": 8, "accuracy": {"4": 0.5}}, {"step": 9, "final": {"1": {"n": 5}, "4": {"n": 1024}}}]


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (31, 32), (512, 1024)])
def test_the_interval_of_a_share_is_that_of_scipy(hits, n):
    bounds = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson(hits / n, n) == (pytest.approx(bounds.low), pytest.approx(bounds.high))


def test_the_interval_of_a_difference_is_the_published_one():
    low, high = newcombe(48 / 80, 80, 56 / 70, 70)  # Newcombe 1998, table II, column (a): 56/70 minus 48/80
    assert (low, high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_the_number_of_sequences_is_that_of_an_evaluation_and_known_once_a_run_has_ended():
    assert sequences_of(METRICS, 256) == {1: 5, 4: 256}
    assert sequences_of(METRICS[:1], 256) == {}


def test_each_row_has_both_accuracies_their_difference_and_n():
    first, second = accuracy_table(["a", "b"], [{4: 0.25, 5: 0.5}, {4: 0.75}], [{4: 256, 5: 256}, {4: 128}])
    assert first["a"] == "0.250 [0.201, 0.306]" and first["n"] == "256 and 128"
    low, high = newcombe(0.25, 256, 0.75, 128)
    assert first[GAP] == f"+0.500 [{low:+.3f}, {high:+.3f}]"
    assert second["b"] is None and second[GAP] is None and second["n"] == "256 and not logged"
    (bare,) = accuracy_table(["a", "b"], [{4: 0.25}, {4: 0.75}], [{}, {}])
    assert (bare["a"], bare[GAP], bare["n"]) == ("0.250", "+0.500", "not logged")


def test_a_mass_has_its_interval_where_the_detection_has_one():
    counts = {"offset": 0, "n": 500, "n_sharp": 375, "exceedances": 0, "p_value": 0.002, "smallest_p": 0.002}
    row = NullSummary(role="clock", observed=0.82, component="L0.H0", quantile_95=0.2, scan="", **counts)
    assert (mass_row(row)["mass"], mass_row(row)["n"]) == ("0.820", None)
    known = Interval(value=0.82, low=0.81, high=0.83, n=48, method="t")
    row = mass_row(row.model_copy(update={"observed_interval": known}))
    assert (row["mass"], row["n"], row["null models"]) == ("0.820 [0.810, 0.830]", 48, 500)
