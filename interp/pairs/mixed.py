"""Mixed pairs of a task: clean and corrupted are two held-out sequences of one part of the prompts."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from interp.errors import TaskError
from interp.pairs.base import Pairs
from interp.pairs.parts import parted
from interp.pairs.task_rows import other_values, pairs_of_rows
from interp.tasks.base import Layout, Task

HeldOut = Mapping[int, Int[Tensor, "_sequence _pos"]]


def mixed_donor_lengths(task: Task, length: int, held_out: HeldOut) -> tuple[int, ...]:
    """Other lengths whose held-out sequences cover all columns of the clean prompt, from the nearest on."""
    width = task.layout(length).queries[-1] + 1
    possible = [
        other
        for other in task.lengths
        if other != length and len(held_out.get(other, ())) and task.layout(other).n_pos >= width
    ]
    return tuple(sorted(possible, key=lambda other: (abs(other - length), other)))


def mixed_pairs(
    task: Task,
    layout: Layout,
    n: int,
    generator: Generator,
    held_out: HeldOut,
    donor_lengths: tuple[int, ...] | None,
    shares: Mapping[str, float],
    settings: dict[str, Any],
) -> Pairs:
    """Pairs of unrelated sequences of one part, every second donor of another length."""
    pool, width = held_out[layout.length], layout.queries[-1] + 1
    chosen = _donor_lengths(task, layout.length, held_out, donor_lengths)
    if len(pool) < 2:
        raise TaskError(f"{task.name}: length {layout.length} has a single held-out sequence, mixed pairs need two")
    rounds = -(-n // len(pool))  # every sequence once before any comes again
    rows = torch.cat([torch.randperm(len(pool), generator=generator) for _ in range(rounds)])[:n]
    inside = parted(len(pool), rows, generator, shares)
    donors = {length: _cut(held_out[length], pool, width) for length in chosen}
    others = {
        length: parted(len(rows_of), None, generator, shares)
        for length, rows_of in donors.items()
        if len(rows_of) >= len(inside)
    }
    corrupted, lengths, part = pool[rows, :width].clone(), torch.full((n,), layout.length), [""] * n
    for name, mates in inside.items():
        here = torch.isin(rows, mates).nonzero().flatten()
        if not len(here):
            continue
        possible = [length for length in others if len(others[length][name])]
        lengths[here] = _drawn_lengths(task, layout.length, possible, len(mates), len(here), generator)
        for length in lengths[here].unique().tolist():
            these = here[lengths[here] == length]
            if length == layout.length:
                place = torch.searchsorted(mates, rows[these])  # never the sequence itself
                drawn = mates[(place + torch.randint(1, len(mates), (len(these),), generator=generator)) % len(mates)]
            else:
                possible_rows = others[length][name]
                drawn = possible_rows[torch.randint(len(possible_rows), (len(these),), generator=generator)]
            corrupted[these] = (pool if length == layout.length else donors[length])[drawn, :width].to(corrupted)
        for row in here.tolist():
            part[row] = name
    queries = torch.tensor(layout.queries)
    clean = pool[rows]
    answers = clean[:, queries + 1]  # [batch n_read]
    return pairs_of_rows(
        task,
        layout,
        (clean[:, :width], corrupted),
        queries.expand(n, -1),
        answers,
        other_values(task, answers),
        rows,
        tuple(f"donor length {donor_length}" for donor_length in lengths.tolist()),
        tuple(part),
        {**settings, "donor_lengths": list(chosen)},
    )


def _cut(
    sequences: Int[Tensor, "sequence _pos"], pool: Int[Tensor, "clean _pos"], width: int
) -> Int[Tensor, "donor width"]:
    """Different beginnings of longer sequences, in order of first appearance, that no clean prompt has."""
    seen = {tuple(row) for row in pool[:, :width].tolist()}
    first = {tuple(row): index for index, row in reversed(list(enumerate(sequences[:, :width].tolist())))}
    return sequences[sorted(index for row, index in first.items() if row not in seen), :width]


def _donor_lengths(task: Task, length: int, held_out: HeldOut, asked: tuple[int, ...] | None) -> tuple[int, ...]:
    """Lengths of the donors that are not of the clean length.

    Raises:
        TaskError: if there are none, or one asked for is not possible.
    """
    possible = mixed_donor_lengths(task, length, held_out)
    chosen = asked or tuple(o for o in possible if abs(o - length) <= max(length // 4, 1)) or possible[:1]
    if not chosen or not set(chosen) <= set(possible):
        listed = ", ".join(map(str, sorted(possible))) or "none"
        raise TaskError(
            f"{task.name}: no mixed pairs at length {length} with donors of lengths {chosen or 'other than it'}; "
            f"possible donor lengths: {listed}; input pairs need no other length"
        )
    return chosen


def _drawn_lengths(
    task: Task, length: int, possible: list[int], n_mates: int, n: int, generator: Generator
) -> Int[Tensor, "some"]:
    """Donor lengths of the prompts of one part: every second one another, or all where it has a single sequence."""
    found, second = torch.full((n,), length), slice(1 if n_mates > 1 else 0, None, 2 if n_mates > 1 else 1)
    wanted = len(found[second])
    if wanted and not possible:
        raise TaskError(
            f"{task.name}: too few held-out sequences of other lengths for a donor in each part at length {length}; "
            "input pairs need none"
        )
    if wanted:
        found[second] = torch.tensor(possible)[torch.randint(len(possible), (wanted,), generator=generator)]
    return found
