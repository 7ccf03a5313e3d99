"""Renders a report as one offline page: escaped template, inline style and script allowed by their hashes only."""

import base64
import hashlib
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from circuits.report import numbers, summary
from circuits.report.canvas.encode import inline_json
from circuits.report.canvas.sources import grid_script, grid_style
from circuits.report.drawing import circuit_figure
from circuits.report.figures import length_figure, training_figure
from circuits.report.fingerprint import renderer_version
from circuits.report.schema import CircuitReport, plain


def render_html(report: CircuitReport) -> str:
    """The whole page as text; equal reports give equal text."""
    styles = _safe_style(grid_style() + _text("page.css"))
    scripts = _safe_script(grid_script() + _text("page.js"))
    return (
        _environment()
        .get_template("page.html")
        .render(
            report=report,
            detection=report.detection,
            numbers=numbers,
            summary=summary,
            data=Markup(inline_json(plain(report))),
            roles=Markup(inline_json(summary.head_roles(report))),
            style=styles,
            script=scripts,
            policy=policy(styles, scripts),
            renderer=renderer_version(),
            circuit_figure=circuit_figure(report.drawing),
            training_figure=training_figure(report.emergence, report.curve),
            length_figure=length_figure(summary.interchange_checks(report)),
        )
    )


def policy(styles: str, scripts: str) -> str:
    """Content-Security-Policy of the page: nothing but this style and this script, and no markup from strings."""
    rules = [
        "default-src 'none'",
        f"style-src '{_digest(styles)}'",
        f"script-src '{_digest(scripts)}'",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
    ]
    return "; ".join(rules)


def _digest(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _safe_script(source: str) -> Markup:
    if "</script" in source.lower() or "<!--" in source:
        raise ValueError("the page's own script must not contain a closing script tag")
    return Markup(source)


def _safe_style(source: str) -> Markup:
    if "</style" in source.lower():
        raise ValueError("the page's own style must not contain a closing style tag")
    return Markup(source)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("circuits.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["formula"] = summary.formula
    return environment


def _text(name: str) -> str:
    return resources.files("circuits.report").joinpath(name).read_text(encoding="utf-8")
