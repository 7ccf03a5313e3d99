"""Canonical names for the positions of prompts, from the named spans that prompts share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import UsageError

Span = tuple[int, int]
Spans = Mapping[str, Span]


@dataclass(frozen=True)
class PositionLabels:
    """A name for each real column of each prompt.

    `index[prompt, column]` is an index into `names`, -1 in padding. `one_to_one` says that every prompt has each name
    at exactly one column, the same for all; otherwise results of the columns that share a name are to be pooled.
    """

    names: tuple[str, ...]
    index: Int[Tensor, "batch pos"]
    one_to_one: bool

    def columns(self, prompt: int, name: str) -> list[int]:
        """The columns of a prompt that have this name; empty where the prompt has none."""
        return (self.index[prompt] == self.names.index(name)).nonzero().flatten().tolist()


def agree(mask: Bool[Tensor, "batch pos"], spans: Sequence[Spans]) -> bool:
    """Whether all prompts have their tokens and their spans in the same columns."""
    return bool((mask == mask[:1]).all()) and all(dict(each) == dict(spans[0]) for each in spans)


def position_labels(
    mask: Bool[Tensor, "batch pos"], spans: Sequence[Spans], common: Mapping[int, str], wanted_for: str
) -> PositionLabels:
    """Names of columns: one name per column where prompts agree, else names counted from the spans.

    In prompts that agree, a column is called by its span (`IO`, or `IO.0`, `IO.1` for a longer one), else by its place
    and, if all prompts have the same token there, that token: `5:gave`. In other prompts, columns outside spans share
    the name of the gap they are in: `start..IO`, `IO..S1`, `END..end`.

    Args:
        common: token name by column, for the columns in which all prompts have the same token.
        wanted_for: what the names are for, said in the error.

    Raises:
        UsageError: if prompts differ in length or span positions and no span alignment makes up for it, or if spans
            of a prompt overlap.
    """
    one_to_one = agree(mask, spans)
    if not one_to_one:
        _require_span_alignment(mask, spans, wanted_for)
    index = torch.full(mask.shape, -1)
    found: dict[tuple[int, int, str], list[tuple[int, int]]] = {}
    for prompt, each in enumerate(spans):
        real = mask[prompt].nonzero().flatten().tolist()
        keyed = _by_column(real, each, common, prompt) if one_to_one else _by_segment(real, each, prompt)
        for column, key in keyed.items():
            found.setdefault(key, []).append((prompt, column))
    for number, key in enumerate(sorted(found)):
        prompts, columns = zip(*found[key], strict=True)
        index[list(prompts), list(columns)] = number
    return PositionLabels(tuple(name for *_, name in sorted(found)), index, one_to_one)


def _require_span_alignment(mask: Bool[Tensor, "batch pos"], spans: Sequence[Spans], wanted_for: str) -> None:
    lengths = mask.sum(1)
    unequal = (
        f"prompts have {int(lengths.min())} to {int(lengths.max())} tokens"
        if int(lengths.min()) < int(lengths.max())
        else "prompts have their spans at different positions"
    )
    fix = "give prompts of equal length, or name the same spans (such as IO, S1, S2, END) in the same order in each"
    if not spans[0]:
        raise UsageError(f"{wanted_for}: {unequal} and prompt 0 names no spans to align them by; {fix}")
    order = in_order(spans[0])
    for prompt, each in enumerate(spans):
        if in_order(each) != order:
            raise UsageError(
                f"{wanted_for}: {unequal}, and prompt {prompt} has the spans {', '.join(in_order(each)) or 'none'} "
                f"where prompt 0 has {', '.join(order)}; {fix}, for example by keeping one group"
            )


def in_order(spans: Spans) -> list[str]:
    """Names of spans from left to right."""
    return sorted(spans, key=lambda name: spans[name])


def _covered(spans: Spans, prompt: int) -> dict[int, tuple[int, int]]:
    """For each column inside a span, the span's number from left to right and the offset in it."""
    covered: dict[int, tuple[int, int]] = {}
    names = in_order(spans)
    for number, name in enumerate(names):
        for column in range(*spans[name]):
            if column in covered:
                other = names[covered[column][0]]
                raise UsageError(f"prompt {prompt}: spans {other} and {name} overlap at column {column}")
            covered[column] = number, column - spans[name][0]
    return covered


def _by_column(
    real: list[int], spans: Spans, common: Mapping[int, str], prompt: int
) -> dict[int, tuple[int, int, str]]:
    """Sort key and name of each real column, a name of its own for each."""
    covered, names, keyed = _covered(spans, prompt), in_order(spans), {}
    for place, column in enumerate(real):
        if column in covered:
            number, offset = covered[column]
            start, stop = spans[names[number]]
            name = names[number] if stop == start + 1 else f"{names[number]}.{offset}"
        else:
            name = f"{place}:{common[column].strip()}" if column in common else str(place)
        keyed[column] = column, 0, name
    return keyed


def _by_segment(real: list[int], spans: Spans, prompt: int) -> dict[int, tuple[int, int, str]]:
    """Sort key and name of each real column: its span with the offset in it, or the gap between two spans."""
    covered, names, keyed = _covered(spans, prompt), in_order(spans), {}
    ends = ["start", *names, "end"]
    last = 0  # number of the segment at the left: 0 is the start of the prompt
    for column in real:
        if column in covered:
            number, offset = covered[column]
            last = number + 1
            keyed[column] = 2 * last, offset, f"{names[number]}.{offset}" if offset else names[number]
        else:
            keyed[column] = 2 * last + 1, 0, f"{ends[last]}..{ends[last + 1]}"
    return keyed
