"""Emergence: the first of three consecutive passes, its bracket, and runs that go back and forth."""

import pytest

from circuits.cli_text import show_detection, show_emergence
from circuits.detectors.base import (
    CausalCheck,
    Detection,
    Emergence,
    EmergencePoint,
    Interval,
    LengthAccuracy,
    NullSummary,
)
from circuits.emergence import emergence, emergence_point

PASS, FAIL = "iteration head", "candidate"
OVER = "8 held-out sequences of each of the lengths 4, 6"
SOME = Interval(value=0.5, low=0.4, high=0.6, n=10, method="wilson")


def points(text: str) -> list[EmergencePoint]:
    """One checkpoint per character at steps 0, 10, 20, ...; P passes."""
    fields = {"loss": 0.1, "min_accuracy": 1.0, "clock": 0.9, "reading": 0.8, "p_value": 0.002}
    return [
        EmergencePoint(
            step=10 * index, verdict=PASS if letter == "P" else FAIL, clock_head="L0.H0", reading_head="L1.H0", **fields
        )
        for index, letter in enumerate(text)
    ]


@pytest.mark.parametrize(
    ("text", "emerged", "bracket", "reversals"),
    [
        ("---PPP", 30, (20, 30), 0),
        ("PPP", 0, (0, 0), 0),  # there from the first checkpoint on: nothing before it to bound it
        ("-PP-PPP", 40, (30, 40), 1),  # two in a row are not enough
        ("-PPP-PPP", 10, (0, 10), 1),
        ("-P-P-P", None, None, 2),
        ("--PP", None, None, 0),
        ("-PPP--", 10, (0, 10), 1),
        ("------", None, None, 0),
        ("", None, None, 0),
    ],
)
def test_first_of_three_consecutive_passes_with_its_bracket(
    text: str, emerged: int | None, bracket: tuple[int, int] | None, reversals: int
):
    found = emergence(points(text))
    assert (found.emerged, found.bracket, found.reversals) == (emerged, bracket, reversals)
    assert len(found.points) == len(text)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("-PPP", ""),
        ("----", ""),
        ("-P-PPP-", "The run goes back and forth: 2 pass(es) were followed by a fail."),
        ("--PP", "No 3 consecutive checkpoints pass, so no emergence step is named."),
    ],
)
def test_note_says_what_the_step_does_not(text: str, note: str):
    assert emergence(points(text)).note == note


def test_run_that_goes_back_and_forth_without_settling_says_both():
    note = emergence(points("P-P-")).note
    assert "back and forth: 2 pass(es)" in note and "no emergence step is named" in note


def null_row(role: str, observed: float, component: str) -> NullSummary:
    counts = {"offset": 0, "n": 499, "n_sharp": 374, "exceedances": 0, "p_value": 0.002, "smallest_p": 0.002}
    return NullSummary(role=role, observed=observed, component=component, quantile_95=0.3, scan="test", **counts)


def interchange(value: float, passed: bool | None, name: str = "interchange", role: str = "clock") -> CausalCheck:
    effect = Interval(value=value, low=value, high=value, n=10, method="wilson")
    words = {"component": "L1.H0", "family": "input", "direction": "test", "metric": "test", "threshold": "test"}
    return CausalCheck(
        name=name,
        role=role,
        effect=effect,
        control=None,
        moved=1.0,
        tested=passed is not None,
        passed=passed,
        **words,
    )


def detection(causal: list[CausalCheck]) -> Detection:
    lengths = [
        LengthAccuracy(
            length=length,
            n=10,
            sequence=Interval(value=value, low=0, high=1, n=10, method="wilson"),
            step=SOME,
            free_running=SOME,
            margin=SOME,
        )
        for length, value in ((4, 0.9), (5, 0.7), (6, 1.0))
    ]
    null = [null_row("reading", 0.8, "L1.H0"), null_row("clock", 0.9, "L0.H1"), null_row("joint", 0.8, "L0.H1+L1.H0")]
    origin = {"run": "a", "step": 64, "checkpoint": "c", "config_hash": "h", "code_version": "v", "seed": 0}
    return Detection(
        detector="iteration_head",
        verdict=PASS,
        headline="test",
        heads={},
        solved=True,
        lengths=lengths,
        statistics=[],
        null=null,
        causal=causal,
        **origin,
    )


