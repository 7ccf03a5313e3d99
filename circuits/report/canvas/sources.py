"""The text of the canvas components' scripts and styles, as a page or a module embeds them."""

from importlib import resources

GRID_PARTS = ("attndata.js", "attndraw.js", "attnlines.js", "attnparts.js", "attnview.js", "attngrid.js")
HEAT_PARTS = ("attndata.js", "attndraw.js", "heatgrid.js")


def grid_script() -> str:
    """AttnGrid as one classic script; a page calls `AttnGrid.mount`, a module appends its `export default`."""
    return "".join(map(_text, GRID_PARTS))


def host_script() -> str:
    """CanvasHost, which a Streamlit component needs beside the script of what it draws."""
    return _text("host.js")


def grid_style() -> str:
    """AttnGrid's style sheet; it follows `--st-*` variables where the page has them."""
    return _text("attngrid.css")


def heat_script() -> str:
    """HeatGrid as one classic script; a page calls `HeatGrid.mount`, a module appends its `export default`."""
    return "".join(map(_text, HEAT_PARTS))


def heat_style() -> str:
    """HeatGrid's style sheet."""
    return _text("heatgrid.css")


def _text(name: str) -> str:
    return resources.files("circuits.report.canvas").joinpath(name).read_text(encoding="utf-8")
