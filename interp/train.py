"""Train one run: from a configuration to a run folder with checkpoints, metrics and events."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from interp.checkpoint import Checkpoint
from interp.config import RunConfig
from interp.errors import CheckpointError, ConfigError, Diverged, Interrupted, StoreError
from interp.evaluate import LengthScore, score_lengths
from interp.finite import all_finite, first_bad_tensor
from interp.model import Transformer
from interp.optimizer import build_optimizer, learning_rate, optimizer_tensors, restore_optimizer
from interp.provenance import environment
from interp.rng import generator
from interp.run import Run, RunWriter, Store
from interp.schedule import logarithmic_steps, moved
from interp.signals import stop_flag
from interp.tasks._load import build_task, model_config_for
from interp.tasks.base import Split, Task
from interp.warm_start import warm_start

Tracker = Callable[[Transformer, Task, dict[int, Tensor]], dict[str, float]]


@dataclass(frozen=True)
class Progress:
    """What a progress display is told after every evaluation and about once a second."""

    step: int
    steps: int
    loss: float
    accuracy: dict[int, float]
    scores: dict[str, float]
    seconds: float
    message: str = ""


@dataclass
class Loop:
    """The moving parts of one training; everything here is in the checkpoint or is rebuilt from the configuration."""

    config: RunConfig
    task: Task
    split: Split
    model: Transformer
    optimizer: torch.optim.Optimizer
    batches: torch.Generator
    trackers: list[Tracker]
    step: int = 0
    solved_in_a_row: int = 0
    loss: float = float("nan")
    accuracy: dict[int, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    saved_scores: dict[str, float] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """True when the budget is used up or every length has been solved often enough in a row."""
        return self.step >= self.config.train.steps or self.solved_in_a_row >= self.config.train.stop_patience


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
        RunExists, RunLocked, StoreFull: from the store.
    """
    config, task = resolve(config)
    run = _open_run(config, store, name, resume)
    if resume and run.status().state == "done":
        return run
    with run.writer() as writer, _threads(config.train.threads), torch.random.fork_rng(), stop_flag() as stop:
        try:
            started = resume and bool(run.checkpoints(rolling=True))
            loop = _build(config, task, store, writer, run if started else None)
            _run_loop(loop, writer, progress, stop)
        except Interrupted:
            writer.status(state="interrupted", message="stopped by the user; resume with --resume")
            raise
        except Diverged as error:
            writer.status(state="diverged", message=str(error))
            raise
        except (StoreError, ConfigError) as error:
            _record_failure(writer, str(error))
            raise
    return run


def _record_failure(writer: RunWriter, message: str) -> None:
    """Mark the run failed; on a full disk even that may be impossible, and the first error is the one to show."""
    try:
        writer.status(state="failed", message=message)
    except StoreError as second:
        raise StoreError(f"{message} (and the status could not be written: {second})") from None


def _open_run(config: RunConfig, store: Store, name: str, resume: bool) -> Run:
    """The run folder to write to: a new one, or the existing one with an equal configuration."""
    if not resume:
        return store.create(name, config)
    run = store.run(name)
    stored = run.config
    if stored.hash() != config.hash():
        old, new = stored.model_dump(mode="json"), config.model_dump(mode="json")
        keys = [key for key in new if new[key] != old.get(key)]
        raise ConfigError(f"run {name!r}: cannot resume with another configuration; these sections differ: {keys}")
    return run


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Use `count` CPU threads inside the block: results depend on the number, so it is fixed and recorded."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _build(config: RunConfig, task: Task, store: Store, writer: RunWriter, resumed: Run | None) -> Loop:
    """Model, optimiser, data and random streams, fresh or from the newest verified checkpoint."""
    device = torch.device(config.train.device)
    torch.manual_seed(generator(config.seed, "dropout").initial_seed() % 2**63)
    model = Transformer(config.model, seed=generator(config.seed, "init").initial_seed() % 2**63)
    if resumed is None:
        writer.truncate_metrics(-1)  # a run that died before its first checkpoint starts over
    if config.init and resumed is None:
        source, source_task, _ = load_model(store.run(config.init))
        report = warm_start(model, task, source, source_task)
        writer.event({"step": 0, "event": "warm start", "from": config.init, **report.summary()})
    model = model.to(device)
    split = task.split(config.seed, config.data)
    trackers = [point.load() for point in sorted(entry_points(group="interp.trackers"), key=lambda p: p.name)]
    optimizer = build_optimizer(model, config.train)
    loop = Loop(config, task, split, model, optimizer, generator(config.seed, "batches"), trackers)
    previous = resumed.environment() if resumed else {}
    current = environment(config.train.device, config.train.threads)
    writer.environment(current)
    if resumed is not None:
        _restore(loop, resumed, writer)
        changed = sorted(key for key in current if previous and previous.get(key) != current[key])
        if changed:
            writer.event({"step": loop.step, "event": "environment changed", "keys": changed})
    return loop