def test_point_keeps_the_worst_length_and_each_roles_head():
    point = emergence_point(detection([]), 0.25)
    assert (point.step, point.loss, point.min_accuracy, point.verdict) == (64, 0.25, 0.7, PASS)
    assert (point.clock, point.clock_head, point.reading, point.reading_head) == (0.9, "L0.H1", 0.8, "L1.H0")
    assert point.p_value == 0.002 and point.causal is None


READ = interchange(0.9, True, role="reading")


@pytest.mark.parametrize(
    ("checks", "causal"),
    [
        ([READ, interchange(0.6, True)], 0.6),
        ([READ, interchange(0.1, False)], 0.1),
        ([READ], None),  # one of the two was not run
        ([READ, interchange(0.1, None)], None),  # or could not be tested
        ([READ, interchange(0.2, True, "knock-out")], None),
        ([READ, interchange(0.6, None), interchange(0.3, False)], None),  # a rejected head does not stand in for it
    ],
)
def test_causal_number_is_the_smaller_of_the_two_interchanges(checks: list[CausalCheck], causal: float | None):
    assert emergence_point(detection(checks), None).causal == causal


def test_every_number_of_a_point_keeps_its_interval():
    found = detection([READ, interchange(0.6, True)])
    known = Interval(value=0.9, low=0.88, high=0.92, n=48, method="t")
    rows = [row.model_copy(update={"observed_interval": known}) if row.role == "clock" else row for row in found.null]
    point = emergence_point(found.model_copy(update={"null": rows}), None)
    assert point.clock_interval == known and point.reading_interval is None, "nothing is made up for older detections"
    assert (
        (point.accuracy_interval.value, point.causal_interval.value) == (point.min_accuracy, point.causal) == (0.7, 0.6)
    )


def test_of_lengths_that_are_equally_bad_the_longest_is_kept():
    found = detection([])
    rows = [
        row.model_copy(update={"sequence": row.sequence.model_copy(update={"value": 0.0, "n": row.length})})
        for row in found.lengths
    ]
    assert emergence_point(found.model_copy(update={"lengths": rows}), None).accuracy_interval.n == 6


def long_run(interval: Interval | None) -> Emergence:
    known = dict.fromkeys(("accuracy_interval", "clock_interval", "reading_interval", "causal_interval"), interval)
    rows = [point.model_copy(update={**known, "causal": 1.0, "step": 13000 + point.step}) for point in points("PPPP")]
    return emergence(rows)


def test_the_table_of_checkpoints_has_n_and_intervals_in_100_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    show_emergence(long_run(Interval(value=0.994, low=0.984, high=0.996, n=64, method="t")))
    lines = capsys.readouterr().out.splitlines()
    assert "95 % intervals (sequences n=64; attention n=64; interchange n=64)" in lines[0]
    row = [cell.strip() for cell in next(line for line in lines if "13,010" in line).strip("│").split("│")]
    assert row == ["13,010", "100 [98, >99]", "90 [98, >99]", "80 [98, >99]", "0.002", "100 [98, >99]", PASS]
    assert "every state right, at the worst length" in " ".join(lines)


def test_a_course_stored_without_intervals_is_still_shown(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    show_emergence(long_run(None))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "Emergence" and "│ 100" in next(line for line in lines if "13,010" in line)


def test_the_statistic_says_what_it_is_a_mean_over_and_how_sure_it_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    known = Interval(value=0.9, low=0.881, high=0.919, n=48, method="t")
    found = detection([])
    rows = [row.model_copy(update={"observed_interval": known, "over": OVER})
            for row in found.null]  # fmt: skip
    show_detection(found.model_copy(update={"null": rows}), None)
    text = capsys.readouterr().out
    assert (
        "0.900 [0.881, 0.919] n=48" in text
        and "observed: mean over 8 held-out sequences of each of the lengths 4, 6" in text
    )
    assert "null: the largest of each of 499 untrained models (374 sharp)" in text
    assert "share of held-out sequences with every state right, at the worst length (5): 0.700" in text
