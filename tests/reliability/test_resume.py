"""R3 and R4: a resumed training and a repeated one leave the same bytes as one that was never disturbed."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import interp.train as training
from interp.config import RunConfig
from interp.errors import CheckpointError, ConfigError
from interp.run import Run, Store
from interp.train import Progress, train

LOOP = Path(__file__).with_name("resume_loop.py")
TINY = RunConfig(
    task="parity",
    task_params={"max_length": 4},
    data={"per_length": 16},
    model={"n_layers": 1, "d_model": 8, "dropout": 0.2},
    train={"steps": 12, "batch_size": 4, "eval_every": 3, "track_every": 3, "checkpoint_first": 4, "warmup": 4},
)


def kill_and_resume(folder: Path, trials: int, seed: int = 1, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(LOOP), str(folder), str(trials), str(seed)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Any]]:
    """A store with one undisturbed run, three that were killed and resumed, and one stopped by Ctrl-C."""
    folder = tmp_path_factory.mktemp("killed")
    return Store(folder), kill_and_resume(folder, 3)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync is for power cuts, tested elsewhere; the code version changes when somebody commits beside this test."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr("interp.provenance.code_version", lambda: "test")


@pytest.fixture
def fail_before(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Raise just before the update of one step; None takes the fault away."""
    real = training.update

    def install(step: int | None) -> None:
        def update(loop) -> None:
            if loop.step == step:
                raise RuntimeError("power cut")
            real(loop)

        monkeypatch.setattr(training, "update", update)

    return install


