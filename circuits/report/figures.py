"""The figures of a report as SVG text: training curves with the emergence bracket, and intervals by length."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from circuits.detectors.base import CausalCheck, Emergence
from circuits.report.numbers import bounds, count, decimal
from circuits.report.schema import CurvePoint
from circuits.report.svg import (
    StepScale,
    element,
    figure,
    line,
    linear,
    marker,
    nice_ceiling,
    polyline,
    step_axis,
    text,
    value_axis,
)

WIDTH, LEFT, RIGHT = 720, 56, 704
SHARES = [(0.0, "0"), (0.5, "0.5"), (1.0, "1")]


@dataclass(frozen=True)
class Series:
    """One line of a panel: points may be missing (None), where the line is interrupted only in its markers."""

    name: str
    class_: str
    shape: str
    points: list[tuple[int, float]]
    joined: bool = True


def training_figure(emergence: Emergence | None, curve: Sequence[CurvePoint]) -> Markup:
    """Scores, accuracy and loss over training, one panel each, above one shared logarithmic step axis."""
    panels = [panel for panel in (_scores(emergence), _accuracy(curve), _loss(curve)) if panel[1]]
    steps = [step for _, series, *_ in panels for one in series for step, _ in one.points]
    if not steps:
        return Markup("")
    scale = StepScale.over(steps, LEFT, RIGHT)
    parts, top = [], 8.0
    for title, series, height, ceiling in panels:
        parts.append(_panel(title, series, scale, top, height, ceiling, emergence))
        top += height + 62
    bottom = top - 20
    parts.append(step_axis(scale, 0, bottom, min(steps) == 0))
    return figure(WIDTH, bottom + 44, "Training", _training_words(emergence), *parts, class_="training")


def _training_words(emergence: Emergence | None) -> str:
    if emergence is None or not emergence.points:
        return "Held-out accuracy and loss by training step"
    last = emergence.points[-1]
    ends = f"at step {count(last.step)} the clock score is {decimal(last.clock)}, the reading score "
    ends += decimal(last.reading)
    return f"Scores, accuracy and loss by training step; {ends}"


def _scores(emergence: Emergence | None) -> tuple[str, list[Series], float, float]:
    points = emergence.points if emergence else []
    causal = [(p.step, p.causal) for p in points if p.causal is not None]
    series = [
        Series("clock head, attention on target", "clock", "square", [(p.step, p.clock) for p in points]),
        Series("reading head, attention on target", "reading", "circle", [(p.step, p.reading) for p in points]),
        Series("interchange accuracy, lower of the two", "causal", "diamond", causal, joined=False),
    ]
    return "Score", [one for one in series if one.points], 170.0, 1.0


def _accuracy(curve: Sequence[CurvePoint]) -> tuple[str, list[Series], float, float]:
    lengths = sorted({length for point in curve for length in point.accuracy})[:5]
    series = [
        Series(
            f"length {length}",
            f"shade{index}",
            "none",
            [(point.step, point.accuracy[length]) for point in curve if length in point.accuracy],
        )
        for index, length in enumerate(lengths)
    ]
    return "Held-out sequence accuracy", series, 96.0, 1.0


def _loss(curve: Sequence[CurvePoint]) -> tuple[str, list[Series], float, float]:
    points = [(point.step, point.loss) for point in curve if point.loss is not None]
    ceiling = nice_ceiling(max((loss for _, loss in points), default=1.0))
    series = [Series("training loss", "plain", "none", points)] if points else []
    return "Loss (nats per prediction)", series, 72.0, ceiling


def _panel(
    title: str,
    series: list[Series],
    scale: StepScale,
    top: float,
    height: float,
    ceiling: float,
    emergence: Emergence | None,
) -> Markup:
    """One panel: title and legend, bracket, grid, lines."""
    first, last = top + 26, top + 26 + height
    y = linear(0.0, ceiling, last, first)
    places = SHARES if ceiling == 1.0 else [(0.0, "0"), (ceiling / 2, f"{ceiling / 2:g}"), (ceiling, f"{ceiling:g}")]
    parts = [text(0, top + 10, title, "panel-title"), _legend(series, top + 10)]
    parts.append(_bracket(emergence, scale, first, last, named=title == "Score"))
    parts.append(value_axis(places, y, LEFT, RIGHT))
    for one in series:
        spots = [(scale(step), y(min(value, ceiling))) for step, value in one.points]
        if one.joined and len(spots) > 1:
            parts.append(polyline(spots, f"line {one.class_}"))
        if one.shape != "none" or len(spots) == 1:
            shape = "circle" if one.shape == "none" else one.shape
            tips = [f"{one.name}: {decimal(value)} at step {count(step)}" for step, value in one.points]
            parts += [marker(shape, *s, f"dot {one.class_}", tip) for s, tip in zip(spots, tips, strict=True)]
    return Markup("").join(parts)


def _legend(series: list[Series], y: float) -> Markup:
    """Swatches and names, set from the right edge to the left."""
    parts, right = [], float(RIGHT)
    for one in reversed(series):
        left = right - 6.1 * len(one.name) - 24
        parts.append(text(left + 22, y, one.name, "legend"))
        if one.joined:
            parts.append(line(left, y - 4, left + 16, y - 4, f"line {one.class_}"))
        if one.shape != "none":
            parts.append(marker(one.shape, left + 8, y - 4, f"dot {one.class_}"))
        right = left - 14
    return Markup("").join(parts)


def _bracket(emergence: Emergence | None, scale: StepScale, first: float, last: float, named: bool) -> Markup:
    """The checkpoints between which the circuit emerged, shaded; a line at the first pass."""
    if emergence is None or emergence.bracket is None or emergence.emerged is None:
        return Markup("")
    low, high = (scale(step) for step in emergence.bracket)
    parts = [element("rect", x=low, y=first, width=max(high - low, 1.0), height=last - first, class_="bracket")]
    at = scale(emergence.emerged)
    parts.append(line(at, first, at, last, "emerged"))
    if named:
        side, shift = ("end", -6) if at > (LEFT + RIGHT) / 2 else ("start", 6)
        parts.append(text(at + shift, first + 13, f"emerged by step {count(emergence.emerged)}", "emerged-name", side))
    return Markup("").join(parts)


def length_figure(checks: Sequence[CausalCheck]) -> Markup:
    """Interchange accuracy with its interval at each length, one panel per check."""
    checks = [check for check in checks if check.by_length]
    if not checks:
        return Markup("")
    height, parts = 150.0, []
    lengths = sorted({length for check in checks for length in check.by_length})
    for row, check in enumerate(checks):
        parts.append(_length_panel(check, lengths, 8 + row * (height + 30), height))
    bottom = 8 + len(checks) * (height + 30)
    parts.append(text((LEFT + RIGHT) / 2, bottom + 12, "sequence length", "name", "middle"))
    words = "; ".join(f"{check.component} {decimal(check.effect.value)} overall" for check in checks)
    return figure(WIDTH, bottom + 18, "Interchange accuracy by length", words, *parts, class_="by-length")


def _length_panel(check: CausalCheck, lengths: list[int], top: float, height: float) -> Markup:
    first, last = top + 24, top + height - 4
    y = linear(0.0, 1.0, last, first)
    pitch = (RIGHT - LEFT) / len(lengths)
    tint = check.role if check.role in ("clock", "reading") else "plain"
    title = f"{check.component}, {check.role} head" if check.role != "other" else check.component
    parts = [text(0, top + 10, title, "panel-title"), value_axis(SHARES, y, LEFT, RIGHT)]
    parts.append(text(RIGHT, top + 10, "point: estimate; whisker: 95 % interval", "legend", "end"))
    for index, length in enumerate(lengths):
        x = LEFT + (index + 0.5) * pitch
        parts.append(text(x, last + 16, str(length), "tick", "middle"))
        interval = check.by_length.get(length)
        if interval is None:
            continue
        tip = f"length {length}: {decimal(interval.value)} {bounds(interval)}, n = {count(interval.n)}"
        parts.append(line(x, y(interval.low), x, y(interval.high), f"whisker {tint}"))
        parts += [line(x - 4, y(end), x + 4, y(end), f"whisker {tint}") for end in (interval.low, interval.high)]
        parts.append(marker("circle", x, y(interval.value), f"dot {tint}", tip))
    return Markup("").join(parts)
