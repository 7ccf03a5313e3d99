"""A Sphinx directive that puts the text of every command's options into a page."""

from typing import Any

import typer
from cli_text import options_text
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from interp.cli import build_app


class CliOptions(SphinxDirective):
    """Put the sections in place of the directive."""

    def run(self) -> list[nodes.Node]:
        text = options_text(typer.main.get_command(build_app()))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Make the directive known to Sphinx."""
    app.add_directive("cli-options", CliOptions)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
