"""What the views read: rows of curves, the stored detections of a run, the list of a thousand runs."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest

from circuits.detectors.base import Detection, Interval, LengthAccuracy, NullSummary, Statistic
from dashboards import charts, data
from dashboards.address import Address, address, nearest, whole
from interp.config import RunConfig
from interp.errors import StoreError
from interp.run import Run, Store

HALF = Interval(value=0.5, low=0.25, high=0.75, n=8, method="wilson")


def detection(run: Run, step: int, verdict: str = "none", **options: int) -> Detection:
    """A detection as the detector writes it, with one head in each role."""
    nulls = [
        NullSummary(
            role=role, observed=0.5, component=head, offset=0, n=99, n_sharp=9, exceedances=0, p_value=0.01,
            smallest_p=0.01, quantile_95=0.2, scan="heads",
        )
        for role, head in (("clock", "L0.H0"), ("reading", "L1.H0"), ("joint", "L0.H0+L1.H0"))
    ]  # fmt: skip
    statistics = [
        Statistic(component=head, role=role, length=length, mass=HALF, argmax_rate=HALF, invariance=1.0)
        for role in ("clock", "reading")
        for head in ("L0.H0", "L1.H0")
        for length in (1, 2)
    ]
    accuracy = LengthAccuracy(length=1, n=8, sequence=HALF, step=HALF, free_running=HALF, margin=HALF)
    return Detection(
        detector="iteration_head", run=run.name, step=step, checkpoint="c", config_hash="h", code_version="v", seed=0,
        options=options, verdict=verdict, headline="A headline.", heads={}, solved=False, lengths=[accuracy],
        statistics=statistics, null=nulls, causal=[],
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with three rows of metrics and no checkpoint."""
    run = Store(tmp_path / "runs").create("tiny", RunConfig(task="parity"))
    with run.writer() as writer:
        writer.metric({"step": 0, "loss": None, "test_loss": {"1": 2.0, "2": 4.0}, "accuracy": {"1": 0.5, "2": 0.0}})
        writer.metric({"step": 10, "loss": 1.5, "scores": {"clock": 0.25}})
        writer.metric({"step": 20, "loss": 0.5, "final": {"1": {"sequence": 1.0}, "2": {"sequence": 0.75}}})
    return run


def write(run: Run, name: str, found: Detection) -> None:
    run.write_analysis(f"iteration_head-{name}", {"detection": found.model_dump(mode="json")})


def test_loss_rows_leave_out_what_was_not_measured(run):
    assert data.loss_rows(run.metrics()) == [
        {"step": 0, "loss": 3.0, "kind": "held out, mean over lengths"},
        {"step": 10, "loss": 1.5, "kind": "training batch"},
        {"step": 20, "loss": 0.5, "kind": "training batch"},
    ]


def test_accuracy_rows_hold_each_length_and_the_final_scores(run):
    assert [tuple(row.values()) for row in data.accuracy_rows(run.metrics())] == [
        (0, 1, 0.5), (0, 2, 0.0), (20, 1, 1.0), (20, 2, 0.75),
    ]  # fmt: skip
    assert data.accuracy_at(run.metrics(), 9) == (0, {1: 0.5, 2: 0.0})
    assert data.accuracy_at(run.metrics(), 11) == (20, {1: 1.0, 2: 0.75})
    assert data.accuracy_at([], 1) == (None, {})
    assert data.tracked_rows(run.metrics()) == [{"step": 10, "score": "clock", "value": 0.25}]


def test_the_series_that_covers_most_checkpoints_is_followed(run):
    assert data.followed(run) is None
    write(run, "full", detection(run, 30, n_null=500))
    assert data.followed(run).emergence is None
    passes = {0: "none", 10: "candidate", 20: "iteration head", 30: "iteration head", 40: "iteration head"}
    for step, verdict in passes.items():
        write(run, f"light{step}", detection(run, step, verdict, n_null=99))
    run.write_analysis("patch-other", {"panels": []})
    found = data.followed(run)
    assert [one.step for one in found.detections] == [0, 10, 20, 30, 40]
    assert (found.emergence.emerged, found.emergence.bracket) == (20, (10, 20))
    assert data.lengths_of(found) == [1, 2]
    rows = data.score_rows(found, 2)
    assert {(row["role"], row["head"]) for row in rows} == {("clock", "L0.H0"), ("reading", "L1.H0")}
    assert (rows[0]["mass"], rows[0]["low"], rows[0]["high"], rows[0]["n"]) == (0.5, 0.25, 0.75, 8)
    assert [row["verdict"] for row in data.verdict_rows(found)] == list(passes.values())


def test_a_damaged_detection_is_named(run):
    run.write_analysis("iteration_head-x", {"something": 1})
    with pytest.raises(StoreError, match=r"iteration_head-x\.json: expected the key 'detection'"):
        data.followed(run)
    run.write_analysis("iteration_head-x", {"detection": {"step": "no"}})
    with pytest.raises(Exception, match=r"iteration_head-x\.json"):
        data.followed(run)


