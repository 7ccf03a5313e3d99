"""Training end to end on a tiny task: what is saved when, when it stops, and what it refuses."""

import os
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import interp.train as training
from interp.checkpoint import verify_checkpoint
from interp.config import RunConfig
from interp.errors import ConfigError, Interrupted, RunExists, RunLocked, StoreFull, UnknownName
from interp.evaluate import LengthScore
from interp.model import Transformer
from interp.run import Run, Store
from interp.schedule import logarithmic_steps
from interp.train import Progress, load_model, train

MODEL = {"n_layers": 1, "d_model": 8, "dropout": 0.1}
TRAIN = {"steps": 12, "batch_size": 4, "eval_every": 4, "track_every": 4, "eval_sequences": 8}
SPACING = {"checkpoint_first": 3, "checkpoint_ratio": 2.0, "track_move": 1e9, "warmup": 2, "rolling_seconds": 1e9}


def tiny(model: dict | None = None, **changes) -> RunConfig:
    return RunConfig(
        task="parity",
        task_params={"max_length": 3},
        data={"per_length": 16},
        model={**MODEL, **(model or {})},
        train={**TRAIN, **SPACING, **changes},
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Durability and code version have their own tests; no trackers but those a test installs."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr("interp.provenance.code_version", lambda: "test")
    monkeypatch.setattr(training, "entry_points", lambda group: [])


@pytest.fixture
def before_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Call something just before one update."""
    real = training.update

    def install(step: int, action: Callable[[], None]) -> None:
        def update(loop) -> None:
            if loop.step == step:
                action()
            real(loop)

        monkeypatch.setattr(training, "update", update)

    return install


def track(monkeypatch: pytest.MonkeyPatch, scores: Callable[[], dict[str, float]]) -> None:
    """Install one tracker."""
    point = SimpleNamespace(name="test", load=lambda: lambda model, task, held_out: scores())
    monkeypatch.setattr(training, "entry_points", lambda group: [point])


def steps_of(run: Run, rolling: bool = False) -> list[int]:
    return [ref.step for ref in run.checkpoints(rolling=rolling)]


def files_of(run: Run) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(run.path.rglob("*")) if path.is_file()}


def stop_with(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def test_checkpoint_0_holds_the_initial_weights(store: Store):
    run = train(tiny(), store, "a")
    seed = training.generator(0, "init").initial_seed() % 2**63
    fresh = Transformer(run.config.model, seed=seed).state_dict()
    saved = run.checkpoint(0).model
    assert saved.keys() == fresh.keys() and all(torch.equal(saved[key], fresh[key]) for key in fresh)
    assert not torch.equal(saved["unembed.W_U"], run.checkpoint(12).model["unembed.W_U"])


def test_checkpoints_fall_on_logarithmic_steps(store: Store):
    run = train(tiny(), store, "a")
    assert steps_of(run) == logarithmic_steps(run.config.train) == [0, 3, 6, 12]
    assert run.status().state == "done" and run.status().step == 12


def test_no_steps_still_evaluate_and_save_once(store: Store):
    run = train(tiny(steps=0), store, "a")
    assert steps_of(run) == [0] and run.status().state == "done"
    assert [sorted(row) for row in run.metrics()][-1] == ["duplicates", "final", "step"]


def test_extra_checkpoint_where_a_tracked_score_moves(store: Store, monkeypatch: pytest.MonkeyPatch):
    values = iter([0.0, 0.05, 0.05, 0.30, 0.35, 0.0, 0.0, 0.0])  # evaluations at steps 0, 2, 3, 4, 6, 8, 10, 12
    track(monkeypatch, lambda: {"clock": next(values)})
    run = train(tiny(track_every=2, eval_every=100, track_move=0.2), store, "a")
    assert steps_of(run) == [0, 3, 4, 6, 8, 12]
    rows = {row["step"]: row["scores"] for row in run.metrics() if "scores" in row}
    assert rows == {step: {"clock": v} for step, v in [(0, 0), (2, 0.05), (3, 0.05), (4, 0.3), (6, 0.35)]} | {
        step: {"clock": 0.0} for step in (8, 10, 12)
    }


def test_rolling_checkpoint_follows_and_leaves_with_the_end(store: Store, before_step):
    before_step(5, stop_with(RuntimeError("power cut")))
    config = tiny(rolling_seconds=1e-9)
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, store, "a")
    run = store.run("a")
    assert steps_of(run) == [0, 3] and steps_of(run, rolling=True) == [0, 3, 5]
    assert run.status().state == "died"
    before_step(-1, print)
    assert steps_of(train(config, store, "a", resume=True), rolling=True) == [0, 3, 6, 12]


def test_metrics_have_every_length_and_the_final_row_every_sequence(store: Store):
    run = train(tiny(), store, "a")
    rows = run.metrics()
    assert [row["step"] for row in rows] == [0, 3, 4, 6, 8, 12, 12]
    for row in rows[:-1]:
        assert set(row) == {
            "step", "loss", "lr", "accuracy", "step_accuracy", "margin", "test_loss", "scores"
        }  # fmt: skip
        assert set(row["accuracy"]) == {"1", "2", "3"}
    assert rows[0]["loss"] is None and rows[1]["loss"] > 0
    assert {length: score["n"] for length, score in rows[-1]["final"].items()} == {"1": 1, "2": 2, "3": 4}
    assert rows[-1]["duplicates"] == {"1": 14, "2": 12, "3": 8}
    assert run.status().message.startswith("lowest held-out sequence accuracy 0.")


@pytest.mark.parametrize(("solved", "end"), [("111111", 8), ("010111", 20), ("000000", 24)])
def test_training_stops_once_solved_often_enough_in_a_row(
    store: Store, monkeypatch: pytest.MonkeyPatch, solved: str, end: int
):
    outcomes = iter([*solved, "0", "0"])  # steps 0, 4, 8, ...; the last one or two are the final scores

    def scores(model, task, held_out, free):
        value = 1.0 if free else float(next(outcomes))
        return {1: LengthScore(1, 1.0, 1.0, 1.0, 0.1, None), 2: LengthScore(1, value, 1.0, 1.0, 0.1, None)}

    monkeypatch.setattr(training, "score_lengths", scores)
    run = train(tiny(steps=24, stop_patience=3, checkpoint_first=1000), store, "a")
    assert run.status().step == end
    kept = [4 * index for index, outcome in enumerate(solved) if outcome == "1" and 4 * index <= end]
    assert steps_of(run) == sorted({0, *kept, end}), "each solved evaluation keeps its checkpoint"


def test_evaluations_solved_before_a_cut_count_towards_stopping(
    store: Store, monkeypatch: pytest.MonkeyPatch, before_step
):
    solved = {1: LengthScore(1, 1.0, 1.0, 1.0, 0.1, None)}
    monkeypatch.setattr(training, "score_lengths", lambda model, task, held_out, free: solved)
    before_step(5, stop_with(RuntimeError("stop")))
    with pytest.raises(RuntimeError):
        train(tiny(stop_patience=3), store, "a")
    before_step(-1, print)
    assert train(tiny(stop_patience=3), store, "a", resume=True).status().step == 8  # solved at 0, 4 and 8


def test_final_scores_are_logged_before_the_last_checkpoint_makes_them_durable(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    real, last_rows = training.RunWriter.save, {}

    def save(self, step: int, **contents):
        last_rows[step] = "final" in self.run.metrics()[-1]
        return real(self, step, **contents)

    monkeypatch.setattr(training.RunWriter, "save", save)
    train(tiny(), store, "a")
    assert last_rows == {0: False, 3: False, 6: False, 12: True}


def test_run_that_is_done_is_returned_as_it_is(store: Store):
    run = train(tiny(), store, "a")
    before = files_of(run)
    assert train(tiny(), store, "a", resume=True).path == run.path
    assert files_of(run) == before


def test_resuming_with_another_configuration_names_the_keys(store: Store, before_step):
    before_step(4, stop_with(RuntimeError("stop")))
    with pytest.raises(RuntimeError):
        train(tiny(), store, "a")
    with pytest.raises(ConfigError, match=r"these keys differ: model\.n_heads, train\.lr; put them back"):
        train(tiny({"n_heads": 2}, lr=0.5), store, "a", resume=True)
    with pytest.raises(RunExists):
        train(tiny(), store, "a")


def test_resuming_a_run_that_does_not_exist_suggests_the_nearest(store: Store):
    store.create("first", tiny())
    with pytest.raises(UnknownName, match="did you mean 'first'"):
        train(tiny(), store, "frist", resume=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (tiny(device="abacus"), "not a device to train on"),
        (tiny(device="cpu:7"), "not available on this machine"),
        (tiny(device="meta"), "not a device to train on"),
        (tiny({"frozen": ("nothing.*",)}), "matches no parameter"),
        (tiny({"frozen": ("*",)}), "freezes every parameter"),
        (tiny().model_copy(update={"init": "absent"}), "unknown run 'absent'"),
        (tiny({"n_ctx": 2}), r"model\.n_ctx=2 is too small"),
    ],
)
def test_configuration_that_cannot_work_leaves_no_run_behind(store: Store, config: RunConfig, message: str):
    with pytest.raises((ConfigError, UnknownName), match=message):
        train(config, store, "a")
    assert store.names() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_between_two_steps_and_the_run_goes_on_bit_equal(
    store: Store, before_step, number: signal.Signals
):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    before_step(5, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted, match="stopped at step 6; continue with --resume"):
        train(tiny(), store, "a")
    run = store.run("a")
    assert (run.status().state, steps_of(run, rolling=True)) == ("interrupted", [0, 3, 6, 6])
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    train(tiny(), store, "a", resume=True)
    before_step(-1, print)
    other = train(tiny(), store, "b")
    assert run.checkpoint(12).hash == other.checkpoint(12).hash
    assert run.events() == [{"step": 6, "event": "resumed", "skipped": []}]


def test_second_interrupt_stops_at_once_and_the_run_can_be_resumed(store: Store, before_step):
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before_step(5, twice)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), store, "a")
    assert store.run("a").status().state == "died"
    before_step(-1, print)
    assert train(tiny(), store, "a", resume=True).status().state == "done"


def test_training_outside_the_main_thread_needs_no_signals(store: Store):
    thread = threading.Thread(target=train, args=(tiny(), store, "a"))
    thread.start()
    thread.join()
    assert store.run("a").status().state == "done"


@pytest.mark.parametrize("fails", [False, True])
def test_callers_random_stream_and_thread_count_are_untouched(store: Store, before_step, fails: bool):
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    if fails:
        before_step(5, stop_with(RuntimeError("stop")))
        with pytest.raises(RuntimeError):
            train(tiny(threads=threads + 1), store, "a")
    else:
        train(tiny(threads=threads + 1), store, "a")
    assert torch.equal(before, torch.get_rng_state()) and torch.get_num_threads() == threads
    assert store.run("a").environment()["threads"] == threads + 1


def test_callers_random_stream_does_not_change_the_result(store: Store):
    first = train(tiny(), store, "a")
    state = torch.get_rng_state()
    torch.rand(3)
    second = train(tiny(), store, "b")
    torch.set_rng_state(state)
    assert [verify_checkpoint(a.path) for a in first.checkpoints()] == [
        verify_checkpoint(b.path) for b in second.checkpoints()
    ]


def test_frozen_parameters_do_not_move_and_the_others_do(store: Store):
    run = train(tiny({"frozen": ("embed.*", "blocks.0.attn.W_Q")}, weight_decay=0.1, optimizer="adamw"), store, "a")
    start, end = run.checkpoint(0).model, run.checkpoint(12).model
    still = {name for name in start if torch.equal(start[name], end[name])}
    assert still == {"embed.W_E", "blocks.0.attn.W_Q"}
    assert not any("W_E" in name for name in run.checkpoint(12).optim)


def test_second_trainer_on_a_run_is_refused_and_changes_nothing(store: Store, before_step):
    before_step(4, stop_with(RuntimeError("stop")))
    with pytest.raises(RuntimeError):
        train(tiny(), store, "a")
    run = store.run("a")
    with run.writer() as writer:
        writer.status(state="running")
        before = files_of(run)
        with pytest.raises(RunLocked, match=f"pid {os.getpid()}"):
            train(tiny(), store, "a", resume=True)
        assert files_of(run) == before


@pytest.mark.parametrize("room", [2000, 0])
def test_full_disk_fails_the_run_and_keeps_the_last_checkpoint(store: Store, before_step, room: int):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before_step(5, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1])))
    try:
        with pytest.raises(StoreFull) as caught:
            train(tiny(), store, "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run = store.run("a")
    assert run.status().state == ("failed" if room else "died")
    assert ("the status could not be written" in str(caught.value)) == (not room)
    assert run.latest_verified()[0].step == 3 and run.latest_verified()[1] == []
    assert not [path for path in run.path.rglob("*") if ".tmp-" in path.name]
    before_step(-1, print)
    train(tiny(), store, "a", resume=True)
    assert run.checkpoint(12).hash == train(tiny(), store, "b").checkpoint(12).hash


def test_warm_start_is_logged_with_the_checkpoint_it_came_from(store: Store, before_step):
    source = train(tiny(), store, "source")
    config = tiny().model_copy(update={"init": "source", "seed": 3})
    run = train(config, store, "a")
    event = run.events()[0]
    assert (event["from"], event["from_step"], event["from_checkpoint"]) == ("source", 12, source.checkpoint(12).hash)
    assert torch.equal(run.checkpoint(0).model["embed.W_E"], source.checkpoint(12).model["embed.W_E"])


def test_resuming_a_warm_started_run_does_not_need_its_source(store: Store, before_step):
    train(tiny(), store, "source")
    config = tiny().model_copy(update={"init": "source"})
    whole = train(config, store, "whole")
    before_step(5, stop_with(RuntimeError("stop")))
    with pytest.raises(RuntimeError):
        train(config, store, "a")
    store.remove("source")
    before_step(-1, print)
    assert train(config, store, "a", resume=True).checkpoint(12).hash == whole.checkpoint(12).hash


def test_progress_is_told_of_the_end(store: Store):
    seen: list[Progress] = []
    train(tiny(), store, "a", progress=seen.append)
    assert (seen[-1].step, seen[-1].steps, seen[-1].message) == (12, 12, "done")
    assert set(seen[-1].accuracy) == {1, 2, 3} and seen[-1].loss > 0


def test_progress_carries_the_losses_of_the_steps_since_the_call(store: Store, monkeypatch: pytest.MonkeyPatch):
    real, losses, seen = training.update, [], []

    def update(loop) -> None:
        if loop.step == 5 and len(losses) == 5:
            raise KeyboardInterrupt
        real(loop)
        losses.append(loop.loss)

    monkeypatch.setattr(training, "update", update)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), store, "a")
    losses.clear()
    train(tiny(), store, "a", resume=True, progress=seen.append)  # from the checkpoint of step 3
    assert (seen[-1].step, seen[-1].trained, len(losses)) == (12, 9, 9)
    assert seen[-1].total_loss == pytest.approx(sum(losses), rel=1e-12)


def test_loaded_model_is_the_saved_one_in_evaluation_mode(store: Store):
    run = train(tiny(), store, "a")
    model, task, checkpoint = load_model(run, 3)
    assert (checkpoint.step, task.name, model.training) == (3, "parity", False)
    assert all(torch.equal(value, checkpoint.model[name]) for name, value in model.state_dict().items())
    assert load_model(run)[2].step == 12
