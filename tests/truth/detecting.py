"""Runs the detector on planted models at a small cost: few null models, one null per configuration."""

from dataclasses import dataclass, field

from circuits.detectors._iteration_scan import test_lengths as lengths_from_4
from circuits.detectors.base import Detection
from circuits.detectors.iteration_head import DETECTOR, Options
from interp.model import Transformer
from interp.tasks.base import Task
from probes.null import NullScan
from tests.truth.planted import Sequences

# 99 null models reach p = 0.01, the level. Planted circuits are found with these options (test_planted.py), so a null
# model that is refused is not refused for lack of data.
OPTIONS = Options(n_null=99, per_step=8, per_length=8, accuracy_sequences=32)


@dataclass
class Nulls:
    """One null per model configuration and set of lengths.

    Tasks of one vocabulary share it: the null models are untrained, and the textbook targets do not depend on the task.
    """

    known: dict[str, NullScan] = field(default_factory=dict)

    def of(self, model: Transformer, task: Task, sequences: Sequences) -> NullScan:
        """The null for a model, computed once."""
        key = f"{model.cfg.model_dump_json()} {lengths_from_4(task, sequences)}"
        if key not in self.known:
            self.known[key] = DETECTOR.null(model, task, sequences, OPTIONS)
        return self.known[key]


def detect(model: Transformer, task: Task, sequences: Sequences, nulls: Nulls, *, thorough: bool = True) -> Detection:
    """One detection; without `thorough` the causal checks are left out where the statistic already says no."""
    null = nulls.of(model, task, sequences)
    return DETECTOR.detect(
        model, task, sequences=sequences, options=OPTIONS, null=null, causal_if_attending=not thorough
    )


def joint_p(found: Detection) -> float:
    """Family-wise p-value of the attention statistic alone."""
    return next(row.p_value for row in found.null if row.role == "joint")
