"""How detections and verifications are shown on a terminal."""

from rich.table import Table
from rich.text import Text

from circuits.detectors.base import Detection, Emergence, Interval
from circuits.report.verify import VerifyResult
from interp.console import out, say, visible


def estimate(interval: Interval | None) -> str:
    """value [low, high], n - or a dash where there is none."""
    if interval is None:
        return "-"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}] n={interval.n}"


def show_detection(detection: Detection, emergence: Emergence | None) -> None:
    """Headline, causal checks, null, what is missing and the emergence."""
    say(detection.headline)
    lowest = min(detection.lengths, key=lambda row: (row.sequence.value, -row.length))
    say(
        f"step {detection.step}; held-out sequence accuracy at the worst length ({lowest.length}): "
        f"{estimate(lowest.sequence)}"
    )
    if detection.causal:
        out().print(_checks(detection))
    out().print(_null(detection))
    for carrier in detection.carriers:
        say(f"carrier {carrier.component}: {carrier.description}: {estimate(carrier.effect)}")
    for reason in detection.missing:
        say(f"missing: {reason}")
    if emergence:
        show_emergence(emergence)


def _checks(detection: Detection) -> Table:
    """One row per causal check."""
    table = Table(
        "check", "head", "role", "effect (95 % interval)", "control", "moved", "passed", title="Causal checks"
    )
    for check in detection.causal:
        passed = {True: "yes", False: "no", None: "not tested"}[check.passed]
        cells = (check.name, check.component, check.role, estimate(check.effect), estimate(check.control))
        table.add_row(*(Text(visible(cell)) for cell in cells), f"{check.moved:.2f}", passed)
    return table


def _null(detection: Detection) -> Table:
    """One row per statistic."""
    table = Table("statistic", "head", "observed", "null 95 %", "p", "smallest p", "null models", title="Attention")
    for row in detection.null:
        table.add_row(
            row.role,
            row.component,
            f"{row.observed:.3f}",
            f"{row.quantile_95:.3f}",
            f"{row.p_value:.3g}",
            f"{row.smallest_p:.3g}",
            f"{row.n} ({row.n_sharp} sharp)",
        )
    return table


def show_emergence(emergence: Emergence) -> None:
    """The curve as a table, then the step and its bracket."""
    table = Table("step", "accuracy", "clock", "reading", "p", "interchange", "verdict", title="Emergence")
    for point in emergence.points:
        accuracy = "-" if point.min_accuracy is None else f"{point.min_accuracy:.3f}"
        causal = "-" if point.causal is None else f"{point.causal:.3f}"
        scores = (f"{point.clock:.3f}", f"{point.reading:.3f}", f"{point.p_value:.3g}")
        table.add_row(str(point.step), accuracy, *scores, causal, point.verdict)
    out().print(table)
    if emergence.emerged is not None:
        low, high = emergence.bracket
        say(f"emerged at step {emergence.emerged} (between saved checkpoints {low} and {high})")
    if emergence.note:
        say(emergence.note)


def show_verification(result: VerifyResult) -> None:
    """One line per check, then the mismatches of a rerun."""
    for check in result.checks:
        mark = {True: "ok", False: "FAILED", None: "not checked"}[check.passed]
        say(f"{mark}: {check.name} ({check.file}): {check.detail}")
    if result.rerun:
        say(f"rerun: {result.compared} values compared, {len(result.mismatches)} differ ({result.tolerance})")
        for mismatch in result.mismatches:
            say(f"  {mismatch.field}: stored {mismatch.stored}, recomputed {mismatch.recomputed}")
        for mismatch in result.context:
            say(f"  note, {mismatch.field}: stored {mismatch.stored}, here {mismatch.recomputed}")
    say(f"{'verified' if result.ok else 'NOT verified'}: {result.path}")
