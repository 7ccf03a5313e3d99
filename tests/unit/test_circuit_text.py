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


def printed(capsys, monkeypatch, **changes) -> str:
    monkeypatch.setenv("COLUMNS", "300")
    found = discovery(circuit()).model_copy(update=changes)
    show_discovery(CircuitOutput(model="m", step=1, discovery=found, trajectory=None))
    return capsys.readouterr().out


def test_the_role_of_a_backup_has_its_gain_with_an_interval(capsys, monkeypatch):
    text = printed(capsys, monkeypatch)
    said = "L1.H1: backup of L1.H0: ablating it costs 1.0% of the metric alone and 40.0% while L1.H0 is ablated: "
    assert f"{said}39.0% [30.0%, 50.0%] more (n=64)" in text
    assert "roles: n sequences of the prompts that rank edges; 95 % intervals, widened for the number of tests" in text


@pytest.mark.parametrize(
    ("role", "said"),
    [
        ("negative", "M1: negative: ablating it costs -20.0% [-30.0%, -10.0%] of the metric, which rises without it"),
        (
            "relay",
            "M1: relay of L1.H0: ablating it costs -20.0% [-31.0%, -9.0%] of the metric, leaving out only what L1.H0 "
            "writes into its values -19.0% [-28.0%, -8.0%]: [-30.0%, -10.0%] more than a relay needs",
        ),
    ],
)
def test_other_roles_say_what_their_interval_is_of(capsys, monkeypatch, role, said):
    given = {"given": -0.19, "given_low": -0.28, "given_high": -0.08} if role == "relay" else {"given": None}
    changes = {
        "node": "M1",
        "role": role,
        "alone": -0.2,
        "low": -0.3,
        "high": -0.1,
        "alone_low": -0.31,
        "alone_high": -0.09,
    }
    one = discovery(circuit()).roles[0].model_copy(update={**changes, **given})
    assert said in printed(capsys, monkeypatch, roles=[one])


def test_divergence_and_areas_have_intervals_or_say_that_none_is_stored(capsys, monkeypatch):
    text = printed(capsys, monkeypatch)
    assert "KL 0.02 nats; single answers right 0.980 of 1.000 (n=32, no intervals are stored for these)" in text
    one = discovery(circuit()).faithfulness
    names = (
        "metric_model",
        "metric_circuit",
        "metric_ablated",
        "kl",
        "accuracy_model",
        "accuracy_circuit",
        "cmd",
        "cpr",
    )
    known = {name: interval(getattr(one, name)) for name in names}
    text = printed(capsys, monkeypatch, faithfulness=one.model_copy(update={"intervals": known}))
    assert "KL 0.02 [0.01, 0.03] nats; single answers right 0.980 [0.970, 0.990] of 1.000 [0.990, 1.010] (n=32" in text
    assert (
        "MIB: CMD 0.110 [0.100, 0.120] (0 is best), beside it CPR 0.910 [0.900, 0.920] (n=32, 95 % intervals)" in text
    )