def hashes(run: Run) -> dict[str, str]:
    """sha256 of metrics.jsonl and of every file of every planned checkpoint, by path within the run."""
    files = [run.path / "metrics.jsonl", *(path for ref in run.checkpoints() for path in ref.path.iterdir())]
    return {str(path.relative_to(run.path)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def cut_and_resumed(store: Store, name: str, config: RunConfig, fail_before: Callable, *steps: int) -> Run:
    for index, step in enumerate(steps):
        fail_before(step)
        with pytest.raises(RuntimeError, match="power cut"):
            train(config, store, name, resume=index > 0)
        assert store.run(name).status().state == "died"
    fail_before(None)
    return train(config, store, name, resume=True)


def test_runs_killed_at_random_moments_end_bit_equal(killed: tuple[Store, dict[str, Any]]):
    result = killed[1]
    assert result["kills"] >= 3 and result["unfinished"] == 0, result
    assert result["mid_run"] >= 1, "no kill fell between the first and the last checkpoint"
    assert result["different"] == [], "weights, optimiser, random streams, state or metrics differ"


@pytest.mark.slow
@pytest.mark.parametrize(("trials", "seed"), [(10, 2), (200, 3)])
def test_many_killed_runs_end_bit_equal(tmp_path: Path, trials: int, seed: int):
    result = kill_and_resume(tmp_path, trials, seed)
    assert result["kills"] >= trials and result["mid_run"] >= trials / 2, result
    assert result["unfinished"] == 0 and result["different"] == [], result


def test_ctrl_c_leaves_a_resumable_run_and_exit_code_130(killed: tuple[Store, dict[str, Any]]):
    assert killed[1]["command"] == {"exit": 130, "state": "interrupted", "step": 6, "resumed": 0, "same": True}


def test_same_seed_in_another_process_gives_the_same_bytes(killed: tuple[Store, dict[str, Any]], store: Store):
    undisturbed = killed[0].run("whole")
    assert hashes(train(undisturbed.config, store, "again")) == killed[1]["whole"] == hashes(undisturbed)


@pytest.mark.slow
def test_same_seed_in_three_fresh_interpreters_gives_the_same_bytes(tmp_path: Path):
    found = [
        kill_and_resume(tmp_path / seed, 1, PYTHONHASHSEED=seed, OMP_NUM_THREADS=seed)["whole"]
        for seed in ("1", "2", "3")
    ]
    assert found[0] == found[1] == found[2]


def test_another_seed_gives_other_weights(store: Store):
    first = train(TINY, store, "a")
    second = train(TINY.model_copy(update={"seed": 1}), store, "b")
    assert hashes(first).keys() & hashes(second).keys()
    assert not {value for key, value in hashes(first).items() if "model" in key} & {*hashes(second).values()}


@pytest.mark.parametrize("step", [0, 1, 4, 11])
def test_run_cut_at_any_step_ends_bit_equal(store: Store, fail_before: Callable, step: int):
    config = TINY.model_copy(
        update={"train": TINY.train.model_copy(update={"rolling_seconds": 1e-9 if step % 2 else 1e9})}
    )
    whole = hashes(train(config, store, "whole"))
    assert hashes(cut_and_resumed(store, "cut", config, fail_before, step)) == whole


@pytest.mark.parametrize("rolling_seconds", [1e-9, 1e9])
def test_extra_checkpoints_fall_on_the_same_steps_after_a_cut(
    store: Store, fail_before: Callable, monkeypatch: pytest.MonkeyPatch, rolling_seconds: float
):
    drift = SimpleNamespace(
        name="drift", load=lambda: lambda model, task, held_out: {"w": model.unembed.W_U[0, 0].item()}
    )
    monkeypatch.setattr(training, "entry_points", lambda group: [drift])
    spacing = {"track_every": 1, "track_move": 0.005, "checkpoint_first": 1000, "rolling_seconds": rolling_seconds}
    config = TINY.model_copy(update={"train": TINY.train.model_copy(update={**spacing, "lr": 2e-3, "warmup": 0})})
    whole = train(config, store, "whole")
    steps = [ref.step for ref in whole.checkpoints()]
    assert 4 <= len(steps) < 12, "a score that drifts makes a checkpoint every few steps"
    assert hashes(cut_and_resumed(store, "cut", config, fail_before, 2, 6, 7, 10)) == hashes(whole)


def test_run_cut_again_and_again_ends_bit_equal(store: Store, fail_before: Callable):
    whole = hashes(train(TINY, store, "whole"))
    assert hashes(cut_and_resumed(store, "cut", TINY, fail_before, 0, 0, 5, 5, 9, 11)) == whole


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_every_optimiser_resumes_bit_equal(store: Store, fail_before: Callable, optimizer: str):
    changes = {"optimizer": optimizer, "momentum": 0.9, "weight_decay": 0.1, "schedule": "linear"}
    config = TINY.model_copy(update={"train": TINY.train.model_copy(update=changes)})
    whole = hashes(train(config, store, "whole"))
    assert hashes(cut_and_resumed(store, "cut", config, fail_before, 7)) == whole


@pytest.mark.parametrize("call", ["environment", "save", "status"])
def test_run_cut_before_its_first_and_last_writes_ends_bit_equal(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str
):
    real, count, fatal = getattr(training.RunWriter, call), 0, 0

    def write(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count == fatal:
            raise RuntimeError("power cut")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(training.RunWriter, call, write)
    whole = hashes(train(TINY, store, "whole"))
    for fatal in sorted({1, 2, count - 1, count} & {*range(1, count + 1)}):
        count = 0
        with pytest.raises(RuntimeError, match="power cut"):
            train(TINY, store, f"cut-{fatal}")
        assert hashes(train(TINY, store, f"cut-{fatal}", resume=True)) == whole, f"cut before {call} number {fatal}"


def test_damaged_newest_checkpoint_is_skipped_and_named_and_the_run_still_ends_bit_equal(
    store: Store, fail_before: Callable
):
    whole = hashes(train(TINY, store, "whole"))
    fail_before(11)
    with pytest.raises(RuntimeError):
        train(TINY, store, "cut")
    run = store.run("cut")
    newest = run.checkpoints()[-1].path / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\0\0")
    fail_before(None)
    train(TINY, store, "cut", resume=True)
    assert hashes(run) == whole
    assert run.events()[0]["skipped"] == [newest.parent.name]


def test_checkpoint_that_no_training_made_is_refused_in_one_line(store: Store, fail_before: Callable):
    fail_before(5)
    with pytest.raises(RuntimeError):
        train(TINY, store, "cut")
    run = store.run("cut")
    with run.writer() as writer:
        writer.save(9, model=run.checkpoint().model, optim={}, state={"step": 9})
    with pytest.raises(CheckpointError, match="cut step 9: accuracy is missing; training cannot go on"):
        train(TINY, store, "cut", resume=True)
    assert run.status().state == "failed"


def test_thread_count_is_recorded_and_a_run_cannot_go_on_with_another(store: Store, fail_before: Callable):
    fail_before(5)
    with pytest.raises(RuntimeError):
        train(TINY, store, "cut")
    assert store.run("cut").environment()["threads"] == 1
    other = TINY.model_copy(update={"train": TINY.train.model_copy(update={"threads": 2})})
    with pytest.raises(ConfigError, match=r"these keys differ: train\.threads"):
        train(other, store, "cut", resume=True)


def test_changed_environment_is_logged_and_told(store: Store, fail_before: Callable):
    fail_before(5)
    with pytest.raises(RuntimeError):
        train(TINY, store, "cut")
    run = store.run("cut")
    recorded = run.environment()
    with run.writer() as writer:
        writer.environment({**recorded, "threads": 2, "packages": {"torch": "1.0"}})
    fail_before(None)
    seen: list[Progress] = []
    train(TINY, store, "cut", resume=True, progress=seen.append)
    assert run.events()[1] == {"step": 4, "event": "environment changed", "keys": ["packages", "threads"]}
    assert seen[0].message == "environment changed (packages, threads): not bit-equal to an uninterrupted run"
    assert run.environment() == recorded


def test_same_environment_is_no_event(store: Store, fail_before: Callable):
    run = cut_and_resumed(store, "cut", TINY, fail_before, 5)
    assert [event["event"] for event in run.events()] == ["resumed"]


@pytest.mark.gpu
def test_run_on_an_accelerator_resumes_bit_equal(store: Store, fail_before: Callable):
    changes = {"device": str(torch.accelerator.current_accelerator())}
    config = TINY.model_copy(update={"train": TINY.train.model_copy(update=changes)})
    whole = hashes(train(config, store, "whole"))
    assert hashes(cut_and_resumed(store, "cut", config, fail_before, 7)) == whole