def _restore(loop: Loop, run: Run, writer: RunWriter) -> None:
    """Continue from the newest verified checkpoint and drop what was logged after it."""
    checkpoint, skipped = run.latest_verified()
    load_weights(loop.model, checkpoint, run.name)
    restore_optimizer(loop.model, loop.optimizer, checkpoint.optim)
    state = checkpoint.state
    loop.step, loop.solved_in_a_row = checkpoint.step, state["solved_in_a_row"]
    loop.accuracy = {int(length): value for length, value in state["accuracy"].items()}
    loop.scores, loop.saved_scores = state["scores"], state["saved_scores"]
    loop.loss = state["loss"] if state["loss"] is not None else float("nan")
    loop.batches.set_state(checkpoint.optim["rng.batches"])
    torch.set_rng_state(checkpoint.optim["rng.torch"])
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


def draw_batch(loop: Loop) -> tuple[Int[Tensor, "batch pos"], int]:
    """Training sequences of one length, drawn uniformly over lengths, then over that length's sequences."""
    lengths = [length for length, tokens in loop.split.train.items() if len(tokens)]
    length = lengths[int(torch.randint(len(lengths), (), generator=loop.batches))]
    pool = loop.split.train[length]
    rows = torch.randint(len(pool), (loop.config.train.batch_size,), generator=loop.batches)
    return pool[rows].to(loop.config.train.device), length


def update(loop: Loop) -> None:
    """One optimiser step on one batch.

    Raises:
        Diverged: before the weights change, if the loss or a gradient is not finite.
    """
    settings = loop.config.train
    tokens, length = draw_batch(loop)
    scored = loop.task.target_mask(length, settings.loss).nonzero().squeeze(1)
    for group in loop.optimizer.param_groups:
        group["lr"] = learning_rate(settings, loop.step)
    logits = loop.model(tokens)[:, scored]  # batch scored d_vocab
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, scored + 1].flatten())
    loop.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for p in loop.model.parameters() if p.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip or float("inf"))
    if not all_finite(loss.detach(), norm):
        where = first_bad_tensor(loop.model, tokens)
        raise Diverged(f"step {loop.step}: {where} is not finite; lower train.lr or set train.clip, then --resume")
    loop.optimizer.step()
    loop.step += 1
    loop.loss = loss.item()


def _run_loop(
    loop: Loop, writer: RunWriter, progress: Callable[[Progress], None] | None, stop: threading.Event
) -> None:
    """Step, evaluate, track and save until finished; every decision that changes weights depends on steps only."""
    settings = loop.config.train
    planned = set(logarithmic_steps(settings))
    started = saved = shown = time.monotonic()
    writer.status(state="running", step=loop.step, message="")
    held_out = _evaluation_sequences(loop)
    if loop.step == 0:
        _evaluate(loop, writer, held_out, planned)
        _save(loop, writer)
    loop.model.train()
    while not loop.finished:
        if stop.is_set():
            _save(loop, writer, rolling=True)
            raise Interrupted(f"stopped at step {loop.step}; continue with --resume")
        update(loop)
        extra = _evaluate(loop, writer, held_out, planned)
        now = time.monotonic()
        if loop.step in planned or extra or loop.finished:
            _save(loop, writer)
            saved = now
        elif now - saved > settings.rolling_seconds:
            _save(loop, writer, rolling=True)
            saved = now
        if progress and (now - shown > 1.0 or loop.finished or extra):
            progress(_progress(loop, now - started))
            shown = now
    _finish(loop, writer)
    if progress:
        progress(_progress(loop, time.monotonic() - started, "done"))


