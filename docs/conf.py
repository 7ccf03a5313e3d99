"""Settings of the documentation: Sphinx, pages in MyST Markdown, the Furo theme."""

from importlib.metadata import version as installed_version

project = "interp"
author = "the interp authors"
project_copyright = "2026, the interp authors"
release = version = installed_version("interp-platform")

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"interp {release}"
