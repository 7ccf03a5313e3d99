"""Shares in percent: short, and never 0 or 100 by rounding alone."""

import pytest

from probes.percent import counted, percent, percents


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.332, 0, "33"),
        (0.9885, 1, "98.9"),
        (1.0, 0, "100"),
        (0.997, 0, ">99"),
        (0.9999, 1, ">99.9"),
        (0.001, 0, "<1"),
        (0.0, 0, "0"),
        (-0.001, 0, "0"),
        (1.004, 1, "100.4"),
        (-0.25, 0, "-25"),
    ],
)
def test_a_share_is_rounded_but_not_to_all_or_nothing(value, digits, text):
    assert percent(value, digits) == text


def test_an_interval_stands_beside_the_value():
    assert percents(0.332, 0.14, 0.629) == "33 [14, 63]"


def test_counts_are_one_number_or_a_range():
    assert [counted([32, 32]), counted([1416, 423, 416]), counted([])] == ["n=32", "n=416 to 1,416", ""]