def _progress(loop: Loop, seconds: float, message: str = "") -> Progress:
    """A snapshot for displays."""
    return Progress(loop.step, loop.config.train.steps, loop.loss, loop.accuracy, loop.scores, seconds, message)


def _evaluation_sequences(loop: Loop) -> dict[int, Tensor]:
    """The same few held-out sequences of every length for each evaluation."""
    device, count = loop.config.train.device, loop.config.train.eval_sequences
    return {length: tokens[:count].to(device) for length, tokens in loop.split.test.items() if len(tokens)}


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
        if loop.step % settings.eval_every == 0:
            solved = bool(loop.accuracy) and min(loop.accuracy.values()) >= settings.stop_accuracy
            loop.solved_in_a_row = loop.solved_in_a_row + 1 if solved else 0
    if track_due:
        loop.scores = {}
        for tracker in loop.trackers:
            loop.scores |= tracker(loop.model, loop.task, held_out)
        row["scores"] = loop.scores
    writer.metric(row)
    loop.model.train()
    solved = ["solved"] if accuracy_due and loop.solved_in_a_row else []
    return moved(loop.saved_scores, _followed(loop), settings.track_move) + solved


def _followed(loop: Loop) -> dict[str, float]:
    """The tracked scores with the mean sequence accuracy over lengths."""
    accuracy = sum(loop.accuracy.values()) / len(loop.accuracy) if loop.accuracy else 0.0
    return {**loop.scores, "accuracy": accuracy}


def _by_length(scores: dict[int, LengthScore], what: str) -> dict[str, float]:
    """One field of every length's score, with JSON keys."""
    return {str(length): getattr(score, what) for length, score in scores.items()}


def _save(loop: Loop, writer: RunWriter, rolling: bool = False) -> None:
    """Commit a checkpoint that holds everything needed to go on bit-exactly."""
    loop.saved_scores = loop.saved_scores if rolling else _followed(loop)
    model = {name: value.detach().cpu().clone() for name, value in loop.model.state_dict().items()}
    optim = {name: value.cpu() for name, value in optimizer_tensors(loop.model, loop.optimizer).items()}
    optim |= {"rng.batches": loop.batches.get_state(), "rng.torch": torch.get_rng_state()}
    state = {
        "config_hash": loop.config.hash(),
        "solved_in_a_row": loop.solved_in_a_row,
        "accuracy": {str(length): value for length, value in loop.accuracy.items()},
        "scores": loop.scores,
        "saved_scores": loop.saved_scores,
        "loss": loop.loss if loop.step else None,
    }
    writer.save(loop.step, model=model, optim=optim, state=state, rolling=rolling)
    writer.status(step=loop.step)


def _finish(loop: Loop, writer: RunWriter) -> None:
    """Score all held-out sequences, teacher-forced and free-running, and close the run."""
    device = loop.config.train.device
    everything = {length: tokens.to(device) for length, tokens in loop.split.test.items()}
    scores = score_lengths(loop.model, loop.task, everything, free=True)
    final = {
        str(length): {"n": s.n, "sequence": s.sequence, "step": s.step, "free_step": s.free_step, "margin": s.margin}
        for length, s in scores.items()
    }
    final_row = {"step": loop.step, "final": final, "duplicates": {str(k): v for k, v in loop.split.duplicates.items()}}
    writer.metric(final_row)
    lowest = min((score.sequence for score in scores.values()), default=float("nan"))
    writer.status(state="done", step=loop.step, message=f"lowest held-out sequence accuracy {lowest:.3f}")
