"""When a circuit appears: verdicts checkpoint by checkpoint, and the first of three consecutive passes."""

from itertools import pairwise

from circuits.detectors.base import Detection, Emergence, EmergencePoint

CONSECUTIVE = 3


def emergence_point(detection: Detection, loss: float | None) -> EmergencePoint:
    """One checkpoint's detection, reduced to a point of the curve."""
    by_role = {row.role: row for row in detection.null}
    swaps = {}
    for check in detection.causal:  # the tested pair comes first in each role; later ones are rejected heads
        if check.name == "interchange":
            swaps.setdefault(check.role, check.effect if check.tested else None)
    tested = [effect for effect in swaps.values() if effect is not None]
    smaller = min(tested, key=lambda effect: effect.value) if len(tested) == 2 else None
    lowest = min(detection.lengths, key=lambda row: (row.sequence.value, -row.length)).sequence
    return EmergencePoint(
        step=detection.step,
        loss=loss,
        min_accuracy=lowest.value,
        clock=by_role["clock"].observed,
        reading=by_role["reading"].observed,
        clock_head=by_role["clock"].component,
        reading_head=by_role["reading"].component,
        p_value=by_role["joint"].p_value,
        causal=None if smaller is None else smaller.value,
        verdict=detection.verdict,
        accuracy_interval=lowest,
        clock_interval=by_role["clock"].observed_interval,
        reading_interval=by_role["reading"].observed_interval,
        causal_interval=smaller,
    )


def emergence(points: list[EmergencePoint]) -> Emergence:
    """Emergence is the first of three consecutive passes; the bracket is the resolution of the checkpoints.

    The bracket runs from the last checkpoint before that pass to the pass itself. It says between which saved steps
    the change fell and is not a confidence interval.
    """
    passed = [point.verdict == "iteration head" for point in points]
    reversals = sum(before and not after for before, after in pairwise(passed))
    starts = [i for i in range(len(passed) - CONSECUTIVE + 1) if all(passed[i : i + CONSECUTIVE])]
    first = starts[0] if starts else None
    notes = []
    if reversals:
        notes.append(f"The run goes back and forth: {reversals} pass(es) were followed by a fail.")
    if first is None and any(passed):
        notes.append(f"No {CONSECUTIVE} consecutive checkpoints pass, so no emergence step is named.")
    if first == 0:
        notes.append("The circuit is there in the first checkpoint already, so its emergence lies before it.")
    return Emergence(
        points=points,
        emerged=points[first].step if first is not None else None,
        bracket=(points[max(first - 1, 0)].step, points[first].step) if first is not None else None,
        reversals=reversals,
        note=" ".join(notes),
    )
