"""The demonstration: train a polynomial model, detect its iteration heads over training, write the report."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from circuits.detect import Tell, detect_run
from circuits.outputs import DemoOutput
from circuits.report.build import build_report
from circuits.report.render import write_report
from interp.config import RunConfig
from interp.errors import ConfigError
from interp.registry import load
from interp.run import Run, Store
from interp.train import Progress, resolve, train
from probes.patterns_compute import store_patterns

TASK = "polynomial"


def run_demo(
    store: Path,
    name: str,
    seed: int,
    *,
    progress: Callable[[Progress], None] | None = None,
    tell: Tell | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> DemoOutput:
    """Train (or reuse a finished run of the same configuration), detect at every checkpoint and write the report.

    The attention patterns that the dashboard shows are stored on the way.

    Raises:
        ConfigError: a run of that name exists with another configuration.
    """
    torch.set_num_threads(1)
    config: RunConfig = load("task", TASK).preset().model_copy(update={"seed": seed})
    spent: dict[str, float] = {}
    started = time.process_time()
    run = _trained(Store(store), name, config, progress, say)
    spent["training"] = time.process_time() - started
    started = time.process_time()
    say(f"{name}: detecting at {len(run.checkpoints())} checkpoints")
    found = detect_run(run, every_checkpoint=True, tell=tell)
    spent["detection"] = time.process_time() - started
    started = time.process_time()
    store_patterns(run, tell=tell or (lambda what, done, of: None))
    spent["patterns"] = time.process_time() - started
    started = time.process_time()
    report = build_report(run, found=found)
    files = write_report(report, run.path / "report")
    spent["report"] = time.process_time() - started
    return DemoOutput(
        run=name,
        verdict=report.verdict,
        claim=report.claim,
        accuracy=min(row.sequence.value for row in found.detection.lengths),
        cpu_seconds={what: round(seconds, 2) for what, seconds in spent.items()},
        files={kind: str(path) for kind, path in files.items()},
    )


def _trained(
    store: Store, name: str, config: RunConfig, progress: Callable[[Progress], None] | None, say: Callable[[str], None]
) -> Run:
    """The finished run: new, continued, or found."""
    if name not in store.names():
        say(f"{name}: training {config.task} with its preset, seed {config.seed}")
        return train(config, store, name, progress=progress)
    if store.run(name).config.hash() != resolve(config)[0].hash():
        raise ConfigError(f"run {name!r} exists in {store.root} with another configuration; give another --name")
    say(f"{name}: found in {store.root}, continuing where it stopped")
    return train(config, store, name, resume=True, progress=progress)
