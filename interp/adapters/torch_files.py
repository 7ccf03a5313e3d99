"""Files of torch.save read as data: an interpreter of the few pickle instructions that tensors need, and no other.

A pickle is a program for a stack machine. The instructions of plain values, containers and tensors are carried out
here; the first name that is not on the list below ends the reading. Nothing is imported or called, and tensors are
bounds-checked views of the archive's uncompressed records, read only when asked for.
"""

import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.adapters.weight_files import MAX_BYTES, Stored, real_file
from interp.errors import CheckpointError
from interp.files import opened

MAX_PROGRAM = 64 << 20
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "INT", "LONG", "FLOAT"}
LITERALS |= {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES"}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
FIXED = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
NOTHING = {"PROTO", "FRAME"}


class Refused(ValueError):
    """The program asks for something else than data."""


@dataclass(frozen=True)
class Name:
    """A name that the program may mention, with what its call builds; calling it is our own code."""

    text: str
    build: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Storage:
    """A record of the archive."""

    dtype: torch.dtype
    record: str
    count: int


@dataclass(frozen=True)
class Strided:
    """A tensor as the program describes it: a view of a storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _whole(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or any(type(one) is not int or not 0 <= one < 1 << 48 for one in values):
        raise Refused(f"{values!r:.60} is no list of sizes")
    return tuple(values)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Strided:
    """A view that stays inside its storage; gradients and backward hooks are left out."""
    (offset,), size, stride = _whole([offset]), _whole(size), _whole(stride)
    if not isinstance(storage, Storage) or len(size) != len(stride):
        raise Refused("a tensor without a storage, or with as many strides as it has not axes")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.count:
        raise Refused(f"a tensor reaches value {last} of a storage with {storage.count}")
    return Strided(storage, offset, size, stride)


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _ordered(*items: Any) -> dict:
    return dict(*items)


def _size(values: Any) -> tuple[int, ...]:
    return _whole(values)


BUILT = {
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "collections OrderedDict": _ordered,
    "torch Size": _size,
}
DTYPE_NAMES = {f"torch {name}": name for name in ("float64", "float32", "float16", "bfloat16", "int64", "bool")}


def _named(text: str) -> Any:
    """What a module and a name stand for.

    Raises:
        Refused: for everything that is not on the list.
    """
    module, _, name = text.partition(" ")
    if module == "torch" and name in STORAGES:
        return Name(name)
    if text in DTYPE_NAMES:
        return DTYPE_NAMES[text]
    if text in BUILT:
        return Name(text, BUILT[text])
    raise Refused(f"it wants {module}.{name}, which is code or an object; only tensors, numbers and text are read")


class Machine:
    """The stack, its marks and the memo of one program."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def since_mark(self) -> list[Any]:
        """Take what was pushed after the last mark."""
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def step(self, name: str, arg: Any) -> None:
        """Carry out one instruction.

        Raises:
            Refused: for an instruction that plain data does not need.
        """
        stack = self.stack
        if name in VALUES:
            stack.append(VALUES[name])
        elif name in LITERALS:
            stack.append(arg)
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(arg)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[int(arg)])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(self.since_mark()))
        elif name in FIXED:
            taken = tuple(stack[-FIXED[name] :])
            del stack[-FIXED[name] :]
            stack.append(taken)
        else:
            self.combine(name, arg)

    def combine(self, name: str, arg: Any) -> None:
        """Instructions that change what is below them, or call something on the list."""
        stack = self.stack
        if name in ("SETITEMS", "SETITEM"):
            items = self.since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            target = stack[-1]
            if not isinstance(target, dict):
                raise Refused(f"an item is set on a {type(target).__name__}")
            target.update(zip(items[::2], items[1::2], strict=True))
        elif name in ("APPENDS", "APPEND", "ADDITEMS"):
            items = [stack.pop()] if name == "APPEND" else self.since_mark()
            add = stack[-1].update if isinstance(stack[-1], set) else stack[-1].extend
            add(items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                arg = f"{module} {attribute}"
            stack.append(_named(arg))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            if not isinstance(function, Name) or function.build is None:
                raise Refused("something that is no function of the list is called")
            stack.append(function.build(*arguments))
        elif name == "BUILD":  # attributes of a state dict: the versions of its modules
            state = stack.pop()
            if not isinstance(stack[-1], dict) or not isinstance(state, dict):
                raise Refused("attributes are set on an object")
        elif name not in NOTHING:
            raise Refused(f"the instruction {name} is not needed by plain data")


def _storage(named: Any) -> Storage:
    kind, of, record, _, count = named
    if kind != "storage" or not isinstance(of, Name) or of.text not in STORAGES or not str(record).isdigit():
        raise Refused(f"{record!r:.40} is no record of this file")
    return Storage(STORAGES[of.text], str(record), _whole([count])[0])


def run_program(data: bytes) -> Any:
    """The value that a pickle describes.

    Raises:
        ValueError: for a program that is damaged or asks for anything but data.
    """
    machine = Machine()
    try:
        for operation, arg, _ in pickletools.genops(data):
            if operation.name == "STOP":
                (value,) = machine.stack
                return value
            machine.step(operation.name, arg)
    except (LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"damaged: {type(error).__name__} {error}") from None
    raise ValueError("damaged: it has no end")


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
    except (zipfile.BadZipFile, NotImplementedError, EOFError):
        raise CheckpointError(
            f"{path}: not a file of torch.save as written since torch 1.6; an older one may need code, so load it "
            "where you trust it and save its state dict as safetensors"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: refused, nothing of it was run: {str(error)[:200]}") from None
    if order != b"little":
        raise CheckpointError(f"{path}: written on a machine of another byte order ({order!r:.20})")
    return _with_tensors(value, "", lambda key, one: _stored(real, path, prefix, sizes, key, one))


def _require_plain(archive: zipfile.ZipFile, path: Path) -> None:
    """Records of torch.save are never compressed, so a file cannot be larger in memory than on disk."""
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise CheckpointError(f"{path}: its record {info.filename:.60} is compressed, which torch.save never does")


def _with_tensors(value: Any, key: str, stored: Callable[[str, Strided], Stored], depth: int = 0) -> Any:
    if depth > 16:
        raise CheckpointError(f"{key:.60}: nested deeper than 16 levels")
    if isinstance(value, Strided):
        return stored(key, value)
    if isinstance(value, dict):
        return {name: _with_tensors(one, str(name), stored, depth + 1) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_with_tensors(one, f"{key}[{index}]", stored, depth + 1) for index, one in enumerate(value)]
    return value


def _stored(real: Path, path: Path, prefix: str, sizes: dict[str, int], key: str, one: Strided) -> Stored:
    record = f"{prefix}data/{one.storage.record}"
    needed = one.storage.count * one.storage.dtype.itemsize
    if sizes.get(record) != needed:
        raise CheckpointError(f"{path}: {key} needs {needed} bytes in {record}, found {sizes.get(record, 'no such')}")
    return Stored(path, key, one.storage.dtype, one.size, lambda: _values(real, path, record, one))


def _values(real: Path, path: Path, record: str, one: Strided) -> Tensor:
    try:
        with zipfile.ZipFile(real) as archive:
            data = bytearray(archive.read(record))
    except (zipfile.BadZipFile, EOFError, KeyError, OSError) as error:
        raise CheckpointError(f"{path}: {record} cannot be read ({str(error)[:120]})") from None
    if not data:
        return torch.zeros(one.size, dtype=one.storage.dtype)
    flat = torch.frombuffer(data, dtype=one.storage.dtype)
    if 0 in one.size:
        return flat.new_zeros(one.size)
    return flat.as_strided(one.size, one.stride, one.offset)
