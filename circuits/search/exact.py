"""Exact effects of single edges in both directions: left out of the clean run, and restored in the corrupted one."""

import torch
from torch import Tensor

from circuits.engine.plan import forward_flops, product_speed
from circuits.patch_edges import patch_edges
from circuits.search.base import Ranking, Search, larger
from interp.errors import UsageError

KIND = "single edge, everything downstream recomputed"


class Exact:
    """Exact edge patching; under "mean" and "zero" only in the one direction that they have.

    Leaving an edge out (noising) misses edges that stand in for each other (OR); restoring it alone (denoising) misses
    edges that only work together (AND). The score is the larger of the two. Source: Heimersheim and Nanda 2024, "How to
    use and interpret activation patching", arXiv 2404.15255.
    """

    by_position = True
    needs_corrupted = False

    def rank(self, search: Search) -> Ranking:
        """Score every edge on the prompts of the part "score"."""
        problem, live = search.problem, search.problem.live
        noise = -effects(search, "noise")  # [prompt sender receiver *place]
        parts = {"noise": noise * live}
        score = search.part.runs.mean(noise, 0)
        if problem.ablation == "resample":
            parts["denoise"] = effects(search, "denoise") * live
            score = larger(score, search.part.runs.mean(parts["denoise"], 0))
        directions = "noising and denoising, the larger of both" if len(parts) == 2 else "noising"
        return Ranking(score * live, f"exact edge patching ({directions})", KIND, parts)

    def predicted_seconds(self, search: Search) -> float:
        """One forward per edge and prompt, by half because what lies before the edge is not run again."""
        problem, pairs = search.problem, search.part.pairs
        n_pos = pairs.clean.shape[1]
        n_edges = int(problem.live.any(-1).any(-1).sum() if problem.by_position else problem.live.sum())
        share = 0.5 if not problem.by_position else 0.5 * n_pos / 4
        whole = forward_flops(problem.decoder, n_pos, logits=False) * len(pairs) * n_edges * share
        directions = 2 if problem.ablation == "resample" else 1
        return directions * whole / product_speed(problem.decoder, 1024)


def effects(search: Search, direction: str) -> Tensor:
    """metric(edge patched) - metric(base), [prompt sender receiver *place]; kept, since a prompt's never changes."""
    problem, part = search.problem, search.part
    if direction in part.effects:
        return part.effects[direction]
    runs = part.runs
    if problem.ablation != "resample" and direction != "noise":
        raise UsageError(f"direction: {problem.ablation} ablation acts on the clean run only")
    found = patch_edges(
        problem.decoder,
        clean=part.pairs.clean,
        corrupted=part.pairs.corrupted if problem.ablation == "resample" else None,
        metric=part.metric,
        mask=part.pairs.mask,
        resolve="query" if problem.by_position else "pooled",
        max_bytes=problem.max_bytes,
        progress=lambda done, of: search.tell(f"exact edges, {direction}", done, of),
        **({"direction": direction} if problem.ablation == "resample" else {"ablation": problem.ablation}),
    )
    part.effects[direction] = torch.nan_to_num(found.effect).to(runs.writes[0])
    return part.effects[direction]


METHOD = Exact()
