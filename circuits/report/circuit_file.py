"""The drawing of a circuit as a file of its own, in plain colours, so that programs other than a browser read it."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup

from circuits.report.circuit_svg import circuit_style, circuit_svg
from circuits.report.svg import element

if TYPE_CHECKING:
    from circuits.circuit import Circuit, CircuitFile

COLOUR = re.compile(r"(--[\w-]+): var\(--[\w-]+, light-dark\((#\w+), (#\w+)\)\);")
FONT = re.compile(r"var\(--st-font, ([^()]*)\)")
RULE = re.compile(r"([^{}]+)\{([^{}]*)\}")
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # which no program opens
OPENING = re.compile(r'<svg [^>]*viewBox="(\S+) (\S+) (\S+) (\S+)"[^>]*>')


def circuit_file(
    circuit: "Circuit | CircuitFile | Mapping[str, Any]",
    *,
    positions: Literal["pooled", "columns"] = "pooled",
    tips: Mapping[str, str] | None = None,
    title: str | None = None,
) -> str:
    """The SVG text of `circuit_svg` with a ground, a height, and a style that needs no variables.

    Control characters, which a name of a token may hold and XML may not, become U+FFFD.

    Args:
        circuit, positions, tips, title: as of `circuit_svg`.
    """
    drawing = circuit_svg(circuit, positions=positions, tips=tips, styled=False, title=title)
    opening, rest = _opened(drawing)
    words, _, parts = rest.partition("</desc>")
    left, top, width, height = OPENING.match(opening).groups()
    place = {"x": left, "y": top, "width": width, "height": height}
    more = element("style", plain_style()) + element("rect", **place, class_="ground")
    text = f'{opening[:-1]} height="{height}">{words}</desc>{more}{parts}\n'
    return NO_XML.sub("\ufffd", text)


def plain_style() -> Markup:
    """The style of the drawing with each colour as its light value, and the dark ones where a browser prefers them."""
    text = re.sub(r"/\*.*?\*/", "", circuit_style(), flags=re.DOTALL)
    colours = {name: (light, dark) for name, light, dark in COLOUR.findall(text)}
    text = FONT.sub(r"\1", COLOUR.sub("", text))
    screen, at, print_rules = text.partition("@media print")
    rules = [(selector.strip(), body.strip()) for selector, body in RULE.findall(screen)]
    rules = [rule for rule in rules if ":root" not in rule[0]]
    rules.append((".circuit-graph .ground", "fill: var(--ground);"))
    light = [f"{selector} {{ {_filled(body, colours, 0)} }}" for selector, body in rules]
    dark = [
        f"  {selector} {{ {_filled('; '.join(coloured), colours, 1)}; }}"
        for selector, body in rules
        if (coloured := [one.strip() for one in body.split(";") if "var(--" in one])
    ]
    scheme = ["svg.circuit-graph:root { color-scheme: light dark; }"]
    night = ["@media screen and (prefers-color-scheme: dark) {", *dark, "}"]
    return Markup("\n".join([*scheme, *light, *night, at + print_rules.rstrip(), ""]))


def _filled(body: str, colours: Mapping[str, tuple[str, str]], which: int) -> str:
    """Declarations with the light (0) or dark (1) value in the place of each variable."""
    for name, values in colours.items():
        body = body.replace(f"var({name})", values[which])
    return " ".join(body.split())


def _opened(drawing: str) -> tuple[str, str]:
    """The opening tag, and what follows it."""
    end = OPENING.match(drawing).end()
    return drawing[:end], drawing[end:]
