"""Writes a report as JSON, HTML and Markdown, each file in one step."""

from pathlib import Path

from circuits.report.html import render_html
from circuits.report.markdown import render_markdown
from circuits.report.schema import CircuitReport, sealed, to_json
from interp.files import disk_errors, replace

FILES = {"json": "report.json", "html": "report.html", "md": "report.md"}


def write_report(report: CircuitReport, folder: Path) -> dict[str, Path]:
    """Seal the report and write `report.json`, `report.html` and `report.md`; equal reports give equal bytes.

    Returns:
        Path by kind: `json`, `html`, `md`.

    Raises:
        StoreError: if a file cannot be written (StoreFull where the disk is full); older files stay whole.
    """
    final = sealed(report)
    texts = {"html": render_html(final), "md": render_markdown(final), "json": to_json(final)}
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / FILES[kind] for kind in texts}
    for kind, text in texts.items():
        replace(paths[kind], text.encode("utf-8"))
    return paths
