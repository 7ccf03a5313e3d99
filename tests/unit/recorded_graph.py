"""A CUDA graph's stand-in on the CPU: takes down tensor operations, and runs them again at the same addresses."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

WAITING = {  # operations that a capture forbids, since they wait for the GPU or copy from the host
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "lift_fresh", "bincount", "repeat_interleave",
    "unique2", "item",
}  # fmt: skip
WRITTEN_LATER = {"empty", "empty_like", "new_empty", "empty_strided"}


def tensors(*values: Any) -> list[Tensor]:
    """Every tensor in nested arguments or results."""
    return [value for value in tree_flatten(values)[0] if isinstance(value, Tensor)]


def address(x: Tensor) -> int:
    """Where the memory of a tensor begins."""
    return x.untyped_storage().data_ptr()


class TakenDown(TorchDispatchMode):
    """Keeps every operation with its arguments and results, and the first value of all memory from outside it."""

    def __init__(self):
        super().__init__()
        self.operations: list[tuple] = []
        self.made: set[int] = set()
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.lenient = False  # let operations wait

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(x.dtype == torch.bool for x in tensors(args[1]))
        if (name in WAITING or by_mask) and not self.lenient:
            raise RuntimeError(f"{name} waits for the GPU")
        if func._schema.is_mutable:
            target = args[0]
            if address(target) not in self.made and address(target) not in self.before:
                self.before[address(target)] = (target, target.clone())
        given = {address(x) for x in tensors(args, kwargs)}
        out = func(*args, **kwargs)
        new = [x for x in tensors(out) if address(x) not in given]
        self.made |= {address(x) for x in new}
        self.operations.append((func, args, kwargs, out, name))
        return out


class RecordedGraph:
    """`Graph` by operations taken down: no Python of the work runs at a replay."""

    def __init__(self):
        self.taken = TakenDown()

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run the work as it is."""
        work()

    def capture(self, work: Callable[[], None]) -> None:
        """Take the operations down, and undo what they wrote into memory from outside."""
        with self.taken:
            work()
        for target, value in self.taken.before.values():
            target.copy_(value)

    def replay(self) -> None:
        """Run the operations on the memory that they were taken down with."""
        for func, args, kwargs, out, name in self.taken.operations:
            given = {address(x) for x in tensors(args, kwargs)}
            again = func(*args, **kwargs)
            for old, new in zip(tensors(out), tensors(again), strict=True):
                if address(old) not in given and name not in WRITTEN_LATER:
                    old.copy_(new)
