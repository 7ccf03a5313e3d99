"""What a circuit did through training: overlap from checkpoint to checkpoint, births and deaths of edges."""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from circuits.circuit import Circuit
from circuits.detectors.base import Interval
from circuits.discovery import overlap
from circuits.discovery_result import DiscoveryFile, Verdict
from circuits.gate import NO_BEHAVIOUR
from interp.config import Frozen

CONSECUTIVE = 3
PASS: Verdict = "circuit"
MOST_STEPS = 100_000  # steps listed in a file, over all edges; edges beyond are counted only


class TrajectoryPoint(Frozen):
    """One checkpoint."""

    step: int
    verdict: Verdict
    n_kept: int
    n_live: int
    retained: Interval | None
    accuracy: float = Field(description="share of single answers that are right, not of whole sequences")
    accuracy_interval: Interval | None = Field(
        None, description="the same with the 99.9 % interval of the gate; null in files from before it was kept"
    )
    overlap: float | None = Field(
        description="Jaccard overlap with the circuit, or candidate, before; null: one of them is missing"
    )
    split_half: float | None = Field(
        description="overlap of the circuits of two halves of the prompts at this checkpoint, from one random division"
    )
    changed: bool | None = Field(
        description="overlap below the band, which is the lower split_half of this checkpoint and the one before; "
        "null: cannot be said, as of a candidate"
    )


class TrackedEdge(Frozen):
    """One edge of the union over checkpoints."""

    edge: str
    present: list[int] = Field(description="steps it passes at: the verdict is 'circuit' and the circuit holds it")
    candidate: list[int] = Field(default_factory=list, description="steps at which a candidate holds it")
    born: int | None = Field(description="first of three consecutive checkpoints that it passes at")
    died: int | None = Field(
        description="after its birth, first of three consecutive checkpoints that are without it: the verdict is "
        "'circuit' and the circuit lacks it, or there is no behaviour to explain"
    )


class FailedStep(Frozen):
    """A checkpoint that could not be looked at."""

    step: int
    reason: str


class Trajectory(Frozen):
    """A circuit through training; in format 1 candidates counted as circuits, and checkpoints without one as deaths."""

    format: Literal[1, 2] = 2
    points: list[TrajectoryPoint]
    edges: list[TrackedEdge] = Field(description="of the union over checkpoints, in order of birth")
    n_edges: int | None = Field(None, description="edges of the union, listed or not; null in format 1")
    emerged: int | None = Field(description="first of three consecutive checkpoints with the verdict 'circuit'")
    note: str
    failed: list[FailedStep] = Field(default_factory=list, description="checkpoints left out, which end every row")

    def bands(self) -> list[float | None]:
        """What the overlap of each point was compared with: the lower split_half of it and of the point before.

        None where nothing is said about change.
        """
        before = [None, *self.points]
        return [
            None if here.changed is None else min(here.split_half, last.split_half)
            for last, here in zip(before, self.points, strict=False)
        ]


def trajectory(
    steps: Sequence[int], found: Sequence[DiscoveryFile | None], failed: Mapping[int, str] | None = None
) -> Trajectory:
    """What changed from checkpoint to checkpoint.

    A checkpoint *passes* with the verdict "circuit", and an edge passes where the circuit of such a checkpoint holds
    it. An edge is born at the first of three consecutive passes. It dies at the first of three consecutive checkpoints
    without it: those that pass and whose circuit lacks it, and those without behaviour. A candidate, a search without
    a faithful circuit, too few prompts and a checkpoint that failed speak neither for an edge nor against it, and end
    either row.

    A change between two checkpoints that pass counts only where their overlap is below a band: the lower of two
    overlaps, each of circuits searched on two halves of the prompts, at this checkpoint and at the one before. Each
    comes from one random division, so that in a small circuit one edge can decide.

    Args:
        found: one for each step; None where the checkpoint could not be looked at.
        failed: why, by step.
    """
    points, before = [], None
    circuits = [None if one is None or one.circuit is None else one.circuit.circuit() for one in found]
    for step, one, circuit in zip(steps, found, circuits, strict=True):
        if one is not None:
            points.append(_point(step, one, circuit, before))
        before = None if one is None or circuit is None else (circuit, one)
    passed = [one is not None and one.verdict == PASS for one in found]
    emerged = _run_of(passed, True, 0)
    verdicts = [None if one is None else one.verdict for one in found]
    edges = tracked(steps, circuits, verdicts)
    return Trajectory(
        points=points,
        edges=_listed(edges),
        n_edges=len(edges),
        emerged=None if emerged is None else steps[emerged],
        note=_note(points),
        failed=[FailedStep(step=step, reason=reason) for step, reason in (failed or {}).items()],
    )


