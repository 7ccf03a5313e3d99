"""Files of torch.save read as data: bounds-checked views of the archive's uncompressed records, read when asked for."""

import itertools
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.adapters.pickled_data import Name, Storage, Strided, run_program
from interp.adapters.weight_files import MAX_BYTES, Stored, real_file, shown
from interp.errors import CheckpointError, StoreError
from interp.files import opened

MAX_PROGRAM, MAX_VALUES, MAX_DEPTH = 8 << 20, 300_000, 16
NO_ARCHIVE = (  # what zipfile raises on bytes that are no archive, a damaged one, or one packed in another way
    *(zipfile.BadZipFile, NotImplementedError, EOFError, struct.error, OverflowError),
)
NO_RECORD = (  # the same while a record is read, which may be gone or on a disk that fails
    *(zipfile.BadZipFile, NotImplementedError, EOFError, struct.error, LookupError, OSError, ValueError),
)


def read_torch_file(path: Path, root: Path) -> Any:
    """What torch.save wrote, with a `Stored` in the place of each tensor. No code of the file is run.

    Raises:
        StoreError: if the file cannot be read, or is a link that leads out of `root`.
        CheckpointError: if it is not a file of torch.save since 1.6, or holds anything but data.
    """
    real = real_file(path, root)
    with opened(real, MAX_BYTES):
        pass  # refuses what is no plain file
    try:
        with zipfile.ZipFile(real) as archive:
            names = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
            if len(names) != 1 or names[0].file_size > MAX_PROGRAM:
                raise CheckpointError(f"{path}: expected one data.pkl of at most {MAX_PROGRAM} bytes in it")
            prefix = names[0].filename.removesuffix("data.pkl")
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            _require_plain(archive, path)
            order = archive.read(f"{prefix}byteorder") if f"{prefix}byteorder" in sizes else b"little"
            value = run_program(archive.read(names[0]))
    except NO_ARCHIVE:
        raise CheckpointError(
            f"{path}: not a file of torch.save as written since torch 1.6; an older one may need code, so load it "
            "where you trust it and save its state dict as safetensors"
        ) from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({str(error)[:120]})") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: refused, nothing of it was run: {str(error)[:200]}") from None
    if order != b"little":
        raise CheckpointError(f"{path}: written on a machine of another byte order ({order!r:.20})")
    count = itertools.count()

    def stored(key: str, one: Strided) -> Stored:
        return _stored(real, path, prefix, sizes, key, one)

    return _with_tensors(value, str(path), "", stored, count)


def _require_plain(archive: zipfile.ZipFile, path: Path) -> None:
    """Records of torch.save are never compressed, so a file cannot be larger in memory than on disk."""
    for info in archive.infolist():
        name = shown(info.filename)
        if info.flag_bits & 1:
            raise CheckpointError(f"{path}: its record {name} is encrypted, which torch.save never does")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise CheckpointError(f"{path}: its record {name} is compressed, which torch.save never does")


def _with_tensors(
    value: Any, where: str, key: str, stored: Callable[[str, Strided], Stored], count: Iterator[int], depth: int = 0
) -> Any:
    """The same containers, copied as a tree, with a `Stored` for each tensor; what is shared counts each time."""
    if depth > MAX_DEPTH or next(count) > MAX_VALUES:
        raise CheckpointError(f"{where}: nested deeper than {MAX_DEPTH} levels, or more than {MAX_VALUES} values in it")
    if isinstance(value, Strided):
        return stored(key, value)
    if isinstance(value, Name | Storage):
        raise CheckpointError(f"{where}: {shown(key)} is a name of the program, expected data")
    if isinstance(value, dict):
        inner = ((name, str(name), one) for name, one in value.items())
        return {name: _with_tensors(one, where, text, stored, count, depth + 1) for name, text, one in inner}
    if isinstance(value, list | tuple):
        numbered = ((f"{key}[{index}]", one) for index, one in enumerate(value))
        return [_with_tensors(one, where, text, stored, count, depth + 1) for text, one in numbered]
    return value


def _stored(real: Path, path: Path, prefix: str, sizes: dict[str, int], key: str, one: Strided) -> Stored:
    record = f"{prefix}data/{one.storage.record}"
    needed = one.storage.count * one.storage.dtype.itemsize
    if sizes.get(record) != needed:
        raise CheckpointError(
            f"{path}: {shown(key)} needs {needed} bytes in {shown(record)}, found {sizes.get(record, 'no such record')}"
        )
    return Stored(path, key, one.storage.dtype, one.size, lambda: _values(real, path, record, one))


def _values(real: Path, path: Path, record: str, one: Strided) -> Tensor:
    try:
        with zipfile.ZipFile(real) as archive:
            data = bytearray(archive.read(record))
    except NO_RECORD as error:
        raise CheckpointError(f"{path}: {shown(record)} cannot be read ({str(error)[:120]})") from None
    if not data:
        return torch.zeros(one.size, dtype=one.storage.dtype)
    flat = torch.frombuffer(data, dtype=one.storage.dtype)
    if 0 in one.size:
        return flat.new_zeros(one.size)
    value = flat.as_strided(one.size, one.stride, one.offset)
    return value if value.numel() == len(flat) else value.clone()  # a part does not keep the whole in memory
