"""Trains one run per seed, one after another or in several processes, and counts how many were solved."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
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
ENDED = frozenset({"done", "diverged"})


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
    except (Interrupted, UsageError, StoreError):
        raise
    except InterpError as error:
        seed = RunConfig.model_validate(request.config).seed
        try:
            state, step = (status := Store(Path(request.store)).run(request.name).status()).state, status.step
        except InterpError:
            state, step = "failed", 0
        return TrainedItem(
            name=request.name,
            seed=seed,
            state=state,
            step=step,
            accuracy=None,
            solved=False,
            cpu_seconds=0.0,
            message=str(error),
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
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(attempt, request) for request in requests]
        try:
            for future in as_completed(futures):
                yield future.result()
        except (KeyboardInterrupt, InterpError) as error:
            pool.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted("stopped; run the same command with --resume to go on") from None
            raise


def share(k: int, n: int, method: Literal["wilson", "clopper-pearson"] = "wilson") -> Share:
    """k of n with its two-sided 95 % interval; [0, 1] at n = 0."""
    from scipy.stats import binomtest

    if n == 0:
        return Share(k=0, n=0, low=0.0, high=1.0, method=method)
    names = {"wilson": "wilson", "clopper-pearson": "exact"}
    bounds = binomtest(k, n).proportion_ci(0.95, method=names[method])
    return Share(k=k, n=n, low=float(bounds.low), high=float(bounds.high), method=method)
