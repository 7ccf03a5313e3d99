"""One prompt pair as plain lists, checked with its place in the file, stacked into `Pairs`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from interp.errors import UsageError
from interp.pairs.alignment import Span
from interp.pairs.base import NONE, Pairs, Part, Source

Padding = Literal["left", "right"]


@dataclass(frozen=True)
class Row:
    """One prompt pair; places and spans count its tokens from 0, without a BOS that is added later.

    Args:
        where: file and line, or what else names this prompt in an error.
        places: places whose next-token prediction is read; negative ones count from the end.
        answers, wrong: one set of token ids for each place.
        unit: name of the sequence it is made from; None: the clean tokens themselves.
    """

    where: str
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    places: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    wrong: tuple[tuple[int, ...], ...]
    spans: dict[str, Span] = field(default_factory=dict)
    group: str = ""
    part: Part = ""
    unit: str | None = None


def unequal(row: Row) -> bool:
    """Whether the clean and the corrupted prompt have different numbers of tokens."""
    return len(row.clean) != len(row.corrupted)


def refuse_unequal(row: Row) -> None:
    """Raise UsageError if the clean and the corrupted prompt differ in length."""
    if unequal(row):
        raise UsageError(
            f"{row.where}: the clean prompt has {len(row.clean)} tokens, the corrupted one {len(row.corrupted)}; "
            "patching needs equal numbers: change a word or take the pair out (from Python drop_unequal=True does)"
        )


def checked(row: Row, d_vocab: int, name: Callable[[int], str]) -> Row:
    """The row with its places counted from the start.

    Raises:
        UsageError: naming the row, for unequal lengths, equal prompts, or bad tokens, places, answers or spans.
    """
    refuse_unequal(row)
    n = len(row.clean)
    if not n:
        raise UsageError(f"{row.where}: the prompt has no tokens")
    if row.clean == row.corrupted:
        raise UsageError(
            f"{row.where}: the clean and the corrupted prompt are the same tokens; nothing could be patched"
        )
    sets = {"answers": row.answers, "wrong": row.wrong}
    listed = {"clean": row.clean, "corrupted": row.corrupted} | {key: sum(each, ()) for key, each in sets.items()}
    for key, ids in listed.items():
        outside = [token for token in ids if not 0 <= token < d_vocab]
        if outside:
            raise UsageError(f"{row.where}: {key}: token id {outside[0]} is outside the vocabulary, 0 to {d_vocab - 1}")
    for place in row.places:
        if not -n <= place < n:
            raise UsageError(f"{row.where}: position {place} is outside the prompt of {n} tokens")
    for key, each in sets.items():
        if len(each) != len(row.places):
            raise UsageError(
                f"{row.where}: {len(each)} sets of {key} for {len(row.places)} positions; give one for each"
            )
    for right, other in zip(row.answers, row.wrong, strict=True):
        if not right:
            raise UsageError(f"{row.where}: answers: a position has no answer")
        if both := set(right) & set(other):
            raise UsageError(f"{row.where}: {name(min(both))!r} is in both answers and wrong")
    for span, (start, stop) in row.spans.items():
        if not 0 <= start < stop <= n:
            raise UsageError(f"{row.where}: span {span}: [{start}, {stop}] is not a range of the {n} tokens")
    return Row(**{**vars(row), "places": tuple(place % n for place in row.places)})


def stack(
    rows: Sequence[Row],
    source: Source,
    d_vocab: int,
    *,
    name: Callable[[int], str] = str,
    bos: int | None = None,
    padding: Padding = "right",
) -> Pairs:
    """Rows as tensors, padded at one side.

    Args:
        name: display name of a token id.
        bos: token id put before each prompt; None: none.

    Raises:
        UsageError: as `checked`; if there are no rows, a prompt begins with the BOS that is to be added, or rows
            differ in the number of read positions.
    """
    if not rows:
        raise UsageError(f"{source.file or source.kind}: holds no prompt pairs")
    if padding not in ("left", "right"):
        raise UsageError(f"padding={padding!r}: expected 'left' or 'right'")
    rows = [checked(row, d_vocab, name) for row in rows]
    _refuse_uneven(rows, bos, name)
    front = () if bos is None else (bos,)
    width = len(front) + max(len(row.clean) for row in rows)
    starts = [0 if padding == "right" else width - len(front) - len(row.clean) for row in rows]
    tokens = {key: torch.zeros(len(rows), width, dtype=torch.long) for key in ("clean", "corrupted")}
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, (row, start) in enumerate(zip(rows, starts, strict=True)):
        real = slice(start, start + len(front) + len(row.clean))
        mask[index, real] = True
        for key, into in tokens.items():
            into[index, real] = torch.tensor((*front, *getattr(row, key)))
    shifted = [(row, start + len(front)) for row, start in zip(rows, starts, strict=True)]
    used = {token for row in rows for token in (*row.clean, *row.corrupted, *sum(row.answers + row.wrong, ()), *front)}
    return Pairs(
        **tokens,
        mask=mask,
        position=torch.tensor([[place + shift for place in row.places] for row, shift in shifted]),
        answers=_padded([row.answers for row in rows]),
        wrong=_padded([row.wrong for row in rows]),
        unit=_units(rows),
        d_vocab=d_vocab,
        spans=tuple({key: (a + shift, b + shift) for key, (a, b) in row.spans.items()} for row, shift in shifted),
        group=tuple(row.group for row in rows),
        part=tuple(row.part for row in rows),
        names={token: name(token) for token in sorted(used)},
        source=source,
    )


def _refuse_uneven(rows: Sequence[Row], bos: int | None, name: Callable[[int], str]) -> None:
    """Raise UsageError for a second BOS, or for different numbers of read positions."""
    for row in rows:
        if bos is not None and row.clean[0] == bos:
            raise UsageError(f"{row.where}: begins with the BOS token {name(bos)!r} that is to be added; use bos=False")
        if len(row.places) != len(rows[0].places):
            raise UsageError(
                f"{row.where}: {len(row.places)} read positions, {rows[0].where} has {len(rows[0].places)}; "
                "give each prompt the same number"
            )


def _units(rows: Sequence[Row]) -> torch.Tensor:
    """A number for each sequence, in order of first appearance.

    Prompts are of one sequence where their unit, or without one their clean tokens, are the same, and where each is the
    corrupted prompt of the other. Other sharing stays: joining all prompts of a list whose corrupted prompts are the
    next ones would leave one sequence. `Pairs.seen_by` counts what a division shares.
    """
    keys = [f"tokens {row.clean}" if row.unit is None else f"unit {row.unit}" for row in rows]
    by_clean = {row.clean: key for row, key in zip(rows, keys, strict=True) if row.unit is None}
    pairs = {(row.clean, row.corrupted) for row in rows if row.unit is None}
    same = {key: key for key in keys}
    for clean, corrupted in sorted(pairs):
        if (corrupted, clean) in pairs:
            one, other = (_first(same, by_clean[tokens]) for tokens in (clean, corrupted))
            same[max(one, other)] = min(one, other)
    units: dict[str, int] = {}
    return torch.tensor([units.setdefault(_first(same, key), len(units)) for key in keys])


def _first(same: dict[str, str], key: str) -> str:
    """The key that stands for all that are the same."""
    while same[key] != key:
        key = same[key]
    return key


def _padded(sets: Sequence[tuple[tuple[int, ...], ...]]) -> torch.Tensor:
    """Sets of token ids as one tensor [batch n_read n], each without repeats and filled up with -1."""
    unique = [[list(dict.fromkeys(each)) for each in row] for row in sets]
    width = max(len(each) for row in unique for each in row)
    filled = [[each + [NONE] * (width - len(each)) for each in row] for row in unique]
    return torch.tensor(filled, dtype=torch.long).reshape(len(sets), len(sets[0]), width)
