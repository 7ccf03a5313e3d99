"""Settings of the documentation: Sphinx, pages in MyST Markdown, the Furo theme."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "interp"
author = "the interp authors"
project_copyright = "2026, the interp authors"
release = version = installed_version("interp-platform")

extensions = ["myst_parser", "cli_options"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

smartquotes = False  # two hyphens are an option, not a dash

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["docs.css"]
html_title = f"interp {release}"
