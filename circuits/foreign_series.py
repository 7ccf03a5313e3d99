"""Discoveries in models that are no runs of ours, one or a whole series of checkpoints, kept in a folder by content."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from circuits.circuit_packed import require_storable
from circuits.detect import source_hash
from circuits.discovery import discover
from circuits.discovery_result import DiscoveryFile
from circuits.find import Settings
from circuits.kept_folder import kept_path, read_kept, require_own
from circuits.problem import Ablation
from circuits.search.base import Tell, silent
from circuits.stored import MAX_BYTES, discovery_payload
from circuits.subject import Subject, of_path
from circuits.through_training import Progress, discover_all, light, told
from circuits.trajectory import Trajectory
from interp.config import canonical_json
from interp.jsonfile import write_sealed


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
        UsageError: for a path, step or prompts that do not fit, or a folder that holds circuits of another model.
    """
    settings = Settings(**request.settings)
    subject = of_path(Path(request.path), Path(request.pairs), step=request.step, bos=request.bos, seed=settings.seed)
    kept = None
    if request.folder is not None:
        kept = kept_path(Path(request.folder), subject.model, subject.step, _key(subject, request))
        if kept.exists() and not request.fresh:
            return read_kept(kept).discovery
        require_own(kept.parent, subject.model, subject.step, subject.fingerprint)
    problem = subject.problem(request.ablation, request.by_position)
    if kept is not None:
        require_storable(problem)
    found, _ = discover(subject, problem, settings, tell)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        step = -1 if subject.step is None else subject.step
        about = {**request.about(), "model": subject.model}
        write_sealed(kept, discovery_payload(step, subject.fingerprint, about, found), limit=MAX_BYTES)
    return found


def follow_path(
    steps: Sequence[int], template: PathRequest, workers: int, progress: Progress, keep: Collection[str] = ()
) -> tuple[list[DiscoveryFile | None], Trajectory]:
    """Discoveries at several checkpoints of a series with lighter settings, and what changed between them.

    Args:
        keep: as in `light`.

    Returns:
        One discovery for each step, None where it failed; the trajectory says why.

    Raises:
        Interrupted: the user stopped.
        InterpError: if every checkpoint failed.
    """
    settings = light(Settings(**template.settings), keep).model_dump()
    requests = [replace(template, step=step, settings=settings) for step in steps]
    return told(steps, discover_all(discover_path, requests, workers, progress))


def _key(subject: Subject, request: PathRequest) -> str:
    """Hash of all that a stored answer says: whose it is, weights, prompts, settings and code."""
    whose = [subject.model, subject.step, subject.fingerprint, subject.pairs.fingerprint()]
    return hashlib.sha256(canonical_json([*whose, *request.about().values(), source_hash()])).hexdigest()[:20]
