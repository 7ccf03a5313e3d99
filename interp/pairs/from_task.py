"""Prompt pairs of a controlled task: held-out sequences and donors, with the task's own rule for the answers."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor

from interp.errors import TaskError, UnknownName
from interp.pairs.alignment import Spans
from interp.pairs.base import NONE, Pairs, Source
from interp.tasks._iteration import SPECIALS
from interp.tasks.base import Layout, PairBatch, PairFamily, Task

FAMILIES = ("mixed", "input", "state", "clock")
ROUNDS = 20  # draws before a step is given up that yields too few pairs with another answer

HeldOut = Mapping[int, Int[Tensor, "_sequence _pos"]]


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
) -> Pairs:
    """`n` pairs of one length that end where the last state is predicted, with spans BoS, x1.., EoI, s1...

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

    Raises:
        TaskError: if there are no such pairs or no held-out sequences; the message says what there is.
    """
    if family not in FAMILIES:
        raise UnknownName("pair family", family, FAMILIES)
    if n < 1:
        raise TaskError(f"{task.name}: n={n} pairs asked for; ask for at least 1")
    layout = task.layout(length)
    if not len(held_out.get(length, ())):
        raise TaskError(f"{task.name}: no held-out sequence of length {length}; lower data.train_share or take another")
    settings: dict[str, Any] = {
        "task": task.name,
        "params": task.params.model_dump(mode="json"),
        **{"family": family, "length": length, "n": n, "step": step, "wrong": wrong},
        "seed": generator.initial_seed(),
    }
    if family == "mixed":
        if step is not None or wrong != "values":
            raise TaskError(f"{task.name}: mixed pairs read every step against all values; leave step and wrong out")
        return _mixed(task, layout, n, generator, held_out, donor_lengths, settings)
    if donor_lengths is not None:
        raise TaskError(f"{task.name}: donor_lengths are for mixed pairs; {family} pairs take their own donors")
    return _stepped(task, layout, n, generator, held_out[length], family, step, wrong, settings)


def mixed_donor_lengths(task: Task, length: int, held_out: HeldOut) -> tuple[int, ...]:
    """Other lengths whose held-out sequences cover all columns of the clean prompt, from the nearest on."""
    width = task.layout(length).queries[-1] + 1
    possible = [
        other
        for other in task.lengths
        if other != length and len(held_out.get(other, ())) and task.layout(other).n_pos >= width
    ]
    return tuple(sorted(possible, key=lambda other: (abs(other - length), other)))


def _mixed(
    task: Task,
    layout: Layout,
    n: int,
    generator: Generator,
    held_out: HeldOut,
    donor_lengths: tuple[int, ...] | None,
    settings: dict[str, Any],
) -> Pairs:
    """Pairs of unrelated sequences, every second donor of another length."""
    pool, length = held_out[layout.length], layout.length
    possible = mixed_donor_lengths(task, length, held_out)
    chosen = donor_lengths or tuple(o for o in possible if abs(o - length) <= max(length // 4, 1)) or possible[:1]
    if not chosen or not set(chosen) <= set(possible):
        listed = ", ".join(map(str, sorted(possible))) or "none"
        raise TaskError(
            f"{task.name}: no mixed pairs at length {length} with donors of lengths {chosen or 'other than it'}; "
            f"possible donor lengths: {listed}; input pairs need no other length"
        )
    if len(pool) < 2:
        raise TaskError(f"{task.name}: length {length} has a single held-out sequence, mixed pairs need two")
    width = layout.queries[-1] + 1
    rounds = -(-n // len(pool))  # every sequence once before any comes again
    rows = torch.cat([torch.randperm(len(pool), generator=generator) for _ in range(rounds)])[:n]
    other = (rows + torch.randint(1, len(pool), (n,), generator=generator)) % len(pool)
    corrupted, lengths = pool[other, :width].clone(), torch.full((n,), length)
    lengths[1::2] = torch.tensor(chosen)[torch.randint(len(chosen), (n // 2,), generator=generator)]
    for donor_length in chosen:
        here = (lengths == donor_length).nonzero().flatten()
        donors = held_out[donor_length]
        drawn = torch.randint(len(donors), (len(here),), generator=generator)
        corrupted[here] = donors[drawn, :width].to(corrupted)
    queries = torch.tensor(layout.queries)
    settings = {**settings, "donor_lengths": list(chosen)}
    clean = pool[rows]
    answers = clean[:, queries + 1]  # [batch n_read]
    return _pairs(
        task,
        layout,
        (clean[:, :width], corrupted),
        queries.expand(n, -1),
        answers,
        _other_values(task, answers),
        rows,
        tuple(f"donor length {donor_length}" for donor_length in lengths.tolist()),
        settings,
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
    settings: dict[str, Any],
) -> Pairs:
    """Pairs of one family, spread over the steps that have any."""
    steps = _steps(task, layout.length, family, generator.initial_seed()) if step is None else (step,)
    shares = [n // len(steps) + (index < n % len(steps)) for index in range(len(steps))]
    found: list[tuple[PairBatch, Tensor]] = []
    for t, share in zip(steps, shares, strict=True):
        found += _of_step(task, layout, t, share, generator, pool, family)
    if not found:
        raise TaskError(f"{task.name}: no {family} pair of length {layout.length} changes the answer; use input pairs")
    width = layout.queries[-1] + 1
    clean = torch.cat([batch.clean[kept, :width] for batch, kept in found])
    whole = torch.cat([batch.clean[kept] for batch, kept in found])
    corrupted = torch.cat([_covering(batch.donor[kept], width) for batch, kept in found])
    answers = torch.cat([batch.clean_answer[kept] for batch, kept in found])[:, None]  # [batch 1]
    swapped = torch.cat([batch.swap_answer[kept] for batch, kept in found])[:, None, None]  # [batch 1 1]
    position = torch.cat([torch.full((len(kept), 1), batch.query) for batch, kept in found])
    return _pairs(
        task,
        layout,
        (clean, corrupted),
        position,
        answers,
        _other_values(task, answers) if wrong == "values" else swapped,
        torch.unique(whole, dim=0, return_inverse=True)[1],
        tuple(f"step {batch.t}" for batch, kept in found for _ in range(len(kept))),
        settings,
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
    task: Task, layout: Layout, t: int, n: int, generator: Generator, pool: Tensor, family: PairFamily
) -> list[tuple[PairBatch, Tensor]]:
    """Batches of one step with the rows to keep: `n` whose swap changes the answer, fewer where it rarely does."""
    found: list[tuple[PairBatch, Tensor]] = []
    missing = n
    for _ in range(ROUNDS):
        if not missing:
            break
        batch = task.pairs(family, layout.length, t, n=missing, generator=generator, clean=pool)
        kept = batch.differs.nonzero().flatten()[:missing]
        missing -= len(kept)
        if len(kept):
            found.append((batch, kept))
    return found


def _covering(donor: Int[Tensor, "batch donor_pos"], width: int) -> Int[Tensor, "batch pos"]:
    """The first `width` columns; a shorter donor is continued by its last token, after all that is read."""
    missing = width - donor.shape[1]
    return torch.cat([donor, donor[:, -1:].expand(-1, missing)], 1) if missing > 0 else donor[:, :width]


def _other_values(task: Task, answers: Int[Tensor, "batch n_read"]) -> Int[Tensor, "batch n_read n_wrong"]:
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


def _pairs(
    task: Task,
    layout: Layout,
    runs: tuple[Tensor, Tensor],
    position: Int[Tensor, "batch n_read"],
    answers: Int[Tensor, "batch n_read"],
    wrong: Int[Tensor, "batch n_read n_wrong"],
    unit: Int[Tensor, "batch"],
    group: tuple[str, ...],
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
        part=("",) * len(clean),
        names=dict(enumerate(task.vocabulary.tokens)),
        source=Source(kind="task", bos="task", settings=settings),
    )
