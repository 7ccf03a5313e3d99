"""How the head types found in a model are shown on a terminal."""

from rich.table import Table
from rich.text import Text

from circuits.cli_text import estimate
from circuits.detectors.base import HeadDetection
from circuits.heads.course import HeadsTrajectory, TrackedHead
from circuits.outputs import HeadsOutput
from interp.console import out, say, visible

SHOWN = 12
SHOWN_HEADS = 40


def show_heads(output: HeadsOutput) -> None:
    """One block per head type, then what holds for all of them."""
    at = "" if output.step is None else f", step {output.step:,}"
    say(f"{output.model} ({output.model_kind}{at})")
    for detection in output.detections:
        say("")
        say(detection.headline)
        out().print(_scores(detection))
        if detection.causal:
            out().print(_checks(detection))
    say("")
    for null in output.detections[0].null[:1]:
        shared = "" if null.sharing == 1 else f", in groups of {null.sharing}"
        sharp = f"{null.n_sharp} with sharpened QK"
        say(f"null models: {null.n} {null.name}{shared}, {sharp}; smallest p {null.smallest_p:.3g}")
    for limit in dict.fromkeys(limit for detection in output.detections for limit in detection.limits):
        say(f"limit: {limit}")


def _scores(detection: HeadDetection) -> Table:
    """Heads that were flagged or, where none was, the three with the largest score."""
    rows = sorted(detection.scores, key=lambda row: -row.score.value)
    flagged = [row for row in rows if row.verdict != "none"]
    more = len(flagged) - SHOWN
    title = f"{detection.detector}: {detection.statistic}" + (f" ({more} more flagged heads)" if more > 0 else "")
    table = Table("head", "score (95 % interval)", "rate", "p twins", "p prompts", "p", "verdict", title=title)
    for row in flagged[:SHOWN] or rows[:3]:
        prompts = "-" if row.p_prompts is None else f"{row.p_prompts:.3g}"
        numbers = (f"{row.rate:.2f}", f"{row.p_twins:.3g}", prompts, f"{row.p_value:.3g}")
        table.add_row(row.component, estimate(row.score), *numbers, row.verdict)
    return table


def _checks(detection: HeadDetection) -> Table:
    """One row per causal check."""
    names = ("check", "head", "cost (95 % interval)", "control heads", "difference", "moved", "passed")
    table = Table(*names, title=f"{detection.detector}: causal checks")
    for check in detection.causal:
        passed = {True: "yes", False: "no", None: check.note or "not tested"}[check.passed]
        numbers = (estimate(check.effect), estimate(check.control), estimate(check.difference), f"{check.moved:.2f}")
        table.add_row(*(Text(visible(cell)) for cell in (check.name, check.component, *numbers, passed)))
    return table


def show_course(output: HeadsOutput) -> None:
    """A table for each type that some checkpoint flags, births and deaths, and what holds for all of them."""
    story = output.trajectory
    say(f"{output.model} ({output.model_kind}), {len(story.points)} checkpoints")
    for index, kind in enumerate(output.detections):
        say("")
        if any(point.types[index].verdict != "none" for point in story.points):
            out().print(_steps(story, index, kind))
            continue
        best = max(story.points, key=lambda point: point.types[index].score.value)
        at = best.types[index]
        score = f"{at.strongest} at step {best.step:,}, score {estimate(at.score)}"
        say(f"{kind.detector}: no head is flagged at any checkpoint; the largest score is that of {score}")
    say("")
    if story.heads:
        out().print(_births(story.heads))
        say("born, died: first of three checkpoints in a row; in parentheses the checkpoints around a birth")
    say(f"limit: {story.note}")
    for limit in dict.fromkeys(limit for detection in output.detections for limit in detection.limits):
        say(f"limit: {limit}")


def _steps(story: HeadsTrajectory, index: int, kind: HeadDetection) -> Table:
    """One row per checkpoint of one type."""
    names = ("step", "strongest head", "score (95 % interval)", "rate", "p", "pass", "candidates")
    table = Table(*names, title=f"{kind.detector}: {kind.statistic}")
    for point in story.points:
        one = point.types[index]
        numbers = (estimate(one.score), f"{one.rate:.2f}", f"{one.p_value:.3g}")
        table.add_row(f"{point.step:,}", one.strongest, *numbers, _few(one.heads), _few(one.candidates))
    return table


def _births(heads: list[TrackedHead]) -> Table:
    """One row per head that was flagged somewhere."""
    table = Table("head", "type", "passes", "candidate", "born", "died", title="Heads through training, by checkpoints")
    for one in heads[:SHOWN_HEADS]:
        born = "-" if one.bracket is None else f"{one.born:,} ({_between(*one.bracket)})"
        died = "-" if one.died is None else f"{one.died:,}"
        counts = (f"{len(one.present)} of {len(one.scores)}", f"{len(one.candidate)} of {len(one.scores)}")
        table.add_row(one.component, one.detector, *counts, born, died)
    if len(heads) > SHOWN_HEADS:
        table.caption = f"{len(heads) - SHOWN_HEADS} more heads are in --json"
    return table


def _between(before: int, first: int) -> str:
    """Where a birth lies; at the first checkpoint it may lie before all of them."""
    return f"{before:,} to {first:,}" if before < first else "or before"


def _few(names: list[str]) -> str:
    """Up to four names."""
    return "-" if not names else ", ".join(names[:4]) + (f" +{len(names) - 4}" if names[4:] else "")
