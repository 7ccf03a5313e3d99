"""Progress of counted work: a line every 10 s in a log, bars that end or vanish on a terminal, nothing on stdout."""

import io

import pytest
from rich.console import Console

from interp import progress
from interp.progress import Counted, counter


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], list[str]]:
    """The time in seconds, to be set, and the lines that were said."""
    now, said = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "note", said.append)
    return now, said


def test_a_log_gets_a_line_every_10_seconds_with_the_outer_work_first(told):
    now, said = told
    with counter() as tell:
        for seconds, news in (
            (1, ("checkpoints", 0, 28)),
            (9, ("null models", 10, 2828)),
            (10, ("null models", 1200, 2828)),
            (19, ("null models", 2828, 2828)),
            (21, ("checkpoints", 1, 28)),
            (40, ("checkpoints", 28, 28)),
        ):
            now[0] = float(seconds)
            tell(*news)
    assert said == ["checkpoints 0 of 28; null models 1,200 of 2,828", "checkpoints 1 of 28"]


def test_inner_work_ends_where_the_outer_goes_on():
    counted = Counted()
    assert counted.update("searches", 0, 5) == []
    assert counted.update("removing edges", 711, 2000) == []
    assert counted.update("searches", 1, 5) == ["removing edges"]
    assert counted.update("removing edges", 2000, 2000) == ["removing edges"]
    assert counted.words() == "searches 1 of 5"


def test_no_bar_is_left_on_a_terminal_that_is_complete_or_over(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(progress, "err", lambda: Console(file=screen, force_terminal=True, width=100))
    with counter() as tell:
        tell("smallest circuit", 0, 1)
        tell("smallest circuit", 1, 1)
        tell("removing edges", 2000, 2000)
        tell("interactions", 1, 4)
    frames = screen.getvalue().split("\x1b[2K")  # each frame erases the one before
    last = next(frame for frame in reversed(frames) if "interactions" in frame)
    assert "1/4" in last and "smallest" not in last and "removing" not in last


def test_a_search_ends_the_work_that_it_began():
    from circuits.find import Settings, find_circuit
    from tests.unit.own_answers import own_problem

    news = []
    find_circuit(
        own_problem(), Settings(method="exact", removals=40), lambda *one: news.append(one), look_for_interactions=False
    )
    ended = {what for what, done, of in news if done == of}
    assert {"smallest circuit by exact", "removing edges"} <= {what for what, _, _ in news} <= ended