def test_a_row_is_read_again_only_when_a_file_has_changed(run, monkeypatch):
    store = Store(run.path.parent)
    (row,) = data.run_rows(store, store.names())
    assert (row.run, row.state, row.task, row.accuracy) == ("tiny", "created", "parity", 0.75)
    monkeypatch.setattr(data, "newest_rows", lambda path: pytest.fail("read twice"))
    assert data.run_rows(store, store.names()) == [row]
    monkeypatch.undo()
    with run.writer() as writer:
        writer.status(state="done", step=20, message="lowest 0.75")
    assert data.run_rows(store, store.names())[0].state == "done"


def test_a_run_whose_writer_is_gone_is_listed_as_died(run):
    store = Store(run.path.parent)
    with run.writer() as writer:
        writer.status(state="running")
        assert data.run_rows(store, ["tiny"])[0].state == "running"
    assert data.run_rows(store, ["tiny"])[0].state == "died"


@pytest.mark.parametrize("line", [b"{\n", b'{"step": 1, "accuracy": 3}\n', b"[1]\n", b'{"accuracy": {"x": 1}}\n'])
def test_a_damaged_last_line_makes_a_damaged_row_and_no_exception(run, line):
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(line)
    (row,) = data.run_rows(Store(run.path.parent), ["tiny"])
    assert row.state == "damaged"
    assert "metrics.jsonl" in row.message


def test_the_last_rows_of_a_long_file_are_whole_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": n, "pad": "x" * 90}) + "\n" for n in range(2000)) + '{"step": 20')
    rows = list(data.newest_rows(path))
    assert [row["step"] for row in rows] == list(range(1999, 1999 - len(rows), -1))
    assert 100 < len(rows) < 2000


def test_a_thousand_runs_are_listed_within_a_second_of_work(run):
    store = Store(run.path.parent)
    for number in range(999):
        folder = store.root / f"copy-{number:03d}"
        folder.mkdir()
        for name in ("config.json", "status.json", "metrics.jsonl"):
            shutil.copy(run.path / name, folder / name)
    started = time.process_time()
    names = store.names()
    rows = data.run_rows(store, names)
    assert data.newest_run(store, names) in names
    spent = time.process_time() - started
    assert len(rows) == 1000
    assert {row.state for row in rows} == {"created"}
    assert spent < 1.0


def test_stamps_tell_changed_files_apart_and_absent_ones_are_zero(tmp_path):
    path = tmp_path / "a"
    assert data.stamp(path) == data.Stamp(str(path), 0, 0)
    path.write_text("1")
    before = data.stamp(path)
    path.write_text("12")
    assert data.stamp(path) != before


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        (" -3 ", -3),
        ("", None),
        (None, None),
        ("1.5", None),
        ("1e3", None),
        ("\u0663", None),
        ("9" * 19, None),
    ],
)
def test_only_plain_whole_numbers_are_read_from_an_address(text, value):
    assert whole(text) == value


def test_the_nearest_checkpoint_is_taken_and_the_last_by_default():
    assert [nearest(text, (0, 8, 64)) for text in ("0", "5", "36", "37", "-9", "999", "x", None)] == [
        0, 8, 8, 64, 0, 64, 64, 64,
    ]  # fmt: skip
    assert nearest("5", ()) is None


def test_an_address_is_clamped_to_the_model_and_remembers_what_was_read(run):
    found = address({"layer": "9", "head": "-1", "step": "3", "metric": "nonsense", "extra": "x"}, run)
    assert (found.get("layer"), found.get("head"), found.get("step")) == (1, 0, None)
    assert found.choice("metric", ["margin", "loss"], "loss") == "loss"
    assert found.number("example", 0, 4, 2) == 2
    assert found.full() == {"run": "tiny", "layer": "1", "head": "0", "metric": "loss", "example": "2"}
    found.update({"head": 3, "layer": None})
    assert found.full() == {"run": "tiny", "metric": "loss", "example": "2"}


def test_a_run_that_cannot_be_read_sets_no_limits(run):
    (run.path / "config.json").write_text("{")
    found = address({"step": "8"}, Run(run.name, run.path))
    assert found == Address({"step": "8"}, "tiny")
    assert found.get("layer") == 0


def test_a_legend_has_the_columns_that_its_width_has_room_for():
    def columns(width: int, letters: int, beside: float = 0) -> int:
        told = charts._legend(letters, beside).to_dict()["columns"]["expr"]
        over, column = re.fullmatch(r"max\(1, floor\(\(width - ([\d.]+)\) / ([\d.]+)\)\)", told).groups()
        return max(1, int((width - float(over)) / float(column)))

    assert columns(300, len("held out, mean over lengths")) == 1
    assert columns(450, len("held out, mean over lengths")) == 2
    assert columns(200, 300) == 1
    assert columns(300, 5, beside=150) == 2
