"""A folder of Hugging Face checkpoints of one training run: which steps it has, and where each is."""

import re
from pathlib import Path

from interp.adapters.folder_weights import has_weights
from interp.adapters.weight_files import real_file, shown
from interp.errors import StoreError
from interp.files import disk_errors, read_bytes

STEP = re.compile(r"(?:[\w.-]*[-_.])?(?:step|steps|checkpoint|ckpt|global_step|iter)[-_]?0*(\d{1,15})", re.IGNORECASE)
HASH = re.compile(r"[0-9a-f]{40}")
MAX_FOLDERS = 100_000


def step_folders(folder: Path) -> dict[int, Path]:
    """Sub-folders that are checkpoints, by step in the order of training.

    A sub-folder counts if its name ends in a step (`step1000`, `checkpoint-500`, `global_step20`) and it holds
    config.json. In a cache folder of the hub the steps are the names under `refs`, and the checkpoints are snapshots.

    Raises:
        StoreError: if two sub-folders are of the same step, or there are too many to read.
    """
    found: dict[int, Path] = {}
    for name, place in _named_places(folder):
        match = STEP.fullmatch(name)
        if match is None or not (place / "config.json").exists():
            continue
        step = int(match[1])
        if step in found and found[step] != place:
            raise StoreError(f"{folder}: {found[step].name} and {place.name} are both of step {step}; move one away")
        found[step] = place
    return dict(sorted(found.items()))


def _named_places(folder: Path) -> list[tuple[str, Path]]:
    if (folder / "refs").is_dir() and (folder / "snapshots").is_dir():
        return _snapshots(folder)
    with disk_errors(folder):
        entries = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink()]
    if len(entries) > MAX_FOLDERS:
        raise StoreError(f"{folder}: {len(entries)} sub-folders, at most {MAX_FOLDERS} are looked at")
    return [(entry.name, entry) for entry in entries]


def _snapshots(folder: Path) -> list[tuple[str, Path]]:
    """The snapshots of a cache folder by the name of the revision that points to each."""
    with disk_errors(folder):
        refs = sorted(entry for entry in (folder / "refs").iterdir() if entry.is_file())
    found = []
    for ref in refs:
        commit = read_bytes(real_file(ref, folder), 4096).decode("ascii", "replace").strip()
        if not HASH.fullmatch(commit):
            raise StoreError(f"{ref}: holds {shown(commit)!r:.60}, expected the hash of a snapshot")
        found.append((ref.name, folder / "snapshots" / commit))
    return found


def only_snapshot(folder: Path) -> Path | None:
    """The snapshot of `main` in a cache folder of the hub, or its only one; None for another folder."""
    if not (folder / "snapshots").is_dir():
        return None
    named = dict(_snapshots(folder)) if (folder / "refs").is_dir() else {}
    places = sorted(entry for entry in (folder / "snapshots").iterdir() if (entry / "config.json").exists())
    if named.get("main") in places:
        return named["main"]
    return places[0] if len(places) == 1 else None


def link_root(folder: Path) -> Path:
    """The folder that links inside may not lead out of: itself, or the cache folder around a snapshot of the hub."""
    above = folder.parent
    cached = above.name == "snapshots" and above.parent.name.startswith("models--")
    return above.parent if cached else folder


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a configuration and weights."""
    return (folder / "config.json").exists() and has_weights(folder)
