"""A circuit as one layered SVG: rows are layers, columns are heads; hue is an edge's sign and width its size."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from markupsafe import Markup

from circuits.naming import node_of
from circuits.report.circuit_drawn import Drawn, drawn, kinds, ranked, told, total, weight
from circuits.report.circuit_layout import TOP, Box, Layout, layout_of
from circuits.report.circuit_routes import route
from circuits.report.numbers import count, decimal
from circuits.report.svg import element, line, text

if TYPE_CHECKING:
    from circuits.circuit import Circuit, CircuitFile

THIN, THICK, ONLY = 1.4, 7.0, 3.6  # widths of the smallest and largest, and where all are equal
MARGIN = 10.0
POINTED = 400  # edges up to which each has a wide, invisible path to point at


class Scale(NamedTuple):
    """Sizes that get the thinnest and the thickest line: of effects in units of the metric, or of rank scores."""

    low: float
    high: float
    by_effect: bool = False


def circuit_svg(
    circuit: "Circuit | CircuitFile | Mapping[str, Any]",
    *,
    positions: Literal["pooled", "columns"] = "pooled",
    scale: "Scale | tuple[float, float] | None" = None,
    tips: Mapping[str, str] | None = None,
    union: Collection[str] = (),
    legend: bool = True,
    styled: bool = True,
    title: str | None = None,
) -> str:
    """The drawing as SVG text, without script; equal circuits give equal text, and torch is not needed.

    Boxes stand where the shape of the model puts them, so drawings of several checkpoints can be laid over each other.
    Nodes outside the circuit are faint. Pointing at an edge or a node shows its exact values.

    Args:
        circuit: a circuit, its file, or the JSON of its file.
        positions: for a circuit by position: all places of an edge as one, with the offsets in its tooltip; or a column
            for each position, where there is room (`circuits.report.circuit_positions.fits`).
        scale: sizes that get the thinnest and the thickest line, see `extent`; those of this circuit if not given.
        tips: more words for tooltips, by name of a node or edge.
        union: edges of other checkpoints, drawn dotted where this circuit lacks them.
        styled: carry the style (`circuit_style`); a page with a policy has it in its head instead.
        title: of the drawing; model, step and size if not given.
    """
    data = drawn(circuit)
    if positions == "columns" and data.positions:
        from circuits.report.circuit_positions import by_position, fits

        if fits(data):
            scale = Scale(*(scale or extent([data], by_place=True)))
            note = f"dot: not in the circuit; {_widths(data, scale, pooled=False)}"
            return _figure(by_position(data, scale, tips or {}), data, scale, note if legend else None, styled, title)
    scale = Scale(*(scale or extent([data])))
    note = "dashed box: not in the circuit" + ("; all positions of an edge drawn as one" if data.positions else "")
    note += f"; {_widths(data, scale, pooled=bool(data.positions))}"
    return _figure(_layers(data, scale, tips or {}, union), data, scale, note if legend else None, styled, title)


@dataclass(frozen=True)
class Picture:
    """Elements with the size they need, and how much thinner than usual their lines are."""

    parts: tuple[str, ...]
    width: float
    height: float
    thin: float = 1.0


def _layers(data: Drawn, scale: Scale, tips: Mapping[str, str], union: Collection[str]) -> Picture:
    """Edges first, weak ones below strong ones, and the nodes over them."""
    layout = layout_of(data.shape)
    parts = [text(0, y + 4, name, "layer") for name, y in layout.layers]
    parts += [_other(layout, name) for name in sorted(set(union) - set(data.pooled))]
    ordered = sorted(data.pooled.items(), key=lambda item: (abs(weight(item[1], scale.by_effect) or 0.0), item[0]))
    parts += [_edge(layout, data, name, scale, tips, len(ordered) <= POINTED) for name, _ in ordered]
    parts += [_share(layout, *pair) for pair in layout.shares]
    used = {edge.receiver for edge in data.edges}
    parts += [_node(layout, box, data, used, tips) for box in layout.boxes.values()]
    return Picture(tuple(parts), layout.width, layout.height)


def circuit_style() -> Markup:
    """The style of the drawing."""
    return Markup(resources.files("circuits.report").joinpath("circuit_graph.css").read_text(encoding="utf-8"))


def extent(circuits: "Collection[Drawn | Mapping[str, Any]]", by_place: bool = False) -> Scale:
    """Smallest and largest size over the kept edges of circuits, for a scale that they share.

    Sizes are those of exact effects where every circuit has some, else of rank scores.

    Args:
        by_place: of single places of edges by position, for `positions="columns"`; else of their sums.
    """
    ready = [one if isinstance(one, Drawn) else drawn(one) for one in circuits]
    ready = [one for one in ready if one.edges]
    by_effect = bool(ready) and all(one.effects is not None for one in ready)
    rows = [[edge] for one in ready for edge in one.edges] if by_place else []
    rows = rows or [places for one in ready for places in one.pooled.values()]
    sizes = [abs(size) for size in (weight(places, by_effect) for places in rows) if size is not None]
    return Scale(min(sizes), max(sizes), by_effect) if sizes else Scale(0.0, 0.0)


def thickness(size: float | None, scale: Scale) -> float:
    """Width of a line, linear in the size of the effect or score; the thinnest where that is not measured."""
    if size is None:
        return THIN
    if scale.high <= scale.low:
        return ONLY
    return THIN + (THICK - THIN) * min(1.0, max(0.0, (abs(size) - scale.low) / (scale.high - scale.low)))


def _widths(data: Drawn, scale: Scale, pooled: bool) -> str:
    """What widths mean."""
    if not scale.by_effect:
        return "width: rank score, no unit"
    said = "width: effects on the metric" + (", added up" if pooled else "")
    return said if data.all_measured else f"{said}; thinnest: not measured"


def words(data: Drawn, name: str, tips: Mapping[str, str]) -> str:
    """Tooltip of an edge: effect, rank score, how often other prompts kept it, positions, and what is known besides."""
    places = data.pooled[name]
    said = [name, *told(places)]
    again = [edge.frequency for edge in places if edge.frequency is not None]
    if again:
        spread = f"{max(again):.0%}" if len(set(again)) == 1 else f"{min(again):.0%} to {max(again):.0%}"
        said.append(f"kept by {spread} of the searches on resampled prompts")
    return "\n".join(part for part in (*said, kinds(data, name), tips.get(name, "")) if part)


def _figure(picture: Picture, data: Drawn, scale: Scale, note: str | None, styled: bool, title: str | None) -> str:
    """The whole drawing with title, description and legend."""
    heading, told = title or heading_of(data), description(data)
    top = TOP - MARGIN if note is None else -MARGIN
    head = [element("title", heading), element("desc", told)]
    head += [element("style", circuit_style())] if styled else []
    return str(
        element(
            "svg",
            *head,
            *([] if note is None else [_legend(scale, note, picture.thin)]),
            *picture.parts,
            xmlns="http://www.w3.org/2000/svg",
            class_="circuit-graph",
            viewBox=f"{-MARGIN:g} {top:g} {picture.width + 2 * MARGIN:g} {picture.height + MARGIN - top:g}",
            width=f"{picture.width + 2 * MARGIN:g}",
            role="img",
            aria_label=f"{heading}. {told}",
        )
    )


def heading_of(data: Drawn) -> str:
    """Model, checkpoint and size."""
    step = data.about.get("step")
    where = data.about.get("model", "") + ("" if step is None else f", step {count(step)}")
    return f"Circuit of {where}"


def description(data: Drawn) -> str:
    """Size, faithfulness and strongest edges in words."""
    by_effect = data.effects is not None
    order = [one for one in ranked(data) if weight(one[1], by_effect) is not None][:8]
    strongest = ", ".join(f"{name} ({decimal(weight(places, by_effect) or 0.0)})" for name, places in order)
    size = f"{count(data.n_kept)} of {count(data.n_live)} live edges"
    if len(data.edges) < data.n_kept:
        size += f", of which the {count(len(data.edges))} strongest are drawn"
    pooled = f", drawn as {count(len(data.pooled))} edges without positions" if data.positions else ""
    kept = ""
    if data.faithfulness is not None:
        kept = f" They keep {decimal(data.faithfulness['value'])} {_bounds(data.faithfulness)} of the metric"
        kept += f" under {data.about.get('ablation')} ablation."
    ranked_by = "exact effect on the metric" if by_effect else "rank score"
    return f"{size}{pooled}.{kept} Strongest by {ranked_by}: {strongest or 'none'}."


def _legend(scale: Scale, note: str, thin: float) -> Markup:
    """What hue and width mean, and how what is left out is drawn."""
    rows = []
    said = (("up", "leaving the edge out lowers the metric"), ("down", "raises it"))
    x = 0.0
    for kind, meaning in said:
        rows.append(element("g", _sample(x, 4.0), class_=kind))
        rows.append(text(x + 38, 13, meaning, "legend"))
        x += 38 + 6.1 * len(meaning) + 22
    if scale.high > scale.low:
        for value in scale[:2]:
            label = f"|{'effect' if scale.by_effect else 'rank score'}| {decimal(value)}"
            rows.append(element("g", _sample(x, thickness(value, scale) * thin), class_="up"))
            rows.append(text(x + 38, 13, label, "legend"))
            x += 38 + 6.1 * len(label) + 22
    rows.append(text(0, 34, note, "legend"))
    return element("g", *rows)


def _sample(x: float, width: float) -> Markup:
    return element("line", x1=x, y1=9.0, x2=x + 30, y2=9.0, class_="wire", stroke_width=width)


def _edge(
    layout: Layout,
    data: Drawn,
    name: str,
    scale: Scale,
    tips: Mapping[str, str],
    pointed: bool,
) -> Markup:
    places = data.pooled[name]
    size, way = weight(places, scale.by_effect), route(layout, places[0].sender, places[0].receiver)
    width, sign = thickness(size, scale), total(places) if size is None else size
    parts = [element("title", words(data, name, tips))]
    parts += [element("path", d=way.path, class_="hit")] if pointed else []
    parts.append(element("path", d=way.path, class_="wire", stroke_width=width))
    parts.append(element("path", d=way.tip(3.0 + width * 0.45), class_="tip"))
    return element("g", *parts, class_=f"edge {'down' if sign < 0 else 'up'}", data_edge=name)


def _other(layout: Layout, name: str) -> Markup:
    """An edge of another checkpoint."""
    sender, _, receiver = name.partition("->")
    told = element("title", f"{name}\nnot in this circuit; kept at another checkpoint")
    path = element("path", d=route(layout, sender, receiver).path, class_="wire", stroke_width=2.2)
    return element("g", told, path, class_="edge other", data_edge=name)


def _share(layout: Layout, shared: str, head: str) -> Markup:
    one, two = layout.boxes[shared], layout.boxes[head]
    return line(one.middle, one.y, two.middle, two.bottom, "share")


def _node(layout: Layout, box: Box, data: Drawn, used: set[str], tips: Mapping[str, str]) -> Markup:
    """The frame of a node with its name and the marks of its slots."""
    inside = box.name in data.nodes
    sent = sum(edge.sender == box.name for edge in data.edges)
    read = sum(node_of(edge.receiver) == box.name for edge in data.edges)
    told = f"{box.name}: {sent} kept edges out, {read} in" if inside else f"{box.name}: not in the circuit"
    parts = [element("title", "\n".join(part for part in (told, tips.get(box.name, "")) if part))]
    place = {"x": box.x, "y": box.y, "width": box.width, "height": box.height}
    parts.append(element("rect", **place, rx=6 if box.kind != "bar" else 4, class_="frame"))
    slots = {name: spot for name, spot in layout.ports.items() if name[:-2] == box.name and name[-2] == "."}
    y = box.y + box.height / 2 + 4.5 - (6 if slots and box.kind == "head" else 0)
    if box.kind == "kv":
        parts.append(text(box.x - 4, y, box.label, "legend", "end"))
    else:
        parts.append(text(box.middle, y, box.label, "name", "middle"))
    for name, (x, bottom) in slots.items():
        parts.append(text(x, bottom - 5, name[-1], "slot used" if name in used else "slot", "middle"))
    kind = "bar" if box.kind == "bar" else "node"
    return element("g", *parts, class_=kind if inside or kind == "bar" else f"{kind} out", data_node=box.name)


def _bounds(interval: Mapping[str, Any]) -> str:
    return f"[{decimal(interval['low'])}, {decimal(interval['high'])}]"
