"""How detections and verifications are shown on a terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from circuits.detectors.base import Detection, Emergence, EmergencePoint, Interval
from circuits.report.verify import VerifyResult
from interp.console import out, say, visible
from probes.percent import counted, percent, percents


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
        f"step {detection.step:,}; share of held-out sequences with every state right, at the worst length "
        f"({lowest.length}): {estimate(lowest.sequence)}"
    )
    if detection.causal:
        out().print(_checks(detection))
    _null(detection)
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


def _null(detection: Detection) -> None:
    """One row per statistic, and below what is compared with what."""
    columns = ("statistic", "head", "observed (95 % interval)", "null 95 %", "p", "smallest p")
    table = Table(*columns, title="Attention on the target")
    for row in detection.null:
        known = row.observed_interval
        bounds = "" if known is None else f" [{known.low:.3f}, {known.high:.3f}] n={known.n}"
        tail = (f"{row.quantile_95:.3f}", f"{row.p_value:.3g}", f"{row.smallest_p:.3g}")
        table.add_row(row.role, row.component, f"{row.observed:.3f}{bounds}", *tail)
    out().print(table)
    over = next((row.over for row in detection.null if row.over), "")
    if over:
        say(f"observed: mean over {over}; n counts sequences")
    models = ", ".join(dict.fromkeys(f"{row.n} untrained models ({row.n_sharp} sharp)" for row in detection.null))
    if models:
        say(f"null: the largest of each of {models}")


def show_emergence(emergence: Emergence) -> None:
    """The curve as a table, then the step and its bracket."""
    columns = ("step", "sequences\nright %", "clock %", "reading %", "p", "interchange %", "verdict")
    table = Table(*columns, title=_counts(emergence.points))
    for point in emergence.points:
        right = _percents(point.min_accuracy, point.accuracy_interval)
        clock, reading = _percents(point.clock, point.clock_interval), _percents(point.reading, point.reading_interval)
        causal = _percents(point.causal, point.causal_interval)
        table.add_row(f"{point.step:,}", right, clock, reading, f"{point.p_value:.3g}", causal, point.verdict)
    out().print(table)
    say("sequences right: held-out ones with every state right, at the worst length")
    say("clock, reading: attention on the target; where interchange is given of that pair, else of the highest head")
    say("interchange: the smaller of the two heads")
    if emergence.emerged is not None:
        low, high = emergence.bracket
        say(f"emerged at step {emergence.emerged:,} (between saved checkpoints {low:,} and {high:,})")
    if emergence.note:
        say(emergence.note)


def _percents(value: float | None, interval: Interval | None) -> str:
    if value is None:
        return "-"
    return percent(value) if interval is None else percents(value, interval.low, interval.high)


def _counts(points: Sequence[EmergencePoint]) -> str:
    """Title of the table with n of each kind of column."""
    kinds = (
        ("sequences", [point.accuracy_interval for point in points]),
        ("attention", [one for point in points for one in (point.clock_interval, point.reading_interval)]),
        ("interchange", [point.causal_interval for point in points]),
    )
    found = [(name, counted([one.n for one in some if one is not None])) for name, some in kinds]
    said = "; ".join(f"{name} {n}" for name, n in found if n)
    return f"Emergence, 95 % intervals ({said})" if said else "Emergence"


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
