"""Distinct input sequences of one length, drawn, shuffled and divided into train and test."""

from itertools import product

import torch
from jaxtyping import Int
from torch import Generator, Tensor


def distinct_inputs(
    choices: Int[Tensor, "choice"], length: int, wanted: int, generator: Generator
) -> tuple[Int[Tensor, "sequence length"], int]:
    """`wanted` distinct sequences over `choices`, or all of them where no more exist, in random order.

    Returns:
        The sequences, and how many repeats were counted once. Where all sequences are taken none is drawn, and the
        second number is how many of the `wanted` draws could only have been repeats.
    """
    n_choices = len(choices)
    existing = n_choices**length
    if existing <= wanted:
        rows, repeats = list(product(range(n_choices), repeat=length)), wanted - existing
    else:
        rows, repeats = _draw_distinct(n_choices, length, wanted, generator)
    order = torch.randperm(len(rows), generator=generator)
    return choices[torch.tensor(rows)[order]], repeats


def _draw_distinct(n_choices: int, length: int, wanted: int, generator: Generator) -> tuple[list[tuple[int, ...]], int]:
    """Draw until `wanted` different sequences are there; also the number of repeats met on the way."""
    seen: dict[tuple[int, ...], None] = {}
    repeats = 0
    while len(seen) < wanted:
        block = torch.randint(n_choices, (wanted, length), generator=generator).tolist()
        for row in map(tuple, block):
            if row in seen:
                repeats += 1
            else:
                seen[row] = None
            if len(seen) == wanted:
                break
    return list(seen), repeats


def train_size(n: int, share: float) -> int:
    """How many of `n` sequences train: the rounded share, leaving at least one on each side where n >= 2."""
    return n if n < 2 else min(max(round(n * share), 1), n - 1)
