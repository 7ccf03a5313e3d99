"""Describes a task as one JSON-ready object, from its preset parameters."""

from typing import Any

from interp.config import DataConfig
from interp.registry import load, origin
from interp.schemas import TaskOutput
from interp.tasks.base import Task, TaskEntry, preset_of

SHOWN_LENGTH = 3


def describe_task(name: str) -> TaskOutput:
    """Everything `interp tasks show` prints.

    Raises:
        UnknownName: if no task has that name.
    """
    entry: TaskEntry = load("task", name)
    preset = preset_of(entry)
    task: Task = entry.build(entry.params.model_validate(preset.task_params))
    length = next((n for n in task.lengths if n >= SHOWN_LENGTH), task.lengths[-1])
    return TaskOutput(
        name=name,
        summary=entry.summary,
        origin=origin("task", name),
        params=entry.params.model_json_schema(),
        preset=preset.model_dump(mode="json"),
        lengths=list(task.lengths),
        n_ctx=task.n_ctx,
        chain_of_thought=task.chain_of_thought,
        vocabulary=list(task.vocabulary.tokens),
        example=_example(task, length),
        description=_own_words(task, length),
    )


def _example(task: Task, length: int) -> list[str]:
    """Token names of the first training sequence of one length."""
    tokens = task.split(0, DataConfig(per_length=2)).train[length]
    return task.vocabulary.names(tokens[0]) if len(tokens) else []


def _own_words(task: Task, length: int) -> dict[str, Any]:
    """What the task says about itself; a task need not say anything."""
    describe = getattr(task, "describe", None)
    return describe(length) if describe is not None else {}
