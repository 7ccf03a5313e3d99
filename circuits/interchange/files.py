"""JSON files of other programs and of our own read as plain objects, and written whole or not at all."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interp.errors import StoreError
from interp.files import discard, disk_errors, read_bytes, replace, sync_folder, temporary_beside

MAX_BYTES = 256 << 20  # the edges of a large model as JSON
MAX_VALUES = 12_000_000  # which keeps what a file becomes in memory within a few GB
ENDING = re.compile(r"\.(?:pt|pth|ckpt|bin|safetensors|json)$", re.IGNORECASE)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; NaN becomes None, as other programs write it for what has no score.

    Raises:
        StoreError: for a file that is missing, too large, or no JSON object.
    """
    data = read_bytes(path, MAX_BYTES)
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise StoreError(f"{path}: more than {MAX_VALUES:,} values; no circuit that can be read has so many")
    try:
        body = json.loads(data.decode("utf-8"), parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: not valid JSON ({str(error)[:120]}); the file is damaged") from None
    if not isinstance(body, dict):
        raise StoreError(f"{path}: expected a JSON object, found {type(body).__name__}")
    return body


def _constant(text: str) -> None:
    if text != "NaN":
        raise ValueError(f"{text} is no score")


def write_object(path: Path, body: dict[str, Any], *, indent: int | None = None) -> None:
    """Write a JSON object with its keys in the order given; equal objects give equal bytes."""
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, indent=indent)
    write_bytes(path, (text + "\n").encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in one step, with the folder around it."""
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, data)


@contextmanager
def finished_folder(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """A hidden folder beside `folder` to write into; its files are in place once the block ends, and not before.

    A block that does not end leaves `folder` as it was. What else `folder` holds stays.

    Args:
        names: of the files, the one that tells whose they are first: where `folder` is there already, they are moved
            into it one by one in this order.

    Raises:
        StoreError: if a file cannot be written or moved; the message names its place in `folder`.
    """
    hidden = temporary_beside(folder)
    try:
        with disk_errors(folder):
            hidden.mkdir(parents=True)
        yield hidden
        with disk_errors(folder):
            sync_folder(hidden)
            if not os.path.lexists(folder):
                os.rename(hidden, folder)
            else:
                for name in names:
                    os.replace(hidden / name, folder / name)
                sync_folder(folder)
            sync_folder(folder.parent)
    except StoreError as error:
        error.args = (str(error).replace(str(hidden), str(folder)),)
        raise
    finally:
        discard(hidden)


def of_type(body: dict[str, Any], key: str, kind: type, where: str) -> Any:
    """A value of a file, of the type that the format asks for.

    Raises:
        StoreError: naming file and key where it is missing or of another type.
    """
    value = body.get(key)
    if type(value) is not kind:
        found = "nothing" if key not in body else type(value).__name__
        raise StoreError(f"{where}: {key}: expected {kind.__name__}, found {found}")
    return value


def name_of_files(model: str) -> str:
    """Name of a model as part of a file name: `Qwen2.5-0.5B` stays, `ckpt.pt` becomes `ckpt`, `a/b` becomes `a-b`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", ENDING.sub("", model)).strip("-.")[:80] or "model"
