"""Speed of the attention view in headless Chromium: first paint, scrubbing without the server, reruns, size, memory.

Run: python -m benchmarks.canvas [--out benchmarks/results/canvas.json] [--trials 5]
Two runs with random patterns: 8 heads x 64 tokens x 100 checkpoints, and 8 heads x 512 tokens x 7 checkpoints.
Nothing is timed unless a value read in the page equals the stored one. Chromium renders in software. Beside the times
on the clock stand processor times of server and browser together, which other work on the machine changes little.
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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from dashboards.launch import STORE, command, free_port, stop, wait_until_up
from interp.registry import load
from interp.run import Run, Store
from interp.run_config import assemble
from interp.tasks.base import preset_of
from probes.patterns_store import PatternPrompt, PatternRecord, pattern_index, pattern_key, read_patterns
from tests.browser.chromium import Page, Pipe, chromium

BARS = {
    "first_paint_s": 3.0,
    "rerun_s": 0.4,
    "scrub_ms": 50.0,
    "long_drawn_s": 3.0,
    "long_heap_mb": 60.0,
    "server_mb": 300.0,
}
SHAPE = ["model.n_heads=8", "model.n_layers=1", "model.d_model=32"]
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


def stored(store: Store, name: str, n_pos: int, checkpoints: int) -> Run:
    """A run of 8 heads that was never trained: checkpoints without a model, and random causal patterns stored for them.

    The first sequence has `n_pos` tokens, the second 9.
    """
    config = assemble(preset_of(load("task", "polynomial")), assignments=SHAPE, seed=0)
    run, draw = store.create(name, config), np.random.default_rng(0)
    lengths = (n_pos, 9)
    prompts = tuple(
        PatternPrompt(label=f"{n} tokens", length=n, tokens=tuple(str(place % 10) for place in range(n)))
        for n in lengths
    )
    with run.writer() as writer:
        for step in range(checkpoints):
            ref = writer.save(step, model={"w": torch.zeros(1)}, optim={}, state={})
            arrays = {f"prompt_{place}": causal(n, draw) for place, n in enumerate(lengths)}
            shape = {"n_layers": 1, "n_heads": 8, "rule": "random"}
            record = PatternRecord(step=step, checkpoint="", prompts=prompts, **shape)
            run.write_analysis(pattern_key(run, ref), record.model_dump(mode="json"), arrays)
    return run


def causal(n_pos: int, draw: np.random.Generator) -> np.ndarray:
    """Random causal patterns, [1 8 n_pos n_pos]."""
    weights = np.exp(draw.normal(0, 2, (1, 8, n_pos, n_pos)).astype(np.float32)) * np.tri(n_pos, dtype=np.float32)
    return weights / weights.sum(-1, keepdims=True)


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
    page.send("Network.disable")  # else every message is also copied to this process, which takes seconds when long
    page.view(1440, 1100)
    start = time.monotonic()
    page.send("Page.navigate", url=address)
    while not page.evaluate(PAINTED):
        if time.monotonic() - start > 60:
            sys.exit(f"nothing painted at {address}")
    page.settle()
    return page, time.monotonic() - start


def cpu_seconds() -> float:
    """Processor time of the server and of every process of the browser so far, whatever else the machine does."""
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total += sum(child.cpu_times()[:2])
    return total


def heap_mb(page: Page) -> float:
    """JavaScript heap after collecting what is not used."""
    page.send("HeapProfiler.collectGarbage")
    return page.evaluate("performance.memory.usedJSHeapSize") / 2**20


def gate(page: Page, run: Run, head: int) -> None:
    """Leave unless the exact value on the page is the stored one, and the drawn one within 0.004 of it."""
    waited(page, f"{EXACT} !== '…'")
    state = page.evaluate(f"{HANDLE}.state()")
    index = pattern_index(run)
    stored = read_patterns(run, index, 0, [state["step"]])[0, state["layer"], head, state["q"], state["k"]]
    if abs(float(page.evaluate(EXACT)) - stored) > 1e-6 or abs(state["attention"] - stored) > 0.004:
        sys.exit(f"the page shows {page.evaluate(EXACT)} for {stored}; nothing is reported")


def many_checkpoints(pipe: Pipe, base: str, run: Run, trials: int) -> dict[str, Any]:
    """First paint, scrubbing, and reruns of the view at 8 heads x 64 tokens x 100 checkpoints."""
    address, paints, spent = f"{base}/attention?run={run.name}&layer=0&head=0", [], {"paint": [], "rerun": []}
    for _ in range(trials + 1):  # the first also fills the caches of the server and is left out
        start = cpu_seconds()
        page, seconds = opened(pipe, address)
        paints.append(seconds)
        spent["paint"].append(cpu_seconds() - start)
    gate(page, run, 0)
    page.send("Network.enable")
    before = len(page._own("Network.webSocketFrameSent"))
    start = cpu_seconds()
    scrub = page.evaluate(SCRUB)
    per_step = (cpu_seconds() - start) / len(scrub["script"])
    asked = len(page._own("Network.webSocketFrameSent")) - before
    reruns, sequences = [], []
    for trial in range(trials):
        head = 1 + trial % 7
        click = f"{HANDLE}.element.querySelectorAll('.ag-head')[{head}].click()"
        start = cpu_seconds()
        reruns.append(waited(page, f"{EXACT} !== '…'", click))
        spent["rerun"].append(cpu_seconds() - start)
        gate(page, run, head)
    if len(page._own("Network.webSocketFrameSent")) == before:
        sys.exit("clicks sent nothing, so the count of messages while scrubbing says nothing")
    page.close()
    for _ in range(trials):
        page, _ = opened(pipe, address)
        title = f"{HANDLE}?.element?.querySelectorAll('.ag-strip span').length !== 64"
        sequences.append(choose_sequence(page, title))
        page.close()
    return {
        "first_paint_s": statistics.median(paints[1:]),
        "first_paint_cold_s": paints[0],
        "first_paint_cpu_s": statistics.median(spent["paint"][1:]),
        "scrub_script_ms": statistics.median(scrub["script"]),
        "scrub_ms": statistics.median(scrub["painted"]),
        "scrub_cpu_ms": 1000 * per_step,
        "scrub_worst_ms": max(scrub["painted"]),
        "scrub_messages_sent": asked,
        "rerun_s": statistics.median(reruns),
        "rerun_cpu_s": statistics.median(spent["rerun"]),
        "other_sequence_s": statistics.median(sequences),
        "checkpoints": len(scrub["script"]),
    }


def choose_sequence(page: Page, changed: str) -> float:
    """Seconds from the key that takes the last sequence of the picker to its painted picture."""
    page.evaluate("document.querySelector('[role=combobox][aria-label*=Sequence]').focus()")
    page.press("ArrowDown")
    waited(page, "document.querySelectorAll('[role=option]').length === 2")
    page.press("ArrowDown")
    start = time.monotonic()
    page.press("Enter")
    waited(page, changed)
    page.settle()
    return time.monotonic() - start


def long_sequence(pipe: Pipe, base: str, run: Run, trials: int) -> dict[str, float]:
    """8 heads x 512 tokens: time until drawn, heap, and one step of the slider."""
    address, paints, heaps, spent = f"{base}/attention?run={run.name}", [], [], []
    for _ in range(trials):
        start = cpu_seconds()
        page, seconds = opened(pipe, address)
        spent.append(cpu_seconds() - start)
        paints.append(seconds)
        heaps.append(heap_mb(page))
        scrub = page.evaluate(SCRUB)
        page.close()
    return {
        "long_drawn_s": statistics.median(paints),
        "long_drawn_cpu_s": statistics.median(spent),
        "long_heap_mb": statistics.median(heaps),
        "long_scrub_ms": statistics.median(scrub["painted"]),
    }


ROWS = {
    "first_paint_s": "first paint of a run, 8 heads x 64 tokens x 100 checkpoints, s",
    "scrub_ms": "one checkpoint further, to the second painted frame, ms",
    "rerun_s": "click on a head until its exact values are there, s",
    "long_drawn_s": "8 heads x 512 tokens drawn, s",
    "long_heap_mb": "JavaScript memory with them, MB",
    "server_mb": "memory of the server afterwards, MB",
}
CPU = {"first_paint_s": "first_paint_cpu_s", "rerun_s": "rerun_cpu_s", "long_drawn_s": "long_drawn_cpu_s"}


def table(record: dict[str, Any]) -> str:
    """The measurement as the Markdown table that the docs show."""
    found = record["measured"]
    lines = ["| what | measured | processor time | bar |", "|---|---|---|---|"]
    for name, words in ROWS.items():
        spent = f"{found[CPU[name]]:.2f}" if name in CPU else ""
        lines.append(f"| {words} | {found[name]:.2f} | {spent} | {record['bars'][name]:g} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "canvas.json")
    parser.add_argument("--trials", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "runs")
        many, long = stored(store, "many", 64, 100), stored(store, "long", 512, 7)
        with served(store) as (base, server), chromium(Path(folder) / "profile") as pipe:
            found = many_checkpoints(pipe, base, many, args.trials) | long_sequence(pipe, base, long, args.trials)
            found["server_mb"] = server.memory_info().rss / 2**20
            found["load_average"] = os.getloadavg()[0]
    rounded = {name: round(value, 3) for name, value in found.items()}
    kept = {name: rounded[name] <= bar for name, bar in BARS.items()}
    record = {"measured": rounded, "bars": BARS, "kept": kept, "trials": args.trials, "machine": platform.machine()}
    args.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for name, value in rounded.items():
        print(f"{name:20} {value:9} {f'bar {BARS[name]}' if name in BARS else ''}")


if __name__ == "__main__":
    main()
