"""A CUDA graph's stand-in on the CPU: takes down tensor operations, and runs them again without any Python between."""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

WAITING = {  # operations that a capture forbids, since they wait for the GPU or copy from the host
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "lift_fresh", "bincount", "repeat_interleave",
    "unique2", "item",
}  # fmt: skip


class Made(NamedTuple):
    """A tensor that the capture itself made."""

    index: int


class Outside(NamedTuple):
    """A tensor from before the capture: a graph knows its address, and does not keep it alive."""

    where: weakref.ref

    def there(self) -> Tensor:
        """The tensor, if its memory is still its own."""
        found = self.where()
        if found is None:
            raise MemoryError("a graph reads memory that was freed")
        return found


def tensors(*values: Any) -> list[Tensor]:
    """Every tensor in nested arguments or results."""
    return [value for value in tree_flatten(values)[0] if isinstance(value, Tensor)]


class TakenDown(TorchDispatchMode):
    """Keeps every operation with where its arguments come from, and the first value of what it writes outside."""

    def __init__(self):
        super().__init__()
        self.operations: list[tuple] = []
        self.made: dict[int, tuple[int, Tensor]] = {}
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.lenient = False  # let operations wait

    def source(self, x: Tensor) -> Made | Outside:
        """Where an argument comes from."""
        return Made(self.made[id(x)][0]) if id(x) in self.made else Outside(weakref.ref(x))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(x.dtype == torch.bool for x in tensors(args[1]))
        if (name in WAITING or by_mask) and not self.lenient:
            raise RuntimeError(f"{name} waits for the GPU")
        if func._schema.is_mutable and id(args[0]) not in self.made:
            self.before.setdefault(id(args[0]), (args[0], args[0].clone()))
        sources = tree_map_only(Tensor, self.source, (args, kwargs))
        out = func(*args, **kwargs)
        given = {id(x) for x in tensors(args, kwargs)}
        results = []
        for x in tensors(out):
            new = id(x) not in given
            if new:
                self.made[id(x)] = (len(self.made), x)
            results.append(self.made[id(x)][0] if new else None)
        self.operations.append((func, sources, results))
        return out


class RecordedGraph:
    """`Graph` by operations taken down."""

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
        self.taken.before.clear()
        self.taken.made.clear()

    def replay(self) -> None:
        """Run the operations on the tensors from outside as they are now."""
        made: dict[int, Tensor] = {}

        def found(source: Made | Outside) -> Tensor:
            return made[source.index] if isinstance(source, Made) else source.there()

        for func, sources, results in self.taken.operations:
            args, kwargs = replaced(sources, found)
            for index, x in zip(results, tensors(func(*args, **kwargs)), strict=True):
                if index is not None:
                    made[index] = x


def replaced(value: Any, found: Callable[[Made | Outside], Tensor]) -> Any:
    """Nested arguments with tensors in the place of their sources."""
    if isinstance(value, Made | Outside):
        return found(value)
    if isinstance(value, dict):
        return {key: replaced(one, found) for key, one in value.items()}
    return type(value)(replaced(one, found) for one in value) if isinstance(value, tuple | list) else value
