"""What a circuit did through training: overlap from checkpoint to checkpoint, births and deaths of edges."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from circuits.circuit import Circuit
from circuits.detectors.base import Interval
from circuits.discovery import overlap
from circuits.discovery_result import DiscoveryFile, Verdict
from interp.config import Frozen

CONSECUTIVE = 3


class TrajectoryPoint(Frozen):
    """One checkpoint."""

    step: int
    verdict: Verdict
    n_kept: int
    n_live: int
    retained: Interval | None
    accuracy: float
    overlap: float | None = Field(description="Jaccard overlap with the circuit before; null: one of them is missing")
    split_half: float | None = Field(description="overlap of two halves of the prompts at this checkpoint")
    changed: bool | None = Field(description="overlap below that of the halves here and before; null: cannot be said")


class TrackedEdge(Frozen):
    """One edge of the union over checkpoints."""

    edge: str
    present: list[int] = Field(description="steps at which the circuit holds it")
    born: int | None = Field(description="first of three consecutive circuits that hold it")
    died: int | None = Field(description="first of three consecutive circuits without it, after its birth")


class Trajectory(Frozen):
    """A circuit through training."""

    format: Literal[1] = 1
    points: list[TrajectoryPoint]
    edges: list[TrackedEdge]
    emerged: int | None = Field(description="first of three consecutive checkpoints with the verdict 'circuit'")
    note: str


def trajectory(steps: Sequence[int], found: Sequence[DiscoveryFile]) -> Trajectory:
    """What changed from checkpoint to checkpoint.

    An edge is born at the first of three consecutive circuits that hold it, and dies at the first of three that lack
    it. A change between two checkpoints counts only where their overlap is below the overlap of circuits searched on
    two halves of the prompts at either: what lies inside that band is chance.
    """
    circuits = [None if one.circuit is None else one.circuit.circuit() for one in found]
    points, before = [], None
    for step, one, circuit in zip(steps, found, circuits, strict=True):
        same = None if circuit is None or before is None else overlap(before[0].kept, circuit.kept)
        halves = [one.split_half, before[1].split_half] if before is not None else [None]
        known = same is not None and all(half is not None for half in halves)
        points.append(
            TrajectoryPoint(
                step=step,
                verdict=one.verdict,
                n_kept=one.n_kept,
                n_live=one.n_live,
                retained=None if one.faithfulness is None else one.faithfulness.retained,
                accuracy=one.gate.accuracy.value,
                overlap=same,
                split_half=one.split_half,
                changed=same < min(halves) if known else None,
            )
        )
        before = (circuit, one) if circuit is not None else None
    passed = [one.verdict == "circuit" for one in found]
    starts = [i for i in range(len(passed) - CONSECUTIVE + 1) if all(passed[i : i + CONSECUTIVE])]
    churn = sum(point.changed is True for point in points)
    compared = sum(point.changed is not None for point in points)
    note = (
        f"{churn} of {compared} steps between neighbouring circuits change more than two halves of the prompts do."
        if compared
        else "No two neighbouring checkpoints both have a circuit, so nothing is said about change."
    )
    return Trajectory(
        points=points,
        edges=tracked(steps, circuits),
        emerged=steps[starts[0]] if starts else None,
        note=note,
    )


def tracked(steps: Sequence[int], circuits: Sequence[Circuit | None]) -> list[TrackedEdge]:
    """Every edge that some circuit holds, in order of birth; checkpoints without a circuit hold none."""
    present: dict[str, list[bool]] = {}
    for index, circuit in enumerate(circuits):
        for edge in [] if circuit is None else circuit.edges():
            present.setdefault(edge, [False] * len(circuits))[index] = True
    found = []
    for edge, row in present.items():
        born = _run_of(row, True, 0)
        died = None if born is None else _run_of(row, False, born)
        found.append(
            TrackedEdge(
                edge=edge,
                present=[step for step, here in zip(steps, row, strict=True) if here],
                born=None if born is None else steps[born],
                died=None if died is None else steps[died],
            )
        )
    last = max(steps, default=0) + 1
    return sorted(found, key=lambda one: (last if one.born is None else one.born, one.edge))


def _run_of(row: Sequence[bool], value: bool, start: int) -> int | None:
    """First place from `start` on where `value` stands three times in a row."""
    for index in range(start, len(row) - CONSECUTIVE + 1):
        if all(here == value for here in row[index : index + CONSECUTIVE]):
            return index
    return None
