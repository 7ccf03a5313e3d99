"""Named NumPy arrays as uncompressed .npz bytes, read without pickle and with every size checked first."""

import io
import math
import zipfile
from typing import Any

import numpy as np

from interp.errors import StoreError

MAX_ARRAYS = 10_000
UNREADABLE = (  # what zipfile and NumPy raise on damaged or hostile bytes
    *(zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError, RuntimeError, MemoryError),
    *(TypeError, SyntaxError, OverflowError),  # NotImplementedError is a RuntimeError
)
READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def encode_arrays(arrays: dict[str, Any], where: str) -> bytes:
    """.npz bytes of arrays by name.

    Raises:
        StoreError: for object arrays (they would need pickle) and for names that are not plain file names.
    """
    plain = {}
    for name, value in arrays.items():
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise StoreError(f"{where}: array {name!r} holds Python objects; convert it to numbers or fixed-width text")
        if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
            raise StoreError(f"{where}: array name {name!r} is not a plain name")
        plain[name] = array
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in plain.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return buffer.getvalue()


def decode_arrays(data: bytes, where: str) -> dict[str, np.ndarray]:
    """Arrays by name from .npz bytes.

    Raises:
        StoreError: for anything but plain, uncompressed arrays whose stated shapes fit their bytes.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in _members(archive, where):
                _require_honest_header(archive, member, where)
        with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
            return {name: loaded[name] for name in loaded.files}
    except UNREADABLE as error:
        raise StoreError(f"{where}: not a readable .npz ({str(error)[:120]}); the file is damaged") from None


def _members(archive: zipfile.ZipFile, where: str) -> list[zipfile.ZipInfo]:
    members = archive.infolist()
    if len(members) > MAX_ARRAYS:
        raise StoreError(f"{where}: {len(members)} arrays, at most {MAX_ARRAYS} are accepted")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise StoreError(f"{where}: {member.filename!r:.60} is compressed; only plain arrays are accepted")
        if not member.filename.endswith(".npy"):
            raise StoreError(f"{where}: unexpected member {member.filename!r:.60}")
    return members


def _require_honest_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> None:
    with archive.open(member) as file:
        read_header = READ_HEADER.get(np.lib.format.read_magic(file))
        if read_header is None:
            raise StoreError(f"{where}: {member.filename!r:.60} has an unknown array format")
        shape, _, dtype = read_header(file)
        if dtype.hasobject:
            raise StoreError(f"{where}: {member.filename!r:.60} holds Python objects, which are never loaded")
        if math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
            raise StoreError(
                f"{where}: {member.filename!r:.60} states shape {shape!r:.60}, which its bytes do not hold"
            )
