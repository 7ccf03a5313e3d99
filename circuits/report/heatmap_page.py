"""Renders the patches of a run as one offline page without script: facts, heatmap, largest effects, provenance."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from circuits.report.heatmap import Legend, Panel, heatmap, style


@dataclass(frozen=True)
class PatchPage:
    """The words of the page; every text is escaped when it is rendered."""

    title: str
    overline: str
    heading: str
    facts: Sequence[tuple[str, str]]
    reading: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    provenance: Sequence[tuple[str, str]]


def render_page(page: PatchPage, panels: Sequence[Panel], legend: Legend) -> str:
    """The whole page as text; equal patches give equal text."""
    styles = resources.files("circuits.report").joinpath("page.css").read_text(encoding="utf-8") + str(style())
    digest = base64.b64encode(hashlib.sha256(styles.encode()).digest()).decode()
    rules = ("default-src 'none'", f"style-src 'sha256-{digest}'", "base-uri 'none'", "form-action 'none'")
    drawn = heatmap(panels, legend, page.title, page.heading)
    return _template().render(page=page, figure=drawn, style=Markup(styles), policy="; ".join(rules))


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("circuits.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("heatmap.html")
