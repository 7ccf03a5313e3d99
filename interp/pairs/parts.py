"""The division of prompts into parts that share no sequence."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from interp.errors import UsageError
from interp.rng import generator


def divided(
    units: Sequence[int],
    groups: Sequence[str],
    parts: Sequence[str],
    seed: int,
    shares: Mapping[str, float],
    where: str = "",
) -> tuple[str, ...]:
    """A part for each prompt: disjoint by unit and stratified by group; a pure function of its arguments.

    Units are shuffled within their stratum (the groups of their prompts) and dealt, stratum after stratum, each to the
    part that is furthest behind its share of the units dealt so far. So a part has its share to about one unit, of the
    whole and of each stratum. Prompts that have a part keep it, and count.

    Raises:
        UsageError: if shares are negative or do not sum to 1, or if a part would get no unit.
    """
    _require_shares(shares)
    strata: dict[int, set[str]] = {}
    for unit, group in zip(units, groups, strict=True):
        strata.setdefault(unit, set()).add(group)
    given = {unit: part for unit, part in zip(units, parts, strict=True) if part}
    open_units: dict[tuple[str, ...], list[int]] = {}
    for unit in sorted(set(strata) - set(given)):
        open_units.setdefault(tuple(sorted(strata[unit])), []).append(unit)
    counts = {part: sum(each == part for each in given.values()) for part in shares}
    for stratum in sorted(open_units):
        inside = open_units[stratum]
        stream = generator(seed, "split", *stratum)
        for place in torch.randperm(len(inside), generator=stream).tolist():
            given[inside[place]] = _next(shares, counts)
    empty = [part for part, share in shares.items() if share and not counts[part]]
    if empty:
        raise UsageError(
            f"{where}{len(strata)} sequences cannot be divided into {', '.join(shares)}: {empty[0]} would have none; "
            "give more sequences, or fewer parts"
        )
    return tuple(given[unit] for unit in units)


def parted(
    n: int, first: Int[Tensor, "some"] | None, generator: Generator, shares: Mapping[str, float]
) -> dict[str, Int[Tensor, "some"]]:
    """Sequences 0 to n - 1 by part, in order; the `first` ones are divided by themselves, so that each part has some.

    Raises:
        UsageError: for shares that do not sum to 1, or fewer sequences than parts.
    """
    used = set() if first is None else set(first.tolist())
    seed = int(torch.randint(2**31, (1,), generator=generator))
    found = divided(range(n), ["used" if row in used else "not used" for row in range(n)], [""] * n, seed, shares)
    return {name: torch.tensor([row for row in range(n) if found[row] == name]) for name in shares if shares[name]}


def dealt(n: int, shares: Mapping[str, float]) -> tuple[str, ...]:
    """The part of each of n prompts in turn, so that any number of first ones has its shares to about one.

    Raises:
        UsageError: if shares are negative or do not sum to 1.
    """
    _require_shares(shares)
    counts = dict.fromkeys(shares, 0)
    return tuple(_next(shares, counts) for _ in range(n))


def _next(shares: Mapping[str, float], counts: dict[str, int]) -> str:
    """The part that is furthest behind its share, which is counted."""
    total = 1 + sum(counts.values())
    part = max(shares, key=lambda name: shares[name] * total - counts[name])
    counts[part] += 1
    return part


def _require_shares(shares: Mapping[str, float]) -> None:
    if any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        raise UsageError(f"shares {dict(shares)}: expected numbers of at least 0 that sum to 1")
