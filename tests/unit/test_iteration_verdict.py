"""The verdict follows from statistic, causal checks and accuracy by the stated rules."""

import pytest

from circuits.detectors._iteration_verdict import ALPHA, decide, headline
from circuits.detectors.base import CausalCheck, Interval, LengthAccuracy, NullSummary, Statistic

CHANCE = 0.2


def sure(value: float, n: int = 500) -> Interval:
    return Interval(value=value, low=value, high=value, n=n, method="wilson")


def null(p: float, role: str = "joint") -> NullSummary:
    component = "L0.H0+L1.H0" if role == "joint" else "L0.H0"
    return NullSummary(
        role=role,
        observed=0.8,
        component=component,
        offset=0,
        n=500,
        n_sharp=375,
        exceedances=0,
        p_value=p,
        smallest_p=1 / 501,
        quantile_95=0.2,
        scan="2 heads",
    )


def check(name: str, role: str, passed: bool | None) -> CausalCheck:
    return CausalCheck(
        name=name,
        component="L1.H0" if role == "reading" else "L0.H0",
        role=role,
        family="input",
        direction="",
        metric="share",
        effect=sure(1.0 if passed else 0.3),
        control=None,
        moved=1.0,
        tested=passed is not None,
        passed=passed,
        threshold="rule",
    )


def rows(rate: float = 1.0) -> list[Statistic]:
    """Argmax rate of both heads of the pair on their targets."""
    return [
        Statistic(component=head, role=role, length=4, mass=sure(0.8), argmax_rate=sure(rate), invariance=1.0)
        for head, role in (("L0.H0", "clock"), ("L1.H0", "reading"))
    ]


def lengths(*accuracy: float) -> list[LengthAccuracy]:
    return [
        LengthAccuracy(length=4 + i, n=100, sequence=sure(a), step=sure(a), free_running=sure(a), margin=sure(1.0))
        for i, a in enumerate(accuracy)
    ]


def checks(passed: bool | None = True) -> list[CausalCheck]:
    return [check("interchange", "reading", True), check("interchange", "clock", passed)]


def test_every_check_passed_is_an_iteration_head():
    outcome = decide([null(0.002)], rows(), checks(), lengths(1.0, 0.995), CHANCE)
    assert (outcome.verdict, outcome.solved, outcome.missing) == ("iteration head", True, [])


def test_one_failed_check_in_a_solved_model_is_solved_without_the_textbook_head():
    outcome = decide([null(0.002)], rows(), checks(False), lengths(1.0), CHANCE)
    assert outcome.verdict == "solved without the textbook head"
    assert "interchange of the clock head L0.H0" in outcome.missing[0]


def test_no_attention_in_a_solved_model_is_solved_without_the_textbook_head_even_if_every_check_passes():
    outcome = decide([null(0.5)], rows(), checks(), lengths(1.0), CHANCE)
    assert outcome.verdict == "solved without the textbook head"


def test_a_solved_model_that_does_not_attend_needs_no_check_to_be_solved_otherwise():
    assert decide([null(0.5)], rows(), [], lengths(1.0), CHANCE).verdict == "solved without the textbook head"


def test_an_unsolved_iteration_head_says_which_lengths_are_missing():
    outcome = decide([null(0.002)], rows(), checks(), lengths(1.0, 0.9), CHANCE)
    assert (outcome.verdict, outcome.solved) == ("iteration head", False)
    assert "lowest 0.900 at length 5" in outcome.missing[0]
    text = headline(outcome, {"clock": "L0.H0", "reading": "L1.H0"}, [null(0.002)], checks(), [])
    assert text.endswith("the task is not solved at every length.")


def test_attention_without_a_causal_check_is_a_candidate_never_a_head():
    for accuracy in (1.0, 0.5):
        outcome = decide([null(0.002)], rows(), [], lengths(accuracy), CHANCE)
        assert outcome.verdict == "candidate"
        assert "no causal check was run" in outcome.missing


def test_a_check_that_was_not_tested_does_not_count_as_passed():
    assert decide([null(0.002)], rows(), checks(None), lengths(0.9), CHANCE).verdict == "candidate"


def test_the_significance_level_is_a_sharp_border():
    assert decide([null(ALPHA)], rows(), checks(), lengths(1.0), CHANCE).verdict == "iteration head"
    assert decide([null(ALPHA * 1.001)], rows(), checks(), lengths(1.0), CHANCE).verdict != "iteration head"


def test_a_model_above_chance_is_not_solved_and_says_what_is_missing():
    outcome = decide([null(0.5)], rows(), checks(False), lengths(1.0, 0.6), CHANCE)
    assert outcome.verdict == "not solved"
    assert any("1 of 2 lengths below 99%; lowest 0.600 at length 5" in reason for reason in outcome.missing)


def test_a_model_at_chance_has_no_behaviour():
    assert decide([null(0.5)], rows(), checks(False), lengths(0.2), CHANCE).verdict == "none"


def test_a_target_that_is_seldom_the_most_attended_key_is_not_attended_to():
    assert decide([null(0.002)], rows(0.5), checks(), lengths(1.0), CHANCE).verdict == "iteration head"
    outcome = decide([null(0.002)], rows(0.49), checks(), lengths(1.0), CHANCE)
    assert outcome.verdict == "solved without the textbook head"
    assert "0.49 (clock) and 0.49 (reading)" in outcome.missing[0]


@pytest.mark.parametrize("p", [0.002, 0.74])
def test_the_headline_of_nothing_found_gives_p_its_floor_and_n(p):
    outcome = decide([null(max(p, 0.02))], rows(), [], lengths(0.2), CHANCE)
    text = headline(outcome, {"clock": "L0.H0", "reading": "L1.H0"}, [null(p)], [], [])
    assert text.startswith("No iteration head (p = ")
    assert "smallest possible 0.002, n = 500 null models" in text and "corrected" not in text
    several = headline(outcome, {"clock": "L0.H0", "reading": "L1.H0"}, [null(p)], [], [], 29)
    assert "n = 500 null models, corrected for 29 checkpoints" in several
