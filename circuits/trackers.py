"""Scores that the trainer follows while a run is going, so that checkpoints fall where a circuit moves."""

from torch import Tensor

from circuits.detectors._iteration_scan import OFFSETS, model_cells, scan_sequences
from interp.hooks import HookedModel
from interp.tasks.base import Task


def iteration_head_scores(model: HookedModel, task: Task, held_out: dict[int, Tensor]) -> dict[str, float]:
    """Largest attention mass on the clock and reading diagonals over all heads, averaged over lengths; in [0, 1].

    Empty for tasks without an iteration circuit (no chain of thought) or without a length of 4 or more.
    """
    probe = scan_sequences(task, held_out)
    if not probe or not task.attention_targets(min(probe)):
        return {}
    found = model_cells(model, task, probe)
    zero = OFFSETS.index(0)
    return {
        "clock": float(found.clock[..., zero].max()),
        "reading": float(found.reading[..., zero].max()),
    }
