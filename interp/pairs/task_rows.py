"""What pairs of a task have in common: names of the columns, and what the answers are compared with."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.pairs.alignment import Spans
from interp.pairs.base import NONE, Pairs, Part, Source
from interp.tasks._iteration import SPECIALS
from interp.tasks.base import Layout, Task


def other_values(task: Task, answers: Int[Tensor, "batch n_read"]) -> Int[Tensor, "batch n_read n_wrong"]:
    """For each answer, every other value of the task."""
    named = enumerate(task.vocabulary.tokens)
    values = torch.tensor([token for token, name in named if name not in SPECIALS], device=answers.device)
    different: Bool[Tensor, "batch n_read value"] = values != answers[..., None]
    last = len(task.vocabulary)
    spread = torch.where(different, values, last).sort(-1).values[..., : int(different.sum(-1).max())]
    return torch.where(spread < last, spread, NONE)


def _spans(layout: Layout, width: int) -> Spans:
    """A name for each column: BoS, x1.., EoI, s1..."""
    named = {"BoS": 0, "EoI": layout.eoi}
    named |= {f"x{number}": column for number, column in enumerate(layout.inputs, 1)}
    named |= {f"s{number}": column for number, column in enumerate(layout.states, 1)}
    return {name: (column, column + 1) for name, column in named.items() if column < width}


def pairs_of_rows(
    task: Task,
    layout: Layout,
    runs: tuple[Tensor, Tensor],
    position: Int[Tensor, "batch n_read"],
    answers: Int[Tensor, "batch n_read"],
    wrong: Int[Tensor, "batch n_read n_wrong"],
    unit: Int[Tensor, "batch"],
    group: tuple[str, ...],
    part: tuple[Part, ...],
    settings: dict[str, Any],
) -> Pairs:
    """The pairs, all of one length."""
    clean, corrupted = runs
    return Pairs(
        clean=clean,
        corrupted=corrupted,
        mask=torch.ones_like(clean, dtype=torch.bool),
        position=position.to(clean.device),
        answers=answers[..., None],
        wrong=wrong,
        unit=unit.to(clean.device),
        d_vocab=len(task.vocabulary),
        spans=(_spans(layout, clean.shape[1]),) * len(clean),
        group=group,
        part=part,
        names=dict(enumerate(task.vocabulary.tokens)),
        source=Source(kind="task", bos="task", settings=settings),
    )
