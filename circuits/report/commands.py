"""The command lines that make a run and its report again."""

import shlex
from typing import Any

from circuits.detectors.iteration_head import Options
from circuits.report.schema import Command
from interp.registry import load
from interp.run import Run
from interp.train import resolve


def rerun_commands(run: Run, options: Options) -> list[Command]:
    """Train, detect, report and verify, in order; every setting that differs from the task's preset is spelled out."""
    config = run.config
    preset, _ = resolve(load("task", config.task).preset())
    words = ["interp", "train", config.task, "--seed", str(config.seed), "--name", run.name]
    words += ["--init", config.init] if config.init else []
    for key, value in differences(preset.model_dump(mode="json"), config.model_dump(mode="json")):
        if key not in ("seed", "init"):
            words += ["--set", f"{key}={toml_value(value)}"]
    return [
        Command(purpose="train the run", line=shlex.join(words)),
        Command(purpose="detect", line=shlex.join(["interp", "detect", run.name, "--checkpoints", "all"])),
        Command(purpose="write the report", line=shlex.join(["interp", "report", "make", run.name])),
        Command(
            purpose="recompute its numbers",
            line=shlex.join(["interp", "report", "verify", f"runs/{run.name}/report/report.json", "--rerun"]),
        ),
    ]


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
