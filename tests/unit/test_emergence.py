"""Emergence: the first of three consecutive passes, its bracket, and runs that go back and forth."""

import pytest

from circuits.detectors.base import CausalCheck, Detection, EmergencePoint, Interval, LengthAccuracy, NullSummary
from circuits.emergence import emergence, emergence_point

PASS, FAIL = "iteration head", "candidate"
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
