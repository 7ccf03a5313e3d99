"""Chooses, per operation and its arguments, between the torch reference and the Triton kernel; says which ran."""

import ast
import dataclasses
import difflib
import functools
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor

from kernels.lazy import ARCHITECTURES, architecture

VARIABLE = "KERNELS_IMPL"
IMPLEMENTATIONS = ("torch", "triton", "interpret")
EXPORTS = {"reference", "launch", "prepare", "untested", "example", "CASES"}


class Choice(NamedTuple):
    """Which implementation runs (one of IMPLEMENTATIONS), and why."""

    by: str
    reason: str


class Ran(NamedTuple):
    """A result with the implementation that computed it."""

    value: Any
    by: str
    reason: str


@functools.cache
def names() -> list[str]:
    """Operations: the files of this folder that define everything in EXPORTS; listing imports nothing."""
    return [path.stem for path in sorted(Path(__file__).parent.glob("*.py")) if _defined(path) >= EXPORTS]


def _defined(path: Path) -> set[str]:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    functions = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    return functions | {
        target.id
        for node in body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def load(op: str) -> ModuleType:
    """The module of one operation.

    Raises:
        ValueError: if no such operation is listed; nothing unlisted is ever imported.
    """
    if op not in names():
        near = difflib.get_close_matches(op, names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names())}"
        raise ValueError(f"unknown kernel {op!r}; {hint}")
    return importlib.import_module(f"kernels.{op}")


def run(op: str, *arguments: Any) -> Ran:
    """The operation's result on these arguments, with the implementation that `chosen` names."""
    choice = chosen(op, *arguments)
    module = load(op)
    function = module.reference if choice.by == "torch" else module.launch
    return Ran(function(*arguments), *choice)


def chosen(op: str, *arguments: Any) -> Choice:
    """Triton on a GPU where it is tested for such arguments, else torch; KERNELS_IMPL overrides.

    A GPU that has to do without its kernel is told so by one warning per operation and reason.

    Raises:
        ValueError: for an unknown operation or an unknown value of KERNELS_IMPL.
        RuntimeError: if KERNELS_IMPL demands what cannot run here.
    """
    module = load(op)
    device = next(tensors(arguments)).device
    if forced := os.environ.get(VARIABLE):
        return _forced(forced, device.type)
    if device.type != "cuda":
        return Choice("torch", f"device {device.type}")
    if missing := _missing(architecture(device)) or module.untested(*arguments):
        _warn(op, missing)
        return Choice("torch", missing)
    return Choice("triton", "tested configuration")


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from tensors(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name))


def _missing(arch: str) -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed"
    return None if arch in ARCHITECTURES else f"architecture {arch}, compiled for {', '.join(ARCHITECTURES)}"


def _forced(by: str, device: str) -> Choice:
    if by not in IMPLEMENTATIONS:
        raise ValueError(f"{VARIABLE}={by!r}: expected one of {', '.join(IMPLEMENTATIONS)}")
    if by != "torch" and find_spec("triton") is None:
        raise RuntimeError(f"{VARIABLE}={by}: triton is not installed; it exists for Linux only: pip install triton")
    if by == "triton" and device != "cuda":
        raise RuntimeError(f"{VARIABLE}=triton: tensors are on {device!r}, and kernels run on a GPU; use interpret")
    if by == "interpret":
        _interpret()
    return Choice(by, f"{VARIABLE}={by}")


def _interpret() -> None:
    """Triton reads TRITON_INTERPRET when it is imported, so it can be set here only before that."""
    if "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
    elif os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(f"{VARIABLE}=interpret: triton is already loaded; set TRITON_INTERPRET=1 before the start")


@functools.cache
def _warn(op: str, reason: str) -> None:
    warnings.warn(f"kernels: {op} runs as plain torch on the GPU: {reason}", stacklevel=4)
