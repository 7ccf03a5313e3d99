"""Where each node of a circuit stands: fixed by the model's shape alone, so that nothing jumps between checkpoints."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from circuits.report.circuit_drawn import DrawnShape

LEFT, TOP = 86.0, 76.0  # names of the layers; legend
WIDE = 780.0  # of the columns together, where so many fit
NARROWEST, WIDEST = 68.0, 260.0  # pitch of the columns
BOX = 124.0  # width of a box at most
BAR = 26.0  # height of embed and logits
SLOT = 15.0  # between the marks of q, k and v
KV_HIGH = 22.0


@dataclass(frozen=True)
class Box:
    """One node: its frame, and the heights at which edges leave and arrive."""

    name: str
    label: str
    x: float
    y: float
    width: float
    height: float
    column: int
    kind: str  # head, mlp, kv or bar

    @property
    def middle(self) -> float:
        """Horizontal centre."""
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        """Lower edge."""
        return self.y + self.height


@dataclass
class Layout:
    """Boxes by node, marks of the slots by receiver, gutters between columns, room between rows, height of a layer."""

    width: float
    height: float
    pitch: float
    gutter: float
    room: float
    layer: float
    boxes: dict[str, Box] = field(default_factory=dict)
    ports: dict[str, tuple[float, float]] = field(default_factory=dict)
    shares: list[tuple[str, str]] = field(default_factory=list)
    layers: list[tuple[str, float]] = field(default_factory=list)

    def column(self, index: int) -> float:
        """Centre of a column."""
        return LEFT + self.pitch * (index + 0.5)

    def lane(self, index: int, share: float) -> float:
        """A vertical line in the gutter left of a column; `share` from 0 to 1 across it."""
        return LEFT + self.pitch * index + self.gutter * 0.62 * (share - 0.5)

    def between(self, low: float, high: float) -> Iterator[Box]:
        """Boxes that reach into a range of heights."""
        return (box for box in self.boxes.values() if box.y < high and box.bottom > low)


@dataclass(frozen=True)
class _Heights:
    """Vertical measures of one layer, from its heads upwards; close together in deep models."""

    head: float
    to_mlp: float
    mlp: float
    above: float
    to_kv: float

    @property
    def layer(self) -> float:
        """Of one layer with an MLP."""
        return self.head + self.to_mlp + self.mlp + self.above


def layout_of(shape: DrawnShape) -> Layout:
    """Rows are layers with the embedding below and the logits above; columns are heads, the last one the MLP."""
    heads, has_mlp = max(shape.heads), any(shape.mlp)
    columns = heads + has_mlp
    pitch = min(WIDEST, max(NARROWEST, WIDE / columns))
    tall = _Heights(46, 44, 36, 74, 38) if shape.n_layers <= 6 else _Heights(34, 22, 24, 42, 26)
    gutter = max(20.0, pitch * 0.34, pitch - BOX)
    found = Layout(max(WIDE, LEFT + pitch * columns + gutter * 0.4 + 2), 0.0, pitch, gutter, tall.to_mlp, tall.layer)
    y = TOP
    boxes = [_bar("logits", found, y, columns)]
    y += BAR + tall.above
    for layer in reversed(range(shape.n_layers)):
        placed, y = _layer(shape, layer, found, tall, y, heads)
        boxes += placed
    boxes.append(_bar("embed", found, y, columns))
    found.height = y + BAR + 4
    found.boxes = {box.name: box for box in reversed(boxes)}
    found.ports["logits"] = (found.boxes["logits"].middle, found.boxes["logits"].bottom)
    return found


def _bar(name: str, found: Layout, y: float, columns: int) -> Box:
    beyond = found.gutter * 0.4
    return Box(name, name, LEFT - beyond, y, found.pitch * columns + 2 * beyond, BAR, -1, "bar")


def _layer(
    shape: DrawnShape, layer: int, found: Layout, tall: _Heights, y: float, column: int
) -> tuple[list[Box], float]:
    """Boxes of one layer from its top at y, and where the next one begins."""
    boxes, width = [], found.pitch - found.gutter
    sequential = shape.mlp[layer] and not shape.parallel[layer]
    base = y + (tall.mlp + tall.to_mlp if sequential else 0.0)
    if shape.mlp[layer]:
        top = y if sequential else base + (tall.head - tall.mlp) / 2
        name = f"M{layer}"
        boxes.append(Box(name, name, found.column(column) - width / 2, top, width, tall.mlp, column, "mlp"))
        found.ports[name] = (boxes[-1].middle, boxes[-1].bottom)
    grouped = shape.kv_heads[layer] < shape.heads[layer]
    for head in range(shape.heads[layer]):
        name = f"L{layer}.H{head}"
        label = name if width > 52 else f"H{head}"
        box = Box(name, label, found.column(head) - width / 2, base, width, tall.head, head, "head")
        boxes.append(box)
        for index, slot in enumerate("q" if grouped else "qkv"):
            found.ports[f"{name}.{slot}"] = (box.middle + (index - (not grouped)) * SLOT, box.bottom)
    found.layers.append((f"layer {layer}", base + tall.head / 2))
    low = base + tall.head
    if grouped:
        boxes += _shared(shape, layer, found, low + tall.to_kv)
        low += tall.to_kv + KV_HIGH
    return boxes, low + tall.above


def _shared(shape: DrawnShape, layer: int, found: Layout, y: float) -> list[Box]:
    """Keys and values that several heads share, below the middle head of each group."""
    boxes, size = [], shape.heads[layer] // shape.kv_heads[layer]
    for group in range(shape.kv_heads[layer]):
        name, column = f"L{layer}.KV{group}", group * size + (size - 1) // 2
        width = min(52.0, found.pitch - found.gutter)
        box = Box(name, f"KV{group}", found.column(column) - width / 2, y, width, KV_HIGH, column, "kv")
        boxes.append(box)
        for index, slot in enumerate("kv"):
            found.ports[f"{name}.{slot}"] = (box.middle + (index - 0.5) * SLOT * 1.5, box.bottom)
        found.shares += [(name, f"L{layer}.H{head}") for head in range(group * size, (group + 1) * size)]
    return boxes
