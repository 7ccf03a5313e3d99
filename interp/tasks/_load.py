"""Turns a task's name and raw parameters into a checked task, fitting a model's shape to it."""

from typing import Any

from interp.config import ModelConfig, validated
from interp.errors import ConfigError
from interp.registry import load
from interp.tasks.base import Task


def build_task(name: str, params: dict[str, Any]) -> Task:
    """The named task with these parameters.

    Raises:
        UnknownName: if no task has that name.
        ConfigError: if a parameter is unknown or has a value that is not accepted.
    """
    entry = load("task", name)
    return entry.build(validated(entry.params, params, f"task_params of {name}"))


def model_config_for(cfg: ModelConfig, task: Task) -> ModelConfig:
    """`cfg` with `d_vocab` and `n_ctx` filled in from the task where they are 0.

    Raises:
        ConfigError: if either is set to less than the task needs.
    """
    needed = {"d_vocab": len(task.vocabulary), "n_ctx": task.n_ctx}
    values = cfg.model_dump()
    for key, least in needed.items():
        if 0 < values[key] < least:
            raise ConfigError(f"model.{key}={values[key]} is too small: {task.name} needs {least} (0 fills it in)")
        values[key] = values[key] or least
    return ModelConfig(**values)
