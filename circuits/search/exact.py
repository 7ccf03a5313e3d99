"""Exact effects of single edges in both directions: left out of the clean run, and restored in the corrupted one."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
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
        parts = {name: effect * search.problem.live for name, effect in both_directions(search).items()}
        directions = "noising and denoising, the larger of both" if len(parts) == 2 else "noising"
        return Ranking(stronger(search, parts), f"exact edge patching ({directions})", KIND, parts)

    def predicted_seconds(self, search: Search) -> float:
        """Those of all live edges."""
        live = search.problem.live
        return seconds_each(search) * int(live.any(-1).any(-1).sum() if search.problem.by_position else live.sum())


def seconds_each(search: Search) -> float:
    """Predicted for one edge in all its directions: a forward, by half since what lies before it is not run again."""
    problem, pairs = search.problem, search.part.pairs
    n_pos = pairs.clean.shape[1]
    share = 0.5 if not problem.by_position else 0.5 * n_pos / 4
    one = forward_flops(problem.decoder, n_pos, logits=False) * len(pairs) * share
    return len(directions(search)) * one / product_speed(problem.decoder, 1024)


def directions(search: Search) -> tuple[str, ...]:
    """Leaving out of the clean run, and under resampling alone restoring in the corrupted one."""
    return ("noise", "denoise") if search.problem.ablation == "resample" else ("noise",)


def both_directions(search: Search, edges: Sequence[str] | None = None) -> dict[str, Float[Tensor, "prompt *edge"]]:
    """What each edge is worth: the metric that leaving it out costs ("noise"), or that restoring it gives ("denoise").

    Args:
        edges: names of those to score, all others get 0; None for all.
    """
    signs = {"noise": -1.0, "denoise": 1.0}
    return {direction: signs[direction] * effects(search, direction, edges) for direction in directions(search)}


def stronger(search: Search, parts: dict[str, Float[Tensor, "prompt *edge"]]) -> Float[Tensor, "*edge"]:
    """Mean over prompts of each edge in the direction in which that is larger."""
    means = [search.part.runs.mean(effect, 0) for effect in parts.values()]
    return means[0] if len(means) == 1 else larger(*means)


def effects(search: Search, direction: str, edges: Sequence[str] | None = None) -> Tensor:
    """metric(edge patched) - metric(base), [prompt sender receiver *place].

    Those of all edges are kept, since a prompt's never change.
    """
    problem, part = search.problem, search.part
    if direction in part.effects:
        return part.effects[direction]
    runs = part.runs
    if direction not in directions(search):
        raise UsageError(f"direction: {problem.ablation} ablation acts on the clean run only")
    found = patch_edges(
        problem.decoder,
        clean=part.pairs.clean,
        corrupted=part.pairs.corrupted if problem.ablation == "resample" else None,
        metric=part.metric,
        mask=part.pairs.mask,
        edges=edges,
        resolve="query" if problem.by_position else "pooled",
        max_bytes=problem.max_bytes,
        progress=lambda done, of: search.tell(f"exact edges, {direction}", done, of),
        **({"direction": direction} if problem.ablation == "resample" else {"ablation": problem.ablation}),
    )
    values = torch.nan_to_num(found.effect).to(runs.writes[0])
    if edges is None:
        part.effects[direction] = values
    return values


METHOD = Exact()
