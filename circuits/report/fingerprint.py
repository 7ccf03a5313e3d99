"""Names the version of the renderer, so that a text made by another version is told apart from an edited one."""

import hashlib
from functools import cache
from importlib import resources

SOURCES = (
    "canvas/attndraw.js",
    "canvas/attngrid.css",
    "canvas/attngrid.js",
    "canvas/attnparts.js",
    "canvas/encode.py",
    "drawing.py",
    "figures.py",
    "html.py",
    "markdown.py",
    "numbers.py",
    "page.css",
    "page.html",
    "page.js",
    "schema.py",
    "summary.py",
    "svg.py",
)


@cache
def renderer_version() -> str:
    """Fingerprint of every source that decides the bytes of page and Markdown besides the report itself."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update(resources.files("circuits.report").joinpath(name).read_bytes())
    return digest.hexdigest()[:16]
