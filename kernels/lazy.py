"""Kernels as plain functions: Triton is imported, and a kernel compiled, when one is first launched."""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

ARCHITECTURES = ("sm_80", "sm_90", "gfx942")  # those that kernels are compiled for in the tests
INTERPRETER = "interpreter"


class constexpr:
    """Annotation of what a kernel knows at compile time; `tl.constexpr` when it is compiled."""


@dataclass(frozen=True)
class Kernel:
    """A function in Triton's language; in it, `tl` is `triton.language` and other kernels can be called."""

    function: FunctionType

    def jitted(self) -> Any:
        """What `triton.jit` makes of it: compiled, or interpreted where TRITON_INTERPRET=1 was set at the start."""
        return _jitted(self.function)


def jit(function: Callable) -> Kernel:
    """Like `triton.jit`, without importing Triton."""
    return Kernel(inspect.unwrap(function))


@functools.cache
def _jitted(function: FunctionType) -> Any:
    import triton
    import triton.language as tl

    names = {**function.__globals__, "tl": tl, "constexpr": tl.constexpr}
    for name in function.__code__.co_names:
        if isinstance(names.get(name), Kernel):
            names[name] = names[name].jitted()
    bound = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    bound.__annotations__, bound.__module__ = function.__annotations__, function.__module__
    bound.__qualname__, bound.__doc__ = function.__qualname__, function.__doc__
    return triton.jit(bound)


class Config(NamedTuple):
    """Tile sizes by name, and how many warps run one program; fixed in a table, never tuned at first use."""

    sizes: dict[str, int]
    num_warps: int
    num_stages: int = 2


@dataclass(frozen=True)
class Launch:
    """One kernel with everything it is started with; `outputs` are what it fills."""

    kernel: Kernel
    grid: tuple[int, ...]
    arguments: dict[str, Tensor | int | float]
    constants: dict[str, int | bool | str]
    config: Config
    outputs: Any

    @property
    def constexprs(self) -> dict[str, int | bool | str]:
        """Everything known at compile time."""
        return {**self.constants, **self.config.sizes}

    def start(self) -> Any:
        """Run it, unless there is nothing to do, and return the outputs."""
        if math.prod(self.grid):
            with torch.cuda.device_of(next(x for x in self.arguments.values() if isinstance(x, Tensor))):
                self.kernel.jitted()[self.grid](**self.arguments, **self.constexprs, **launch_options(self.config))
        return self.outputs


def launch_options(config: Config) -> dict[str, int | bool]:
    """Triton's options; multiply-add contraction is stated because its default changes between versions."""
    return {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}


def architecture(device: torch.device) -> str:
    """`sm_90`, `gfx942` and the like; INTERPRETER for tensors on the CPU."""
    if device.type != "cuda":
        return INTERPRETER
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def tiles_for(arch: str) -> str:
    """Whose tiles to use: the interpreter runs those of sm_90."""
    return "sm_90" if arch == INTERPRETER else arch


def power_of_2(n: int, least: int = 16) -> int:
    """The smallest power of two that is at least n and `least`: a size that tiles can have."""
    return max(least, 1 << (n - 1).bit_length())
