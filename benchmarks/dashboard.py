"""Speed of the dashboard in headless Chromium: first paint of each view, a rerun, a thousand runs, memory, cancelling.

Run: python -m benchmarks.dashboard [--out benchmarks/results/dashboard.json] [--trials 5] [--store RUNS --run NAME]
Without --store a small run is trained and detected first. Nothing is timed unless the page shows what the run folder
holds. Beside the times on the clock stand processor times of server and browser together, which other work on the
machine does not change. Chromium renders in software.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from dashboards import data
from dashboards.launch import STORE, command, free_port, stop, wait_until_up
from dashboards.listing import views
from interp import jobs
from interp.run import Store
from tests.browser.chromium import Page, chromium

BARS = {"first_paint_s": 3.0, "rerun_s": 0.4, "list_1000_s": 1.0, "server_mb": 300.0, "cancel_s": 2.0}
SETTLED = """(() => {
  const app = document.querySelector("[data-testid=stApp]");
  const charts = [...document.querySelectorAll("[data-testid=stVegaLiteChart]")];
  const drawn = charts.filter((chart) => chart.querySelector("canvas, svg.marks"));
  return Boolean(document.querySelector("h1")) && app.dataset.testScriptState === "notRunning"
    && drawn.length === charts.length;
})()"""
SHOWN = "document.querySelector('[data-testid=stMain]').innerText"
SLIDER = "document.querySelector('[data-testid=stMain] input[type=range]')"
ENDLESS = ["train", "parity", "--name=endless", "--set=train.steps=10000000", "--set=train.stop_accuracy=1.0"]


class Wrong(RuntimeError):
    """The page does not show what the run folder holds, so its speed means nothing."""


class Clock:
    """Wall and processor time of a set of processes since it was made."""

    def __init__(self, pids: list[int]):
        self._pids = pids
        self._wall, self._cpu = time.perf_counter(), self._spent()

    def _spent(self) -> float:
        spent = 0.0
        for pid in self._pids:
            for one in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
                times = one.cpu_times()
                spent += times.user + times.system
        return spent

    def read(self) -> dict[str, float]:
        """Seconds on the clock, and of processor time of the living processes."""
        return {"wall_s": time.perf_counter() - self._wall, "cpu_s": max(0.0, self._spent() - self._cpu)}


def until(claim: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What the claim gives once it is true.

    Raises:
        Wrong: if it does not come true in time.
    """
    limit = time.perf_counter() + seconds
    while time.perf_counter() < limit:
        if found := claim():
            return found
        time.sleep(0.01)
    raise Wrong("the page did not become what was waited for")


