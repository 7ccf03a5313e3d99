"""The way of each edge of a circuit: straight up where nothing stands between, else through the gutter of a column."""

from dataclasses import dataclass

from circuits.report.circuit_layout import Box, Layout

APPROACH = 0.55  # height of the last bend below a slot, as a share of the room that is there
PULL = 0.75  # how far a bend goes on straight at both ends, as a share of its height
SAMPLES = 48
FAR = 1.5  # layers beyond which an edge always takes a gutter
GOLDEN = 0.6180339887498949
Point = tuple[float, float]


@dataclass(frozen=True)
class Way:
    """SVG path of an edge, which leaves upwards and arrives upwards at `end`."""

    path: str
    end: Point

    def tip(self, size: float) -> str:
        """Arrow head at its end."""
        return f"M{self.end[0]:.1f},{self.end[1]:.1f} l{-size:.1f},{size * 1.7:.1f} h{2 * size:.1f} z"


def route(layout: Layout, sender: str, receiver: str) -> Way:
    """The way of one edge; it depends on the two names and the layout alone."""
    start, end, target = layout.boxes[sender], layout.ports[receiver], _target(layout, receiver)
    if start.kind == "bar" and target.kind == "bar":
        x = layout.lane(0, 0.5)
        return Way(f"M{x:.1f},{start.y:.1f} V{end[1]:.1f}", (x, end[1]))
    if start.kind == "bar":
        return Way(_from_bar(layout, start, end, target, _share(receiver)), end)
    begin = (start.middle, start.y)
    if target.kind == "bar":
        return _to_bar(layout, start, begin, end[1])
    if _free(layout, begin, end, {sender, target.name}):
        return Way(f"M{begin[0]:.1f},{begin[1]:.1f} {_bend(begin, end)}", end)
    side = target.column + (1 if start.middle > end[0] + 1 else 0)
    return Way(_through(layout, begin, layout.lane(side, _share(sender)), end), end)


def _target(layout: Layout, receiver: str) -> Box:
    name = receiver if receiver in layout.boxes else receiver.rsplit(".", 1)[0]
    return layout.boxes[name]


def _share(sender: str) -> float:
    """Place across a gutter, the same for a sender in every drawing."""
    return (sum(ord(letter) * (index + 1) for index, letter in enumerate(sender)) * GOLDEN) % 1.0


def _from_bar(layout: Layout, bar: Box, end: Point, target: Box, share: float) -> str:
    """Straight up from the bar below the slot, or up the gutter beside its column."""
    if _free(layout, (end[0], bar.y), end, {target.name}):
        return f"M{end[0]:.1f},{bar.y:.1f} V{end[1]:.1f}"
    turn = (layout.lane(target.column, share), end[1] + layout.room * APPROACH)
    return f"M{turn[0]:.1f},{bar.y:.1f} V{turn[1]:.1f} {_bend(turn, end)}"


def _to_bar(layout: Layout, start: Box, begin: Point, y: float) -> Way:
    """Straight up to the bar, or up the gutter on the right of the sender's column."""
    if _free(layout, begin, (begin[0], y), {start.name}):
        return Way(f"M{begin[0]:.1f},{begin[1]:.1f} V{y:.1f}", (begin[0], y))
    turn = (layout.lane(start.column + 1, _share(start.name)), begin[1] - layout.room * APPROACH)
    return Way(f"M{begin[0]:.1f},{begin[1]:.1f} {_bend(begin, turn)} V{y:.1f}", (turn[0], y))


def _through(layout: Layout, begin: Point, x: float, end: Point) -> str:
    up, down = begin[1] - layout.room * APPROACH, end[1] + layout.room * APPROACH
    middle = (x, max(up, down)) if up <= down else (x, up)
    parts = [f"M{begin[0]:.1f},{begin[1]:.1f}", _bend(begin, middle)]
    if up > down:
        parts.append(f"V{down:.1f}")
        middle = (x, down)
    return " ".join([*parts, _bend(middle, end)])


def _bend(begin: Point, end: Point) -> str:
    """A curve that is vertical at both ends."""
    pull = (begin[1] - end[1]) * PULL
    x0, y0, x1, y1 = begin[0], begin[1] - pull, end[0], end[1] + pull
    return f"C{x0:.1f},{y0:.1f} {x1:.1f},{y1:.1f} {end[0]:.1f},{end[1]:.1f}"


def _free(layout: Layout, begin: Point, end: Point, own: set[str]) -> bool:
    """Whether the curve between two points crosses no box but its own ends."""
    if begin[1] - end[1] > FAR * layout.layer and begin[0] != end[0]:
        return False
    near = [box for box in layout.between(end[1], begin[1]) if box.name not in own and box.kind != "bar"]
    for index in range(1, SAMPLES):
        t = index / SAMPLES
        x = begin[0] + (end[0] - begin[0]) * t * t * (3 - 2 * t)
        y = begin[1] + (end[1] - begin[1]) * (3 * t * (1 - t) * (PULL * (1 - t) + (1 - PULL) * t) + t**3)
        if any(box.x - 3 < x < box.x + box.width + 3 and box.y - 3 < y < box.bottom + 3 for box in near):
            return False
    return True
