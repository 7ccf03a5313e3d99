"""Trains one run per seed, one after another or in several processes, and counts how many were solved."""

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from interp.config import RunConfig
from interp.errors import InterpError, Interrupted, StoreError, UsageError
from interp.run import Run, Store
from interp.run_summary import final_accuracy, lowest
from interp.schemas import Share, TrainedItem

if TYPE_CHECKING:
    from interp.train import Progress

SOLVED = 0.99
STOPS_ALL = (Interrupted, UsageError, StoreError)


@dataclass(frozen=True)
class Request:
    """One training to be done; plain values only, so that it can be sent to another process."""

    config: dict[str, Any]
    store: str
    name: str
    resume: bool


def run_one(request: Request, progress: "Callable[[Progress], None] | None" = None) -> TrainedItem:
    """Train, or continue, one run.

    Raises:
        InterpError: whatever stopped the training.
    """
    from interp.train import train

    started = time.process_time()
    store, config = Store(Path(request.store)), RunConfig.model_validate(request.config)
    run = train(config, store, request.name, resume=request.resume, progress=progress)
    return trained_item(run, time.process_time() - started)


def trained_item(run: Run, cpu_seconds: float) -> TrainedItem:
    """How the training of a run ended."""
    status, accuracy = run.status(), lowest(final_accuracy(run.metrics()))
    return TrainedItem(
        name=run.name,
        seed=run.config.seed,
        state=status.state,
        step=status.step,
        accuracy=accuracy,
        solved=accuracy is not None and accuracy >= SOLVED,
        cpu_seconds=round(cpu_seconds, 2),
        message=status.message or "",
    )


def attempt(request: Request) -> TrainedItem:
    """Like `run_one`, but a training that fails is an item with its error, so that the other seeds go on.

    Raises:
        Interrupted, UsageError, StoreError: what would stop every seed alike.
    """
    try:
        return run_one(request)
    except STOPS_ALL:
        raise
    except InterpError as error:
        return failed_item(request, str(error))


def failed_item(request: Request, message: str) -> TrainedItem:
    """The item of a training that ended with an error."""
    try:
        status = Store(Path(request.store)).run(request.name).status()
        state, step = status.state, status.step
    except InterpError:
        state, step = "failed", 0
    return TrainedItem(
        name=request.name,
        seed=request.config["seed"],
        state="failed" if state == "running" else state,
        step=step,
        accuracy=None,
        solved=False,
        cpu_seconds=0.0,
        message=message,
    )


def sweep(requests: Sequence[Request], jobs: int) -> Iterator[TrainedItem]:
    """Results as they come, in any order.

    Args:
        jobs: processes at a time; 1 trains in this process.

    Raises:
        Interrupted: the user stopped; runs under way are left resumable, those not begun are not begun.
    """
    if jobs == 1:
        yield from map(attempt, requests)
        return
    waiting: list[Request] = list(reversed(requests))
    running: dict[Child, Request] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                request = waiting.pop()
                running[_start(request)] = request
            for child in _ready(running):
                yield child.result(running.pop(child))
    except KeyboardInterrupt:
        raise Interrupted("stopped; run the same command with --resume to go on") from None
    finally:
        for child in running:
            child.stop()


@dataclass(frozen=True)
class Child:
    """A process that trains one run, and the pipe on which it answers."""

    process: BaseProcess
    answers: Connection

    def result(self, request: Request) -> TrainedItem:
        """What the process sent, or what its silent end means.

        Raises:
            Interrupted, UsageError, StoreError: as they were raised there.
        """
        try:
            kind, value = self.answers.recv()
        except EOFError:
            self.process.join()
            return failed_item(request, f"its process ended without an answer (exit code {self.process.exitcode})")
        self.process.join()
        if kind == "item":
            return TrainedItem.model_validate(value)
        raise {error.__name__: error for error in STOPS_ALL}[kind](value)

    def stop(self) -> None:
        """Ask the training to stop; it saves a checkpoint first and stays resumable."""
        self.process.terminate()
        self.process.join()


def _start(request: Request) -> Child:
    fresh = multiprocessing.get_context("spawn")
    answers, their_end = fresh.Pipe(duplex=False)
    process = fresh.Process(target=_answer, args=(request, their_end), daemon=True)
    process.start()
    their_end.close()
    return Child(process, answers)


def _ready(running: Iterable[Child]) -> list[Child]:
    """Those that have answered or ended; waits for the first."""
    by_pipe = {child.answers: child for child in running}
    return [by_pipe[pipe] for pipe in wait(list(by_pipe))]


def _answer(request: Request, answers: Connection) -> None:
    """In the new process: train, then send the item, or the kind and text of the error that stops every seed."""
    try:
        answers.send(("item", attempt(request).model_dump(mode="json")))
    except STOPS_ALL as error:
        kind = next(kind for kind in STOPS_ALL if isinstance(error, kind))
        answers.send((kind.__name__, str(error)))
    except KeyboardInterrupt:
        answers.send((Interrupted.__name__, "stopped before the training began"))


def share(k: int, n: int, method: Literal["wilson", "clopper-pearson"] = "wilson") -> Share:
    """k of n with its two-sided 95 % interval; [0, 1] at n = 0."""
    from scipy.stats import binomtest

    if n == 0:
        return Share(k=0, n=0, low=0.0, high=1.0, method=method)
    names = {"wilson": "wilson", "clopper-pearson": "exact"}
    bounds = binomtest(k, n).proportion_ci(0.95, method=names[method])
    return Share(k=k, n=n, low=float(bounds.low), high=float(bounds.high), method=method)
