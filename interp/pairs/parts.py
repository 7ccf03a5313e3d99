"""The division of prompts into parts that share no sequence."""

from collections.abc import Mapping, Sequence

import torch

from interp.errors import UsageError
from interp.rng import generator


def divided(
    units: Sequence[int], groups: Sequence[str], parts: Sequence[str], seed: int, shares: Mapping[str, float]
) -> tuple[str, ...]:
    """A part for each prompt: disjoint by unit and stratified by group; a pure function of its arguments.

    Units are shuffled within their stratum (the groups of their prompts) and dealt, stratum after stratum, each to the
    part that is furthest behind its share of the units dealt so far. So a part has its share to about one unit, of the
    whole and of each stratum. Prompts that have a part keep it, and count.

    Raises:
        UsageError: if shares are negative or do not sum to 1, or if a part would get no unit.
    """
    if any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        raise UsageError(f"shares {dict(shares)}: expected numbers of at least 0 that sum to 1")
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
            dealt = 1 + sum(counts.values())
            part = max(shares, key=lambda name: shares[name] * dealt - counts[name])
            given[inside[place]] = part
            counts[part] += 1
    empty = [part for part, share in shares.items() if share and not counts[part]]
    if empty:
        raise UsageError(
            f"{len(strata)} sequences cannot be divided into {', '.join(shares)}: {empty[0]} would have none; "
            "give more sequences, or fewer parts"
        )
    return tuple(given[unit] for unit in units)
