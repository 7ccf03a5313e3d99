"""Heatmaps of patch effects as SVG: hue is the sign, strength is the size, neutral where the interval covers zero."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

from markupsafe import Markup

from circuits.report.numbers import decimal
from circuits.report.svg import element, figure, line, text

WIDTH = 880.0
PITCH, NARROW = 26.0, 9.0  # column with a short label, and the narrowest
ROW, LABELS, GAP = 18.0, 22.0, 20.0
LETTER = 6.9  # mean width of a letter of a label
FAINTEST = 0.1  # strength of the smallest effects, which still shows their sign
MARGIN = 16.0  # around a figure that is a file of its own


@dataclass(frozen=True)
class HeatCell:
    """One cell: its value, what its tooltip says, and whether it is drawn as an effect, as neutral or as not run."""

    value: float
    tip: str
    kind: str  # "effect", "neutral" or "skipped"


@dataclass(frozen=True)
class Panel:
    """One table of cells; None where there is no such patch."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[HeatCell | None, ...], ...]
    row_name: str
    column_name: str


@dataclass(frozen=True)
class Legend:
    """What the colours mean: the metric, which way a positive effect goes, and what a neutral cell is."""

    metric: str
    raises: str
    lowers: str
    neutral: str = "95 % interval covers 0"


def largest(panels: Sequence[Panel]) -> float:
    """Largest absolute value among the effects; 0 where there are none."""
    values = [abs(cell.value) for panel in panels for row in panel.cells for cell in row if _is_effect(cell)]
    return max(values, default=0.0)


def heatmap(panels: Sequence[Panel], legend: Legend, title: str, description: str, *, alone: bool = False) -> Markup:
    """The panels below each other on one colour scale, with the legend above.

    Args:
        alone: carry the style and a background, for a file of its own.
    """
    top, scale = 74.0, largest(panels)
    left = max((LETTER * len(row) for panel in panels for row in panel.rows), default=0) + 14
    parts = [_legend(legend, scale)]
    for panel in panels:
        drawn, height = _panel(panel, left, top, scale)
        parts.append(drawn)
        top += height + GAP
    wide = max([WIDTH, *(left + _pitch(panel, left) * len(panel.columns) + _overhang(panel, left) for panel in panels)])
    if not alone:
        return figure(wide, top, title, description, _defs(), *parts, class_="heat")
    width, height = wide + 2 * MARGIN, top + 2 * MARGIN
    ground = element("rect", width=width, height=height, class_="ground")
    moved = element("g", *parts, transform=f"translate({MARGIN:g} {MARGIN:g})")
    words = element("title", title) + element("desc", description)
    return element(
        "svg",
        words,
        element("style", style()),
        _defs(),
        ground,
        moved,
        xmlns="http://www.w3.org/2000/svg",
        class_="figure heat",
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        role="img",
        aria_label=title,
    )


def style() -> Markup:
    """The style of the figure."""
    return Markup(resources.files("circuits.report").joinpath("heatmap.css").read_text(encoding="utf-8"))


def _is_effect(cell: HeatCell | None) -> bool:
    return cell is not None and cell.kind == "effect"


def _widest(panel: Panel) -> float:
    """Width of the longest label of a column."""
    return max((LETTER * len(name) for name in panel.columns), default=0.0) + 4


def _pitch(panel: Panel, left: float) -> float:
    """Width of a column: its label where there is room, less where there are many."""
    return min(max(PITCH, _widest(panel)), max(NARROW, (WIDTH - left) / max(1, len(panel.columns))))


def _overhang(panel: Panel, left: float) -> float:
    """How far the last label may reach beyond its column."""
    return max(0.0, (_widest(panel) - _pitch(panel, left)) / 2)


def _defs() -> Markup:
    """The hatching of patches that were not run."""
    lines = [element("rect", width=5, height=5, class_="blank"), line(0, 0, 0, 5, "hatch")]
    hatching = element(
        "pattern", *lines, id="not-run", width=5, height=5, patternUnits="userSpaceOnUse", patternTransform="rotate(45)"
    )
    return element("defs", hatching)


