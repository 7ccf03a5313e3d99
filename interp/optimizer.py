"""Optimisers, learning-rate schedules and the flat tensor form in which optimiser state is stored."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from interp.config import TrainConfig
from interp.errors import CheckpointError, ConfigError


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The configured optimiser over the parameters that are trained.

    Raises:
        ConfigError: if every parameter is frozen.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ConfigError("model.frozen freezes every parameter; leave at least one to train")
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
    cls = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return cls(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of update number `step`, counted from 0: linear warm-up, then the schedule down to 0 at the end."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    if config.schedule == "linear":
        return config.lr * (1 - done)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of the optimiser as `optim.<parameter>.<slot>` tensors; scalars become 0-d tensors."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"optim.{name}.{slot}"] = torch.as_tensor(value).detach().clone()
    return tensors


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put stored `optim.*` tensors back.

    Raises:
        CheckpointError: if a stored slot belongs to no trained parameter or has another shape.
    """
    state: dict[Any, dict[str, Tensor]] = {}
    by_name = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for key, value in tensors.items():
        if not key.startswith("optim."):
            continue
        name, _, slot = key.removeprefix("optim.").rpartition(".")
        if name not in by_name:
            raise CheckpointError(f"optim.safetensors: {key} belongs to no trained parameter of this model")
        target = by_name[name]
        if value.shape not in (target.shape, ()):
            raise CheckpointError(f"optim.safetensors: {key} is {list(value.shape)}, not {list(target.shape)}")
        keep_device = slot == "step" and target.device.type == "cpu"
        state.setdefault(target, {})[slot] = value.clone() if keep_device else value.to(target.device).clone()
    for parameter, slots in state.items():
        optimizer.state[parameter] = slots
