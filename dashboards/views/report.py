"""The reports of a run: build one as a job, look at it in a frame that can reach nothing, download it."""

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
MIME = {".html": "text/html", ".json": "application/json", ".md": "text/markdown", ".svg": "image/svg+xml"}
KINDS = {"detector": "of the detector", "circuit": "of the circuit"}
SCRIPT = Path(__file__).parent.parent / "preview.js"


def render(page: Page) -> None:
    """State of the chosen report, its files, and the page itself."""
    page.header(n="stated in the report beside each number")
    if page.run is None:
        page.empty("No report without a run.", "The demonstration writes one:", page.command("demo", run=False))
        return
    files, circuit = data.report_files(page.run), data.circuit_files(page.run)
    if circuit or data.newest_search(page.run) is not None:
        first = "circuit" if circuit and not files else "detector"
        if page.pick("about", "Report", list(KINDS), first, widget="segments", show=KINDS.get) == "circuit":
            _circuit(page, circuit)
            return
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


def _circuit(page: Page, files: dict[str, Path]) -> None:
    """The page of the stored circuit that `interp report circuit` takes: made as a job, shown, and its files."""
    stored = data.newest_search(page.run)
    if stored is not None:
        starting.offer(page, "Make it again" if files else "Make the page", ["report", "circuit", page.run.name])
    if "circuit.html" not in files:
        page.empty(
            "The page of this circuit is not made yet.",
            "It holds the claim, the drawing, faithfulness, controls, roles, edges and provenance of the stored search "
            "in one file that opens offline. Nothing is computed for it, so it takes seconds.",
            page.command("report", "circuit"),
        )
    else:
        if stored is not None and stored > data.stamp(files["circuit.html"]).mtime_ns:
            st.warning("A circuit search was stored after this page was made; make it again to show it.")
        _downloads(page, files)
        preview(cached.text(files["circuit.html"]), f"Circuit of run {page.run.name}")
    page.share(
        page.command("report", "circuit"),
        "from circuits.report.circuit_stored import shelf_of_run, stored_circuit, write_circuit_page\n\n"
        "shelf = shelf_of_run(run)\nwrite_circuit_page(shelf, stored_circuit(shelf, step=None))",
    )


def _files(page: Page, files: dict[str, Path]) -> None:
    """What the files are worth, a download for each, and the HTML in a frame."""
    result = None
    with page.guarded("Build the report again:", page.command("report", "make")):
        result = verify(files.get("report.json", next(iter(files.values()))))
    if result is not None:
        st.success(
            f"Verdict: {plain(result.verdict)}, step {result.step:,}. The content matches its hash "
            f"{result.content_hash[:12]}; `interp report verify --rerun` computes the numbers again.",
            icon=":material/verified:",
        )
    _downloads(page, files)
    if "report.html" in files and result is not None:
        preview(cached.text(files["report.html"]), f"Report of run {page.run.name}")


def _downloads(page: Page, files: dict[str, Path]) -> None:
    """A button for each file."""
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


def preview(html: str, title: str) -> None:
    """An HTML text in a sandboxed frame; it is sent again only when it has changed."""
    draw = st.components.v2.component("interp_report_preview", js=SCRIPT.read_text(encoding="utf-8"))
    digest = hashlib.sha256(html.encode()).hexdigest()
    draw(key="report.preview", data={"html": html, "title": title, "height": HEIGHT, "digest": digest})
