"""What page and Markdown both say about a report: key numbers, verdict words, checks in order; pure functions."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from circuits.detectors.base import CausalCheck, Interval, LengthAccuracy, NullSummary, Statistic
from circuits.report.numbers import bounds, count, decimal, probability, sample
from circuits.report.schema import CircuitReport
from probes.percent import counted

VERDICT_TONE = {
    "iteration head": "good",
    "candidate": "warn",
    "solved without the textbook head": "other",
    "not solved": "bad",
    "none": "bad",
}
VERDICT_LABEL = {"none": "no iteration head"}
VERDICT_MEANS = {
    "iteration head": "Statistic, null and causal checks all passed.",
    "candidate": "The attention pattern is there; not every causal check passed, or none was run.",
    "solved without the textbook head": "The task is solved, but not by the textbook pair of heads.",
    "not solved": "The model does not solve the task, so there is no circuit to claim.",
    "none": "No head passed the statistic.",
}

PROPER = {"wilson": "Wilson", "clopper-pearson": "Clopper-Pearson"}
SYMBOL = re.compile(r"(?<![\w])([A-Za-z])_(?:\{([^{}<>&]{1,8})\}|([A-Za-z0-9]))(?!\w)")


@dataclass(frozen=True)
class KeyNumber:
    """One large number with what it is, its interval and its n."""

    label: str
    value: str
    interval: str
    detail: str


def key_numbers(report: CircuitReport) -> list[KeyNumber]:
    """Interchange of both heads, the lowest held-out accuracy, and the family-wise p-value."""
    numbers = [_interchange(report, role) for role in ("clock", "reading")]
    return [*numbers, _accuracy(report.detection.lengths), _null(report)]


def interchange_checks(report: CircuitReport) -> list[CausalCheck]:
    """The headline interchange check of each role: of the circuit's own head where it has one."""
    found = []
    for role in ("clock", "reading"):
        of_role = [c for c in report.detection.causal if c.role == role and "interchange" in c.name.lower()]
        head = report.detection.heads.get(role)
        of_role.sort(key=lambda check: check.component != head)
        found += of_role[:1]
    return found


def _interchange(report: CircuitReport, role: str) -> KeyNumber:
    check = next((c for c in interchange_checks(report) if c.role == role), None)
    label = f"Interchange accuracy, {role} head"
    if check is None or not check.tested:
        return KeyNumber(label, "not tested", "", check.note if check else "no such head was found")
    detail = f"{check.component}, {sample(check.effect.n)}"
    return KeyNumber(label, decimal(check.effect.value), bounds(check.effect), detail)


def _accuracy(lengths: Sequence[LengthAccuracy]) -> KeyNumber:
    label = "Held-out sequence accuracy, lowest length"
    if not lengths:
        return KeyNumber(label, "not tested", "", "no held-out sequences")
    low = min(lengths, key=lambda one: (one.sequence.value, -one.length))
    detail = f"length {low.length}, lowest of {len(lengths)}; {sample(low.n)}"
    return KeyNumber(label, decimal(low.sequence.value), bounds(low.sequence), detail)


def _null(report: CircuitReport) -> KeyNumber:
    """The p-value of both heads together where the null has it, else the larger one of the two roles."""
    rows = report.detection.null
    if not rows:
        return KeyNumber("Family-wise p", "not tested", "", "no null distribution")
    joint = [row for row in rows if row.role == "joint"]
    row = joint[0] if joint else max(rows, key=lambda one: one.p_value)
    label = "Family-wise p, both heads together" if joint else "Family-wise p, larger of the two roles"
    subject = "" if joint else f"{row.role} head, "
    detail = f"{subject}{row.exceedances} of {count(row.n)} null models reach it"
    return KeyNumber(label, probability(row.p_value), f"smallest possible {probability(row.smallest_p)}", detail)


def formula(words: str) -> Markup:
    """Escaped text in which s_t and x_{t+1} have true subscripts and >= its sign; d_model stays as it is."""
    safe = str(escape(words)).replace("&gt;=", "\u2265").replace("&lt;=", "\u2264")
    return Markup(SYMBOL.sub(lambda found: f"{found[1]}<sub>{found[2] or found[3]}</sub>", safe))


def grouped_checks(checks: Sequence[CausalCheck]) -> list[list[CausalCheck]]:
    """Checks of one kind and rule together, clock before reading, in the order in which the kinds first appear."""
    groups: dict[tuple[str, ...], list[CausalCheck]] = {}
    for check in checks:
        groups.setdefault((check.name, check.direction, check.metric, check.threshold), []).append(check)
    return [sorted(group, key=lambda check: (check.role != "clock", check.role)) for group in groups.values()]


def verdict_label(report: CircuitReport) -> str:
    """The verdict as it is shown."""
    return VERDICT_LABEL.get(report.verdict, report.verdict)


