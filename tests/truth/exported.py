"""Reads the trained models kept in tests/truth/models (see export_models.py)."""

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from jaxtyping import Int
from safetensors.torch import load_file
from torch import Tensor

from interp.config import RunConfig
from interp.model import Transformer
from interp.tasks.base import Task
from interp.train import resolve

MODELS = Path(__file__).parent / "models"
SOLVED = 0.99


@dataclass(frozen=True)
class Exported:
    """One trained model: run name, configuration and what the index says of it."""

    name: str
    config: RunConfig
    step: int
    checkpoint: str
    lowest_accuracy: float

    @property
    def solved(self) -> bool:
        """At least 99 % of the held-out sequences right at every length."""
        return self.lowest_accuracy >= SOLVED

    @property
    def iterates(self) -> bool:
        """Trained with chain of thought, so that there is an iteration to look for."""
        return self.config.task_params.get("chain_of_thought", True)

    def load(self) -> tuple[Transformer, Task, dict[int, Int[Tensor, "sequence pos"]]]:
        """Model in evaluation mode, task and held-out sequences by length."""
        config, task = resolve(self.config)
        model = Transformer(config.model, seed=0)
        weights = load_file(MODELS / f"{self.name}.safetensors")
        model.load_state_dict({name: value.float() for name, value in weights.items()})
        return model.eval(), task, task.split(config.seed, config.data).test


def exported(pattern: str = "*") -> list[Exported]:
    """The models whose run name matches, in the order of their names."""
    rows = json.loads((MODELS / "index.json").read_text(encoding="utf-8"))["models"]
    return [
        Exported(
            row["run"],
            RunConfig.model_validate(row["config"]),
            row["step"],
            row["checkpoint"],
            row["lowest_sequence_accuracy"],
        )
        for row in rows
        if fnmatchcase(row["run"], pattern)
    ]
