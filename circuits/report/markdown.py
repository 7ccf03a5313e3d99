"""Renders a report as Markdown for a repository, an issue or a mail; every value is escaped."""

import re
from collections.abc import Sequence

from circuits.detectors.base import Interval
from circuits.report import summary
from circuits.report.fingerprint import renderer_version
from circuits.report.numbers import bounds, count, decimal, estimate, probability, sample
from circuits.report.schema import CircuitReport, CircuitRow

STAMP = "circuit-report-renderer"
SPECIAL = re.compile(r"([\\`*_\[\]<>#|~$&@]|:(?=//)|^[-+=]|^\d+(?=[.)]))")


def render_markdown(report: CircuitReport) -> str:
    """The whole report as Markdown text; equal reports give equal text."""
    blocks = [
        f"# {escaped(report.claim)}",
        f"**Verdict: {summary.verdict_label(report)}.** {summary.VERDICT_MEANS[report.verdict]}",
        _key_numbers(report),
        _subject(report),
        *_section("What is missing", bullets(report.detection.missing)),
        *_section("Notes", bullets(report.notes)),
        *_section("The circuit", _circuit(report) or "No circuit is claimed."),
        *_section("What carries the input instead", _carriers(report)),
        *_section("Emergence during training", _emergence(report)),
        *_section("Causal checks", _causal(report) or "No causal check was made."),
        *_section("Null distribution", _null(report)),
        *_section("Controls", _controls(report)),
        *_section("Heads that passed the score and failed the ablation", _rejected(report) or "None."),
        *_section("Limits", bullets(report.limits or report.detection.limits)),
        *_section("Provenance", _provenance(report)),
    ]
    stamp = f"<!-- {STAMP} {renderer_version()} -->"
    return "\n\n".join([*(block for block in blocks if block), stamp]) + "\n"


def escaped(words: str) -> str:
    """Text on one line that no Markdown reader takes for markup or a link."""
    flat = SPECIAL.sub(_with_backslash, " ".join(words.split()))
    return flat.replace("www.", "www\\.")


def _with_backslash(found: re.Match[str]) -> str:
    """A leading list number keeps its digits and gets an invisible space instead, which Markdown takes as text."""
    return f"{found[0]}\u200b" if found[0].isdigit() else f"\\{found[0]}"


def code(words: str) -> str:
    """Inline code whose fence is longer than any run of backticks inside; not for table cells."""
    flat = " ".join(words.split()) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", flat)), default=0))
    pad = " " if "`" in flat else ""
    return f"{fence}{pad}{flat}{pad}{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, or nothing where there are no rows; cells are Markdown already."""
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(items: Sequence[str]) -> str:
    """A list of escaped items."""
    return "\n".join(f"- {escaped(item)}" for item in items)


def _section(title: str, body: str) -> list[str]:
    return [f"## {title}", body] if body else []


def _key_numbers(report: CircuitReport) -> str:
    rows = [[key.label, key.value, escaped(key.interval), escaped(key.detail)] for key in summary.key_numbers(report)]
    return table(["Key number", "Value", "95 % interval", "From"], rows)


def _subject(report: CircuitReport) -> str:
    about = report.subject
    lines = [
        f"- Run: {code(about.run)}, step {count(about.step)}",
        f"- Task: {code(about.task)}, {escaped(about.task_summary)}",
        f"- Model: {escaped(about.model)}; {count(about.parameters)} parameters",
        f"- Training: {escaped(about.training)}",
    ]
    if about.example:
        lines.insert(2, f"- Example: {code(' '.join(about.example))}")
    return "\n".join(lines)


def _controlled(control: Interval | None, name: str) -> str:
    return f"{estimate(control)} ({escaped(name) or 'none is possible'})"


def _circuit(report: CircuitReport) -> str:
    rows = [
        [
            escaped(row.component),
            escaped(row.role),
            escaped(row.position_rule),
            f"{estimate(row.attention)}{_over(report, row)}",
            f"{estimate(row.effect)} ({escaped(row.metric)})",
            _controlled(row.control, row.control_name),
            summary.outcome(row.passed),
        ]
        for row in report.circuit
    ]
    return table(["Head", "Role", "Position rule", "Attention on target", "Effect", "Control", "Result"], rows)


def _over(report: CircuitReport, row: CircuitRow) -> str:
    """What the attention of a row is a mean over."""
    said = summary.attention_over(report, row.component, row.role)
    return f" ({said})" if said else ""


