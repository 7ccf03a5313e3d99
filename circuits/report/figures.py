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

WIDTH, LEFT, RIGHT = 880, 48, 872
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
        Series("clock head, on target", "clock", "square", [(p.step, p.clock) for p in points]),
        Series("reading head, on target", "reading", "circle", [(p.step, p.reading) for p in points]),
        Series("interchange, lower of the two", "causal", "diamond", causal, joined=False),
    ]
    return "Attention and interchange", [one for one in series if one.points], 170.0, 1.0


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
    series = [Series("held-out loss", "plain", "none", points)] if points else []
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
    parts.append(_bracket(emergence, scale, first, last, named=first < 40))
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
        left = right - 6.6 * len(one.name) - 24
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
        side, x = ("end", low - 8) if at > (LEFT + RIGHT) / 2 else ("start", high + 8)
        parts.append(text(x, first + 16, f"emerged by step {count(emergence.emerged)}", "emerged-name", side))
    return Markup("").join(parts)


def length_figure(checks: Sequence[CausalCheck]) -> Markup:
    """Interchange accuracy with its interval at each length, one panel per check, on one common scale."""
    checks = [check for check in checks if check.by_length]
    if not checks:
        return Markup("")
    lengths = sorted({length for check in checks for length in check.by_length})
    worst = min(interval.low for check in checks for interval in check.by_length.values())
    floor = next(bound for bound in (0.9, 0.8, 0.5, 0.0) if bound <= worst or bound == 0.0)
    pitch = WIDTH / 2 if len(checks) > 1 else WIDTH
    parts = []
    for index, check in enumerate(checks):
        spot = (index % 2 * pitch + LEFT, (index % 2 + 1) * pitch - (32, 8)[index % 2] if len(checks) > 1 else RIGHT)
        parts.append(_length_panel(check, lengths, floor, spot, 8 + index // 2 * 230))
    words = "; ".join(f"{check.component} {decimal(check.effect.value)} overall" for check in checks)
    high = 8 + (len(checks) + 1) // 2 * 230
    return figure(WIDTH, high, "Interchange accuracy by length", words, *parts, class_="by-length")


def _length_panel(
    check: CausalCheck, lengths: list[int], floor: float, spot: tuple[float, float], top: float
) -> Markup:
    left, right = spot
    first, last = top + 28, top + 168
    y = linear(floor, 1.0, last, first)
    pitch = (right - left) / len(lengths)
    every = max(1, round(22 / pitch))
    tint = check.role if check.role in ("clock", "reading") else "plain"
    title = f"{check.component}, {check.role} head" if check.role != "other" else check.component
    places = [(value, f"{value:g}") for value in (floor, round((floor + 1) / 2, 2), 1.0)]
    parts = [text(left - LEFT, top + 10, title, "panel-title"), value_axis(places, y, left, right)]
    parts.append(text(right, top + 10, "estimate and 95 % interval", "legend", "end"))
    parts.append(text((left + right) / 2, last + 38, "sequence length", "name", "middle"))
    for index, length in enumerate(lengths):
        x = left + (index + 0.5) * pitch
        if index % every == 0:
            parts.append(text(x, last + 18, str(length), "tick", "middle"))
        interval = check.by_length.get(length)
        if interval is None:
            continue
        low, value, high = (min(max(end, floor), 1.0) for end in (interval.low, interval.value, interval.high))
        tip = f"length {length}: {decimal(interval.value)} {bounds(interval)}, n = {count(interval.n)}"
        parts.append(line(x, y(low), x, y(high), f"whisker {tint}"))
        parts += [line(x - 4, y(end), x + 4, y(end), f"whisker {tint}") for end in (low, high)]
        parts.append(marker("circle", x, y(value), f"dot {tint}", tip))
    return Markup("").join(parts)
