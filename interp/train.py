"""Train one run: from a configuration to a run folder with checkpoints, metrics and events."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor

from interp.checkpoint import Checkpoint
from interp.config import RunConfig
from interp.errors import CheckpointError, ConfigError, Diverged, InterpError, Interrupted, StoreError
from interp.evaluate import LengthScore, score_lengths
from interp.finite import bad_activation, bad_parameter
from interp.loop import Loop, diverged, update
from interp.model import Transformer
from interp.optimizer import build_optimizer, learning_rate, optimizer_tensors, restore_optimizer
from interp.provenance import environment
from interp.reproducible import random_state, reproducible, restore_random_state, usable_device
from interp.rng import generator
from interp.run import Run, RunWriter, Store
from interp.schedule import logarithmic_steps, moved
from interp.signals import stop_flag
from interp.tasks._load import build_task, model_config_for
from interp.tasks.base import Task
from interp.warm_start import WarmStart, warm_start


@dataclass(frozen=True)
class Progress:
    """What a progress display is told after every evaluation and about once a second.

    Attributes:
        loss: of the last batch.
        total_loss: sum of the batch losses of the `trained` steps since `train` was called.
    """

    step: int
    steps: int
    loss: float
    accuracy: dict[int, float]
    scores: dict[str, float]
    seconds: float
    message: str = ""
    total_loss: float = 0.0
    trained: int = 0


def resolve(config: RunConfig) -> tuple[RunConfig, Task]:
    """Fill in what the task decides (vocabulary and context size) and build the task.

    Raises:
        ConfigError, UnknownName: if the task or one of its parameters is not accepted.
    """
    task = build_task(config.task, config.task_params)
    return config.model_copy(update={"model": model_config_for(config.model, task)}), task


def train(
    config: RunConfig,
    store: Store,
    name: str,
    *,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Run:
    """Train until solved or out of steps.

    With `resume` the stored configuration must equal `config`; the result is then bit-equal to a run that was never
    interrupted (same machine, same thread count). A run that is done is returned as it is.

    Raises:
        Diverged: a tensor stopped being finite; the last good checkpoint is kept.
        Interrupted: the user stopped the run; it can be resumed.
        ConfigError, UnknownName: the configuration is not accepted; no run folder is made.
        RunExists, RunLocked, StoreFull: from the store.
    """
    config, task = resolve(config)
    device = usable_device(config.train.device)
    run = _stored_run(config, store, name) if resume else None
    if run is not None and run.status().state == "done":
        return run
    with reproducible(device, config.train.threads), stop_flag() as stop:
        begun = run is not None and bool(run.checkpoints(rolling=True))
        loop, source = _build(config, task, device, None if begun or not config.init else store.run(config.init))
        run = run or store.create(name, config)
        with run.writer() as writer:
            try:
                _start(loop, run, writer, source, progress)
                _run_loop(loop, writer, progress, stop)
            except Interrupted:
                writer.status(state="interrupted", message="stopped by the user; resume with --resume")
                raise
            except Diverged as error:
                writer.status(state="diverged", message=str(error))
                raise
            except InterpError as error:
                _record_failure(writer, error)
                raise
    return run


def _record_failure(writer: RunWriter, error: InterpError) -> None:
    """Mark the run failed; on a full disk even that may be impossible, and the first error is the one to show."""
    try:
        writer.status(state="failed", message=str(error))
    except StoreError as second:
        error.args = (f"{error} (and the status could not be written: {second})",)


def _stored_run(config: RunConfig, store: Store, name: str) -> Run:
    """The existing run of that name, which must have been made with an equal configuration."""
    run = store.run(name)
    if run.config.hash() != config.hash():
        old, new = _flat(run.config.model_dump(mode="json")), _flat(config.model_dump(mode="json"))
        keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        raise ConfigError(
            f"run {name!r}: cannot resume with another configuration; these keys differ: {', '.join(keys)}; "
            "put them back, or train under another name"
        )
    return run


def _flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return flat


def _build(
    config: RunConfig, task: Task, device: torch.device, source: Run | None
) -> tuple[Loop, dict[str, Any] | None]:
    """Model, optimiser, data and random streams at step 0; with a source run, its weights and what came from it."""
    torch.manual_seed(generator(config.seed, "dropout").initial_seed() % 2**63)
    model = Transformer(config.model, seed=generator(config.seed, "init").initial_seed() % 2**63)
    event = None
    if source is not None:
        source_model, source_task, checkpoint = load_model(source)
        report: WarmStart = warm_start(model, task, source_model, source_task)
        origin = {"from": source.name, "from_step": checkpoint.step, "from_checkpoint": checkpoint.hash}
        event = {"step": 0, "event": "warm start", **origin, **report.summary()}
    model = model.to(device)
    optimizer = build_optimizer(model, config.train)
    split = task.split(config.seed, config.data)
    trackers = [point.load() for point in sorted(entry_points(group="interp.trackers"), key=lambda p: p.name)]
    return Loop(config, task, device, split, model, optimizer, generator(config.seed, "batches"), trackers), event


def _start(
    loop: Loop,
    run: Run,
    writer: RunWriter,
    warm: dict[str, Any] | None,
    progress: Callable[[Progress], None] | None,
) -> None:
    """Clear what a run that died before its first checkpoint left, or go on from the newest verified checkpoint."""
    before, now = run.environment(), environment(loop.config.train.device, loop.config.train.threads)
    resumed = bool(run.checkpoints(rolling=True))
    if resumed:
        _restore(loop, run, writer)
    else:
        writer.truncate_metrics(-1)
        if warm is not None:
            writer.event(warm)
    writer.environment(now)
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if resumed and before and changed:
        writer.event({"step": loop.step, "event": "environment changed", "keys": changed})
        if progress:
            keys = ", ".join(changed)
            progress(_progress(loop, 0.0, f"environment changed ({keys}): not bit-equal to an uninterrupted run"))


def _restore(loop: Loop, run: Run, writer: RunWriter) -> None:
    """Continue from the newest verified checkpoint and drop what was logged after it.

    Raises:
        CheckpointError: if none verifies or it was not made by a training.
    """
    checkpoint, skipped = run.latest_verified()
    state = checkpoint.state
    missing = sorted({*_state(loop)} - state.keys()) or sorted({"rng.batches"} - checkpoint.optim.keys())
    if missing:
        raise CheckpointError(f"{run.name} step {checkpoint.step}: {missing[0]} is missing; training cannot go on")
    load_weights(loop.model, checkpoint, run.name)
    restore_optimizer(loop.model, loop.optimizer, checkpoint.optim)
    loop.step, loop.solved_in_a_row = checkpoint.step, state["solved_in_a_row"]
    loop.accuracy = {int(length): value for length, value in state["accuracy"].items()}
    loop.scores, loop.saved_scores = state["scores"], state["saved_scores"]
    loop.loss = state["loss"] if state["loss"] is not None else float("nan")
    loop.batches.set_state(checkpoint.optim["rng.batches"])
    restore_random_state(loop.device, checkpoint.optim)
    writer.truncate_metrics(loop.step)
    writer.event({"step": loop.step, "event": "resumed", "skipped": [path.name for path in skipped]})


def load_weights(model: Transformer, checkpoint: Checkpoint, where: str) -> None:
    """Copy checkpoint weights into a model of the same shape.

    Raises:
        CheckpointError: if a tensor is missing, unexpected or of another shape.
    """
    own = model.state_dict()
    for name in sorted(own.keys() ^ checkpoint.model.keys()):
        raise CheckpointError(f"{where}: model.safetensors: tensor {name} does not match the configured model")
    for name, value in checkpoint.model.items():
        if own[name].shape != value.shape:
            raise CheckpointError(
                f"{where}: model.safetensors: {name} is {list(value.shape)}, not {list(own[name].shape)}"
            )
    model.load_state_dict(checkpoint.model)


def load_model(run: Run, step: int | None = None) -> tuple[Transformer, Task, Checkpoint]:
    """The model of one checkpoint in evaluation mode, with its task; `step=None` takes the newest verified one."""
    config, task = resolve(run.config)
    checkpoint = run.checkpoint(step)
    model = Transformer(config.model, seed=0)
    load_weights(model, checkpoint, f"{run.name} step {checkpoint.step}")
    return model.eval(), task, checkpoint


def _run_loop(
    loop: Loop, writer: RunWriter, progress: Callable[[Progress], None] | None, stop: threading.Event
) -> None:
    """Step, evaluate, track and save until finished; every decision that changes weights depends on steps only."""
    settings = loop.config.train
    planned = set(logarithmic_steps(settings))
    started = saved = shown = time.monotonic()
    total, first = 0.0, loop.step
    writer.status(state="running", step=loop.step, message="")
    held_out = _evaluation_sequences(loop)
    if not writer.run.checkpoints(rolling=True):
        _evaluate(loop, writer, held_out, planned)
        _save(loop, writer)
    loop.model.train()
    while not loop.finished:
        if stop.is_set():
            _save(loop, writer, rolling=True)
            raise Interrupted(f"stopped at step {loop.step:,}; continue with --resume")
        update(loop)
        total += loop.loss
        extra = _evaluate(loop, writer, held_out, planned)
        now = time.monotonic()
        if loop.step in planned or extra or loop.finished:
            _save(loop, writer)
            saved = now
        elif now - saved > settings.rolling_seconds:
            _save(loop, writer, rolling=True)
            saved = now
        if progress and (now - shown > 1.0 or loop.finished or extra):
            progress(_progress(loop, now - started, "", total, loop.step - first))
            shown = now
    lowest = _final_score(loop, writer)
    writer.status(state="done", step=loop.step, message=f"lowest held-out sequence accuracy {lowest:.3f}")
    if progress:
        seconds = time.monotonic() - started
        progress(_progress(loop, seconds, "done", total, loop.step - first))


def _progress(loop: Loop, seconds: float, message: str = "", total_loss: float = 0.0, trained: int = 0) -> Progress:
    """A snapshot for displays."""
    steps = loop.config.train.steps
    return Progress(loop.step, steps, loop.loss, loop.accuracy, loop.scores, seconds, message, total_loss, trained)


def _evaluation_sequences(loop: Loop) -> dict[int, Tensor]:
    """The same few held-out sequences of every length for each evaluation."""
    count = loop.config.train.eval_sequences
    return {length: tokens[:count].to(loop.device) for length, tokens in loop.split.test.items() if len(tokens)}


def _evaluate(loop: Loop, writer: RunWriter, held_out: dict[int, Tensor], planned: set[int]) -> list[str]:
    """Log accuracy and tracked scores when they are due; returns the reasons for a checkpoint.

    Reasons are a score or the mean accuracy that moved far enough since the last checkpoint, and every evaluation
    that finds all lengths solved, so that the end of a run has several checkpoints to confirm a circuit on.
    """
    settings = loop.config.train
    at_checkpoint = loop.step in planned
    accuracy_due = loop.step % settings.eval_every == 0 or at_checkpoint
    track_due = loop.step % settings.track_every == 0 or at_checkpoint
    if not (accuracy_due or track_due):
        return []
    row: dict[str, Any] = {"step": loop.step, "loss": loop.loss if loop.step else None}
    loop.model.eval()
    if accuracy_due:
        scores = score_lengths(loop.model, loop.task, held_out, free=False)
        loop.accuracy = {length: score.sequence for length, score in scores.items()}
        row |= {"lr": learning_rate(settings, loop.step), "accuracy": _by_length(scores, "sequence")}
        row |= {"step_accuracy": _by_length(scores, "step"), "margin": _by_length(scores, "margin")}
        row |= {"test_loss": _by_length(scores, "loss")}
        _require_finite(loop, held_out, row["test_loss"] | row["margin"])
        if loop.step % settings.eval_every == 0:
            solved = bool(loop.accuracy) and min(loop.accuracy.values()) >= settings.stop_accuracy
            loop.solved_in_a_row = loop.solved_in_a_row + 1 if solved else 0
    if track_due:
        loop.scores = {}
        for tracker in loop.trackers:
            loop.scores |= tracker(loop.model, loop.task, held_out)
        _require_finite(loop, held_out, loop.scores)
        row["scores"] = loop.scores
    writer.metric(row)
    loop.model.train()
    solved = ["solved"] if accuracy_due and loop.solved_in_a_row else []
    return moved(loop.saved_scores, _followed(loop), settings.track_move) + solved


def _require_finite(loop: Loop, held_out: dict[int, Tensor], numbers: dict[str, float]) -> None:
    """Raise Diverged if an evaluation found a number that is not finite: the weights are not worth keeping."""
    bad = [name for name, value in numbers.items() if not math.isfinite(value)]
    if bad:
        activations = (bad_activation(loop.model, tokens) for tokens in held_out.values())
        raise diverged(loop, bad_parameter(loop.model) or next(filter(None, activations), f"evaluation {bad[0]}"))


def _followed(loop: Loop) -> dict[str, float]:
    """The tracked scores with the mean sequence accuracy over lengths."""
    accuracy = sum(loop.accuracy.values()) / len(loop.accuracy) if loop.accuracy else 0.0
    return {**loop.scores, "accuracy": accuracy}


def _by_length(scores: dict[int, LengthScore], what: str) -> dict[str, float]:
    """One field of every length's score, with JSON keys."""
    return {str(length): getattr(score, what) for length, score in scores.items()}


