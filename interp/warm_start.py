"""Start a model from another run's weights, matching vocabulary rows by token name."""

from dataclasses import dataclass
from typing import Any

import torch

from interp.config import ModelConfig
from interp.errors import ConfigError
from interp.model import Transformer
from interp.tasks.base import Task

ROWS = {"embed.W_E": 0, "unembed.W_U": 1, "unembed.b_U": 0}  # parameter -> its vocabulary axis
POSITIONS = "pos_embed.W_pos"


@dataclass(frozen=True)
class WarmStart:
    """Which token rows and positions came from the source and which keep their fresh initialisation."""

    copied: tuple[str, ...]
    reinitialised: tuple[str, ...]
    positions_copied: int
    positions_reinitialised: int

    def summary(self) -> dict[str, Any]:
        """JSON form for the event log."""
        return {
            "copied": list(self.copied),
            "reinitialised": list(self.reinitialised),
            "positions_copied": self.positions_copied,
            "positions_reinitialised": self.positions_reinitialised,
        }


@torch.no_grad()
def warm_start(model: Transformer, task: Task, source: Transformer, source_task: Task) -> WarmStart:
    """Copy every weight of `source` into `model`; token rows by name, position rows by position.

    Raises:
        ConfigError: if the two models differ in more than vocabulary and context length; nothing is copied then.
    """
    shared = [name for name in task.vocabulary.tokens if name in source_task.vocabulary.ids]
    to_rows = torch.tensor([task.vocabulary.id(name) for name in shared])
    from_rows = torch.tensor([source_task.vocabulary.id(name) for name in shared])
    _require_same_function(model.cfg, source.cfg)
    own, other = model.state_dict(), source.state_dict()  # state_dict gives the parameters' own memory
    positions = (0, 0)
    for name, target in own.items():
        value = other[name].to(target.dtype)
        if name in ROWS:
            target.index_copy_(ROWS[name], to_rows, value.index_select(ROWS[name], from_rows))
        elif name == POSITIONS:
            count = min(len(target), len(value))
            target[:count] = value[:count]
            positions = (count, len(target) - count)
        else:
            target.copy_(value)
    fresh = tuple(name for name in task.vocabulary.tokens if name not in source_task.vocabulary.ids)
    return WarmStart(tuple(shared), fresh, *positions)


def _require_same_function(mine: ModelConfig, theirs: ModelConfig) -> None:
    """Raise ConfigError where equal shapes would hide another norm, activation or residual stream."""
    free = {"d_vocab", "n_ctx", "dropout", "frozen"}
    ours, given = mine.model_dump(exclude=free), theirs.model_dump(exclude=free)
    ours |= {"d_head": mine.head_width, "d_mlp": mine.mlp_width}
    given |= {"d_head": theirs.head_width, "d_mlp": theirs.mlp_width}
    for key, value in ours.items():
        if value != given[key]:
            raise ConfigError(f"--init: model.{key} is {given[key]!r} in the source and {value!r} here")
