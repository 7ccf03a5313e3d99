"""Attention patterns of one's own inputs at the checkpoints of a run; computed when asked for, never stored."""

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from interp.config import Frozen, validated
from interp.errors import TaskError
from interp.run import Run
from interp.tasks.base import Task
from interp.train import load_model, resolve
from probes.attention import attention_patterns
from probes.patterns_store import followed

if TYPE_CHECKING:
    from interp.worker import Warm

BUDGET = 16 << 20  # bytes of patterns in one answer; beyond, evenly chosen checkpoints


class OwnRequest(Frozen):
    """The request `own_patterns`."""

    run: str
    inputs: tuple[str, ...] = Field(min_length=1, max_length=4096, description="names of the input tokens")


@dataclass(frozen=True)
class OwnPatterns:
    """The whole sequence that the task writes for the inputs, and its patterns, [step layer head q_pos k_pos]."""

    tokens: list[str]
    targets: dict[str, list[tuple[int, int]]]
    steps: list[int]
    patterns: Float[np.ndarray, "step layer head q_pos k_pos"]


def patterns_of_inputs(run: Run, inputs: list[str] | tuple[str, ...]) -> OwnPatterns:
    """Patterns of the sequence whose inputs are given by name, with the states written out as the task's rule says.

    Raises:
        UnknownName: for a name that is no token; suggests the nearest.
        TaskError: if the task has no such length, or a token cannot be an input.
    """
    config, task = resolve(run.config)
    sequence = _encoded(task, inputs)
    refs = followed(run)
    size = 4 * config.model.n_layers * config.model.n_heads * sequence.shape[1] ** 2
    most = max(1, min(len(refs), BUDGET // size))
    places = sorted(set(np.linspace(len(refs) - 1, 0, most).round().astype(int).tolist()))
    chosen = [refs[place].step for place in places]
    found = [attention_patterns(load_model(run, step)[0], sequence)[:, 0].numpy() for step in chosen]
    targets = {role: list(pairs) for role, pairs in task.attention_targets(len(inputs)).items()}
    return OwnPatterns(task.vocabulary.names(sequence[0]), targets, chosen, np.stack(found))


def _encoded(task: Task, inputs: list[str] | tuple[str, ...]) -> Int[Tensor, "1 pos"]:
    """The sequence of these inputs; an input that the task refuses is named as it was written."""
    ids = torch.tensor([[task.vocabulary.id(name) for name in inputs]])
    task.layout(len(inputs))
    for place, name in enumerate(inputs):
        try:
            task.encode(ids[:, place : place + 1].expand(1, task.lengths[0]))
        except TaskError:
            raise TaskError(f"{task.name}: {name!r} cannot be an input of this task") from None
    return task.encode(ids)


def answer(warm: "Warm", request: dict[str, Any]) -> dict[str, Any]:
    """The worker's answer: as `OwnPatterns`, with the patterns as base64 of 32-bit floats and their `shape`."""
    asked: OwnRequest = validated(OwnRequest, request, "request own_patterns")
    found = patterns_of_inputs(warm.store.run(asked.run), asked.inputs)
    data = np.ascontiguousarray(found.patterns, dtype="<f4")
    return {
        "tokens": found.tokens,
        "targets": {role: [list(pair) for pair in pairs] for role, pairs in found.targets.items()},
        "steps": found.steps,
        "shape": list(data.shape),
        "patterns": base64.b64encode(data.tobytes()).decode("ascii"),
    }