def _panel(panel: Panel, left: float, top: float, scale: float) -> tuple[Markup, float]:
    """One table with its labels, and its height."""
    pitch, first = _pitch(panel, left), top + 30
    bottom = first + ROW * len(panel.rows)
    parts = [text(0, top + 12, panel.title, "panel-title"), text(left, top + 12, panel.row_name, "name")]
    for index, (name, cells) in enumerate(zip(panel.rows, panel.cells, strict=True)):
        y = first + ROW * index
        parts.append(text(left - 8, y + ROW - 5, name, "tick", "end"))
        for start, stop, cell in _spans(cells):
            parts.append(_rectangle(cell, left + pitch * start, y, pitch * (stop - start), scale))
    every = math.ceil(round(_widest(panel) / pitch, 1))
    for index, name in enumerate(panel.columns):
        if (len(panel.columns) - 1 - index) % every == 0:
            parts.append(text(left + pitch * (index + 0.5), bottom + 15, name, "tick", "middle"))
    parts.append(text(left, bottom + 15 + LABELS - 4, panel.column_name, "name"))
    return Markup("").join(parts), 30 + ROW * len(panel.rows) + 15 + LABELS


def _spans(cells: Sequence[HeatCell | None]) -> Iterator[tuple[int, int, HeatCell]]:
    """(first column, one past the last, cell); neighbours that were not run for the same reason become one."""
    start = 0
    for index, cell in enumerate(cells):
        following = cells[index + 1] if index + 1 < len(cells) else None
        joined = cell is not None and cell.kind == "skipped" and following == cell
        if not joined:
            if cell is not None:
                yield start, index + 1, cell
            start = index + 1


def _rectangle(cell: HeatCell, x: float, y: float, width: float, scale: float) -> Markup:
    """One cell; effects have a frame, so that a faint one is not taken for a neutral cell."""
    kind, more = "flat", {}
    if cell.kind == "skipped":
        kind, more = "skipped", {"fill": "url(#not-run)"}
    elif cell.kind == "effect":
        strength = max(FAINTEST, min(1.0, abs(cell.value) / scale))
        kind, more = "up" if cell.value > 0 else "down", {"fill_opacity": f"{strength:.3f}"}
    place = {"x": x + 0.5, "y": y + 0.5, "width": width - 1, "height": ROW - 1}
    return element("rect", element("title", cell.tip), **place, class_=f"cell {kind}", **more)


def _legend(legend: Legend, scale: float) -> Markup:
    """A ramp from the most negative to the most positive effect, and the two kinds of cell without colour."""
    steps = (-1.0, -0.75, -0.5, -0.25, -FAINTEST, FAINTEST, 0.25, 0.5, 0.75, 1.0)
    parts, x, y = [text(0, 12, legend.metric, "legend")], 0.0, 22.0
    for index, share in enumerate(steps):
        kind = "up" if share > 0 else "down"
        place = {"x": x + index * 22.0, "y": y, "width": 21, "height": 14}
        parts.append(element("rect", **place, class_=f"cell {kind}", fill_opacity=f"{abs(share):.3f}"))
    ends = (
        (f"{decimal(-scale)}, {legend.lowers}", f"+{decimal(scale)}, {legend.raises}") if scale else ("no effect", "")
    )
    parts.append(text(0, y + 30, ends[0], "legend"))
    parts.append(text(22 * len(steps), y + 30, ends[1], "legend", "end"))
    x = 22 * len(steps) + 60
    parts.append(element("rect", x=x, y=y, width=21, height=14, class_="cell flat"))
    parts.append(text(x + 28, y + 11, legend.neutral, "legend"))
    parts.append(element("rect", x=x, y=y + 20, width=21, height=14, class_="cell skipped", fill="url(#not-run)"))
    parts.append(text(x + 28, y + 31, "not run: exactly 0, with the reason in the tooltip", "legend"))
    return Markup("").join(parts)
