"""Faithfulness of circuits of every size as a figure, with the one found, its interval and its controls."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from circuits.report.numbers import bounds, count, decimal
from circuits.report.svg import StepScale, element, figure, line, linear, marker, polyline, text, value_axis

if TYPE_CHECKING:
    from circuits.discovery_result import CurvePoint, DiscoveryFile

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 880.0, 48.0, 856.0, 40.0, 250.0


def curve_figure(found: "DiscoveryFile") -> Markup:
    """Share of the metric kept against the number of edges, on a logarithmic axis; empty without a curve."""
    one = found.faithfulness
    if one is None or not one.curve:
        return Markup("")
    control = next((row for row in found.controls if row.headline and row.largest is not None), None)
    heights = [point.faithfulness for point in (*one.curve, *one.optimal)] + [0.0, 1.0, one.retained.high]
    low, high = min(heights), max(heights)
    y = linear(low, high, BOTTOM, TOP)
    scale = StepScale.over([point.size for point in (*one.curve, *one.optimal)] + [found.n_kept], LEFT - 26, RIGHT)
    places = [(value, f"{value:g}") for value in (0.0, 0.5, 1.0)]
    parts = [value_axis(places, y, LEFT, RIGHT), _sizes(scale)]
    target, height = found.settings.target, y(found.settings.target)
    parts.append(element("line", x1=LEFT, y1=height, x2=RIGHT, y2=height, class_="emerged", stroke_dasharray="4 4"))
    parts.append(text(LEFT + 6, height - 5, f"asked for: {target:.0%}", "emerged-name"))
    parts += _series(one.curve, scale, y, "reading", "circle", "top of the ranking")
    parts += _series(one.optimal, scale, y, "plain", "square", "best of all circuits")
    x = scale(found.n_kept)
    parts += [
        line(x, y(end), x, y(one.retained.value), "whisker clock") for end in (one.retained.low, one.retained.high)
    ]
    if control is not None:
        tip = f"best of {control.n} controls ({control.name}): {decimal(control.largest)}"
        parts.append(marker("triangle", x, y(max(low, control.largest)), "dot causal", tip))
    told = f"{count(found.n_kept)} edges keep {decimal(one.retained.value)} {bounds(one.retained)}"
    parts.append(marker("diamond", x, y(one.retained.value), "dot clock", told))
    parts.append(_legend(bool(one.optimal), control is not None))
    return figure(WIDTH, BOTTOM + 46, "Faithfulness by size", f"{told}; asked for {target:.0%}", *parts, class_="sizes")


def _series(points: "Sequence[CurvePoint]", scale: StepScale, y, tint: str, shape: str, name: str) -> list[Markup]:
    spots = [(scale(point.size), y(point.faithfulness)) for point in points]
    drawn = [polyline(spots, f"line {tint}")] if len(spots) > 1 else []
    for spot, point in zip(spots, points, strict=True):
        on = "" if point.kept == point.size else f", {point.kept} of them on a path"
        tip = f"{name}: {count(point.size)} edges{on} keep {decimal(point.faithfulness)}"
        drawn.append(marker(shape, *spot, f"dot {tint}", tip))
    return drawn


def _sizes(scale: StepScale) -> Markup:
    """The axis of sizes."""
    ticks = sorted({scale.first, *scale.ticks(), scale.last})
    kept: list[int] = []
    for tick in ticks:
        if not kept or scale(tick) - scale(kept[-1]) > 30:
            kept.append(tick)
    parts = [line(LEFT, BOTTOM, RIGHT, BOTTOM, "axis")]
    for tick in kept:
        parts.append(line(scale(tick), BOTTOM, scale(tick), BOTTOM + 4, "axis"))
        parts.append(text(scale(tick), BOTTOM + 17, count(tick), "tick", "middle"))
    parts.append(text((LEFT + RIGHT) / 2, BOTTOM + 36, "edges (logarithmic)", "name", "middle"))
    return Markup("").join(parts)


def _legend(optimal: bool, control: bool) -> Markup:
    rows = [("circle", "dot reading", "top of the ranking"), ("diamond", "dot clock", "the circuit, 95 % interval")]
    rows += [("triangle", "dot causal", "best matched control")] if control else []
    rows += [("square", "dot plain", "best of all circuits of that size")] if optimal else []
    parts, x = [], LEFT + 6
    for shape, tint, name in rows:
        parts.append(marker(shape, x, 10, tint))
        parts.append(text(x + 10, 14, name, "legend"))
        x += 6.6 * len(name) + 40
    return Markup("").join(parts)
