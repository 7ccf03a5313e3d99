"""A checkpoint folder: tensors as safetensors, the rest as JSON, a manifest of hashes, whole or absent on disk.

Layout, format 1: `model.safetensors`, `optim.safetensors`, `state.json` and `MANIFEST.json`. The manifest holds size
and sha256 of the others and a sha256 of itself; the sha256 of its bytes is the checkpoint's hash. Random-generator
states travel as uint8 tensors named `rng.*` beside the optimiser's.
"""

import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from interp.checkpoint_folders import FOLDER_NAME
from interp.config import canonical_json
from interp.errors import CheckpointError, StoreError
from interp.files import (
    discard,
    disk_errors,
    read_bytes,
    require_folder,
    sync_folder,
    temporary_beside,
    write_new,
)
from interp.jsonfile import decode, digest_of, encode, require_format, sealed, unsealed

FORMAT = 1
MANIFEST = "MANIFEST.json"
MODEL, OPTIM, STATE = "model.safetensors", "optim.safetensors", "state.json"
FILES = (MODEL, OPTIM, STATE)
MAX_HEADER = 4 << 20
MAX_MANIFEST = 64 << 10
MAX_STATE = 2 << 20


@dataclass(frozen=True)
class Checkpoint:
    """One saved step, read and verified."""

    step: int
    model: dict[str, Tensor]
    optim: dict[str, Tensor]
    state: dict[str, Any]
    hash: str


def write_checkpoint(
    folder: Path, *, step: int, model: dict[str, Tensor], optim: dict[str, Tensor], state: dict[str, Any]
) -> str:
    """Commit a checkpoint at `folder` and return its hash; at every moment it is there in full or not at all.

    An existing checkpoint at `folder` is replaced.

    Args:
        folder: final place; its parent must exist and may not be a link.
        optim: optimiser tensors, and random-generator states under `rng.*`.
        state: plain JSON of at most 2 MiB.

    Raises:
        StoreFull: if the disk is full; nothing half-written is left and other checkpoints are intact.
        StoreError: if a value cannot be stored, or for any other refusal of the disk.
    """
    _require_step(step, folder)
    require_folder(folder.parent)
    body = {"format": FORMAT, "step": step, "state": state}
    contents = {
        MODEL: _tensor_bytes(model, folder / MODEL),
        OPTIM: _tensor_bytes(optim, folder / OPTIM),
        STATE: encode(body, str(folder / STATE), limit=MAX_STATE),
    }
    files = {name: {"bytes": len(data), "sha256": _sha256(data)} for name, data in contents.items()}
    manifest = sealed({"format": FORMAT, "step": step, "files": files}, str(folder / MANIFEST), indent=None)
    contents[MANIFEST] = manifest
    _commit(folder, contents)
    return _sha256(manifest)


def _commit(folder: Path, contents: dict[str, bytes]) -> None:
    """Write and fsync each file in a hidden folder, fsync that, rename it into place, fsync the parent."""
    hidden = temporary_beside(folder)
    try:
        with disk_errors(folder):
            os.mkdir(hidden)
            for name, data in contents.items():
                write_new(hidden / name, data)
            sync_folder(hidden)
            _into_place(hidden, folder)
            sync_folder(folder.parent)
    finally:
        discard(hidden)


def _into_place(hidden: Path, folder: Path) -> None:
    """Rename; one that is there already steps aside first, comes back if the rename fails, and is deleted after."""
    if not os.path.lexists(folder):
        os.rename(hidden, folder)
        return
    old = temporary_beside(require_folder(folder))
    os.rename(folder, old)
    try:
        os.rename(hidden, folder)
    except OSError:
        os.rename(old, folder)
        raise
    discard(old)