def _point(
    step: int, one: DiscoveryFile, circuit: Circuit | None, before: tuple[Circuit, DiscoveryFile] | None
) -> TrajectoryPoint:
    """One checkpoint beside the one before it, where both have a circuit or a candidate."""
    same = None if circuit is None or before is None else overlap(before[0].kept, circuit.kept)
    sure = before is not None and one.verdict == before[1].verdict == PASS
    halves = [one.split_half, before[1].split_half] if sure else [None]
    known = same is not None and all(half is not None for half in halves)
    return TrajectoryPoint(
        step=step,
        verdict=one.verdict,
        n_kept=one.n_kept,
        n_live=one.n_live,
        retained=None if one.faithfulness is None else one.faithfulness.retained,
        accuracy=one.gate.accuracy.value,
        accuracy_interval=one.gate.accuracy,
        overlap=same,
        split_half=one.split_half,
        changed=same < min(halves) if known else None,
    )


def _note(points: Sequence[TrajectoryPoint]) -> str:
    """How many steps changed, and how many might without any change.

    An overlap that is exchangeable with the two of halves that it is compared with is below both of them with a
    probability of at most a third. Steps that share halves depend on each other, which leaves the mean as it is.
    """
    churn = sum(point.changed is True for point in points)
    compared = sum(point.changed is not None for point in points)
    if not compared:
        return "No two neighbouring checkpoints both have the verdict 'circuit', so nothing is said about change."
    return (
        f"{churn} of {compared} steps from one circuit to the next changed: overlap below the band. Chance alone gives "
        f"at most a third of them, {compared / 3:.1f} on average, if whole searches vary like those on halves of the "
        "prompts. It gives fewer if they vary less, which is likely with twice the prompts; how many is not known."
    )


def tracked(
    steps: Sequence[int], circuits: Sequence[Circuit | None], verdicts: Sequence[Verdict | None]
) -> list[TrackedEdge]:
    """Every edge that some circuit or candidate holds, in order of birth; see `trajectory` for what a pass is."""
    holds: dict[str, list[bool]] = {}
    for index, circuit in enumerate(circuits):
        for edge in [] if circuit is None else circuit.edges():
            holds.setdefault(edge, [False] * len(circuits))[index] = True
    found = []
    for edge, row in holds.items():
        says = [_says(verdict, here) for verdict, here in zip(verdicts, row, strict=True)]
        born = _run_of(says, True, 0)
        died = None if born is None else _run_of(says, False, born)
        found.append(
            TrackedEdge(
                edge=edge,
                present=[step for step, said in zip(steps, says, strict=True) if said],
                candidate=[step for step, said, here in zip(steps, says, row, strict=True) if here and said is None],
                born=None if born is None else steps[born],
                died=None if died is None else steps[died],
            )
        )
    last = max(steps, default=0) + 1
    return sorted(found, key=lambda one: (last if one.born is None else one.born, one.edge))


def _says(verdict: Verdict | None, holds: bool) -> bool | None:
    """Whether a checkpoint speaks for an edge, against it, or neither."""
    if verdict == PASS:
        return holds
    return False if verdict == NO_BEHAVIOUR else None


def _run_of(row: Sequence[bool | None], value: bool, start: int) -> int | None:
    """First place from `start` on where `value` stands three times in a row."""
    for index in range(start, len(row) - CONSECUTIVE + 1):
        if all(here is value for here in row[index : index + CONSECUTIVE]):
            return index
    return None


def _listed(edges: Sequence[TrackedEdge]) -> list[TrackedEdge]:
    """As many as a file has room for, from the first on."""
    kept, total = [], 0
    for edge in edges:
        total += 4 + len(edge.present) + len(edge.candidate)
        if total > MOST_STEPS:
            break
        kept.append(edge)
    return kept
