"""Speed of the attention view in headless Chromium: first paint, scrubbing without the server, reruns, size, memory.

Run: python -m benchmarks.canvas [--out benchmarks/results/canvas.json] [--trials 5]
Two runs are trained for a moment and their patterns stored: 8 heads x 65 tokens x 100 checkpoints, and 8 heads x 511
tokens. Nothing is timed unless a value read in the page equals the stored one. Chromium renders in software.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from dashboards.attention_data import exact_head
from dashboards.launch import STORE, command, free_port, stop, wait_until_up
from interp.registry import load
from interp.run import Run, Store
from interp.run_config import assemble
from interp.tasks.base import preset_of
from interp.train import train
from probes.patterns_compute import store_patterns
from probes.patterns_store import pattern_index
from tests.browser.chromium import Page, Pipe, chromium

BARS = {
    "first_paint_s": 3.0,
    "rerun_s": 0.4,
    "scrub_ms": 50.0,
    "long_drawn_s": 3.0,
    "long_heap_mb": 60.0,
    "server_mb": 300.0,
}
SHAPE = ["model.n_heads=8", "model.n_layers=1", "model.d_model=32", "train.track_every=100000"]
MANY = ["train.steps=99", "train.checkpoint_first=1", "train.checkpoint_ratio=1.001", "task_params.max_length=31"]
LONG = ["train.steps=3", "train.checkpoint_first=1", "train.checkpoint_ratio=1.001", "task_params.max_length=254"]
DATA = ["data.per_length=4", "train.batch_size=4", "train.eval_every=100000"]
HANDLE = "window.interpGuides?.get('attention-grid')?.grid"
PLOT = "g.element.querySelector('.ag-plot')"
PAINTED = f"(() => {{ const g = {HANDLE}; return Boolean(g && g.element.isConnected && {PLOT}.width > 50); }})()"
EXACT = f"{HANDLE}.element.querySelector('.ag-exact-now').textContent"
# Milliseconds of script per step, and to the second painted frame, over all checkpoints in turn.
SCRUB = """
(async () => {
  const slider = HANDLE.element.querySelector(".ag-slider");
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  const [script, painted] = [[], []];
  for (let i = 0; i <= Number(slider.max); i += 1) {
    const start = performance.now();
    slider.value = String(i);
    slider.dispatchEvent(new Event("input"));
    script.push(performance.now() - start);
    await frame();
    await frame();
    painted.push(performance.now() - start);
  }
  return { script, painted };
})()
""".replace("HANDLE", HANDLE)
WAIT = """
new Promise((done, fail) => {
  const start = performance.now();
  const look = () => {
    if (CONDITION) return done(performance.now() - start);
    if (performance.now() - start > 60000) return fail(new Error("not within a minute"));
    return setTimeout(look, 5);
  };
  ACT;
  look();
})
"""


def trained(store: Store, name: str, settings: list[str]) -> Run:
    """A run of the given shape with stored patterns."""
    config = assemble(preset_of(load("task", "polynomial")), assignments=[*SHAPE, *DATA, *settings], seed=0)
    run = train(config, store, name)
    store_patterns(run)
    return run


@contextmanager
def served(store: Store) -> Iterator[tuple[str, psutil.Process]]:
    """The dashboard's address and process."""
    port = free_port(None, "127.0.0.1")
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command(port), env={**os.environ, STORE: str(store.root)}, **quiet)
    try:
        if not wait_until_up(port, server):
            sys.exit("the dashboard did not start")
        yield f"http://127.0.0.1:{port}", psutil.Process(server.pid)
    finally:
        stop(server)


def waited(page: Page, condition: str, act: str = "0") -> float:
    """Seconds from an act in the page until a condition holds there."""
    return page.evaluate(WAIT.replace("CONDITION", condition).replace("ACT", act)) / 1000


def opened(pipe: Pipe, address: str) -> tuple[Page, float]:
    """A new tab with the grid painted, and the seconds that took."""
    page = Page(pipe)
    page.view(1440, 1100)
    start = time.monotonic()
    page.send("Page.navigate", url=address)
    while not page.evaluate(PAINTED):
        if time.monotonic() - start > 60:
            sys.exit(f"nothing painted at {address}")
    page.settle()
    return page, time.monotonic() - start


def heap_mb(page: Page) -> float:
    """JavaScript heap after collecting what is not used."""
    page.send("HeapProfiler.collectGarbage")
    return page.evaluate("performance.memory.usedJSHeapSize") / 2**20


