"""What a run folder gives back is what was put in; what cannot be kept exactly is refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from interp.checkpoint import Checkpoint, read_checkpoint, verify_checkpoint, write_checkpoint
from interp.config import RunConfig
from interp.errors import CheckpointError, StoreError, UnknownName
from interp.run import Run, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


@pytest.fixture
def run(store: Store) -> Run:
    return store.create("tiny", RunConfig(task="parity", seed=2))


def test_new_run_is_created_with_its_config_and_nothing_else(store: Store, run: Run):
    assert store.names() == ["tiny"]
    assert store.run("tiny").config == RunConfig(task="parity", seed=2)
    assert (run.status().state, run.status().step, run.status().pid) == ("created", 0, None)
    assert (run.metrics(), run.events(), run.environment(), run.checkpoints(), run.analyses()) == ([], [], {}, [], [])
    with pytest.raises(CheckpointError, match="no checkpoint to load"):
        run.checkpoint()


def test_store_that_does_not_exist_yet_is_empty_and_not_created(tmp_path: Path):
    store = Store(tmp_path / "nowhere")
    assert store.names() == []
    with pytest.raises(UnknownName, match="known: none yet"):
        store.run("a")
    assert not (tmp_path / "nowhere").exists()


def test_tensors_of_every_kind_come_back_bit_equal(tmp_path: Path):
    model = {
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
        "bf16": torch.tensor([1.5], dtype=torch.bfloat16),
        "double": torch.tensor([1e-300], dtype=torch.float64),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "bool": torch.tensor([True, False]),
        "complex": torch.tensor([1 + 2j]),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "": torch.ones(1),
    }
    folder = tmp_path / "any-name"
    key = write_checkpoint(folder, step=7, model=model, optim={"step": torch.tensor(3)}, state={"a": [1, None, "é"]})
    back = read_checkpoint(folder)
    assert back.model.keys() == model.keys()
    for name, value in back.model.items():
        assert (value.dtype, value.shape) == (model[name].dtype, model[name].shape)
        flat, expected = value.flatten(), model[name].detach().contiguous().flatten()
        assert flat.numel() == 0 or torch.equal(flat.view(torch.uint8), expected.view(torch.uint8)), name
    assert (back.step, back.state, back.optim["step"].item(), back.hash) == (7, {"a": [1, None, "é"]}, 3, key)
    assert verify_checkpoint(folder) == key
    assert read_checkpoint(folder, optim=False).optim == {}


def test_same_content_gives_the_same_hash(tmp_path: Path):
    def write(name: str, **model: torch.Tensor) -> str:
        return write_checkpoint(tmp_path / name, step=1, model=model, optim={}, state={"a": 1, "b": 2})

    one, two = torch.ones(2), torch.zeros(2)
    assert write("x", a=one, b=two) == write("y", b=two, a=one)
    assert write("x", a=one, b=two) != write("z", a=two, b=one)


def test_tied_tensors_are_both_stored(tmp_path: Path):
    tied = torch.arange(4.0)
    write_checkpoint(tmp_path / "c", step=0, model={"a": tied, "b": tied, "c": tied[:2]}, optim={}, state={})
    back = read_checkpoint(tmp_path / "c").model
    assert [back[name].tolist() for name in "abc"] == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1]]


def test_generator_states_continue_the_same_stream(run: Run):
    generator = torch.Generator().manual_seed(4)
    torch.rand(3, generator=generator)
    with run.writer() as writer:
        writer.save(1, model={}, optim={"rng.data": generator.get_state()}, state={})
    expected = torch.rand(5, generator=generator)
    restored = torch.Generator()
    restored.set_state(run.checkpoint(1).optim["rng.data"])
    assert torch.rand(5, generator=restored).equal(expected)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"loss": float("nan")}, r"state\.loss: nan is not finite"),
        ({"best": [1.0, float("inf")]}, r"state\.best\[1\]: inf is not finite"),
        ({"by_length": {4: 0.5}}, r"state\.by_length: key 4 is not a string"),
        ({"lr": np.float32(0.5)}, r"state\.lr: float32 is not JSON"),
        ({"w": torch.ones(1)}, r"state\.w: Tensor is not JSON"),
        ({"name": "\ud800"}, r"state\.json: cannot be written as JSON"),
    ],
)
def test_state_that_json_would_change_is_refused_with_its_key(run: Run, state: dict, message: str):
    with run.writer() as writer, pytest.raises(StoreError, match=message):
        writer.save(1, model={}, optim={}, state=state)
    assert run.checkpoints() == []


@pytest.mark.parametrize("model", [{"a": [1.0]}, {"a": torch.ones(2, 2).to_sparse()}, {"__metadata__": torch.ones(1)}])
def test_values_that_are_no_dense_tensors_are_refused_by_name(run: Run, model: dict):
    with run.writer() as writer, pytest.raises(StoreError, match=rf"model\.safetensors: '{next(iter(model))}'"):
        writer.save(1, model=model, optim={}, state={})


@pytest.mark.parametrize("step", [-1, 1.0, True, "1", None])
def test_step_that_is_no_whole_number_from_zero_is_refused(tmp_path: Path, step: object):
    with pytest.raises(StoreError, match="a step is a whole number from 0"):
        write_checkpoint(tmp_path / "c", step=step, model={}, optim={}, state={})  # type: ignore[arg-type]


def test_only_the_newest_rolling_checkpoint_is_kept(run: Run):
    def save(step: int, rolling: bool) -> list[str]:
        writer.save(step, model={}, optim={}, state={}, rolling=rolling)
        return [ref.path.name for ref in run.checkpoints(rolling=True)]

    with run.writer() as writer:
        assert save(0, False) == ["step-00000000"]
        assert save(5, True) == ["step-00000000", "rolling-00000005"]
        assert save(9, True) == ["step-00000000", "rolling-00000009"]
        assert save(8, False) == ["step-00000000", "step-00000008", "rolling-00000009"]
        assert save(12, False) == ["step-00000000", "step-00000008", "step-00000012"]
    assert [ref.step for ref in run.checkpoints()] == [0, 8, 12]
    assert run.checkpoint().step == 12
    with pytest.raises(UnknownName, match="checkpoint of run 'tiny': '9'"):
        run.checkpoint(9)


def test_steps_of_nine_digits_still_sort(run: Run):
    with run.writer() as writer:
        for step in (10**8, 99_999_999):
            writer.save(step, model={}, optim={}, state={})
    assert [ref.step for ref in run.checkpoints()] == [99_999_999, 10**8]


def test_saving_a_step_again_replaces_it(run: Run):
    with run.writer() as writer:
        for value in (1, 2):
            writer.save(3, model={}, optim={}, state={"value": value})
    assert run.checkpoint(3).state == {"value": 2}


def test_truncating_keeps_rows_up_to_the_step_and_appending_goes_on(run: Run):
    with run.writer() as writer:
        writer.event({"event": "no step"})
        for step in range(5):
            writer.metric({"step": step})
            writer.event({"step": step, "event": "x"})
        writer.truncate_metrics(2)
        writer.metric({"step": 7})
    assert [row["step"] for row in run.metrics()] == [0, 1, 2, 7]
    assert [row.get("step") for row in run.events()] == [None, 0, 1, 2]


def test_interrupt_right_after_a_row_was_written_does_not_break_the_next(run: Run, monkeypatch: pytest.MonkeyPatch):
    def write_then_interrupt(fd: int, data: bytes) -> int:
        real(fd, data)
        raise KeyboardInterrupt

    with run.writer() as writer:
        writer.metric({"step": 0})
        real = os.write
        monkeypatch.setattr(os, "write", write_then_interrupt)
        with pytest.raises(KeyboardInterrupt):
            writer.metric({"step": 1})
        monkeypatch.undo()
        writer.metric({"step": 2})
    assert [row["step"] for row in run.metrics()] == [0, 1, 2]


def test_rolling_checkpoint_replaced_while_it_is_read_is_no_damage(run: Run, monkeypatch: pytest.MonkeyPatch):
    def replaced_meanwhile(folder: Path, *, optim: bool = True) -> Checkpoint:
        if folder.name == "rolling-00000001":
            writer.save(2, model={}, optim={}, state={}, rolling=True)
        return read_checkpoint(folder, optim=optim)

    with run.writer() as writer:
        writer.save(1, model={}, optim={}, state={}, rolling=True)
        monkeypatch.setattr("interp.checkpoint.read_checkpoint", replaced_meanwhile)
        checkpoint, skipped = run.latest_verified()
    assert (checkpoint.step, skipped) == (2, [])


@pytest.mark.parametrize(
    "row", [{}, {"loss": 1.0}, {"step": 1.0}, {"step": 1, "loss": float("nan")}, {"step": 1, "crc": "x"}]
)
def test_bad_metric_row_is_refused_and_writes_nothing(run: Run, row: dict):
    with run.writer() as writer:
        writer.metric({"step": 0})
        with pytest.raises(StoreError, match=r"metrics\.jsonl"):
            writer.metric(row)
    assert run.metrics() == [{"step": 0}]


def test_status_keeps_what_was_not_changed(run: Run):
    with run.writer() as writer:
        first = writer.status(state="running", step=1)
        second = writer.status(step=2, message="going")
    assert first.pid and first.started
    assert (second.state, second.step, second.pid, second.started) == ("running", 2, first.pid, first.started)
    assert second.updated >= first.updated
    assert run.status().state == "died"
    with run.writer() as writer:
        writer.status(state="done")
    assert (run.status().state, run.status().step) == ("done", 2)


@pytest.mark.parametrize("changes", [{"state": "died"}, {"state": "sleeping"}, {"stat": "done"}, {"step": -1}])
def test_status_that_is_not_known_is_refused(run: Run, changes: dict):
    with run.writer() as writer, pytest.raises(StoreError, match=r"status\.json"):
        writer.status(**changes)
    assert run.status().state == "created"


def test_analysis_and_its_arrays_come_back_and_replace_each_other(run: Run):
    run.write_analysis("detect", {"p": 0.5})
    assert (run.analysis("detect"), run.analysis_arrays("detect")) == ({"p": 0.5}, {})
    arrays = {"a": np.arange(6, dtype=np.uint8).reshape(2, 3), "b": np.array(["x", "yz"]), "c": np.array(2.5)}
    run.write_analysis("detect", {"p": 0.25}, arrays)
    with run.writer() as writer:
        writer.analysis("other", {}, {"a": np.zeros((0, 2))})
        writer.analysis("other", {}, {"a": np.ones((1, 2))})
    back = run.analysis_arrays("detect")
    assert all(back[name].dtype == arrays[name].dtype and np.array_equal(back[name], arrays[name]) for name in arrays)
    assert run.analysis_arrays("other")["a"].tolist() == [[1.0, 1.0]]
    assert run.analyses() == ["detect", "other"]
    assert len(list((run.path / "analysis").iterdir())) == 4, "arrays that were replaced are gone"
    with pytest.raises(UnknownName, match="did you mean 'detect'"):
        run.analysis("detekt")


def test_listing_a_thousand_runs_opens_no_file(store: Store, run: Run, monkeypatch: pytest.MonkeyPatch):
    for index in range(1000):
        folder = store.root / f"run-{index:04d}"
        folder.mkdir()
        (folder / "config.json").write_bytes(b"not even JSON")

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("opened a file")

    monkeypatch.setattr("os.open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    assert len(store.names()) == 1001


def test_listing_runs_loads_no_torch(store: Store, run: Run):
    code = (
        "import sys; from interp.run import Store; s = Store(sys.argv[1]); s.run('tiny').status(); s.run('tiny').config"
    )
    code += "; assert not {'torch', 'numpy'} & set(sys.modules), 'loaded'"
    subprocess.run([sys.executable, "-c", code, str(store.root)], check=True)
