"""Discoveries at the checkpoints of a run, side by side in several processes, each stored under what gave it."""

import hashlib
import multiprocessing
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from circuits.circuit_packed import require_storable
from circuits.detect import source_hash
from circuits.discovery import discover
from circuits.discovery_result import DiscoveryFile
from circuits.find import Settings
from circuits.problem import Ablation
from circuits.search.base import Tell, silent
from circuits.stored import CIRCUIT, STORY, discovery_payload, read_circuit, trajectory_payload
from circuits.subject import Prompts, of_run
from circuits.trajectory import Trajectory, trajectory
from interp.config import canonical_json
from interp.console import one_line
from interp.errors import InterpError, Interrupted, StoreFull, Taken, UsageError
from interp.run import Run, Store

FAILURES = (InterpError, ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, ValueError)
Progress = Callable[[int, int], None]  # (done, of)


@dataclass(frozen=True)
class Request:
    """One discovery to be done; plain values only, so that it can be sent to another process."""

    store: str
    run: str
    step: int
    prompts: Prompts
    ablation: Ablation
    by_position: bool
    settings: dict[str, Any]
    fresh: bool = False

    def about(self) -> dict[str, Any]:
        """What the answer depends on besides weights and code."""
        return {
            "prompts": asdict(self.prompts),
            "ablation": self.ablation,
            "by_position": self.by_position,
            "settings": self.settings,
        }


def circuit_key(checkpoint: str, config_hash: str, request: Request) -> str:
    """Key of a stored discovery: weights, prompts, settings and code."""
    parts = [checkpoint, config_hash, *request.about().values(), source_hash()]
    return f"{CIRCUIT}{hashlib.sha256(canonical_json(parts)).hexdigest()[:20]}"


def key_of(run: Run, request: Request) -> str:
    """Key under which the discovery of a request is stored."""
    return circuit_key(run.checkpoint(request.step, optim=False).hash, run.config.hash(), request)


def discover_at(request: Request, tell: Tell = silent) -> DiscoveryFile:
    """The discovery at one checkpoint, from the store where the same weights, prompts and code gave it before.

    Raises:
        TaskError, UsageError: for prompts that the task does not have, or a graph too large to be stored.
    """
    run = Store(request.store).run(request.run)
    key = key_of(run, request)
    if not request.fresh and key in run.analyses():
        return read_circuit(run, key).discovery
    subject = of_run(run, request.step, request.prompts)
    problem = subject.problem(request.ablation, request.by_position)
    require_storable(problem)
    found, _ = discover(subject, problem, Settings(**request.settings), tell)
    run.write_analysis(key, discovery_payload(request.step, subject.fingerprint, request.about(), found))
    return found


@dataclass(frozen=True)
class Failed:
    """A checkpoint that could not be looked at; plain values only, so that another process can send it.

    Attributes:
        kind: "usage" for a request that is wrong, "full" where nothing more can be written, "taken" where the folder
            is something else's, else "failed".
    """

    reason: str
    kind: str = "failed"


Outcome = DiscoveryFile | Failed
ENDING = {"full": StoreFull, "taken": Taken}


def discover_all(
    discover_one: Callable[[Any], DiscoveryFile], requests: Sequence[Any], workers: int, progress: Progress
) -> list[Outcome]:
    """Discoveries at several checkpoints, in parallel processes; what is stored already is read.

    Results are written as they come, so that a stopped call goes on where it was. A checkpoint that fails ends none of
    the others; the same call looks at it again.

    Raises:
        Interrupted: the user stopped.
        UsageError: for requests that are all refused for the same reason, or none at all.
        Taken: for a folder of something else.
        StoreFull: if nothing more can be written.
    """
    if not requests:
        raise UsageError("no checkpoint to look at")
    outcomes: dict[int, Outcome] = {}
    try:
        if workers > 1:
            _side_by_side(discover_one, requests, workers, progress, outcomes)
        else:
            for index, request in enumerate(requests):
                _book(outcomes, index, _attempt(discover_one, request), len(requests), progress)
    except KeyboardInterrupt:
        raise Interrupted("stopped; the same command goes on after the checkpoints that are done") from None
    found = [outcomes[index] for index in range(len(requests))]
    if all(isinstance(one, Failed) and one.kind == "usage" for one in found) and len(set(found)) == 1:
        raise UsageError(found[0].reason)
    return found


def _attempt(discover_one: Callable[[Any], DiscoveryFile], request: Any) -> Outcome:
    """One discovery, or why there is none; not every error can be sent to another process, so its words are."""
    try:
        return discover_one(request)
    except Interrupted:
        raise
    except FAILURES as error:
        kinds = {Taken: "taken", UsageError: "usage", StoreFull: "full"}
        kind = next((name for known, name in kinds.items() if isinstance(error, known)), "failed")
        name = "" if isinstance(error, InterpError) else f"{type(error).__name__}: "
        return Failed(one_line(f"{name}{error}"), kind)


