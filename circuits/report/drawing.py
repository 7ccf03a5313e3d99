"""The circuit as SVG text: token columns, residual stream upwards, heads as boxes with arrows from what they read."""

from markupsafe import Markup

from circuits.report.schema import CircuitDrawing, DrawnMove
from circuits.report.svg import element, figure, line, text

WIDTH, LEFT, RIGHT = 880.0, 84.0, 872.0
ROW, BOX_WIDE, BOX_HIGH = 84.0, 116.0, 38.0


def circuit_figure(drawing: CircuitDrawing | None) -> Markup:
    """One prediction by the circuit: embedding below, then the heads by layer, the MLP, and the answer above."""
    if drawing is None or not drawing.moves:
        return Markup("")
    moves = sorted(drawing.moves, key=lambda move: (move.layer, move.component))
    pitch = (RIGHT - LEFT) / len(drawing.tokens)
    columns = [LEFT + (index + 0.5) * pitch for index in range(len(drawing.tokens))]
    answer = 30.0
    heights = {id(move): answer + 150 + ROW * rank for rank, move in enumerate(reversed(moves))}
    floor = answer + 150 + ROW * len(moves)
    parts = [_defs(), _columns(drawing, columns, floor), _top(drawing, columns, answer)]
    parts += [_arrow(move, columns, heights[id(move)]) for move in moves]
    parts += [_box(move, columns, heights[id(move)]) for move in moves]
    return figure(WIDTH, floor + 62, "The circuit", _words(drawing, moves), *parts, class_="circuit")


def _words(drawing: CircuitDrawing, moves: list[DrawnMove]) -> str:
    reads = [
        f"{move.component} ({move.role}) reads position {move.key}, token {drawing.tokens[move.key]}" for move in moves
    ]
    return f"At position {drawing.query}: {'; '.join(reads)}; the prediction is {drawing.answer}"


def _defs() -> Markup:
    heads = [
        element(
            "marker",
            element("path", d="M0,0 L8,4 L0,8 z", class_=f"tip {role}"),
            id=f"tip-{role}",
            viewBox="0 0 8 8",
            refX="7",
            refY="4",
            markerWidth="7",
            markerHeight="7",
            orient="auto",
        )
        for role in ("clock", "reading", "plain")
    ]
    return element("defs", *heads)


def _columns(drawing: CircuitDrawing, columns: list[float], floor: float) -> Markup:
    """Tokens with their names, and the residual stream above each."""
    parts = []
    read = {move.key for move in drawing.moves}
    for index, (token, x) in enumerate(zip(drawing.tokens, columns, strict=True)):
        chosen = index == drawing.query
        kind = "stream chosen" if chosen else "stream read" if index in read else "stream"
        parts.append(line(x, floor, x, 70.0 if chosen else 150.0, kind))
        box = "token chosen" if chosen else "token read" if index in read else "token"
        parts.append(element("rect", x=x - 21, y=floor, width=42, height=26, rx=5, class_=box))
        parts.append(text(x, floor + 17.5, _cut(token, 6), "token-text", "middle"))
        name = drawing.names[index] if drawing.names else str(index)
        parts.append(text(x, floor + 44, _cut(name, 7), "tick", "middle"))
    parts.append(text(0, floor + 17.5, "embed", "row-name"))
    parts.append(text(0, floor + 44, "position", "tick"))
    return Markup("").join(parts)


def _top(drawing: CircuitDrawing, columns: list[float], answer: float) -> Markup:
    """The MLP and the predicted token over the query column."""
    x = columns[drawing.query]
    parts = [text(0, answer + 1, "logits", "row-name"), text(0, answer + 77, "MLP", "row-name")]
    parts.append(
        element(
            "line", x1=x, y1=answer + 54, x2=x, y2=answer + 17, class_="stream chosen", marker_end="url(#tip-plain)"
        )
    )
    parts.append(element("rect", x=x - 58, y=answer + 54, width=116, height=BOX_HIGH, rx=7, class_="node plain"))
    parts.append(text(x, answer + 77, drawing.mlp, "node-text", "middle"))
    parts.append(element("rect", x=x - 34, y=answer - 16, width=68, height=30, rx=7, class_="node answer"))
    parts.append(text(x, answer + 4, _cut(drawing.answer, 8), "answer-text", "middle"))
    return Markup("").join(parts)


def _arrow(move: DrawnMove, columns: list[float], y: float) -> Markup:
    """From the stream of the key position, just below the head's layer, into the side of the head's box."""
    tint = move.role if move.role in ("clock", "reading") else "plain"
    start, end = columns[move.key], columns[move.query]
    low = y + 34
    if move.key == move.query:
        return line(start, low, end, y + BOX_HIGH / 2, f"move {tint}")
    side = -1 if start < end else 1
    edge = end + side * (BOX_WIDE / 2 + 2)
    bend = start + (edge - start) * 0.45
    path = f"M{start:.1f},{low:.1f} C{start:.1f},{y:.1f} {bend:.1f},{y:.1f} {edge:.1f},{y:.1f}"
    parts = [element("path", d=path, class_=f"move {tint}", marker_end=f"url(#tip-{tint})")]
    parts.append(element("circle", cx=start, cy=low, r=4.0, class_=f"dot {tint}"))
    if move.carries:
        words = _cut(move.carries, 34)
        if abs(edge - start) > 7.2 * len(words) + 24:
            parts.append(text(start - side * 10, y - 9, words, f"carries {tint}", "start" if side < 0 else "end"))
        else:
            parts.append(text(start + side * 10, low + 4, words, f"carries {tint}", "end" if side < 0 else "start"))
    return Markup("").join(parts)


def _box(move: DrawnMove, columns: list[float], y: float) -> Markup:
    tint = move.role if move.role in ("clock", "reading") else "plain"
    x = columns[move.query]
    box = element(
        "rect", x=x - BOX_WIDE / 2, y=y - BOX_HIGH / 2, width=BOX_WIDE, height=BOX_HIGH, rx=7, class_=f"node {tint}"
    )
    name = text(x, y - 3, move.component, "node-text", "middle")
    role = text(x, y + 12, f"{_cut(move.role, 12)} head", "node-sub", "middle")
    return box + name + role + text(0, y + 4, f"layer {move.layer}", "row-name")


def _cut(content: str, most: int) -> str:
    return content if len(content) <= most else content[: most - 1] + "\u2026"
