"""Which intervention pairs exist, with the errors for those that do not."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from interp.errors import TaskError, UnknownName
from interp.tasks.base import Layout, PairFamily, Task

FAMILIES = ("input", "state", "clock")


def other_than(
    current: Int[Tensor, "batch"], choices: Int[Tensor, "choice"], generator: Generator
) -> Int[Tensor, "batch"]:
    """For each entry of `current`, another entry of the sorted `choices`, uniformly."""
    places = torch.searchsorted(choices, current.cpu().contiguous())
    steps = torch.randint(1, len(choices), current.shape, generator=generator)
    return choices[(places + steps) % len(choices)].to(current.device)


def clock_donor_lengths(lengths: Sequence[int], length: int, t: int) -> tuple[int, ...]:
    """Donor lengths L' != L whose step t' = L + t - L' stands at the same place and exists: 0 <= t' < L'.

    Then t' < L too, so the clean sequence has an input for it: t' >= L would need L' <= t < L <= t' < L'.
    """
    return tuple(other for other in lengths if other != length and 0 <= length + t - other < other)


def default_donor(possible: Sequence[int], length: int) -> int:
    """The nearest length; of two equally near the shorter, whose step is t + 1 and so never the first."""
    return min(possible, key=lambda other: (abs(other - length), other))


def refuse_step(task: Task, family: PairFamily, layout: Layout, t: int, n: int, donor_length: int | None) -> None:
    """Raise TaskError (UnknownName for the family) for a request that no sequence could meet."""
    if family not in FAMILIES:
        raise UnknownName("pair family", family, FAMILIES)
    if n < 1:
        raise TaskError(f"{task.name}: n={n} pairs asked for; ask for at least 1")
    if family != "input" and not task.chain_of_thought:
        raise TaskError(f"{task.name}: {family} pairs need chain_of_thought=true; without it only input pairs exist")
    first = 1 if family == "state" else 0
    if not first <= t < layout.length:
        possible = f"t from {first} to {layout.length - 1}" if first < layout.length else "no t"
        raise TaskError(f"{task.name}: no {family} pair at t={t}; length {layout.length} has {possible}")
    if family != "clock" and donor_length not in (None, layout.length):
        raise TaskError(f"{task.name}: {family} donors have the clean length {layout.length}, not {donor_length}")


def refuse_clock(
    name: str, length: int, t: int, donor_length: int | None, donors: Callable[[int, int], tuple[int, ...]]
) -> TaskError:
    """The error for a clock pair that does not exist, listing those of the same step, else of the same length."""
    asked = f"{name}: no clock pair at length={length}, t={t}, donor_length={donor_length}"
    here = donors(length, t)
    if here:
        return TaskError(f"{asked}; donor lengths here: {', '.join(map(str, here))}")
    found = {step: donors(length, step) for step in range(length)}
    listed = "; ".join(f"t={step}: {', '.join(map(str, some))}" for step, some in found.items() if some)
    return TaskError(f"{asked}; possible donor lengths at this length: {listed or 'none, raise max_length'}")
