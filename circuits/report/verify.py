"""Checks a written report: format, schema, content hash, the page against its own data, and the numbers on a rerun."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import Field

from circuits.detectors.base import Detection
from circuits.report.compare import ABSOLUTE, RELATIVE, Mismatch, differences
from circuits.report.fingerprint import renderer_version
from circuits.report.html import render_html
from circuits.report.markdown import render_markdown
from circuits.report.render import FILES
from circuits.report.schema import CircuitReport, content_hash, from_json
from interp.config import Frozen
from interp.errors import ReportError, StoreError
from interp.files import read_bytes

LIMIT = 1 << 30
EMBEDDED = re.compile(r'<script type="application/json" id="report-data">(.*?)</script>', re.DOTALL)
RENDERER = re.compile(r'circuit-report-renderer(?:" content="| )([0-9a-f]{16})')

Rerun = Callable[[CircuitReport], CircuitReport | Detection]


class Check(Frozen):
    """One check and its outcome; `passed` is None where it could not be made."""

    name: str
    file: str
    passed: bool | None
    detail: str


class VerifyResult(Frozen):
    """What was checked and found; damage raises ReportError instead, so only a rerun can make `ok` false."""

    format: Literal[1] = 1
    path: str
    ok: bool
    content_hash: str
    verdict: str
    run: str
    step: int
    checks: list[Check]
    rerun: bool = Field(False, description="whether the numbers were computed again")
    compared: int = Field(0, description="number of values compared with the rerun")
    tolerance: str = f"exact for text and integers, {RELATIVE:g} relative or {ABSOLUTE:g} absolute for other numbers"
    mismatches: list[Mismatch] = Field(default_factory=list, description="values that a rerun gives differently")
    context: list[Mismatch] = Field(default_factory=list, description="differing surroundings, such as versions")


def verify(path: Path | str, rerun: Rerun | None = None) -> VerifyResult:
    """Check a report file (`.json` or `.html`), or a folder with `report.json` and what lies beside it.

    Args:
        rerun: computes the report, or its detection, again; compared value by value.

    Raises:
        ReportError: naming the file, if it is missing, damaged, of an unknown format, or differs from its own hash.
    """
    path = Path(path)
    if path.is_dir():
        report, checks = _folder(path)
    elif path.suffix in (".html", ".htm"):
        report, checks = _page(path)
    else:
        report, checks = _json(path)
    base = {
        "path": str(path),
        "content_hash": report.content_hash,
        "verdict": report.verdict,
        "run": report.subject.run,
        "step": report.subject.step,
        "checks": checks,
    }
    if rerun is None:
        return VerifyResult(ok=True, **base)
    again = rerun(report)
    before = report.detection if isinstance(again, Detection) else report
    found = differences(before, again)
    return VerifyResult(
        ok=not found.mismatches,
        rerun=True,
        compared=found.compared,
        mismatches=found.mismatches,
        context=found.context,
        **base,
    )


def load_report(path: Path | str) -> CircuitReport:
    """Read a report from its JSON file or its page, with its content hash checked.

    Raises:
        ReportError: as `verify`.
    """
    path = Path(path)
    text = _text(path)
    return _sound(_embedded(text, path) if path.suffix in (".html", ".htm") else text, path)


def _text(path: Path) -> str:
    try:
        return read_bytes(path, LIMIT).decode("utf-8")
    except StoreError as error:
        raise ReportError(str(error)) from None
    except UnicodeDecodeError as error:
        raise ReportError(f"{path}: not UTF-8 text ({error.reason}); make the report again") from None


def _sound(text: str, path: Path) -> CircuitReport:
    """The report in a JSON text whose stored hash is the one of its content."""
    report = from_json(text, str(path))
    try:
        found = content_hash(report)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path}: holds a value that JSON cannot ({error}); make the report again") from None
    if report.content_hash != found:
        stored = report.content_hash or "empty"
        raise ReportError(
            f"{path}: content hash is {stored:.16}, but the content gives {found:.16}; "
            "the file was changed after it was written, make the report again"
        )
    return report


def _json(path: Path) -> tuple[CircuitReport, list[Check]]:
    report = _sound(_text(path), path)
    detail = f"fits circuit-report/1, sha256 {report.content_hash:.16}"
    return report, [Check(name="content hash", file=path.name, passed=True, detail=detail)]


def _embedded(text: str, path: Path) -> str:
    blocks = EMBEDDED.findall(text)
    if len(blocks) != 1:
        raise ReportError(f"{path}: has {len(blocks)} blocks of report data, expected 1; not a report page of ours")
    return blocks[0]


def _page(path: Path) -> tuple[CircuitReport, list[Check]]:
    """The page's embedded data, and the page's text against what this version makes of that data."""
    text = _text(path)
    report = _sound(_embedded(text, path), path)
    detail = f"embedded data fits circuit-report/1, sha256 {report.content_hash:.16}"
    checks = [Check(name="content hash", file=path.name, passed=True, detail=detail)]
    return report, [*checks, _shown("page text", path, text, lambda: render_html(report))]


def _shown(name: str, path: Path, text: str, render: Callable[[], str]) -> Check:
    """Whether a rendered file is what the data gives; another renderer's text is not compared, and that is said."""
    stamps = RENDERER.findall(text)
    if renderer_version() not in stamps:
        detail = "made by another version of the renderer, so its visible text was not compared with its data"
        return Check(name=name, file=path.name, passed=None, detail=detail)
    if render() != text:
        raise ReportError(f"{path}: does not show what its data says; it was edited, make the report again")
    return Check(name=name, file=path.name, passed=True, detail="every byte is what the data gives")


def _folder(folder: Path) -> tuple[CircuitReport, list[Check]]:
    """`report.json`, and the page and Markdown beside it, which must tell the same."""
    report, checks = _json(folder / FILES["json"])
    page = folder / FILES["html"]
    if page.exists():
        shown, more = _page(page)
        if shown.content_hash != report.content_hash:
            raise ReportError(f"{page}: shows another report than {FILES['json']} beside it; make the report again")
        checks += more
    words = folder / FILES["md"]
    if words.exists():
        checks.append(_shown("Markdown text", words, _text(words), lambda: render_markdown(report)))
    return report, checks
