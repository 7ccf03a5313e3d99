"""Where checkpoints fall: logarithmic steps by hand, and extra ones when a score moves."""

from itertools import pairwise

import pytest

from interp.config import TrainConfig
from interp.schedule import logarithmic_steps, moved


def steps_of(steps: int, first: int, ratio: float) -> list[int]:
    return logarithmic_steps(TrainConfig(steps=steps, checkpoint_first=first, checkpoint_ratio=ratio))


def test_steps_double_from_the_first_to_the_last():
    assert steps_of(1000, 64, 2.0) == [0, 64, 128, 256, 512, 1000]


def test_last_step_that_is_also_on_the_grid_is_named_once():
    assert steps_of(256, 64, 2.0) == [0, 64, 128, 256]


@pytest.mark.parametrize(("steps", "expected"), [(0, [0]), (1, [0, 1]), (10, [0, 10]), (64, [0, 64])])
def test_a_run_no_longer_than_the_first_step_has_its_start_and_end(steps: int, expected: list[int]):
    assert steps_of(steps, 64, 2.0) == expected


def test_a_small_ratio_moves_by_at_least_one_step():
    assert steps_of(12, 1, 1.001) == list(range(13))


def test_neighbouring_steps_keep_the_ratio_over_a_long_run():
    steps = steps_of(1_000_000, 64, 1.4)
    assert steps == sorted(set(steps)) and len(steps) == 31
    assert all(after / before <= 1.41 for before, after in pairwise(steps[1:]))


def test_a_score_moves_when_it_changed_by_more_than_the_threshold():
    saved = {"clock": 0.2, "reading": 0.5, "accuracy": 0.0}
    assert moved(saved, {"clock": 0.25, "reading": 0.3, "accuracy": 0.11}, 0.1) == ["reading", "accuracy"]


def test_a_score_seen_for_the_first_time_has_not_moved():
    assert moved({}, {"clock": 0.9}, 0.1) == []


def test_slow_drift_counts_from_the_last_checkpoint_not_from_the_last_look():
    saved = {"clock": 0.0}
    assert [bool(moved(saved, {"clock": value}, 0.1)) for value in (0.04, 0.08, 0.12)] == [False, False, True]
