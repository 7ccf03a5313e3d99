"""Induction: random tokens said twice, so that the second time each token tells the next; no tokenizer is needed.

Source: Olsson et al. 2022, "In-context learning and induction heads", on repeated random sequences.
"""

from collections.abc import Callable, Collection

import torch
from torch import Generator

from interp.errors import UsageError
from interp.pairs.base import Pairs, Source
from interp.pairs.rows import Row, stack


def induction(
    d_vocab: int,
    length: int,
    n: int,
    generator: Generator,
    *,
    n_read: int = 1,
    bos: int | None = None,
    exclude: Collection[int] = (),
    name: Callable[[int], str] = str,
) -> Pairs:
    """`n` prompts of `length` random tokens followed by the same tokens again, all but the last.

    In the corrupted prompt the first copy is made of other tokens, so that nothing repeats and the answer does not
    occur; the second copy, and with it what is read, is the same. The answer is the token that followed the first
    time, the wrong one the token that stands there in the corrupted prompt. Spans: with one read position PREVIOUS and
    NEXT, the first mentions of the last token and of the answer, and END; else `first` and `second`, the two copies.

    Args:
        d_vocab: token ids of the model.
        length: tokens of one copy, all different.
        n_read: read positions, the last ones of the second copy.
        bos: token id to put first; None: none.
        exclude: token ids never drawn, such as special tokens; `bos` never is.
        name: display name of a token id.

    Raises:
        UsageError: if the vocabulary has too few tokens for two copies without a repeat, or for a length below 2.
    """
    if n < 1:
        raise UsageError(f"n={n} prompts asked for; ask for at least 1")
    if length < 2 or not 1 <= n_read < length:
        raise UsageError(f"length={length}, n_read={n_read}: expected a length of at least 2 and 1 to length - 1 reads")
    left_out = {*exclude, *(() if bos is None else (bos,))}
    choices = torch.tensor([token for token in range(d_vocab) if token not in left_out], dtype=torch.long)
    if len(choices) < 2 * length:
        raise UsageError(
            f"induction of length {length} needs {2 * length} different tokens, the vocabulary has {len(choices)} to "
            "draw from; use a shorter length"
        )
    rows = [_row(index, choices, length, n_read, generator) for index in range(n)]
    settings = {
        "n": n,
        "seed": generator.initial_seed(),
        "length": length,
        "n_read": n_read,
        "exclude": sorted(exclude),
    }
    source = Source(kind="induction", bos="none" if bos is None else "added", settings=settings)
    return stack(rows, source, d_vocab, name=name, bos=bos)


def _row(index: int, choices: torch.Tensor, length: int, n_read: int, generator: Generator) -> Row:
    """One prompt pair."""
    drawn = _different(choices, 2 * length, generator)
    said, other = drawn[:length], drawn[length:]
    end = 2 * length - 2  # place of the last token, said[-2]
    spans = {"first": (0, length), "second": (length, end + 1)}
    if n_read == 1:
        marks = {"PREVIOUS": length - 2, "NEXT": length - 1, "END": end}
        spans = {name: (place, place + 1) for name, place in marks.items()}
    return Row(
        where=f"induction: prompt {index}",
        clean=(*said, *said[:-1]),
        corrupted=(*other, *said[:-1]),
        places=tuple(range(end - n_read + 1, end + 1)),
        answers=tuple((token,) for token in said[-n_read:]),
        wrong=tuple((token,) for token in other[-n_read:]),
        spans=spans,
    )


def _different(choices: torch.Tensor, n: int, generator: Generator) -> tuple[int, ...]:
    """`n` different entries, uniformly; a large vocabulary is not shuffled as a whole."""
    if len(choices) < 8 * n:
        return tuple(choices[torch.randperm(len(choices), generator=generator)[:n]].tolist())
    found: dict[int, None] = {}
    while len(found) < n:
        found.update(dict.fromkeys(torch.randint(len(choices), (n,), generator=generator).tolist()))
    return tuple(choices[torch.tensor(list(found)[:n])].tolist())
