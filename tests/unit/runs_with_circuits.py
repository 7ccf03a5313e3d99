"""A run folder around a trained model with an untrained checkpoint before it, for tests of discovery in runs."""

from pathlib import Path

from interp.model import Transformer
from interp.run import Run, Store
from tests.truth.exported import exported

LAST = 9


def run_with_circuit(folder: Path, steps: tuple[int, ...] = (0, LAST)) -> Run:
    """The solved polynomial run of seed 1 at all steps but 0, which is untrained."""
    (trained,) = exported("polynomial-d32-s1")
    model, _, _ = trained.load()
    made = Store(folder).create("solved", trained.config)
    with made.writer() as writer:
        for step in steps:
            weights = (model if step else Transformer(model.cfg, seed=0)).state_dict()
            writer.save(step, model=weights, optim={}, state={})
    return made