def null_rows(report: CircuitReport) -> list[tuple[str, NullSummary]]:
    """Rows of the null with the name of what they are about: both heads together first."""
    order = {"joint": (0, "both heads"), "clock": (1, "clock"), "reading": (2, "reading")}
    rows = sorted(report.detection.null, key=lambda row: order[row.role][0])
    return [(order[row.role][1], row) for row in rows]


def outcome(passed: bool | None, tested: bool = True) -> str:
    """`passed`, `failed` or `not tested`."""
    if passed is None or not tested:
        return "not tested"
    return "passed" if passed else "failed"


def head_roles(report: CircuitReport) -> dict[str, str]:
    """Head -> `reading head` or `clock head`; a candidate is called one."""
    kind = "head" if report.verdict == "iteration head" else "candidate"
    return {head: f"{role} {kind}" for role, head in sorted(report.detection.heads.items())}


def shown_statistics(report: CircuitReport) -> list[Statistic]:
    """Attention statistics by length of the circuit's heads, or of the strongest head of each role where none is."""
    rows = report.detection.statistics
    chosen = dict(report.detection.heads)
    for role in ("clock", "reading"):
        of_role = [row for row in rows if row.role == role]
        if role not in chosen and of_role:
            chosen[role] = max(of_role, key=lambda row: (row.mass.value, row.component)).component
    kept = [row for row in rows if chosen.get(row.role) == row.component]
    return sorted(kept, key=lambda row: (row.role, row.length))


def attention_over(report: CircuitReport, component: str, role: str) -> str:
    """Lengths and sequences that the attention of a row of the circuit is a mean over; empty where none is stored."""
    rows = [row for row in report.detection.statistics if (row.component, row.role) == (component, role)]
    if not rows:
        return ""
    lengths, counts = sorted(row.length for row in rows), sorted({row.mass.n for row in rows})
    span = f"length {lengths[0]}" if len(lengths) == 1 else f"{len(lengths)} lengths from {lengths[0]} to {lengths[-1]}"
    each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{span}, {each} sequences each"


def within(value: float | None, interval: Interval | None) -> str:
    """A number with its interval where one is stored; a dash where there is no number."""
    if value is None:
        return "\u2013"
    return decimal(value) if interval is None else f"{decimal(value)} {bounds(interval)}"


def emergence_counts(report: CircuitReport) -> str:
    """How many units stand behind the columns of the table of checkpoints; empty for older reports."""
    points = report.emergence.points if report.emergence else []
    kinds = (
        ("sequences", [point.accuracy_interval for point in points]),
        ("sequences of the scores", [one for p in points for one in (p.clock_interval, p.reading_interval)]),
        ("units of interchange", [point.causal_interval for point in points]),
    )
    found = [(name, counted([one.n for one in some if one is not None])) for name, some in kinds]
    said = "; ".join(f"{name} {n}" for name, n in found if n)
    return f"95 % intervals: {said}" if said else "no intervals are stored"


def emergence_sentence(report: CircuitReport) -> str:
    """When the circuit emerged, to what resolution, and whether it came and went."""
    emergence = report.emergence
    if emergence is None:
        return "Emergence over training was not measured for this report."
    total = f"{len(emergence.points)} checkpoints were examined"
    if emergence.emerged is None and emergence.note:
        return f"{total}."
    if emergence.emerged is None:
        return f"{total}; no three consecutive checkpoints pass, so nothing is said to have emerged."
    words = f"{total}. The first of three consecutive passes is at step {count(emergence.emerged)}"
    if emergence.bracket:
        low, high = emergence.bracket
        words += f"; the change lies between the checkpoints at steps {count(low)} and {count(high)}"
        words += " (the resolution of the checkpoints, not a confidence interval)"
    times = {0: "never", 1: "once", 2: "twice"}.get(emergence.reversals, f"{emergence.reversals} times")
    return f"{words}. A pass was {'never ' if times == 'never' else ''}followed by a fail" + (
        "." if times == "never" else f" {times}."
    )


def intervals_sentence(report: CircuitReport) -> str:
    """How the intervals of this report were made."""
    methods = {check.effect.method for check in report.detection.causal}
    methods |= {row.effect.method for row in report.circuit} | {one.sequence.method for one in report.detection.lengths}
    if not methods:
        return "This report holds no interval: nothing was measured on held-out sequences."
    named = ", ".join(sorted(_proper(method) for method in methods))
    return f"Intervals are 95 % intervals ({named}); n counts independent units."


def _proper(method: str) -> str:
    """The name of a method with the capitals of its authors."""
    first, space, rest = method.partition(" ")
    return PROPER.get(first, first) + space + rest


def short_hash(digest: str) -> str:
    """The first twelve digits of a hash."""
    return digest[:12]


def pretty(values: dict[str, object]) -> str:
    """A configuration as indented JSON."""
    return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
