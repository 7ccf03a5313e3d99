"""How checkpoint folders are named and listed; loads no torch."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from interp.files import disk_errors, require_folder

FOLDER_NAME = re.compile(r"(step|rolling)-([0-9]{8,12})")


@dataclass(frozen=True)
class CheckpointRef:
    """Where a checkpoint is; it is read and verified only when asked for."""

    step: int
    path: Path
    rolling: bool


def folder_name(step: int, *, rolling: bool = False) -> str:
    """`step-00000064`, or `rolling-00001234` for the one that only resuming needs."""
    return f"{'rolling' if rolling else 'step'}-{step:08d}"


def list_checkpoints(folder: Path) -> list[CheckpointRef]:
    """All committed checkpoints in a folder, by step; at the same step the rolling one comes first.

    Raises:
        StoreError: if the folder is a link or cannot be read.
    """
    if not os.path.lexists(folder):
        return []
    with disk_errors(folder), os.scandir(require_folder(folder)) as entries:
        found = [(FOLDER_NAME.fullmatch(entry.name), entry.name) for entry in entries]
    refs = [CheckpointRef(int(name[2]), folder / text, name[1] == "rolling") for name, text in found if name]
    return sorted(refs, key=lambda ref: (ref.step, not ref.rolling))
