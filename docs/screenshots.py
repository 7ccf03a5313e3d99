"""Takes the pictures of docs/images: views of the dashboard, parts of a report and a drawing, in light and dark.

Run: make screenshots STORE=runs RUN=poly1
     python -m docs.screenshots STORE [--run poly1] [--out docs/images] [--only NAME ...]

The run must have been analysed as the tutorial and the how-tos say:

    interp train polynomial --seed 1 --name poly1
    interp patterns poly1
    interp detect poly1 --checkpoints all
    interp report make poly1
    interp circuit poly1 --checkpoints all
    interp circuit poly1 --positions --length 8
    interp probe poly1
    interp patch poly1 --length 8

and `interp patch poly1 --length 8 --checkpoint STEP` for each further frame of the heatmap. The run is only read. A
picture is written when two looks in a row are the same and the page has complained of nothing. Files have
256 colours, which keeps them small.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from circuits.report.circuit_file import circuit_file
from circuits.stored import choose, stored_circuits
from dashboards.launch import STORE, command, free_port, stop, wait_until_up
from interp.errors import StoreError
from interp.run import Run, Store
from tests.browser.chromium import BrowserError, Page, chromium

SCHEMES = ("light", "dark")
COLOURS, COMMON = 256, 64
LOOKS, APART_MS = 60, 400  # how often a page is looked at until it rests
READY = """(() => {
  const app = document.querySelector("[data-testid=stApp]");
  const charts = [...document.querySelectorAll("[data-testid=stVegaLiteChart]")];
  return Boolean(document.querySelector("h1")) && app.dataset.testScriptState === "notRunning"
    && !document.querySelector("[data-testid=stSpinner]")
    && charts.every((chart) => chart.querySelector("canvas, svg.marks"));
})()"""
TEXT = """(function words(root) {
  const inside = [...root.querySelectorAll("*")].filter((one) => one.shadowRoot).map((one) => words(one.shadowRoot));
  return [root.textContent, ...inside].join(" ");
})(document.querySelector("[data-testid=stMain]"))"""
MISSING = ("This view has a defect", "stored yet", "of this run yet", "has no report yet")
BOX = "(({x, y, width, height}) => ({x, y, width, height}))(document.querySelector(%r).getBoundingClientRect())"
WHOLE = "svg"
MARGIN, LINE = 16, 1  # left and right of a part of a report; the line above a section


@dataclass(frozen=True)
class Shot:
    """One picture: where it is taken, how large the window is in CSS pixels, and what must be there first.

    `place` is a view with its parameters, or a file where it ends in .html or .svg. `part` is a CSS selector: only this
    element is taken, with a margin at its sides and `below` it. `words` are waited for.
    """

    name: str
    place: str
    width: int
    height: int
    scale: float = 1
    part: str = ""
    below: int = 0
    words: str = ""


SHOTS = (
    Shot("report", "report.html", 1100, 764, 1.5),
    Shot("circuit", "report.html", 1100, 764, 1.5, part="#circuit figure", below=12),
    Shot("attention", "report.html", 1100, 764, 1.5, part="#attention"),
    Shot("drawing", "drawing.svg", 824, 584, part=WHOLE),
    Shot("dash-attention", "attention?step=11000&layer=1&head=0&q=25&k=9", 1280, 1000, words="Exact"),
    Shot("dash-circuit", "circuit?edges=whole", 1280, 1170),
    Shot("dash-compare", "compare?other={run}&step=0&other_step=11000", 1280, 1150),
    Shot("dash-embedding", "embedding?step=11000", 1400, 1000),
    Shot("dash-emergence", "emergence?step=11000", 1280, 1330),
    Shot("dash-lens", "lens", 1400, 1000),
    Shot("dash-patching", "patching?t=7", 1280, 740),
    Shot("dash-report", "report?about=detector", 1280, 1000),
    Shot("what-if", "patching?t=3&place=12&component=L1.H0&target=L1.H0", 1400, 1180, words="With L1.H0 ablated"),
)


@contextmanager
def served(store: Path) -> Iterator[str]:
    """Address of a dashboard on this store."""
    port = free_port(None, "127.0.0.1")
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    server = subprocess.Popen(command(port), env={**os.environ, STORE: str(store)}, **quiet)
    try:
        if not wait_until_up(port, server):
            raise BrowserError("the dashboard did not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(server)


def write_drawing(run: Run, path: Path) -> None:
    """The circuit by position of the newest step, with a column for each position, as a file of its own.

    Raises:
        StoreError: if the run has none.
    """
    found = choose(stored_circuits(run), step=None, by_position=True)
    if found is None or found.data.get("circuit") is None:
        raise StoreError(f"{run.name} has no circuit by position; interp circuit {run.name} --positions --length 8")
    path.write_text(circuit_file(found.data["circuit"], positions="columns", title=run.name), encoding="utf-8")


def address(shot: Shot, run: Run, base: str, folder: Path) -> str:
    """Where the browser goes for this picture."""
    if shot.place == "drawing.svg":
        return (folder / shot.place).as_uri()
    if shot.place.endswith(".html"):
        return (run.path / "report" / shot.place).resolve().as_uri()
    view, _, rest = shot.place.format(run=run.name).partition("?")
    return f"{base}/{view}?run={run.name}&{rest}"


def opened(page: Page, shot: Shot, where: str, scheme: str) -> None:
    """The page with everything that the picture is of.

    Raises:
        BrowserError: if the page does not come to rest, or the run lacks what the view shows.
    """
    page.view(shot.width, shot.height, scheme, shot.scale)
    page.goto(where)
    if not where.startswith("http"):
        return
    page.until(f"{READY} && {TEXT}.includes({shot.words!r})")
    if lacking := [words for words in MISSING if words in page.evaluate(TEXT)]:
        raise BrowserError(f"{shot.name}: {where} says: {lacking[0]}")


def still(page: Page, shot: Shot) -> bytes:
    """PNG of the page once two looks in a row are the same.

    Raises:
        BrowserError: if it goes on changing.
    """
    before = b""
    for _ in range(LOOKS):
        page.evaluate(f"new Promise((done) => setTimeout(() => done(1), {APART_MS}))")
        now = page.screenshot(clip=clipped(page, shot) if shot.part else None)
        if now == before:
            return now
        before = now
    raise BrowserError(f"{shot.name} goes on changing")


def clipped(page: Page, shot: Shot) -> dict[str, float]:
    """Box of the part in CSS pixels of the page, which is not scrolled; with margins unless it is a whole drawing."""
    box = page.evaluate(BOX % shot.part)
    if shot.part == WHOLE:
        return box
    grown = {"width": box["width"] + 2 * MARGIN, "height": box["height"] - LINE + shot.below}
    return {"x": box["x"] - MARGIN, "y": box["y"] + LINE} | grown


def few_colours(image: Image.Image) -> Image.Image:
    """The image in 256 colours: the commonest ones as they are, so that grounds stay, and for others the nearest.

    The palette is of maximum coverage: a legend of a few orange pixels stays orange.
    """
    packed = np.asarray(image, dtype=np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)  # height width
    distinct, place, count = np.unique(packed, return_inverse=True, return_counts=True)
    colours = np.stack([distinct >> 16, distinct >> 8 & 255, distinct & 255], axis=1)
    common = colours[np.argsort(-count, kind="stable")[:COMMON]]
    rest = image.quantize(COLOURS - len(common), method=Image.Quantize.MAXCOVERAGE).getpalette()
    palette = np.concatenate([common, np.array(rest).reshape(-1, 3)])
    nearest = ((colours[:, None] - palette) ** 2).sum(axis=2).argmin(axis=1)
    few = Image.fromarray(nearest[place].reshape(packed.shape).astype(np.uint8))
    few.putpalette(palette.astype(np.uint8).tobytes())
    return few


def write(picture: bytes, path: Path) -> None:
    """The picture as a small file."""
    few_colours(Image.open(io.BytesIO(picture)).convert("RGB")).save(path, optimize=True)


def take(shots: list[Shot], run: Run, base: str, out: Path) -> None:
    """Every shot in both schemes, each in a tab of its own.

    Raises:
        BrowserError: if a page complains, or does not show what it should.
    """
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder) / "profile") as pipe:
        if any(shot.name == "drawing" for shot in shots):
            write_drawing(run, Path(folder) / "drawing.svg")
        for shot in shots:
            where = address(shot, run, base, Path(folder))
            for scheme in SCHEMES:
                page = Page(pipe)
                opened(page, shot, where, scheme)
                picture = still(page, shot)
                if complaints := page.complaints():
                    raise BrowserError(f"{shot.name}: {complaints}")
                page.close()
                path = out / f"{shot.name}-{scheme}.png"
                write(picture, path)
                print(f"{path}  {path.stat().st_size // 1024} kB", file=sys.stderr)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m docs.screenshots", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("store", type=Path, help="folder of run folders")
    parser.add_argument("--run", default="poly1", help="the analysed run")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the pictures")
    parser.add_argument("--only", nargs="+", choices=[shot.name for shot in SHOTS], help="these pictures alone")
    given = parser.parse_args()
    store = Store(given.store)
    shots = [shot for shot in SHOTS if not given.only or shot.name in given.only]
    with served(store.root) as base:
        take(shots, store.run(given.run), base, given.out)


if __name__ == "__main__":
    main()
