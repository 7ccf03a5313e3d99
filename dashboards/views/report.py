"""The report of a run: build it as a job, look at it in a frame that can reach nothing, download it."""

import hashlib
from pathlib import Path

import streamlit as st

from circuits.report.verify import verify
from dashboards import cached, data, starting
from dashboards.page import Page, plain

TITLE = "Report"
ORDER = 90
ICON = ":material/description:"

HEIGHT = 900
MIME = {".html": "text/html", ".json": "application/json", ".md": "text/markdown"}
SCRIPT = Path(__file__).parent.parent / "preview.js"


def render(page: Page) -> None:
    """State of the report, its files, and the page itself."""
    page.header(n="stated in the report beside each number")
    if page.run is None:
        page.empty("No report without a run.", "The demonstration writes one:", page.command("demo", run=False))
        return
    files = data.report_files(page.run)
    _build(page, bool(files))
    if not files:
        page.empty(
            "This run has no report yet.",
            "A report holds claim, verdict, causal checks, emergence, attention evidence and provenance in one file "
            "that opens offline. Building it detects the circuit first, if that has not been done.",
            page.command("report", "make"),
        )
    else:
        _files(page, files)
    page.share(
        page.command("report", "make"),
        "from circuits.report.build import build_report\nfrom circuits.report.render import write_report\n\n"
        'write_report(build_report(run), run.path / "report")',
    )


def _build(page: Page, again: bool) -> None:
    """The job that writes the report, at the newest checkpoint."""
    label = "Build it again" if again else "Build the report"
    starting.offer(page, label, ["report", "make", page.run.name])


def _files(page: Page, files: dict[str, Path]) -> None:
    """What the files are worth, a download for each, and the HTML in a frame."""
    result = None
    with page.guarded("Build the report again:", page.command("report", "make")):
        result = verify(files.get("report.json", next(iter(files.values()))))
    if result is not None:
        st.success(
            f"Verdict: {plain(result.verdict)}, step {result.step}. The content matches its hash "
            f"{result.content_hash[:12]}; `interp report verify --rerun` computes the numbers again.",
            icon=":material/verified:",
        )
    for column, (name, path) in zip(st.columns(len(files)), files.items(), strict=True):
        column.download_button(
            f"Download {name}",
            path.read_bytes(),
            file_name=f"{page.run.name}-{name}",
            mime=MIME[path.suffix],
            key=f"report.{name}",
            on_click="ignore",
            icon=":material/download:",
        )
    if "report.html" in files and result is not None:
        preview(cached.text(files["report.html"]), f"Report of run {page.run.name}")


def preview(html: str, title: str) -> None:
    """An HTML text in a sandboxed frame; it is sent again only when it has changed."""
    draw = st.components.v2.component("interp_report_preview", js=SCRIPT.read_text(encoding="utf-8"))
    digest = hashlib.sha256(html.encode()).hexdigest()
    draw(key="report.preview", data={"html": html, "title": title, "height": HEIGHT, "digest": digest})
