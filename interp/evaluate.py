"""Accuracy and margin of a model on held-out sequences, teacher-forced or free-running."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.hooks import HookedModel
from interp.tasks.base import Task


@dataclass(frozen=True)
class TeacherForced:
    """Per-step outcome under teacher forcing; steps are s_1..s_L, then the first EoS."""

    length: int
    correct: Bool[Tensor, "sequence step"]
    margin: Float[Tensor, "sequence step"]
    loss: float

    @property
    def sequence(self) -> Bool[Tensor, "sequence"]:
        """True where every step is right."""
        return self.correct.all(dim=1)


def step_positions(task: Task, length: int) -> list[int]:
    """Positions whose next token is scored: the queries, then the position that predicts the first EoS."""
    layout = task.layout(length)
    return [*layout.queries, layout.end]


@torch.inference_mode()
def teacher_forced(model: HookedModel, task: Task, tokens: Int[Tensor, "sequence pos"], length: int) -> TeacherForced:
    """Score every step of ground-truth sequences.

    The margin is the correct logit minus the best wrong one: positive where the step is right, in logit units, 0 on
    average for a model that ignores its input, without an upper bound.
    """
    positions = step_positions(task, length)
    logits = model(tokens)[:, positions]  # sequence step d_vocab
    targets = tokens[:, [p + 1 for p in positions]]  # sequence step
    margin = logit_margin(logits, targets)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item() if len(tokens) else float("nan")
    return TeacherForced(length, margin > 0, margin, loss)


def logit_margin(logits: Float[Tensor, "*shape d_vocab"], targets: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Correct minus best wrong logit."""
    right = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    wrong = logits.scatter(-1, targets.unsqueeze(-1), float("-inf")).amax(-1)
    return right - wrong


@torch.inference_mode()
def free_running(
    model: HookedModel, task: Task, tokens: Int[Tensor, "sequence pos"], length: int
) -> Bool[Tensor, "sequence step"]:
    """Which steps are right when the model reads the inputs and then writes its own states, greedily."""
    positions = step_positions(task, length)
    written = tokens[:, : positions[0] + 1]  # everything up to and including EoI
    for _ in positions:
        written = torch.cat([written, model(written)[:, -1:].argmax(-1)], dim=1)
    return written[:, positions[0] + 1 :] == tokens[:, [p + 1 for p in positions]]


def free_steps(
    model: HookedModel, task: Task, tokens: Int[Tensor, "sequence pos"], forced: TeacherForced
) -> Bool[Tensor, "sequence step"]:
    """`free_running` of every sequence, run only where teacher forcing has a wrong step.

    Greedy free running gets a whole sequence right exactly where teacher forcing does, so only single steps differ.
    """
    own, wrong = forced.correct.clone(), ~forced.sequence
    if wrong.any():
        own[wrong] = free_running(model, task, tokens[wrong], forced.length)
    return own


@dataclass(frozen=True)
class LengthScore:
    """Mean scores at one length over n sequences; `free_step` is None where free running was not asked for."""

    n: int
    sequence: float
    step: float
    margin: float
    loss: float
    free_step: float | None


def score_lengths(
    model: HookedModel, task: Task, sequences: dict[int, Int[Tensor, "_sequence _pos"]], *, free: bool = False
) -> dict[int, LengthScore]:
    """Score every length that has sequences.

    Greedy free running gets a whole sequence right exactly where teacher forcing does, so only single steps can
    differ, and only sequences with a wrong step are run again.
    """
    was_training = model.training
    model.eval()
    scores = {}
    for length, tokens in sequences.items():
        if not len(tokens):
            continue
        forced = teacher_forced(model, task, tokens, length)
        free_step = free_steps(model, task, tokens, forced).float().mean().item() if free else None
        scores[length] = LengthScore(
            n=len(tokens),
            sequence=forced.sequence.float().mean().item(),
            step=forced.correct.float().mean().item(),
            margin=forced.margin.mean().item(),
            loss=forced.loss,
            free_step=free_step,
        )
    model.train(was_training)
    return scores
