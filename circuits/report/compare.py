"""Compares a stored report with a recomputed one value by value, and says where they differ."""

import base64
import math
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from circuits.report.schema import LATER, plain
from interp.config import Frozen

RELATIVE = 1e-6
ABSOLUTE = 1e-9
PATTERN_STEPS = 1
IGNORED = frozenset({"timing", "content_hash", "generated"})
CONTEXT = frozenset({"code_version", "dirty", "packages", "device", "dtype", "threads", "engine"})


class Mismatch(Frozen):
    """One value that differs."""

    field: str
    stored: str
    recomputed: str
    difference: float | None = None


@dataclass
class Differences:
    """What was compared and found; `context` holds versions and machine, which are not part of the result."""

    compared: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)
    context: list[Mismatch] = field(default_factory=list)


def differences(stored: BaseModel, recomputed: BaseModel) -> Differences:
    """Every difference between two models of one kind.

    Text, booleans and integers must be equal; other numbers agree to 1e-6 relative or 1e-9 absolute; attention
    patterns agree to one of their 255 levels; times and hashes of the report itself are left out.
    """
    found = Differences()
    _walk(plain(stored), plain(recomputed), "", found)
    return found


def _walk(a: Any, b: Any, place: str, found: Differences) -> None:
    if isinstance(a, dict) and isinstance(b, dict):
        newer = {name for name in LATER if name in b and name not in a}  # stored before they were kept
        for name in sorted({*a, *b} - IGNORED - newer, key=str):
            inner = f"{place}.{name}" if place else str(name)
            _walk(a.get(name, _ABSENT), b.get(name, _ABSENT), inner, found)
    elif isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            _note(found, f"{place} (length)", len(a), len(b))
        for index, (x, y) in enumerate(zip(a, b, strict=False)):
            _walk(x, y, f"{place}[{index}]", found)
    else:
        found.compared += 1
        if not _same(a, b, place):
            _note(found, place, a, b)


_ABSENT = "(absent)"


def _same(a: Any, b: Any, place: str) -> bool:
    if isinstance(a, bool) or isinstance(b, bool) or not (_number(a) and _number(b)):
        return a == b or (".patterns[" in place and _same_pattern(a, b))
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def _number(value: Any) -> bool:
    return isinstance(value, int | float)


def _same_pattern(a: Any, b: Any) -> bool:
    """Two encoded patterns that differ by rounding only."""
    if not (isinstance(a, str) and isinstance(b, str) and len(a) == len(b)):
        return False
    levels = zip(base64.b64decode(a), base64.b64decode(b), strict=True)
    return all(abs(x - y) <= PATTERN_STEPS for x, y in levels)


def _note(found: Differences, place: str, a: Any, b: Any) -> None:
    gap = abs(a - b) if _number(a) and _number(b) else None
    one = Mismatch(field=place, stored=f"{a!s:.80}", recomputed=f"{b!s:.80}", difference=gap)
    names = place.replace("[", ".").split(".")
    (found.context if CONTEXT.intersection(names) and "config" not in names else found.mismatches).append(one)
