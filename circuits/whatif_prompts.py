"""Prompts of a what-if: sequences that no training batch, detection or circuit search of the run has drawn from."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from interp.errors import TaskError
from interp.tasks.base import Split, Task

ROUNDS = 20


@dataclass(frozen=True)
class Sequences:
    """Full sequences of one length.

    Attributes:
        disjoint: whether they are neither training nor held-out sequences of the run.
        words: what they are, in a sentence.
    """

    tokens: Int[Tensor, "sequence pos"]
    disjoint: bool
    words: str


def new_sequences(task: Task, split: Split, length: int, n: int, generator: Generator) -> Sequences:
    """Up to n different sequences outside the run's split; of the held-out part where the split holds almost all.

    Short lengths have few sequences, and the split takes them all: what is then found shares its sequences with
    `interp detect` and `interp circuit`, and says so.

    Raises:
        TaskError: for a length without sequences.
    """
    inputs = list(task.layout(length).inputs)
    train, test = split.train[length], split.test[length]
    known = {tuple(row) for row in torch.cat((train, test))[:, inputs].tolist()}
    values = train[:, inputs].unique()
    found: list[tuple[int, ...]] = []
    for _ in range(ROUNDS):
        drawn = values[torch.randint(len(values), (n, length), generator=generator)]
        fresh = dict.fromkeys(row for row in map(tuple, drawn.tolist()) if row not in known)
        known |= fresh.keys()
        found += fresh
        if len(found) >= n:
            break
    if len(found) >= n:
        words = f"{n} new sequences of length {length}, neither of the training nor of the held-out part"
        return Sequences(task.encode(torch.tensor(found[:n])), True, words)
    if len(test) < 2:
        raise TaskError(f"{task.name}: length {length} has {len(test)} held-out sequences; choose a longer length")
    held = test[torch.randperm(len(test), generator=generator)[:n]]
    words = f"{len(held)} held-out sequences of length {length}, which has too few for new ones: `interp detect` and "
    return Sequences(held, False, words + "`interp circuit` may draw the same")
