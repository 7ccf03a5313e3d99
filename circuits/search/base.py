"""What a search method takes and gives: prompts to score on, and a ranking of all edges."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.problem import Part, Problem

Tell = Callable[[str, int, int], None]  # (what, done, of)


def silent(what: str, done: int, of: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Search:
    """One search: the problem and what every method may need.

    Attributes:
        warm: scores to start from, for methods that refine; None: they start from nothing.
        steps: gradient steps of methods that train a mask.
    """

    problem: Problem
    seed: int = 0
    warm: Float[Tensor, "sender receiver *place"] | None = None
    steps: int = 60
    tell: Tell = field(default=silent)

    @property
    def part(self) -> Part:
        """The prompts that edges are ranked on."""
        return self.problem.parts["score"]


@dataclass(frozen=True)
class Ranking:
    """Scores of all edges; the larger its magnitude, the more an edge matters. 0 where an edge is not live.

    Attributes:
        scores: positive where the edge helps: leaving it out lowers the metric, or restoring it raises it.
        method: what was computed, in words.
        kind: what one score is.
        parts: further scores that these were made from, per prompt where they have a prompt axis.
    """

    scores: Float[Tensor, "sender receiver *place"]
    method: str
    kind: str
    parts: dict[str, Tensor] = field(default_factory=dict)


class Method(Protocol):
    """What a file of this folder exports as `METHOD`."""

    by_position: bool  # whether it ranks edges with positions
    needs_corrupted: bool  # whether it needs corrupted prompts

    def rank(self, search: Search) -> Ranking:
        """Score every edge on the prompts of the part "score"."""

    def predicted_seconds(self, search: Search) -> float:
        """Processor seconds that `rank` will take, roughly; decides whether it fits a budget."""


def normalised(scores: Float[Tensor, "*edge"]) -> Float[Tensor, "*edge"]:
    """Scores divided by their largest magnitude; all zeros stay zeros."""
    return scores / scores.abs().max().clamp(min=torch.finfo(scores.dtype).tiny)


def larger(one: Float[Tensor, "*edge"], two: Float[Tensor, "*edge"]) -> Float[Tensor, "*edge"]:
    """For each edge the score of larger magnitude."""
    return torch.where(one.abs() >= two.abs(), one, two)
