"""First-order scores of `circuits.attribution` as search methods."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from circuits.attribution_result import EdgeScores
from circuits.engine.plan import forward_flops, product_speed
from circuits.search.base import Ranking, Search, normalised
from interp.errors import UsageError


@dataclass(frozen=True)
class GradientMethod:
    """Scores from gradients, position-free; needs corrupted prompts.

    Attributes:
        calls: variants; their scores are normalised to a largest magnitude of 1 and averaged.
        forwards: plain forward passes that they cost together, about.
    """

    calls: dict[str, Callable[..., EdgeScores]]
    forwards: int
    name: str
    by_position = False
    needs_corrupted = True

    def rank(self, search: Search) -> Ranking:
        """Score every edge on the prompts of the part "score"."""
        problem, part = search.problem, search.part
        if problem.by_position or problem.ablation != "resample":
            what = "positions" if problem.by_position else f"{problem.ablation} ablation"
            raise UsageError(f"method: {self.name} has no form with {what}; take exact or masks")
        given = (problem.decoder, part.pairs.clean, part.pairs.corrupted, part.metric)
        parts = {}
        for number, (name, call) in enumerate(self.calls.items()):
            search.tell(f"{self.name} ({name})", number, len(self.calls))
            found = call(*given, mask=part.pairs.mask, max_bytes=problem.max_bytes)
            parts[name] = -found.scores * problem.live
            search.tell(f"{self.name} ({name})", number + 1, len(self.calls))
        means = [normalised(part.runs.mean(scores, 0)) for scores in parts.values()]
        kind = "first-order estimate of leaving the edge out, everything downstream recomputed"
        return Ranking(torch.stack(means).mean(0), f"{self.name} ({' and '.join(parts)})", kind, parts)

    def predicted_seconds(self, search: Search) -> float:
        """Plain forward passes of the prompts."""
        problem, pairs = search.problem, search.part.pairs
        work = forward_flops(problem.decoder, pairs.clean.shape[1]) * len(pairs) * self.forwards
        return work / product_speed(problem.decoder, 1024)
