"""Accuracy of two sides by length, with n and intervals, as pure functions: no Streamlit, no torch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from circuits.detectors.base import NullSummary

Z = 1.959964  # of a two-sided 95 % interval
GAP = "difference (second minus first)"


def sequences_of(metrics: Sequence[Mapping[str, Any]], most: int) -> dict[int, int]:
    """Held-out sequences of each length behind one evaluation; empty before a run has ended, which logs their number.

    Args:
        most: `train.eval_sequences`, above which an evaluation takes the first ones only.
    """
    for row in metrics:
        final = row.get("final")
        if isinstance(final, Mapping):
            return {int(length): min(most, int(score["n"])) for length, score in final.items()}
    return {}


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n; Wilson 1927."""
    centre, scale = share + Z**2 / (2 * n), 1 + Z**2 / n
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def newcombe(first: float, n_first: int, second: float, n_second: int) -> tuple[float, float]:
    """95 % interval of second minus first, from their Wilson intervals; Newcombe 1998, method 10.

    It takes both samples as independent. Where both sides read the same sequences, it is most often too wide.
    """
    (low1, high1), (low2, high2) = wilson(first, n_first), wilson(second, n_second)
    gap = second - first
    return gap - math.hypot(second - low2, high1 - first), gap + math.hypot(high2 - second, first - low1)


def accuracy_table(
    titles: Sequence[str], found: Sequence[Mapping[int, float]], counts: Sequence[Mapping[int, int]]
) -> list[dict[str, Any]]:
    """A row for each length that a side has: both accuracies and their difference, each with its interval, and n."""
    rows = []
    for length in sorted({length for values in found for length in values}):
        values = [one.get(length) for one in found]
        ns = [one.get(length) for one in counts]
        gap = None
        if None not in values:
            bounds = None if None in ns else newcombe(values[0], ns[0], values[1], ns[1])
            gap = _within(values[1] - values[0], bounds, "+.3f")
        cells = [
            None if value is None else _within(value, None if n is None else wilson(value, n))
            for value, n in zip(values, ns, strict=True)
        ]
        n = " and ".join(dict.fromkeys("not logged" if one is None else f"{one:,}" for one in ns))
        rows.append({"length": length, titles[0]: cells[0], titles[1]: cells[1], GAP: gap, "n": n})
    return rows


def mass_row(row: NullSummary) -> dict[str, Any]:
    """One statistic of a stored detection with its interval, where it has one."""
    known = row.observed_interval
    bounds, n = (None, None) if known is None else ((known.low, known.high), known.n)
    return {
        "role": row.role,
        "head": row.component,
        "mass": _within(row.observed, bounds),
        "n": n,
        "p": row.p_value,
        "null models": row.n,
    }


def _within(value: float, bounds: tuple[float, float] | None, form: str = ".3f") -> str:
    """A number, with its interval where there is one."""
    return f"{value:{form}}" + ("" if bounds is None else f" [{bounds[0]:{form}}, {bounds[1]:{form}}]")