@contextmanager
def server(store: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A dashboard on this store, up and once visited by nobody."""
    port = free_port(None, "127.0.0.1")
    settings = {**os.environ, STORE: str(store), "OMP_NUM_THREADS": "1"}
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command(port), env=settings, **quiet)
    try:
        if not wait_until_up(port, process):
            raise Wrong("the server did not start")
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        stop(process)


def small_store(folder: Path) -> tuple[Path, str]:
    """A store with a trained and detected run; the settings are those of the tests."""
    from circuits.detect import detect_run
    from interp.train import train
    from tests.dash.conftest import LIGHT, tiny_config

    store = Store(folder / "runs")
    detect_run(train(tiny_config(), store, "tiny"), every_checkpoint=True, options=LIGHT)
    return store.root, "tiny"


def median(rows: list[dict[str, float]]) -> dict[str, float]:
    """Median of each column, with the largest time on the clock."""
    found = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    return {**found, "worst_wall_s": max(row["wall_s"] for row in rows), "n": len(rows)}


def paints(url: str, run: str, process: psutil.Process, trials: int, profile: Path) -> dict[str, dict[str, float]]:
    """From navigation to the settled view with every chart drawn, one new tab for each trial."""
    rows: dict[str, list[dict[str, float]]] = {view.id: [] for view in views()}
    with chromium(profile) as pipe:
        browser = next(child for child in psutil.Process().children(recursive=True) if "chrom" in child.name())
        for _ in range(trials):
            for view in views():
                page = Page(pipe)
                page.view()
                clock = Clock([process.pid, browser.pid])
                page.send("Page.navigate", url=f"{url}/{view.id}?run={run}")
                until(lambda page=page: page.evaluate(SETTLED))
                rows[view.id].append(clock.read())
                if view.title not in page.evaluate(SHOWN) or page.evaluate("location.pathname") != f"/{view.id}":
                    raise Wrong(f"{view.id} is not what is shown")
                page.close()
    return {name: median(found) for name, found in rows.items()}


def reruns(url: str, run: str, steps: list[int], trials: int, profile: Path) -> dict[str, float]:
    """From an arrow key on the checkpoint slider of Emergence to the settled page of the other step."""
    rows = []
    with chromium(profile) as pipe:
        page = Page(pipe)
        page.view()
        page.goto(f"{url}/emergence?run={run}&step={steps[0]}&layer=0")
        until(lambda: page.evaluate(f"{SETTLED} && Boolean({SLIDER})"))
        page.evaluate(f"{SLIDER}.focus()")
        for step in steps[1 : trials + 1]:
            began = time.perf_counter()
            page.press("ArrowRight")
            until(lambda step=step: f"step={step}" in page.evaluate("location.search") and page.evaluate(SETTLED))
            rows.append({"wall_s": time.perf_counter() - began})
    return median(rows)


def thousand(folder: Path, store: Path, run: str, profile: Path) -> dict[str, float]:
    """A store of 1,000 runs: seconds of work for its list, and until the browser shows it."""
    many = Store(folder / "thousand")
    for number in range(1000):
        target = many.root / f"run-{number:04d}"
        (target / "checkpoints").mkdir(parents=True)
        for name in ("config.json", "status.json", "metrics.jsonl"):
            shutil.copy(store / run / name, target / name)
    began, spent = time.perf_counter(), time.process_time()
    rows = data.run_rows(many, many.names())
    found = {"list_wall_s": time.perf_counter() - began, "list_cpu_s": time.process_time() - spent}
    if len(rows) != 1000 or {row.state for row in rows} != {"done"}:
        raise Wrong("the list does not hold the thousand runs")
    with server(many.root) as (url, _), chromium(profile) as pipe:
        for name in ("first_s", "again_s"):
            page = Page(pipe)
            page.view()
            began = time.perf_counter()
            page.send("Page.navigate", url=f"{url}/runs?run=run-0000")
            until(lambda page=page: page.evaluate(SETTLED) and "1000 runs" in page.evaluate(SHOWN))
            found[name] = time.perf_counter() - began
    return found


def cancelling(folder: Path, profile: Path) -> dict[str, float]:
    """From the click on Cancel to the answer on the page, and to the end of the training."""
    store = Store(folder / "cancel")
    store.root.mkdir()
    job = jobs.start(store, ENDLESS, run="endless")
    with server(store.root) as (url, _), chromium(profile) as pipe:
        page = Page(pipe)
        page.view()
        until(lambda: "endless" in store.names() and store.run("endless").checkpoints(), 120)
        page.goto(f"{url}/runs")
        find = "[...document.querySelectorAll('button')].find((b) => b.innerText.trim() === 'Cancel')"
        until(lambda: page.evaluate(f"Boolean({find})"))
        began = time.perf_counter()
        page.evaluate(f"{find}.click()")
        until(lambda: "cancell" in page.evaluate(SHOWN))
        answered = time.perf_counter() - began
        until(lambda: "cancelled" in page.evaluate(SHOWN))
        shown = time.perf_counter() - began
    if job.status().state != "cancelled":
        raise Wrong(f"the page says cancelled, the job is {job.status().state}")
    return {"answered_s": answered, "cancelled_s": shown}


def sections(folder: Path, store: Path, run: str, trials: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each part of the measurement with its name, as soon as it is there."""
    steps = [ref.step for ref in Store(store).run(run).checkpoints()]
    with server(store) as (url, process):
        started = process.memory_info().rss / 1e6
        yield "paint", paints(url, run, process, trials, folder / "p1")
        yield "rerun", {"emergence": reruns(url, run, steps, trials, folder / "p2")}
        memory = {"started_mb": started, "after_all_views_mb": process.memory_info().rss / 1e6}
    yield "server", memory
    yield "thousand", thousand(folder, store, run, folder / "p3")
    yield "cancel", cancelling(folder, folder / "p4")
    yield "bars", BARS
    yield "machine", {"cores": os.cpu_count(), "load": os.getloadavg()[0], "system": platform.platform()}


def show(title: str, part: dict[str, Any]) -> None:
    """One line for each row of a part."""
    for key, value in part.items():
        row = value if isinstance(value, dict) else {"": value}
        words = [f"{name} {one:.3f}" if isinstance(one, float) else f"{name} {one}" for name, one in row.items()]
        print(f"{title:10} {key:20} {'  '.join(words)}", flush=True)


def main() -> None:
    """Measure, print a table, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--store", type=Path, help="folder of runs; a small run is made if not given")
    parser.add_argument("--run", help="run of that store")
    given = parser.parse_args()
    result = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        store, run = (given.store.resolve(), given.run) if given.store else small_store(folder)
        for title, part in sections(folder, store, run, given.trials):
            show(title, part)
            result[title] = part
    if given.out:
        given.out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