def gate(page: Page, run: Run, head: int) -> None:
    """Leave unless the exact value on the page is the stored one, and the drawn one within 0.004 of it."""
    waited(page, f"{EXACT} !== 'click the cell'")
    state = page.evaluate(f"{HANDLE}.state()")
    index = pattern_index(run)
    stored = exact_head(run, index, 0, state["step"], state["layer"], head)[state["q"], state["k"]]
    if abs(float(page.evaluate(EXACT)) - stored) > 1e-6 or abs(state["attention"] - stored) > 0.004:
        sys.exit(f"the page shows {page.evaluate(EXACT)} for {stored}; nothing is reported")


def many_checkpoints(pipe: Pipe, base: str, run: Run, trials: int) -> dict[str, Any]:
    """First paint, scrubbing, and reruns of the view at 8 heads x 65 tokens x 100 checkpoints."""
    address, paints = f"{base}/attention?run={run.name}&layer=0&head=0", []
    for _ in range(trials + 1):  # the first also fills the caches of the server and is left out
        page, seconds = opened(pipe, address)
        paints.append(seconds)
    gate(page, run, 0)
    sent = [len(page._own(f"Network.webSocketFrame{way}")) for way in ("Sent", "Received")]
    scrub = page.evaluate(SCRUB)
    messages = [len(page._own(f"Network.webSocketFrame{way}")) for way in ("Sent", "Received")]
    if messages != sent:
        sys.exit(f"scrubbing talked to the server: {sent} became {messages}")
    reruns, sequences = [], []
    for trial in range(trials):
        head = 1 + trial % 7
        click = f"{HANDLE}.element.querySelectorAll('.ag-head')[{head}].click()"
        reruns.append(waited(page, f"{EXACT} !== 'click the cell'", click))
        gate(page, run, head)
    page.close()
    for _ in range(trials):
        page, _ = opened(pipe, address)
        title = f"{HANDLE}?.element?.querySelectorAll('.ag-strip span').length !== 65"
        sequences.append(choose_sequence(page, title))
        page.close()
    return {
        "first_paint_s": statistics.median(paints[1:]),
        "first_paint_cold_s": paints[0],
        "scrub_script_ms": statistics.median(scrub["script"]),
        "scrub_ms": statistics.median(scrub["painted"]),
        "scrub_worst_ms": max(scrub["painted"]),
        "scrub_messages": 0,
        "rerun_s": statistics.median(reruns),
        "other_sequence_s": statistics.median(sequences),
        "checkpoints": len(scrub["script"]),
    }


def choose_sequence(page: Page, changed: str) -> float:
    """Seconds from the key that takes the last sequence of the picker to its painted picture."""
    page.evaluate("document.querySelector('[role=combobox][aria-label*=Sequence]').focus()")
    for _ in range(6):
        page.press("ArrowDown")
    waited(page, "document.querySelectorAll('[role=option]').length > 6")
    start = time.monotonic()
    page.press("Enter")
    waited(page, changed)
    page.settle()
    return time.monotonic() - start


def long_sequence(pipe: Pipe, base: str, run: Run, trials: int) -> dict[str, float]:
    """8 heads x 511 tokens: time until drawn, heap, and one step of the slider."""
    address, paints, heaps = f"{base}/attention?run={run.name}", [], []
    for _ in range(trials):
        page, seconds = opened(pipe, address)
        paints.append(seconds)
        heaps.append(heap_mb(page))
        scrub = page.evaluate(SCRUB)
        page.close()
    return {
        "long_drawn_s": statistics.median(paints),
        "long_heap_mb": statistics.median(heaps),
        "long_scrub_ms": statistics.median(scrub["painted"]),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "canvas.json")
    parser.add_argument("--trials", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "runs")
        many, long = trained(store, "many", MANY), trained(store, "long", LONG)
        with served(store) as (base, server), chromium(Path(folder) / "profile") as pipe:
            found = many_checkpoints(pipe, base, many, args.trials) | long_sequence(pipe, base, long, args.trials)
            found["server_mb"] = server.memory_info().rss / 2**20
    rounded = {name: round(value, 3) for name, value in found.items()}
    kept = {name: rounded[name] <= bar for name, bar in BARS.items()}
    record = {"measured": rounded, "bars": BARS, "kept": kept, "trials": args.trials, "machine": platform.machine()}
    args.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for name, value in rounded.items():
        print(f"{name:20} {value:9} {f'bar {BARS[name]}' if name in BARS else ''}")


if __name__ == "__main__":
    main()
