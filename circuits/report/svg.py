"""Escaped SVG elements, scales and axes, from which the figures of a report are drawn."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from circuits.report.numbers import count


def element(name: str, *children: str, **attributes: object) -> Markup:
    """One SVG element; text children and attribute values are escaped, `class_` is written as `class`."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _short(value))
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, inner)


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def text(x: float, y: float, content: str, class_: str = "", anchor: str = "start", **attributes: object) -> Markup:
    """A text label."""
    return element("text", content, x=float(x), y=float(y), class_=class_ or None, text_anchor=anchor, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def polyline(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """A line through points."""
    return element("polyline", points=" ".join(f"{x:.2f},{y:.2f}" for x, y in points), class_=class_)


def figure(width: float, height: float, title: str, description: str, *children: str, class_: str = "") -> Markup:
    """A whole drawing with its title and description for readers who do not see it."""
    head = element("title", title) + element("desc", description)
    return element(
        "svg",
        head,
        *children,
        class_=f"figure {class_}".strip(),
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        role="img",
        aria_label=f"{title}. {description}",
        xmlns="http://www.w3.org/2000/svg",
    )


def marker(shape: str, x: float, y: float, class_: str, title: str = "") -> Markup:
    """A circle, square or diamond, with a tooltip."""
    tip = (element("title", title),) if title else ()
    if shape == "circle":
        return element("circle", *tip, cx=float(x), cy=float(y), r=3.2, class_=class_)
    corners = {
        "square": [(-3, -3), (3, -3), (3, 3), (-3, 3)],
        "diamond": [(0, -4.4), (4.4, 0), (0, 4.4), (-4.4, 0)],
        "triangle": [(0, -4.2), (4, 3.2), (-4, 3.2)],
    }[shape]
    points = " ".join(f"{x + dx:.2f},{y + dy:.2f}" for dx, dy in corners)
    return element("polygon", *tip, points=points, class_=class_)


@dataclass(frozen=True)
class StepScale:
    """Training steps on a logarithmic axis, with step 0 one notch left of the first positive step."""

    first: int
    last: int
    left: float
    right: float

    @classmethod
    def over(cls, steps: Sequence[int], left: float, right: float) -> "StepScale":
        """The scale that holds all the steps."""
        positive = [step for step in steps if step > 0] or [1]
        return cls(min(positive), max(max(positive), min(positive) + 1), left, right)

    @property
    def start(self) -> float:
        """Where the logarithmic part begins, right of the notch for step 0."""
        return self.left + 26

    def __call__(self, step: float) -> float:
        if step < self.first:
            return self.left
        share = math.log(step / self.first) / math.log(self.last / self.first)
        return self.start + share * (self.right - self.start)

    def ticks(self) -> list[int]:
        """Powers of ten with 2 and 5 between, thinned so that labels keep their distance."""
        decades = range(int(math.log10(self.first)), int(math.log10(self.last)) + 1)
        places = [base * 10**power for power in decades for base in (1, 2, 5)]
        kept: list[int] = []
        for place in places:
            if self.first <= place <= self.last and (not kept or self(place) - self(kept[-1]) >= 52):
                kept.append(place)
        return [place for place in kept if self(place) - self.left >= 34]


def linear(low: float, high: float, bottom: float, top: float) -> Callable[[float], float]:
    """A linear scale from values to heights."""
    span = (high - low) or 1.0
    return lambda value: bottom + (value - low) / span * (top - bottom)


def nice_ceiling(value: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten at or above a positive value."""
    if value <= 0:
        return 1.0
    power = 10 ** math.floor(math.log10(value))
    return next(base * power for base in (1, 2, 2.5, 5, 10) if base * power >= value * (1 - 1e-9))


def step_axis(scale: StepScale, top: float, bottom: float, with_zero: bool) -> Markup:
    """Tick labels and the name of the horizontal axis of training steps."""
    parts = [line(scale.left, bottom, scale.right, bottom, "axis")]
    if with_zero:
        parts.append(text(scale.left, bottom + 16, "0", "tick", "middle"))
        parts.append(line(scale.left + 11, bottom + 4, scale.left + 15, bottom - 4, "axis"))
        parts.append(line(scale.left + 15, bottom + 4, scale.left + 19, bottom - 4, "axis"))
    for place in scale.ticks():
        parts.append(line(scale(place), bottom, scale(place), bottom + 4, "axis"))
        parts.append(text(scale(place), bottom + 16, count(place), "tick", "middle"))
    name = text((scale.left + scale.right) / 2, bottom + 34, "training step (logarithmic)", "name", "middle")
    return Markup("").join([*parts, name])


def value_axis(places: Sequence[tuple[float, str]], y: Callable[[float], float], left: float, right: float) -> Markup:
    """Horizontal grid lines with their values at the left."""
    lines = [line(left, y(value), right, y(value), "grid") for value, _ in places]
    labels = [text(left - 7, y(value) + 4, label, "tick", "end") for value, label in places]
    return Markup("").join(lines + labels)
