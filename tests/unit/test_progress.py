"""The line of a training shows the mean loss over the steps since the line before it, and says how many those are."""

import pytest

from interp import progress
from interp.progress import Smoothed, line, training_display
from interp.train import Progress


def update(step: int, total: float, trained: int, message: str = "") -> Progress:
    """A snapshot whose last batch had a loss that nobody should see."""
    return Progress(step, 100, 99.0, {1: 1.0, 2: 0.5}, {"clock": 0.25}, 1.0, message, total, trained)


def test_each_line_has_the_mean_over_its_own_steps():
    smoothed = Smoothed()
    said = [smoothed.words(one) for one in (update(13, 6.0, 3), update(14, 6.25, 4), update(14, 6.25, 4, "done"))]
    assert said == ["loss 2.000 (mean of 3 steps)", "loss 0.250 (mean of 1 step)", "loss 0.250 (mean of 1 step)"]
    assert line(update(14, 6.25, 4, "done"), said[-1]) == f"{said[-1]}  accuracy 0.500  clock 0.25  done"


def test_before_any_step_no_loss_is_said():
    resumed = update(10, 0.0, 0, "environment changed")
    assert line(resumed, Smoothed().words(resumed)) == "accuracy 0.500  clock 0.25  environment changed"


def test_a_log_averages_over_all_updates_between_two_lines(monkeypatch: pytest.MonkeyPatch):
    now, said = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "note", said.append)
    with training_display("a") as show:
        for seconds, total, trained in ((4.0, 8.0, 2), (11.0, 12.0, 4), (12.0, 13.0, 6), (22.0, 14.0, 8)):
            now[0] = seconds
            show(update(trained, total, trained))
    assert [one.split("  ")[1] for one in said] == ["loss 3.000 (mean of 4 steps)", "loss 0.500 (mean of 4 steps)"]