def _carriers(report: CircuitReport) -> str:
    rows = [
        [
            escaped(row.component),
            escaped(row.description),
            "no single key" if row.offset is None else f"{row.offset:+d}" if row.offset else "0",
            estimate(row.effect),
        ]
        for row in report.carriers
    ]
    return table(["Component", "What it does", "Key offset", "Effect of ablation"], rows)


def _emergence(report: CircuitReport) -> str:
    note = f" {escaped(report.emergence.note)}" if report.emergence and report.emergence.note else ""
    sentence = summary.emergence_sentence(report) + note
    points = report.emergence.points if report.emergence else []
    rows = [
        [
            count(p.step),
            summary.within(p.min_accuracy, p.accuracy_interval),
            f"{summary.within(p.clock, p.clock_interval)} ({escaped(p.clock_head)})",
            f"{summary.within(p.reading, p.reading_interval)} ({escaped(p.reading_head)})",
            summary.within(p.causal, p.causal_interval),
            probability(p.p_value),
            p.verdict,
        ]
        for p in points
    ]
    head = ["Step", "Sequences right", "Clock score", "Reading score", "Interchange", "p", "Verdict"]
    said = ""
    if rows:
        said = "Sequences right: every state right, at the length where this is lowest. "
        said += f"{summary.emergence_counts(report).capitalize()}."
    return "\n\n".join(part for part in (sentence, table(head, rows), escaped(said)) if part)


def _causal(report: CircuitReport) -> str:
    rows = [
        [
            escaped(check.name),
            f"{escaped(check.component)} ({check.role})",
            escaped(check.direction),
            f"{estimate(check.effect)} ({escaped(check.metric)})",
            _controlled(check.control, check.control_name),
            f"{check.moved:.2f}",
            f"{summary.outcome(check.passed, check.tested)} ({escaped(check.threshold)})",
        ]
        for group in summary.grouped_checks(report.detection.causal)
        for check in group
    ]
    return table(["Check", "Head", "What was done", "Effect", "Control", "Moved", "Result"], rows)


def _null(report: CircuitReport) -> str:
    rows = [
        [
            name,
            f"{estimate(row.observed_interval) if row.observed_interval else decimal(row.observed)}"
            + (f" ({escaped(row.over)})" if row.over else ""),
            escaped(row.component),
            decimal(row.quantile_95),
            f"{row.exceedances} of {count(row.n)}",
            f"{probability(row.p_value)} (smallest possible {probability(row.smallest_p)})",
        ]
        for name, row in summary.null_rows(report)
    ]
    return table(["Role", "Observed", "Head", "Null, 95 % quantile", "Null models reaching it", "p"], rows)


def _controls(report: CircuitReport) -> str:
    rows = [
        [escaped(row.name), escaped(row.description), estimate(row.result), escaped(row.outcome)]
        for row in report.controls
    ]
    return table(["Control", "What was done", "Result", "Meaning"], rows)


def _rejected(report: CircuitReport) -> str:
    rows = [
        [
            escaped(row.component),
            escaped(row.role),
            decimal(row.score),
            f"{escaped(row.check)}: {decimal(row.effect.value)} {bounds(row.effect)}, {sample(row.effect.n)}",
            escaped(row.reason),
        ]
        for row in report.rejected
    ]
    return table(["Head", "Role", "Score", "Check failed", "Why it is rejected"], rows)


def _provenance(report: CircuitReport) -> str:
    source = report.provenance
    dirty = {
        None: "state of the working tree unknown",
        True: "with uncommitted changes",
        False: "no uncommitted changes",
    }
    packages = ", ".join(f"{name} {version}" for name, version in sorted(source.packages.items()))
    seeds = f"training {source.seed}, data split {source.data_seed}, detection {report.detection.seed}"
    lines = [f"- {escaped(command.purpose)}: {code(command.line)}" for command in source.commands]
    lines += [
        f"- Report: {code(report.content_hash or 'not sealed')}"
        + (f", written {escaped(report.generated)}" if report.generated else ""),
        f"- Checkpoint: {code(report.detection.checkpoint)}",
        f"- Configuration: {code(source.config_hash)}",
        f"- Seeds: {seeds}",
        f"- Code: {escaped(source.code_version)}, {dirty[source.dirty]}; patching engine: {escaped(source.engine)}",
        f"- Machine: device {escaped(source.device)}, {escaped(source.dtype)}, threads: {source.threads}",
        f"- Packages: {escaped(packages)}",
    ]
    return "\n".join(lines)
