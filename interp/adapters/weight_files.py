"""Weight files of other people's models: named tensors that are checked before and while they are read."""

import hashlib
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp.errors import CheckpointError, StoreError
from interp.files import CHUNK, disk_errors, opened, read_bytes
from interp.jsonfile import decode

MAX_HEADER = 32 << 20
MAX_JSON = 32 << 20
MAX_BYTES = 1 << 46
MAX_TENSORS = 100_000
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FLOATS = tuple(DTYPES.values())


@dataclass(frozen=True)
class Stored:
    """One tensor of a weight file; nothing but its description is in memory until `load`."""

    file: Path
    key: str
    dtype: torch.dtype | str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def load(self) -> Tensor:
        """The values.

        Raises:
            CheckpointError: for integers or packed weights, and for values that are not finite.
        """
        where = f"{self.file}: {shown(self.key)}"
        if self.dtype not in FLOATS:
            raise CheckpointError(f"{where} is of type {self.dtype}; expected plain floating-point, not quantised")
        value = self.read()
        if tuple(value.shape) != self.shape or value.dtype != self.dtype:
            raise CheckpointError(f"{where} is not what the file's header says; the file is damaged")
        if not bool(value.isfinite().all()):
            bad = int((~value.isfinite()).sum())
            raise CheckpointError(f"{where} has {bad} of {value.numel()} values that are NaN or infinite")
        return value


def shown(name: str) -> str:
    """A name from a file as it may stand in a message: short, and without control characters."""
    return f"{name:.80}" if name.isprintable() else f"{name!a:.80}"


def real_file(path: Path, root: Path) -> Path:
    """The plain file behind a path, which may be a link only to a place below `root`.

    Raises:
        StoreError: for a link that leads out of `root`, a missing file, a pipe or a device.
    """
    with disk_errors(path):
        target = path.resolve(strict=True)
    if not target.is_relative_to(root.resolve()):
        raise StoreError(f"{path}: is a link that leads out of {root}; put the file itself there")
    if not target.is_file():
        raise StoreError(f"{path}: expected a plain file")
    return target


def read_json(path: Path, root: Path) -> dict:
    """A JSON object from a file below `root`.

    Raises:
        StoreError: if it is missing, too large, or no JSON object.
    """
    body = decode(read_bytes(real_file(path, root), MAX_JSON), str(path), limit=MAX_JSON)
    if not isinstance(body, dict):
        raise StoreError(f"{path}: expected a JSON object, found {type(body).__name__}")
    return body


def safetensors_stored(path: Path, root: Path) -> dict[str, Stored]:
    """Every tensor of a safetensors file by its key.

    Raises:
        StoreError: if the file cannot be read, or is a link that leads out of `root`.
        CheckpointError: if it is no safetensors file.
    """
    real = real_file(path, root)
    with opened(real, MAX_BYTES) as (fd, size), disk_errors(path):
        head = os.pread(fd, 8, 0)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        raise CheckpointError(f"{path}: not a safetensors file (its header would take {length} of {size} bytes)")
    try:
        with safe_open(real, framework="pt") as file:
            if len(file.keys()) > MAX_TENSORS:
                raise CheckpointError(f"{path}: {len(file.keys())} tensors, at most {MAX_TENSORS} are accepted")
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118, not a dict
            found = {key: (some.get_dtype(), tuple(some.get_shape())) for key, some in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({str(error)[:160]})") from None
    return {
        key: Stored(path, key, DTYPES.get(kind, kind), shape, lambda key=key: _safetensor(real, path, key))
        for key, (kind, shape) in found.items()
    }


def _safetensor(real: Path, path: Path, key: str) -> Tensor:
    try:
        with safe_open(real, framework="pt") as file:
            return file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: {shown(key)} cannot be read ({str(error)[:160]})") from None


def merged(parts: Iterable[Mapping[str, Stored]]) -> dict[str, Stored]:
    """The tensors of several files.

    Raises:
        CheckpointError: if two files hold the same key.
    """
    found: dict[str, Stored] = {}
    for part in parts:
        for key in found.keys() & part.keys():
            raise CheckpointError(f"{part[key].file}: {shown(key)} is in {found[key].file.name} too; one is left over")
        found |= part
    return found


def require_shapes(
    found: Mapping[str, Stored], expected: Mapping[str, tuple[int, ...]], what: str, *, optional: Iterable[str] = ()
) -> None:
    """Check that exactly the expected tensors are there.

    Args:
        what: the file or folder and where the expectation comes from, for the message.
        optional: expected keys that may be absent.

    Raises:
        CheckpointError: naming up to four keys that are missing or not known, or the first of another shape.
    """
    if missing := sorted(expected.keys() - found.keys() - set(optional)):
        raise CheckpointError(f"{what}: missing {_some(missing)}")
    if unknown := sorted(found.keys() - expected.keys()):
        raise CheckpointError(
            f"{found[unknown[0]].file}: unknown {_some(unknown)}; {what} has no place for "
            f"{'it' if len(unknown) == 1 else 'them'}"
        )
    for key, stored in found.items():
        if stored.shape != tuple(expected[key]):
            raise CheckpointError(
                f"{stored.file}: {shown(key)} is {list(stored.shape)}; {what} gives {list(expected[key])}"
            )


def _some(keys: list[str]) -> str:
    rest = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
    return ", ".join(shown(key) for key in keys[:4]) + rest


def main_dtype(found: Mapping[str, Stored]) -> str:
    """Name of the floating-point type that most values have."""
    sizes: dict[str, int] = {}
    for stored in found.values():
        name = str(stored.dtype).removeprefix("torch.")
        sizes[name] = sizes.get(name, 0) + math.prod(stored.shape)
    return max(sizes, key=lambda name: sizes[name])


def fingerprint(paths: Iterable[Path]) -> str:
    """sha256 over the names and sha256 sums of files, in the order of their names."""
    lines = []
    for path in sorted(paths, key=lambda path: path.name):
        digest = hashlib.sha256()
        with opened(path.resolve(), MAX_BYTES) as (fd, _), disk_errors(path):
            while piece := os.read(fd, CHUNK):
                digest.update(piece)
        lines.append(f"{path.name} {digest.hexdigest()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()
