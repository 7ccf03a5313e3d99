"""Analyses of a run: `<key>.json` with a format number and check sum, and its arrays in an .npz it names by hash."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import StoreError, UnknownName
from interp.files import disk_errors, read_bytes, replace, require_folder
from interp.jsonfile import read_sealed, write_sealed
from interp.names import check_name

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1
MAX_BYTES = 128 << 20  # few values, as `jsonfile` sees to, but one may be a long text
MAX_ARRAY_BYTES = 1 << 30
LONGEST_KEY = 128


def _path(folder: Path, key: str) -> Path:
    return folder / f"{check_name(key, 'analysis', longest=LONGEST_KEY)}.json"


def list_analyses(folder: Path) -> list[str]:
    """Keys of the analyses in a folder, sorted."""
    if not os.path.lexists(folder):
        return []
    with disk_errors(folder):
        names = os.listdir(require_folder(folder))
    return sorted(name[:-5] for name in names if name.endswith(".json") and not name.startswith("."))


def write_analysis(folder: Path, key: str, payload: dict[str, Any], arrays: dict[str, "np.ndarray"]) -> None:
    """Store payload and arrays; the JSON goes last, so an interrupted write leaves the old analysis.

    Raises:
        RunNameError: for a key outside the allowed alphabet.
        StoreError: if the payload is not plain JSON or an array holds objects; StoreFull if there is no room.
    """
    path = _path(folder, key)
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
    require_folder(folder)
    body: dict[str, Any] = {"format": FORMAT, "key": key, "payload": payload}
    kept = ""
    if arrays:
        from interp.arrays import encode_arrays

        data = encode_arrays(arrays, str(path))
        digest = hashlib.sha256(data).hexdigest()
        kept = f"{key}.{digest[:16]}.npz"
        body["arrays"] = {"bytes": len(data), "sha256": digest}
        replace(folder / kept, data)
    write_sealed(path, body, limit=MAX_BYTES)
    _remove_stale(folder, key, kept)


def _remove_stale(folder: Path, key: str, kept: str) -> None:
    """Delete arrays of this key that its JSON no longer names."""
    with disk_errors(folder):
        for name in os.listdir(folder):
            middle = name[len(key) + 1 : -4]
            if name.startswith(f"{key}.") and name.endswith(".npz") and len(middle) == 16 and name != kept:
                (folder / name).unlink(missing_ok=True)


def _read(folder: Path, key: str) -> dict[str, Any]:
    path = _path(folder, key)
    if not os.path.lexists(path):
        raise UnknownName("analysis", key, list_analyses(folder))
    require_folder(folder)
    body = read_sealed(path, newest=FORMAT, limit=MAX_BYTES)
    if body.get("key") != key or not isinstance(body.get("payload"), dict):
        raise StoreError(f"{path}: expected the analysis {key!r}, found key {body.get('key')!r:.80}")
    return body


def read_analysis(folder: Path, key: str) -> dict[str, Any]:
    """The payload of an analysis.

    Raises:
        UnknownName: if there is none of that key.
        StoreError: if it is damaged; the message names the file.
    """
    return _read(folder, key)["payload"]


def read_arrays(folder: Path, key: str) -> dict[str, "np.ndarray"]:
    """The arrays of an analysis, empty if it has none.

    Raises:
        UnknownName: if there is no analysis of that key.
        StoreError: if the arrays are missing, damaged or not those the JSON names.
    """
    from interp.arrays import decode_arrays

    entry = _read(folder, key).get("arrays")
    if entry is None:
        return {}
    if not isinstance(entry, dict) or type(entry.get("bytes")) is not int or not isinstance(entry.get("sha256"), str):
        raise StoreError(f"{_path(folder, key)}: expected size and sha256 of the arrays")
    path = folder / f"{key}.{check_name(entry['sha256'][:16], 'arrays')}.npz"
    data = read_bytes(path, MAX_ARRAY_BYTES)
    if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise StoreError(f"{path}: does not match the sha256 in its JSON; the file is damaged, run the analysis again")
    return decode_arrays(data, str(path))
