"""Discoveries at the checkpoints of a run, side by side in several processes, each stored under what gave it."""

import hashlib
import multiprocessing
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
from circuits.subject import Prompts, of_run
from interp.config import canonical_json, validated
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


def circuit_key(checkpoint: str, config_hash: str, request: Request) -> str:
    """Key of a stored discovery: weights, prompts, settings and code."""
    parts = [checkpoint, config_hash, asdict(request.prompts), request.ablation, request.by_position]
    parts += [request.settings, source_hash()]
    return f"circuit-{hashlib.sha256(canonical_json(parts)).hexdigest()[:20]}"


def discover_at(request: Request, tell: Tell = silent) -> DiscoveryFile:
    """The discovery at one checkpoint, from the store where the same weights, prompts and code gave it before.

    Raises:
        TaskError, UsageError: for prompts that the task does not have.
    """
    run = Store(request.store).run(request.run)
    checkpoint = run.checkpoint(request.step, optim=False)
    key = circuit_key(checkpoint.hash, run.config.hash(), request)
    if not request.fresh and key in run.analyses():
        return validated(DiscoveryFile, run.analysis(key)["discovery"], f"{run.name}/analysis/{key}.json")
    subject = of_run(run, request.step, request.prompts)
    problem = subject.problem(request.ablation, request.by_position)
    found, _ = discover(subject, problem, Settings(**request.settings), tell)
    run.write_analysis(key, {"discovery": found.model_dump(mode="json")})
    return found


def discover_all(
    run: Run, requests: Sequence[Request], workers: int, progress: Callable[[int, int], None]
) -> list[DiscoveryFile]:
    """Discoveries at several checkpoints, in parallel processes; what is stored already is read.

    Results are written as they come, so that a stopped call goes on where it was.
    """
    if workers <= 1:
        found = []
        for done, request in enumerate(requests, 1):
            found.append(discover_at(request))
            progress(done, len(requests))
        return found
    results: dict[int, DiscoveryFile] = {}
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=fresh, initializer=_one_thread) as pool:
        waiting = {pool.submit(discover_at, request): index for index, request in enumerate(requests)}
        try:
            for done, future in enumerate(as_completed(waiting), 1):
                results[waiting[future]] = future.result()
                progress(done, len(requests))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [results[index] for index in range(len(requests))]


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def light(settings: Settings) -> Settings:
    """Settings for one of many checkpoints: the halves tell what chance changes, so no reruns and fewer controls."""
    return settings.model_copy(update={"reruns": 0, "controls": min(settings.controls, 20), "halves": True})


def request_for(run: Run, step: int, template: Request) -> Request:
    """The request of another checkpoint."""
    return replace(template, run=run.name, step=step)
