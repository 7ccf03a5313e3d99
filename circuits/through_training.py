"""Discoveries at the checkpoints of a run, side by side in several processes, each stored under what gave it."""

import hashlib
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from typing import Any

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
from interp.errors import Interrupted
from interp.run import Run, Store


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
        TaskError, UsageError: for prompts that the task does not have.
    """
    run = Store(request.store).run(request.run)
    key = key_of(run, request)
    if not request.fresh and key in run.analyses():
        return read_circuit(run, key).discovery
    subject = of_run(run, request.step, request.prompts)
    problem = subject.problem(request.ablation, request.by_position)
    found, _ = discover(subject, problem, Settings(**request.settings), tell)
    run.write_analysis(key, discovery_payload(request.step, subject.fingerprint, request.about(), found))
    return found


def discover_all(
    discover_one: Callable[[Any], DiscoveryFile],
    requests: Sequence[Any],
    workers: int,
    progress: Callable[[int, int], None],
) -> list[DiscoveryFile]:
    """Discoveries at several checkpoints, in parallel processes; what is stored already is read.

    Results are written as they come, so that a stopped call goes on where it was.

    Raises:
        Interrupted: the user stopped.
    """
    try:
        if workers > 1:
            return _side_by_side(discover_one, requests, workers, progress)
        found = []
        for done, request in enumerate(requests, 1):
            found.append(discover_one(request))
            progress(done, len(requests))
    except KeyboardInterrupt:
        raise Interrupted("stopped; the same command goes on after the checkpoints that are done") from None
    return found


def _side_by_side(
    discover_one: Callable[[Any], DiscoveryFile],
    requests: Sequence[Any],
    workers: int,
    progress: Callable[[int, int], None],
) -> list[DiscoveryFile]:
    """In several processes; they end with this call, however it ends."""
    results: dict[int, DiscoveryFile] = {}
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare)
    try:
        waiting = {pool.submit(discover_one, request): index for index, request in enumerate(requests)}
        for done, future in enumerate(as_completed(waiting), 1):
            results[waiting[future]] = future.result()
            progress(done, len(requests))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            if len(results) < len(requests):
                process.terminate()
            process.join()
    return [results[index] for index in range(len(requests))]


def _prepare() -> None:
    """In a new process: one thread; Ctrl-C is for the process that waits, which then ends this one."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def light(settings: Settings) -> Settings:
    """Settings for one of many checkpoints: the halves tell what chance changes, so no reruns and fewer controls."""
    return settings.model_copy(update={"reruns": 0, "controls": min(settings.controls, 20), "halves": True})


def request_for(run: Run, step: int, template: Request) -> Request:
    """The request of another checkpoint."""
    return replace(template, run=run.name, step=step)


def follow(
    run: Run, steps: Sequence[int], template: Request, workers: int, progress: Callable[[int, int], None]
) -> tuple[list[DiscoveryFile], Trajectory]:
    """Discoveries at the checkpoints of a run with lighter settings, and what changed between them; both are stored.

    Raises:
        Interrupted: the user stopped.
    """
    settings = light(Settings(**template.settings)).model_dump()
    requests = [replace(request_for(run, step, template), settings=settings) for step in steps]
    found = discover_all(discover_at, requests, workers, progress)
    story = trajectory(steps, found)
    keys = [key_of(run, request) for request in requests]
    name = hashlib.sha256(canonical_json(keys)).hexdigest()[:20]
    run.write_analysis(f"{STORY}{name}", trajectory_payload(list(steps), keys, story))
    return found, story
