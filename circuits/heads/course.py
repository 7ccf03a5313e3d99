"""Heads through training: what each type found at each checkpoint, and when heads were born and died."""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from circuits.detectors.base import HeadDetection, HeadScore, HeadVerdict, Interval
from circuits.trajectory import FailedStep
from interp.config import Frozen

CONSECUTIVE = 3


class TypePoint(Frozen):
    """One head type at one checkpoint."""

    detector: str
    verdict: HeadVerdict
    heads: list[str] = Field(description="with every piece of evidence, strongest first")
    candidates: list[str] = Field(description="with the statistic alone")
    strongest: str = Field(description="head with the largest score, flagged or not")
    score: Interval = Field(description="of that head")
    rate: float
    p_value: float = Field(description="family-wise over heads and head types at this checkpoint alone")
    n_null: int


class HeadsPoint(Frozen):
    """One checkpoint."""

    step: int
    types: list[TypePoint]


class TrackedHead(Frozen):
    """One head that was flagged for one type at some checkpoint."""

    detector: str
    verdict: HeadVerdict = Field(description="what the head is called where it passes")
    component: str
    present: list[int] = Field(description="steps at which it passes: statistic, nulls and causal checks")
    candidate: list[int] = Field(description="steps at which it has the statistic alone")
    scores: list[float | None] = Field(description="mean score at each checkpoint; null: it could not be looked at")
    born: int | None = Field(description="first of three consecutive checkpoints that it passes at")
    bracket: tuple[int, int] | None = Field(
        description="checkpoint before the birth, and the birth: the resolution of the checkpoints, not an interval; "
        "twice the first checkpoint where the head is there from the first"
    )
    died: int | None = Field(
        description="after its birth, first of three consecutive checkpoints at which it is not flagged"
    )


class HeadsTrajectory(Frozen):
    """The heads of a model through training."""

    format: Literal[1] = 1
    points: list[HeadsPoint]
    heads: list[TrackedHead] = Field(description="every head that was flagged somewhere, in order of birth")
    note: str
    failed: list[FailedStep] = Field(default_factory=list, description="checkpoints left out, which end every row")


def course(
    steps: Sequence[int],
    found: Sequence[Sequence[HeadDetection] | None],
    failed: Mapping[int, str] | None = None,
) -> HeadsTrajectory:
    """What was found from checkpoint to checkpoint.

    A head *passes* for a type where the statistic, the nulls and the causal checks all speak for it. It is born at the
    first of three consecutive passes, and dies at the first of three consecutive checkpoints at which the statistic
    does not flag it. A candidate, and a checkpoint that failed, speak neither for it nor against it and end either row.

    Args:
        found: detections of every type at each step, in the same order; None where a checkpoint could not be looked at.
        failed: why, by step.
    """
    points = [
        HeadsPoint(step=step, types=[_type_point(one) for one in here])
        for step, here in zip(steps, found, strict=True)
        if here is not None
    ]
    kinds = [one.detector for one in next((here for here in found if here is not None), [])]
    tracked = [one for index in range(len(kinds)) for one in _tracked(steps, [h and h[index] for h in found])]
    last = max(steps, default=0) + 1
    tracked.sort(key=lambda one: (last if one.born is None else one.born, one.detector, one.component))
    listed = [FailedStep(step=step, reason=reason) for step, reason in (failed or {}).items()]
    return HeadsTrajectory(points=points, heads=tracked, note=_note(len(steps)), failed=listed)


def _type_point(one: HeadDetection) -> TypePoint:
    best = max(one.scores, key=lambda row: row.score.value)
    return TypePoint(
        detector=one.detector,
        verdict=one.verdict,
        heads=one.heads,
        candidates=one.candidates,
        strongest=best.component,
        score=best.score,
        rate=best.rate,
        p_value=best.p_value,
        n_null=one.null[0].n,
    )


def _tracked(steps: Sequence[int], found: Sequence[HeadDetection | None]) -> list[TrackedHead]:
    """Every head that one type flags at some checkpoint."""
    rows: list[dict[str, HeadScore] | None] = [
        None if one is None else {row.component: row for row in one.scores} for one in found
    ]
    flagged = dict.fromkeys(
        name for row in rows if row is not None for name, score in row.items() if score.verdict != "none"
    )
    return [_course_of(name, steps, found, rows) for name in flagged]


def _course_of(
    name: str,
    steps: Sequence[int],
    found: Sequence[HeadDetection | None],
    rows: Sequence[dict[str, HeadScore] | None],
) -> TrackedHead:
    """One head under one type."""
    verdicts = [None if row is None else row[name].verdict for row in rows]
    says = [None if verdict in (None, "candidate") else verdict != "none" for verdict in verdicts]
    born = _row_of(says, True, 0)
    died = None if born is None else _row_of(says, False, born)
    words = [verdict for verdict in verdicts if verdict not in (None, "none", "candidate")]
    return TrackedHead(
        detector=next(one.detector for one in found if one is not None),
        verdict=words[0] if words else "candidate",
        component=name,
        present=[step for step, said in zip(steps, says, strict=True) if said],
        candidate=[step for step, verdict in zip(steps, verdicts, strict=True) if verdict == "candidate"],
        scores=[None if row is None else row[name].score.value for row in rows],
        born=None if born is None else steps[born],
        bracket=None if born is None else (steps[max(born - 1, 0)], steps[born]),
        died=None if died is None else steps[died],
    )


def _row_of(row: Sequence[bool | None], value: bool, start: int) -> int | None:
    """First place from `start` on where `value` stands three times in a row."""
    for index in range(start, len(row) - CONSECUTIVE + 1):
        if all(here is value for here in row[index : index + CONSECUTIVE]):
            return index
    return None


def _note(checkpoints: int) -> str:
    few = f" {checkpoints} checkpoints are too few for a birth." if checkpoints < CONSECUTIVE else ""
    return (
        f"p holds for one checkpoint, over its heads and head types, and is not corrected for the {checkpoints} "
        "checkpoints, which share their null models. A birth asks for more than p: three checkpoints in a row with "
        f"every causal check that the type asks for.{few}"
    )
