"""What one training is made of, advanced by a single optimiser step."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp.config import RunConfig
from interp.errors import Diverged
from interp.finite import all_finite, first_bad_tensor
from interp.model import Transformer
from interp.optimizer import learning_rate
from interp.tasks.base import Split, Task

Tracker = Callable[[Transformer, Task, dict[int, Tensor]], dict[str, float]]


@dataclass
class Loop:
    """The moving parts of one training; everything here is in the checkpoint or is rebuilt from the configuration."""

    config: RunConfig
    task: Task
    device: torch.device
    split: Split
    model: Transformer
    optimizer: torch.optim.Optimizer
    batches: torch.Generator
    trackers: list[Tracker]
    step: int = 0
    solved_in_a_row: int = 0
    loss: float = float("nan")
    accuracy: dict[int, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    saved_scores: dict[str, float] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """True when the budget is used up or every length has been solved often enough in a row."""
        return self.step >= self.config.train.steps or self.solved_in_a_row >= self.config.train.stop_patience


def draw_batch(loop: Loop) -> tuple[Int[Tensor, "batch pos"], int]:
    """Training sequences of one length, drawn uniformly over lengths, then over that length's sequences."""
    lengths = [length for length, tokens in loop.split.train.items() if len(tokens)]
    length = lengths[int(torch.randint(len(lengths), (), generator=loop.batches))]
    pool = loop.split.train[length]
    rows = torch.randint(len(pool), (loop.config.train.batch_size,), generator=loop.batches)
    return pool[rows].to(loop.device), length


def batch_loss(loop: Loop, tokens: Int[Tensor, "batch pos"], length: int) -> Float[Tensor, ""]:
    """Mean cross-entropy over the positions that the configuration scores."""
    scored = loop.task.target_mask(length, loop.config.train.loss).nonzero().squeeze(1)
    logits = loop.model(tokens)[:, scored]  # batch scored d_vocab
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, scored + 1].flatten())


def update(loop: Loop) -> None:
    """One optimiser step on one batch.

    Raises:
        Diverged: before the weights change, if the loss or a gradient is not finite.
    """
    settings = loop.config.train
    tokens, length = draw_batch(loop)
    for group in loop.optimizer.param_groups:
        group["lr"] = learning_rate(settings, loop.step)
    loss = batch_loss(loop, tokens, length)
    loop.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for p in loop.model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if not all_finite(loss.detach(), norm):
        raise diverged(loop, first_bad_tensor(loop.model, tokens, loss.detach()))
    if settings.clip:
        torch.nn.utils.clip_grads_with_norm_(parameters, settings.clip, norm)
    loop.optimizer.step()
    loop.step += 1
    loop.loss = loss.item()


def diverged(loop: Loop, where: str) -> Diverged:
    """The error for a tensor that is not finite."""
    return Diverged(
        f"step {loop.step}: {where} is not finite; the last good checkpoint is kept; "
        "train under another name with a lower train.lr or with train.clip set"
    )
