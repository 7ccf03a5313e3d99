"""Pickled data without its code: an interpreter of the few instructions that tensors need, and no other.

A pickle is a program for a stack machine. The instructions of plain values, containers and tensors are carried out
here; the first name that is not on the list below ends the reading. Nothing is imported or called.
"""

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from interp.adapters.weight_files import shown

MAX_STEPS = 2_000_000
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
NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "INT", "LONG", "FLOAT"}
LITERALS = NUMBERS | {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES"}
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
        raise Refused("a tensor has something else than a list of sizes")
    return tuple(values)


def _into(target: Any, items: Any) -> Any:
    """Put (key, value) pairs into a dictionary; keys are plain, as a nested tuple can take for ever to hash."""
    if not isinstance(target, dict):
        raise Refused(f"an item is set on a {type(target).__name__}")
    for key, value in items:
        if type(key) not in (str, int, bool) or (type(key) is int and key.bit_length() > 64):
            raise Refused(f"a key is a {type(key).__name__}, expected text or a number of up to 64 bits")
        target[key] = value
    return target


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Strided:
    """A view that stays inside its storage; gradients and backward hooks are left out."""
    (offset,), size, stride = _whole([offset]), _whole(size), _whole(stride)
    if not isinstance(storage, Storage) or len(size) != len(stride):
        raise Refused("a tensor without a storage, or with as many strides as it has not axes")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and (last >= storage.count or math.prod(size) > storage.count):
        raise Refused(f"a tensor of {list(size)} reaches out of a storage with {storage.count} values")
    return Strided(storage, offset, size, stride)


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _ordered(items: Any = ()) -> dict:
    return _into({}, items)


def _device(kind: Any, *index: Any) -> str:
    return str(kind) if isinstance(kind, str) else "unknown"


def _size(values: Any) -> tuple[int, ...]:
    return _whole(values)


BUILT = {
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "collections OrderedDict": _ordered,
    "torch Size": _size,
    "torch device": _device,
}
DTYPE_NAMES = {f"torch {name}": name for name in ("float64", "float32", "float16", "bfloat16", "int64", "bool")}


def _named(text: Any) -> Any:
    """What a module and a name stand for.

    Raises:
        Refused: for everything that is not on the list.
    """
    if not isinstance(text, str):
        raise Refused("a name is no text")
    module, _, name = text.partition(" ")
    if module == "torch" and name in STORAGES:
        return Name(name)
    if text in DTYPE_NAMES:
        return DTYPE_NAMES[text]
    if text in BUILT:
        return Name(text, BUILT[text])
    raise Refused(
        f"it wants {shown(f'{module}.{name}')}, which is code or an object; it may hold numbers and text only"
    )


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
            _into(stack[-1], zip(items[::2], items[1::2], strict=True))
        elif name in ("APPENDS", "APPEND", "ADDITEMS"):
            items = [stack.pop()] if name == "APPEND" else self.since_mark()
            if isinstance(stack[-1], set):
                stack[-1].update(_into({}, ((one, None) for one in items)))
            else:
                stack[-1].extend(items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                arg = f"{module} {attribute}" if isinstance(module, str) and isinstance(attribute, str) else None
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
    plain = isinstance(record, str) and record.isdecimal()
    if kind != "storage" or not isinstance(of, Name) or of.text not in STORAGES or not plain:
        raise Refused("a tensor's values are in no record of this file")
    return Storage(STORAGES[of.text], record, _whole([count])[0])


def run_program(data: bytes) -> Any:
    """The value that a pickle describes.

    Raises:
        ValueError: for a program that is damaged or asks for anything but data.
    """
    machine = Machine()
    try:
        for steps, (operation, arg, _) in enumerate(pickletools.genops(data)):
            if steps > MAX_STEPS:
                raise Refused(f"more than {MAX_STEPS} instructions")
            if operation.name == "STOP":
                (value,) = machine.stack
                return value
            machine.step(operation.name, arg)
    except (LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"damaged: {type(error).__name__} {error}") from None
    raise ValueError("damaged: it has no end")
