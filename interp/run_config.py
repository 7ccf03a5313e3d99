"""Assembles a run's configuration: a task's preset, then a TOML file, then `--set`, seed and starting run."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interp.config import RunConfig, merged, parse_assignment, read_toml, validated
from interp.errors import ConfigError, UsageError

SEEDS = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
MOST_SEEDS = 10_000
WARM_STEPS, WARM_EVALUATION = 2_000, 125


def assemble(
    base: RunConfig,
    *,
    file: Path | None = None,
    assignments: Sequence[str] = (),
    seed: int | None = None,
    init: str | None = None,
) -> RunConfig:
    """`base` with each later source laid over it.

    Args:
        base: preset of the task, or the stored configuration of a run to resume.
        file: TOML with the same sections; its `task`, if any, must be that of `base`.
        assignments: texts such as "train.lr=3e-4".
        seed: None keeps the seed so far.
        init: run whose weights are the starting point; None keeps what the file says.

    Raises:
        ConfigError: naming the file or `--set`, the key and what is accepted.
    """
    values = base.model_dump(mode="json")
    if file is not None:
        given = read_toml(file)
        if given.get("task", base.task) != base.task:
            raise ConfigError(f"{file}: task is {given['task']!r}, but the command line says {base.task!r}")
        values = _checked(merged(values, _flattened(given)), str(file))
    changes = [parse_assignment(text) for text in assignments]
    changes += [(["seed"], seed)] if seed is not None else []
    changes += [(["init"], init)] if init is not None else []
    config = validated(RunConfig, _checked(merged(values, changes), "--set"), "--set")
    if config.task != base.task:
        raise ConfigError(f"--set task={config.task}: the task is the first argument ({base.task}); change it there")
    return config


def warm_base(preset: RunConfig, source: RunConfig) -> RunConfig:
    """The preset of a task, with the shape and the optimiser of the run it starts from.

    Weights only fit a model of the same shape, and a short budget is enough: parity starting from a solved polynomial
    run takes hundreds of steps where it takes thousands from scratch.
    """
    model = source.model.model_copy(update={"d_vocab": 0, "n_ctx": 0})
    brief = {"steps": WARM_STEPS, "eval_every": WARM_EVALUATION, "track_every": WARM_EVALUATION}
    return preset.model_copy(update={"model": model, "train": source.train.model_copy(update=brief)})


def _checked(values: dict[str, Any], where: str) -> dict[str, Any]:
    return validated(RunConfig, values, where).model_dump(mode="json")


def _flattened(values: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[list[str], Any]]:
    """(path, value) of every leaf of nested tables."""
    leaves: list[tuple[list[str], Any]] = []
    for key, value in values.items():
        here = (*path, key)
        leaves += _flattened(value, here) if isinstance(value, dict) else [(list(here), value)]
    return leaves


def parse_seeds(text: str) -> list[int]:
    """Seeds named by a text such as "0-9" or "1,3,8-11", in that order.

    Raises:
        UsageError: for anything else, a range that runs backwards, or a seed named twice.
    """
    seeds: list[int] = []
    for part in text.replace(" ", "").split(","):
        match = SEEDS.fullmatch(part)
        if match is None:
            raise UsageError(f"--seeds {text!r}: expected numbers and ranges, for example 0-9 or 1,3,8-11")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= MOST_SEEDS:
            raise UsageError(f"--seeds {text!r}: {part} runs backwards or names more than {MOST_SEEDS} seeds")
        seeds += range(first, last + 1)
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"--seeds {text!r}: names a seed twice")
    return seeds
