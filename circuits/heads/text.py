"""How the head types found in a model are shown on a terminal."""

from rich.table import Table
from rich.text import Text

from circuits.cli_text import estimate
from circuits.detectors.base import HeadDetection
from circuits.outputs import HeadsOutput
from interp.console import out, say, visible

SHOWN = 12


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
