"""Prompt pairs of a controlled task: held-out sequences and donors, with the task's own rule for the answers."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from interp.errors import TaskError, UnknownName
from interp.pairs.base import SHARES, Pairs, Part
from interp.pairs.mixed import HeldOut, mixed_pairs
from interp.pairs.parts import dealt, parted
from interp.pairs.task_rows import other_values, pairs_of_rows
from interp.tasks.base import Layout, PairBatch, PairFamily, Task

FAMILIES = ("mixed", "input", "state", "clock")
ROUNDS = 20  # draws before a step is given up that yields too few pairs with another answer

Taken = dict[tuple[int, ...], Part]  # the part of every prompt so far, clean or corrupted


def pairs_of_task(
    task: Task,
    length: int,
    n: int,
    generator: Generator,
    held_out: HeldOut,
    *,
    family: Literal["mixed", "input", "state", "clock"] = "mixed",
    step: int | None = None,
    wrong: Literal["values", "swap"] = "values",
    donor_lengths: tuple[int, ...] | None = None,
    shares: Mapping[str, float] | None = None,
) -> Pairs:
    """`n` pairs of one length that end where the last state is predicted, with spans BoS, x1.., EoI, s1...

    The held-out sequences are divided into parts first, and pairs are made within each: no sequence is in two parts,
    neither as clean nor as corrupted prompt. `Pairs.split` keeps these parts.

    mixed: clean and corrupted are two held-out sequences, every second donor of another length, so that what the clock
    head reads moves, too; read where each state is predicted. The other families are those of `PairBatch`, spread over
    all steps that have such pairs; read at the pair's own step. Pairs whose swap would not change the answer are left
    out. Columns after the one that is read are of no effect.

    Args:
        held_out: sequences by length that the model was not trained on, such as `Split.test`.
        step: only pairs of this step; not for mixed.
        wrong: "values": every value of the task but the answer; "swap": the oracle's answer if the component under
            test took its value from the donor (not for mixed).
        donor_lengths: lengths of the mixed donors that are not of the clean length; None: those nearest to it, up to a
            quarter away.
        shares: part to share, summing to 1; None: a half for score, a quarter each for choose and evaluate.

    Raises:
        TaskError: if there are no such pairs or too few held-out sequences; the message says what there is.
        UsageError: for shares that do not sum to 1.
    """
    shares = dict(SHARES if shares is None else shares)
    if family not in FAMILIES:
        raise UnknownName("pair family", family, FAMILIES)
    if n < 1:
        raise TaskError(f"{task.name}: n={n} pairs asked for; ask for at least 1")
    layout = task.layout(length)
    if not len(held_out.get(length, ())):
        raise TaskError(f"{task.name}: no held-out sequence of length {length}; lower data.train_share or take another")
    pool = held_out[length]
    _require_enough(task, length, len(pool), family, shares)
    settings: dict[str, Any] = {
        "task": task.name,
        "params": task.params.model_dump(mode="json"),
        **{"family": family, "length": length, "n": n, "step": step, "wrong": wrong},
        "seed": generator.initial_seed(),
        "shares": shares,
    }
    if family == "mixed":
        if step is not None or wrong != "values":
            raise TaskError(f"{task.name}: mixed pairs read every step against all values; leave step and wrong out")
        return mixed_pairs(task, layout, n, generator, held_out, donor_lengths, shares, settings)
    if donor_lengths is not None:
        raise TaskError(f"{task.name}: donor_lengths are for mixed pairs; {family} pairs take their own donors")
    return _stepped(task, layout, n, generator, pool, family, step, wrong, shares, settings)


def _require_enough(task: Task, length: int, n: int, family: str, shares: Mapping[str, float]) -> None:
    """Raise TaskError for fewer held-out sequences than parts; mixed pairs say themselves what a single one lacks."""
    parts = sum(share > 0 for share in shares.values())
    if 1 < n < parts or (n < parts and family != "mixed"):
        raise TaskError(
            f"{task.name}: length {length} has {n} held-out sequences, fewer than the {parts} parts of the prompts; "
            "lower data.train_share or take another length"
        )


def _stepped(
    task: Task,
    layout: Layout,
    n: int,
    generator: Generator,
    pool: Int[Tensor, "sequence pos"],
    family: PairFamily,
    step: int | None,
    wrong: str,
    shares: Mapping[str, float],
    settings: dict[str, Any],
) -> Pairs:
    """Pairs of one family, spread over the steps that have any."""
    width = layout.queries[-1] + 1
    steps = _steps(task, layout.length, family, generator.initial_seed()) if step is None else (step,)
    inside = {name: pool[rows] for name, rows in parted(len(pool), None, generator, shares).items()}
    taken: Taken = {tuple(row[:width]): name for name, some in inside.items() for row in some.tolist()}
    order, found = dealt(n, shares), []
    for index, t in enumerate(steps):
        for name, some in Counter(order[index :: len(steps)]).items():
            batches = _of_step(task, layout, t, some, generator, inside[name], family, name, taken)
            found += [(batch, kept, name) for batch, kept in batches]
    _require_parts(task, layout.length, family, set(order), {name for _, _, name in found})
    clean = torch.cat([batch.clean[kept, :width] for batch, kept, _ in found])
    whole = torch.cat([batch.clean[kept] for batch, kept, _ in found])
    corrupted = torch.cat([_covering(batch.donor[kept], width) for batch, kept, _ in found])
    answers = torch.cat([batch.clean_answer[kept] for batch, kept, _ in found])[:, None]  # [batch 1]
    swapped = torch.cat([batch.swap_answer[kept] for batch, kept, _ in found])[:, None, None]  # [batch 1 1]
    position = torch.cat([torch.full((len(kept), 1), batch.query) for batch, kept, _ in found])
    return pairs_of_rows(
        task,
        layout,
        (clean, corrupted),
        position,
        answers,
        other_values(task, answers) if wrong == "values" else swapped,
        torch.unique(whole, dim=0, return_inverse=True)[1],
        tuple(f"step {batch.t}" for batch, kept, _ in found for _ in range(len(kept))),
        tuple(name for _, kept, name in found for _ in range(len(kept))),
        settings,
    )


def _require_parts(task: Task, length: int, family: str, wanted: set[Part], found: set[Part]) -> None:
    """Raise TaskError if no part, or not every part, has a pair."""
    if not found:
        raise TaskError(f"{task.name}: no {family} pair of length {length} changes the answer; use input pairs")
    if missing := sorted(wanted - found):
        raise TaskError(
            f"{task.name}: no {family} pair of length {length} for part {missing[0]!r} whose donor is in no other "
            "part; take a longer length"
        )


def _steps(task: Task, length: int, family: PairFamily, seed: int) -> tuple[int, ...]:
    """The steps that have pairs of this family.

    Raises:
        TaskError: as the task says it, where none has.
    """
    found, refusal = [], None
    for t in range(length):
        try:
            task.pairs(family, length, t, n=1, generator=Generator().manual_seed(seed))
        except TaskError as error:
            refusal = error
        else:
            found.append(t)
    if not found and refusal is not None:
        raise refusal
    return tuple(found)


def _of_step(
    task: Task,
    layout: Layout,
    t: int,
    n: int,
    generator: Generator,
    pool: Tensor,
    family: PairFamily,
    part: Part,
    taken: Taken,
) -> list[tuple[PairBatch, Tensor]]:
    """Batches of one step with the rows to keep: `n` whose swap changes the answer, fewer where it rarely does.

    Donors are of the same part as their clean sequence, and are noted in `taken`.
    """
    found: list[tuple[PairBatch, Tensor]] = []
    missing = n
    for _ in range(ROUNDS):
        if not missing:
            break
        batch = task.pairs(family, layout.length, t, n=missing, generator=generator, clean=pool)
        donors = _covering(batch.donor, layout.queries[-1] + 1).tolist()
        free = torch.tensor([taken.get(tuple(donor), part) == part for donor in donors])
        kept = (batch.differs.cpu() & free).nonzero().flatten()[:missing]
        taken |= {tuple(donors[row]): part for row in kept.tolist()}
        missing -= len(kept)
        if len(kept):
            found.append((batch, kept))
    return found


def _covering(donor: Int[Tensor, "batch donor_pos"], width: int) -> Int[Tensor, "batch pos"]:
    """The first `width` columns; a shorter donor is continued by its last token, after all that is read."""
    missing = width - donor.shape[1]
    return torch.cat([donor, donor[:, -1:].expand(-1, missing)], 1) if missing > 0 else donor[:, :width]
