"""Discoveries in models that are no runs of ours, one or a whole series of checkpoints, kept in a folder by content."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from circuits.detect import source_hash
from circuits.discovery import discover
from circuits.discovery_result import DiscoveryFile
from circuits.find import Settings
from circuits.problem import Ablation
from circuits.search.base import Tell, silent
from circuits.stored import CIRCUIT, discovery_payload
from circuits.subject import Subject, of_path
from circuits.through_training import discover_all, light
from circuits.trajectory import Trajectory, trajectory
from interp.config import canonical_json, validated
from interp.jsonfile import read_sealed, write_sealed

FORMAT = 1
MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class PathRequest:
    """One discovery to be done; plain values only, so that it can be sent to another process.

    Attributes:
        step: of a run or series; None for its newest, or a single model.
        folder: where results are kept and found again; None keeps nothing.
    """

    path: str
    pairs: str
    step: int | None
    bos: bool
    ablation: Ablation
    by_position: bool
    settings: dict[str, Any]
    folder: str | None = None
    fresh: bool = False

    def about(self) -> dict[str, Any]:
        """What the answer depends on besides weights, prompts and code."""
        return {
            "pairs": Path(self.pairs).name,
            "bos": self.bos,
            "ablation": self.ablation,
            "by_position": self.by_position,
            "settings": self.settings,
        }


def discover_path(request: PathRequest, tell: Tell = silent) -> DiscoveryFile:
    """The discovery in one model on disk, from the folder where the same weights, prompts and code gave it before.

    Raises:
        UsageError: for a path, step or prompts that do not fit.
    """
    settings = Settings(**request.settings)
    subject = of_path(Path(request.path), Path(request.pairs), step=request.step, bos=request.bos, seed=settings.seed)
    kept = None if request.folder is None else Path(request.folder) / f"{_key(subject, request)}.json"
    if kept is not None and kept.exists() and not request.fresh:
        body = read_sealed(kept, newest=FORMAT, limit=MAX_BYTES)
        return validated(DiscoveryFile, body.get("discovery"), str(kept))
    found, _ = discover(subject, subject.problem(request.ablation, request.by_position), settings, tell)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        step = -1 if subject.step is None else subject.step
        about = {**request.about(), "model": subject.model}
        write_sealed(kept, discovery_payload(step, subject.fingerprint, about, found), limit=MAX_BYTES)
    return found


def follow_path(
    steps: Sequence[int], template: PathRequest, workers: int, progress: Callable[[int, int], None]
) -> tuple[list[DiscoveryFile], Trajectory]:
    """Discoveries at several checkpoints of a series with lighter settings, and what changed between them.

    Raises:
        Interrupted: the user stopped.
    """
    settings = light(Settings(**template.settings)).model_dump()
    requests = [replace(template, step=step, settings=settings) for step in steps]
    found = discover_all(discover_path, requests, workers, progress)
    return found, trajectory(steps, found)


def _key(subject: Subject, request: PathRequest) -> str:
    parts = [subject.fingerprint, subject.pairs.fingerprint(), *request.about().values(), source_hash()]
    return f"{CIRCUIT}{hashlib.sha256(canonical_json(parts)).hexdigest()[:20]}"