def _book(outcomes: dict[int, Outcome], index: int, outcome: Outcome, of: int, progress: Progress) -> None:
    """Keep an outcome, or end the call where no more can be written, or none of it where it was to be."""
    if isinstance(outcome, Failed) and outcome.kind in ENDING:
        raise ENDING[outcome.kind](outcome.reason)
    outcomes[index] = outcome
    progress(len(outcomes), of)


def _side_by_side(
    discover_one: Callable[[Any], DiscoveryFile],
    requests: Sequence[Any],
    workers: int,
    progress: Progress,
    outcomes: dict[int, Outcome],
) -> None:
    """In several processes. Where one is ended from outside, what it leaves undone is tried again, each alone."""
    of = len(requests)
    with closing(_in_pool(discover_one, dict(enumerate(requests)), workers)) as finished:
        for index, future in finished:
            if not isinstance(future.exception(), BrokenProcessPool):
                _book(outcomes, index, future.result(), of, progress)
    for index in [index for index in range(of) if index not in outcomes]:
        with closing(_in_pool(discover_one, {index: requests[index]}, 1)) as finished:
            ((_, future),) = finished
            broken = isinstance(future.exception(), BrokenProcessPool)
            ended = Failed("its process was ended from outside, most often for want of memory")
            _book(outcomes, index, ended if broken else future.result(), of, progress)


def _in_pool(
    discover_one: Callable[[Any], DiscoveryFile], requests: Mapping[int, Any], workers: int
) -> Iterator[tuple[int, Future[Outcome]]]:
    """(number, finished future) as they come; the processes end with this iterator, however it ends."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(requests)), mp_context=context, initializer=_prepare)
    finished = []
    try:
        waiting = {pool.submit(_attempt, discover_one, request): index for index, request in requests.items()}
        for future in as_completed(waiting):
            finished.append(future)
            yield waiting[future], future
    finally:
        if len(finished) < len(requests):
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)  # its own thread waits for the processes


def _prepare() -> None:
    """In a new process: one thread; Ctrl-C is for the process that waits, which then ends this one."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def light(settings: Settings, keep: Collection[str] = ()) -> Settings:
    """Settings for one of many checkpoints: the halves tell what chance changes, so no reruns and fewer controls.

    Args:
        keep: names of settings that were asked for and stay, of "reruns" and "controls".
    """
    fewer = {"reruns": 0, "controls": min(settings.controls, 20)}
    return settings.model_copy(
        update={**{name: value for name, value in fewer.items() if name not in keep}, "halves": True}
    )


def request_for(run: Run, step: int, template: Request) -> Request:
    """The request of another checkpoint."""
    return replace(template, run=run.name, step=step)


def follow(
    run: Run,
    steps: Sequence[int],
    template: Request,
    workers: int,
    progress: Progress,
    keep: Collection[str] = (),
) -> tuple[list[DiscoveryFile | None], Trajectory]:
    """Discoveries at the checkpoints of a run with lighter settings, and what changed between them; both are stored.

    Args:
        keep: as in `light`.

    Returns:
        One discovery for each step, None where it failed; the trajectory says why.

    Raises:
        Interrupted: the user stopped.
        InterpError: if every checkpoint failed.
    """
    settings = light(Settings(**template.settings), keep).model_dump()
    requests = [replace(request_for(run, step, template), settings=settings) for step in steps]
    found, story = told(steps, discover_all(discover_at, requests, workers, progress))
    keys = [None if one is None else key_of(run, request) for request, one in zip(requests, found, strict=True)]
    name = hashlib.sha256(canonical_json([list(steps), keys])).hexdigest()[:20]
    run.write_analysis(f"{STORY}{name}", trajectory_payload(list(steps), keys, story))
    return found, story


def told(steps: Sequence[int], outcomes: Sequence[Outcome]) -> tuple[list[DiscoveryFile | None], Trajectory]:
    """Discoveries, None where one failed, and their trajectory.

    Raises:
        InterpError: if every checkpoint failed.
    """
    failed = {step: one.reason for step, one in zip(steps, outcomes, strict=True) if isinstance(one, Failed)}
    found = [None if isinstance(one, Failed) else one for one in outcomes]
    if len(failed) == len(outcomes):
        reasons = "; ".join(dict.fromkeys(failed.values()))
        raise InterpError(f"none of the {len(outcomes)} checkpoints could be looked at: {reasons:.400}")
    return found, trajectory(steps, found, failed)