def _require_step(step: Any, where: Path) -> None:
    if type(step) is not int or step < 0:
        raise StoreError(f"{where}: a step is a whole number from 0, got {step!r:.40}")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _tensor_bytes(tensors: dict[str, Tensor], where: Path) -> bytes:
    """safetensors bytes; tensors that share memory are stored separately, in the order of their names."""
    ready, seen = {}, set()
    for name in sorted(tensors):
        tensor = tensors[name]
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or name == "__metadata__":
            raise StoreError(f"{where}: {name!r} is {type(tensor).__name__}; expected a dense tensor")
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        ready[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    try:
        return safetensors.torch.save(ready)
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise StoreError(f"{where}: cannot be stored as safetensors ({str(error)[:160]})") from None


@contextmanager
def _as_checkpoint_error() -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except StoreError as error:
        raise CheckpointError(str(error)) from None


def read_checkpoint(folder: Path, *, optim: bool = True) -> Checkpoint:
    """Read a checkpoint, each file once: the bytes that are hashed are the bytes that are parsed.

    Args:
        optim: False leaves the optimiser's file unread and gives an empty dictionary.

    Raises:
        CheckpointError: for any damage or unknown format; the message names the file.
    """
    with _as_checkpoint_error():
        manifest, step, files = _read_manifest(folder)
        model = _read_tensors(folder / MODEL, files[MODEL])
        optimiser = _read_tensors(folder / OPTIM, files[OPTIM]) if optim else {}
        state = _read_state(folder / STATE, files[STATE], step)
    return Checkpoint(step, model, optimiser, state, _sha256(manifest))


def verify_checkpoint(folder: Path) -> str:
    """Check every file of a checkpoint, by reading all of it, and return its hash.

    Raises:
        CheckpointError: for any damage or unknown format; the message names the file.
    """
    return read_checkpoint(folder).hash


def _read_manifest(folder: Path) -> tuple[bytes, int, dict[str, dict[str, Any]]]:
    require_folder(folder)
    where = str(folder / MANIFEST)
    data = read_bytes(folder / MANIFEST, MAX_MANIFEST)
    body = unsealed(data, where)
    require_format(body, FORMAT, where)
    if data != canonical_json({**body, "sha256": digest_of(body)}) + b"\n":
        raise CheckpointError(f"{where}: is not in canonical form; the file was edited")
    files, step = body.get("files"), body.get("step")
    _require_step(step, folder / MANIFEST)
    name = FOLDER_NAME.fullmatch(folder.name)
    if name and int(name[2]) != step:
        raise CheckpointError(f"{where}: is of step {step}, but the folder is named {folder.name}")
    if not isinstance(files, dict) or set(files) != set(FILES):
        raise CheckpointError(f"{where}: expected exactly the files {', '.join(FILES)}")
    for entry in files.values():
        if not isinstance(entry, dict) or set(entry) != {"bytes", "sha256"} or type(entry["bytes"]) is not int:
            raise CheckpointError(f"{where}: expected size and sha256 for each file")
    _require_listing(folder, files)
    return data, step, files


def _require_listing(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Names and sizes on disk are those of the manifest, before anything large is read."""
    with disk_errors(folder):
        present = set(os.listdir(folder))
        sizes = {name: os.lstat(folder / name).st_size for name in FILES if name in present}
    for name in sorted(present - {*FILES, MANIFEST}):
        raise CheckpointError(f"{folder / name}: unexpected file in a checkpoint; remove it if you put it there")
    for name in FILES:
        if name not in present:
            raise CheckpointError(f"{folder / name}: missing; the checkpoint is damaged")
        if sizes[name] != files[name]["bytes"]:
            stated = files[name]["bytes"]
            raise CheckpointError(f"{folder / name}: {sizes[name]} bytes, the manifest says {stated}; it is damaged")


def _verified(path: Path, entry: dict[str, Any], data: bytes) -> bytes:
    if _sha256(data) != entry["sha256"]:
        raise CheckpointError(f"{path}: does not match the manifest's sha256; the file is damaged")
    return data


def _read_tensors(path: Path, entry: dict[str, Any]) -> dict[str, Tensor]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def plausible(head: bytes, size: int) -> None:
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise CheckpointError(f"{path}: not a safetensors file (its header would take {length} of {size} bytes)")

    data = _verified(path, entry, read_bytes(path, memory, head=8, check=plausible))
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError, AssertionError, OverflowError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({str(error)[:160]})") from None


def _read_state(path: Path, entry: dict[str, Any], step: int) -> dict[str, Any]:
    data = _verified(path, entry, read_bytes(path, MAX_STATE))
    body = decode(data, str(path), limit=MAX_STATE)
    if not isinstance(body, dict) or set(body) != {"format", "step", "state"} or not isinstance(body["state"], dict):
        raise CheckpointError(f"{path}: expected format, step and state")
    require_format(body, FORMAT, str(path))
    if body["step"] != step:
        raise CheckpointError(f"{path}: is of step {body['step']!r:.40}, the manifest of step {step}")
    return body["state"]
