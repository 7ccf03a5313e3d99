"""The command lines that make a run and its report again."""

import shlex
from typing import Any

from circuits.detectors.base import Detection
from circuits.report.schema import Command
from interp.registry import load
from interp.run import Run, Store
from interp.run_config import warm_base
from interp.train import resolve


def rerun_commands(run: Run, detection: Detection) -> list[Command]:
    """Train, detect, report and verify, in order; every setting that differs from the starting point is spelled out."""
    store = run.path.parent
    where = [] if store.name == "runs" else ["--store", store.name]
    chosen = detection.options
    last = max((ref.step for ref in run.checkpoints(rolling=True)), default=detection.step)
    step = [] if detection.step == last else ["--step", str(detection.step)]
    detect = ["interp", "detect", run.name, "--checkpoints", "all", *where]
    detect += ["--null", str(chosen["n_null"])] if chosen.get("n_null", 500) != 500 else []
    detect += ["--seed", str(detection.seed)] if detection.seed else []
    report = f"{store.name}/{run.name}/report/report.json"
    return [
        *training_commands(run, where),
        Command(purpose="detect", line=shlex.join(detect)),
        Command(purpose="write the report", line=shlex.join(["interp", "report", "make", run.name, *step, *where])),
        Command(purpose="recompute its numbers", line=shlex.join(["interp", "report", "verify", report, "--rerun"])),
    ]


def training_commands(run: Run, where: list[str]) -> list[Command]:
    """The command that trains a run, after those of the runs it starts from."""
    config, earlier = run.config, []
    base = load("task", config.task).preset()
    if config.init:
        source = Store(run.path.parent).run(config.init)
        earlier = training_commands(source, where)
        base = warm_base(base, source.config)
    words = ["interp", "train", config.task, "--seed", str(config.seed), "--name", run.name]
    words += ["--init", config.init] if config.init else []
    start, _ = resolve(base)
    for key, value in differences(start.model_dump(mode="json"), config.model_dump(mode="json")):
        if key not in ("seed", "init"):
            words += ["--set", f"{key}={toml_value(value)}"]
    return [*earlier, Command(purpose=f"train {run.name}", line=shlex.join([*words, *where]))]


def differences(old: dict[str, Any], new: dict[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """Dotted keys whose value differs, with the new value."""
    found = []
    for key, value in new.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            found += differences(old[key], value, name)
        elif value != old.get(key):
            found.append((name, value))
    return found


def toml_value(value: Any) -> str:
    """A value as TOML text, which is how `--set` reads it."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return value
        case list() | tuple():
            return "[" + ", ".join(f'"{v}"' if isinstance(v, str) else toml_value(v) for v in value) + "]"
        case _:
            return repr(value)
