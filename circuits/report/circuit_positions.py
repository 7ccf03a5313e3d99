"""A circuit by position with a column for each position: what every node reads, and from how far back."""

from collections.abc import Mapping

from markupsafe import Markup

from circuits.naming import node_of
from circuits.report.circuit_drawn import Drawn, DrawnEdge, DrawnShape, told, weight
from circuits.report.circuit_svg import Picture, Scale, thickness
from circuits.report.svg import element, text

MOST_ROWS, MOST_POSITIONS, MOST_EDGES = 20, 40, 800
LEFT, TOP, WIDE = 78.0, 76.0, 780.0
NARROWEST, WIDEST = 34.0, 72.0
ROW, CELL_WIDE, CELL_HIGH = 72.0, 30.0, 20.0
THIN = 0.5  # of the usual width of a line
SLOTS = {"q": -9.0, "k": 0.0, "v": 9.0}


def fits(data: Drawn) -> bool:
    """Whether there is room for a column for each position."""
    few = len(_rows(data.shape)) <= MOST_ROWS and len(data.edges) <= MOST_EDGES
    return few and 0 < len(data.positions) <= MOST_POSITIONS


def by_position(data: Drawn, scale: Scale, tips: Mapping[str, str]) -> Picture:
    """Rows are nodes in order of computation, from below; an edge leaves at its sender's position."""
    rows, n_pos = _rows(data.shape), len(data.positions)
    pitch = min(WIDEST, max(NARROWEST, (WIDE - LEFT) / n_pos))
    place = _Grid(rows, pitch)
    bottom = TOP + ROW * len(rows)
    band = {"x": LEFT, "width": pitch * n_pos, "height": 2 * CELL_HIGH, "class_": "band"}
    parts = [element("rect", y=place.y(row) - CELL_HIGH, **band) for row in rows[::2]]
    parts += [text(LEFT - 10, place.y(row) + 4, row, "legend", "end") for row in rows]
    ordered = sorted(data.edges, key=lambda edge: (abs(weight([edge], scale.by_effect) or 0.0), edge.name, edge.place))
    parts += [_edge(place, data, edge, scale, tips) for edge in ordered]
    used = {(edge.receiver, edge.place[1]) for edge in data.edges}
    parts += [_cell(place, data, used, row, pos, tips) for row in rows for pos in range(n_pos)]
    every = max(1, round(max(len(name) for name in data.positions) * 6.6 / pitch + 0.2))
    parts += [
        text(place.x(pos), bottom + 10, name, "legend", "middle")
        for pos, name in enumerate(data.positions)
        if pos % every == 0
    ]
    parts.append(text(LEFT, bottom + 30, "position; edges by position, none pooled", "legend"))
    return Picture(tuple(parts), max(WIDE, LEFT + pitch * n_pos), bottom + 36, THIN)


class _Grid:
    """Centres of the cells."""

    def __init__(self, rows: list[str], pitch: float):
        self.rows, self.pitch = {row: index for index, row in enumerate(reversed(rows))}, pitch

    def x(self, pos: int) -> float:
        """Centre of a column."""
        return LEFT + self.pitch * (pos + 0.5)

    def y(self, row: str) -> float:
        """Centre of a row."""
        return TOP + ROW * (self.rows[row] + 0.5)


def _rows(shape: DrawnShape) -> list[str]:
    """Nodes from the first to the last; heads that share keys and values stand behind those that give them."""
    rows = ["embed"]
    for layer in range(shape.n_layers):
        if shape.kv_heads[layer] < shape.heads[layer]:
            rows += [f"L{layer}.KV{head}" for head in range(shape.kv_heads[layer])]
        rows += [f"L{layer}.H{head}" for head in range(shape.heads[layer])]
        rows += [f"M{layer}"] if shape.mlp[layer] else []
    return [*rows, "logits"]


def _edge(place: _Grid, data: Drawn, edge: DrawnEdge, scale: Scale, tips: Mapping[str, str]) -> Markup:
    start, end = edge.place
    name = f"{edge.sender}@{data.position(start)}->{edge.receiver}@{data.position(end)}"
    slot = SLOTS.get(edge.receiver[-1], 0.0) if edge.receiver[-2:-1] == "." else 0.0
    x0, y0 = place.x(start), place.y(edge.sender) - CELL_HIGH / 2
    x1, y1 = place.x(end) + slot, place.y(node_of(edge.receiver)) + CELL_HIGH / 2
    lost = weight([edge], scale.by_effect)
    path, width = _path(x0, y0, x1, y1, place.pitch), thickness(lost, scale) * THIN
    size = 2.6 + width * 0.45
    said = [name, *told([edge])]
    if edge.frequency is not None:
        said.append(f"kept by {edge.frequency:.0%} of the searches on resampled prompts")
    if start != end:
        said.append(f"{end - start} positions back")
    said.append(tips.get(edge.name, ""))
    parts = [
        element("title", "\n".join(part for part in said if part)),
        element("path", d=path, class_="wire", stroke_width=width),
        element("path", d=f"M{x1:.1f},{y1:.1f} l{-size:.1f},{size * 1.7:.1f} h{2 * size:.1f} z", class_="tip"),
    ]
    kind = "down" if (edge.score if lost is None else lost) < 0 else "up"
    return element("g", *parts, class_=f"edge {kind}", data_edge=name, data_whole=edge.name)


def _path(x0: float, y0: float, x1: float, y1: float, pitch: float) -> str:
    """Upwards, past the cells that stand between in the same column."""
    high = y0 - y1
    if abs(x0 - x1) < pitch / 2 and high > ROW:
        aside = pitch * min(0.62, 0.34 + 0.05 * high / ROW) * 1.33
        first, second = (x0 - aside, y0 - high * 0.2), (x1 - aside, y1 + high * 0.2)
    else:
        first, second = (x0, y0 - high * 0.5), (x1, y1 + high * 0.5)
    places = ((x0, y0), first, second, (x1, y1))
    return "M{} C{} {} {}".format(*(f"{x:.1f},{y:.1f}" for x, y in places))


def _cell(place: _Grid, data: Drawn, used: set[tuple[str, int]], row: str, pos: int, tips: Mapping[str, str]) -> Markup:
    """A node at one position: a frame where it is in the circuit, else a dot."""
    x, y = place.x(pos), place.y(row)
    sent = sum(edge.sender == row and edge.place[0] == pos for edge in data.edges)
    read = sum(node_of(edge.receiver) == row and edge.place[1] == pos for edge in data.edges)
    where = f"{row} at {data.position(pos)}"
    if not sent and not read:
        return element("circle", element("title", f"{where}: not in the circuit"), cx=x, cy=y, r=1.6, class_="dot")
    told = "\n".join(part for part in (f"{where}: {sent} kept edges out, {read} in", tips.get(row, "")) if part)
    corner = {"x": x - CELL_WIDE / 2, "y": y - CELL_HIGH / 2, "width": CELL_WIDE, "height": CELL_HIGH}
    letters = [
        text(x + shift, y + 4, slot, "slot used", "middle")
        for slot, shift in SLOTS.items()
        if (f"{row}.{slot}", pos) in used
    ]
    frame = element("rect", **corner, rx=5, class_="frame")
    return element("g", element("title", told), frame, *letters, class_="node", data_node=row)