def _state(loop: Loop) -> dict[str, Any]:
    """What a checkpoint keeps beside tensors."""
    return {
        "config_hash": loop.config.hash(),
        "solved_in_a_row": loop.solved_in_a_row,
        "accuracy": {str(length): value for length, value in loop.accuracy.items()},
        "scores": loop.scores,
        "saved_scores": loop.saved_scores,
        "loss": loop.loss if loop.step else None,
    }


def _save(loop: Loop, writer: RunWriter, rolling: bool = False) -> None:
    """Commit a checkpoint that holds everything needed to go on bit-exactly.

    The last one follows the final scores, so that these are durable before the run can be found finished.

    Raises:
        Diverged: instead of keeping weights that are not finite.
    """
    if bad := bad_parameter(loop.model):
        raise diverged(loop, bad)
    if loop.finished:
        _final_score(loop, writer)
    loop.saved_scores = loop.saved_scores if rolling else _followed(loop)
    model = {name: value.detach().cpu().clone() for name, value in loop.model.state_dict().items()}
    optim = {name: value.cpu() for name, value in optimizer_tensors(loop.model, loop.optimizer).items()}
    optim |= {"rng.batches": loop.batches.get_state(), **random_state(loop.device)}
    writer.save(loop.step, model=model, optim=optim, state=_state(loop), rolling=rolling)
    writer.status(step=loop.step)


def _final_score(loop: Loop, writer: RunWriter) -> float:
    """Lowest accuracy over lengths on all held-out sequences, from the log or measured and logged now.

    Single steps are scored free-running too.
    """
    logged = [row["final"] for row in writer.run.metrics() if "final" in row]
    if not logged:
        everything = {length: tokens.to(loop.device) for length, tokens in loop.split.test.items()}
        scores = score_lengths(loop.model, loop.task, everything, free=True)
        fields = ("n", "sequence", "step", "free_step", "margin")
        logged = [{str(length): {key: getattr(s, key) for key in fields} for length, s in scores.items()}]
        duplicates = {str(length): count for length, count in loop.split.duplicates.items()}
        writer.metric({"step": loop.step, "final": logged[0], "duplicates": duplicates})
    return min((score["sequence"] for score in logged[0].values()), default=float("nan"))
