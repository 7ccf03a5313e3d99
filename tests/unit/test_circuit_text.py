"""What a terminal shows of a discovery and of a trajectory: numbers with n and interval, at 80 columns and more."""

import pytest

from circuits.circuit_text import show_discovery, show_trajectory
from circuits.outputs import CircuitOutput
from circuits.trajectory import Trajectory, trajectory
from tests.unit.small_circuits import circuit, discovery, interval

A, B, C = "embed->M0", "M0->M1", "M1->logits"


def half(value: float, *edges: str):
    """A discovery of some edges, of which two halves of the prompts overlap by a value."""
    return discovery(circuit(edges=dict.fromkeys(edges, 1.0))).model_copy(update={"split_half": value})


def shown(capsys, monkeypatch, story: Trajectory, columns: int = 100) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    show_trajectory(CircuitOutput(model="poly1", step=20, discovery=discovery(None), trajectory=story))
    return capsys.readouterr().out.splitlines()


def cells(lines: list[str], step: int) -> list[str]:
    (row,) = (line for line in lines if line.startswith(f"│ {step} "))
    return [cell.strip() for cell in row.strip("│").split("│")]


def test_a_trajectory_prints_the_band_that_overlap_is_compared_with(capsys, monkeypatch):
    story = trajectory([0, 10, 20], [half(0.5, A, B, C), half(1.0, A, B), half(1.0, A)])
    lines = shown(capsys, monkeypatch, story)
    assert cells(lines, 10)[-3:] == ["0.667", "0.500", "no"], "not the 1.000 of the halves here"
    assert cells(lines, 20)[-3:] == ["0.500", "1.000", "yes"]
    words = " ".join(lines)
    assert "the lower of two numbers, of this checkpoint and of the one before" in words
    assert "1 of 2 steps" in words and "at most a third of them, 0.7 on average" in words


def test_shares_of_a_trajectory_have_n_and_intervals_and_say_what_they_count(capsys, monkeypatch):
    lines = shown(capsys, monkeypatch, trajectory([0, 10], [half(0.5, A, B, C), half(1.0, A, B)]))
    assert "answers: 99.9 % intervals, n=32; metric: 95 % intervals, n=32" in lines[0]
    assert cells(lines, 10)[2:5] == ["100 [100, 100]", "2/45", "97.0 [96.0, 98.0]"]
    assert "each read position by itself" in " ".join(lines) and "whole sequences" in " ".join(lines)


def test_a_trajectory_of_any_numbers_fits_100_columns(capsys, monkeypatch):
    one = half(0.5, A, B).model_copy(update={"n_kept": 218, "n_live": 3696})
    wide = one.gate.model_copy(update={"accuracy": interval(0.55, 0.25)})
    lines = shown(capsys, monkeypatch, trajectory([13000, 13750], [one.model_copy(update={"gate": wide})] * 2))
    rows = [line for line in lines if line.startswith("│ 13,")]
    assert len(rows) == 2 and max(map(len, rows)) <= 100, "no row is broken"


def test_a_trajectory_stored_without_intervals_is_still_shown(capsys, monkeypatch):
    data = trajectory([0, 10], [half(0.5, A, B), half(1.0, A, B)]).model_dump(mode="json")
    for point in data["points"]:
        del point["accuracy_interval"]
    assert cells(shown(capsys, monkeypatch, Trajectory.model_validate(data)), 10)[2] == "100"


@pytest.mark.parametrize("columns", [80, 120])
def test_nothing_is_cut(capsys, monkeypatch, columns):
    lines = shown(capsys, monkeypatch, trajectory([0, 10], [half(0.5, A, B), half(1.0, A, B)]), columns)
    assert "…" not in "".join(lines)


LONG = "random unions of live paths, matched by sender kind, reader slot, both layers and offset"


@pytest.mark.parametrize("columns", [80, 120])
def test_each_control_and_test_is_one_row_with_its_words_below(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    found = discovery(circuit())
    control = found.controls[0].model_copy(update={"what": LONG, "shared": 0.75, "matched": 1.0})
    test = found.tests[0].model_copy(update={"hypothesis": "an edge " + "does nothing " * 12, "reading": "seen " * 30})
    rows = {"controls": [control, control.model_copy(update={"name": "complement"})], "tests": [test]}
    show_discovery(CircuitOutput(model="m", step=1, discovery=found.model_copy(update=rows), trajectory=None))
    lines = capsys.readouterr().out.splitlines()
    for name, last in (("random paths", "0.0099"), ("complement", "0.0099"), ("minimality", "15")):
        (row,) = (line for line in lines if line.startswith(f"│ {name} "))
        assert row.strip("│ ").endswith(last) and len(row) <= columns, "all of a row on one line"
    words = " ".join(lines)
    assert (
        f"random paths (the claim rests on it): {LONG}" in words
        and f"complement (the claim rests on it): {LONG}" in words
    )
    assert "minimality, null: an edge does nothing" in words and "…" not in words
    assert " 75.0% " in words and "shared: edges of the found circuit that they hold too" in words
