"""Greedy pruning from the output backwards, all edges into a reader tried at once."""

import torch
from torch import Tensor

from circuits.engine.plan import forward_flops, product_speed
from circuits.masked import MaskedRuns
from circuits.metrics import KL
from circuits.search.base import Ranking, Search

TOLERANCES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # of the divergence of the empty circuit, for one edge


class Acdc:
    """ACDC: readers in reverse order; an edge goes where the divergence of what is left rises by less than a tolerance.

    All edges into one reader are tried side by side as branches of one batch; those whose single removal costs less
    than the tolerance are then removed together in order of cost, as many as stay below the tolerance for each. The
    score of an edge is the share of tolerances at which it stays. By position the edges into one reader at one query
    are a group. Source: Conmy et al. 2023, "Towards Automated Circuit Discovery for Mechanistic Interpretability",
    algorithm 1.
    """

    by_position = True
    needs_corrupted = False

    def rank(self, search: Search) -> Ranking:
        """Score every edge on the prompts of the part "score"."""
        runs, live = search.part.runs, search.problem.live
        score = torch.zeros_like(live, dtype=runs.writes[0].dtype)
        kept = live.clone()
        scale = float(divergence(runs, torch.zeros_like(live)[None])[0])
        for number, tolerance in enumerate(sorted(TOLERANCES)):  # what goes at a small tolerance goes at larger ones
            kept = pruned(runs, kept, tolerance * scale)
            score += kept / len(TOLERANCES)
            search.tell("ACDC", number + 1, len(TOLERANCES))
        method = f"ACDC ({len(TOLERANCES)} tolerances)"
        return Ranking(score, method, "share of tolerances at which the edge stays")

    def predicted_seconds(self, search: Search) -> float:
        """One run of a circuit per live edge and tolerance, fewer as edges go."""
        problem, pairs = search.problem, search.part.pairs
        n_pos = pairs.clean.shape[1]
        work = forward_flops(problem.decoder, n_pos) * len(pairs) * (n_pos / 2 if problem.by_position else 1)
        return 3 * int(problem.live.sum()) * work / product_speed(problem.decoder, 1024)


def pruned(runs: MaskedRuns, kept: Tensor, tolerance: float) -> Tensor:
    """The circuit after one pass over all readers, [sender receiver *place]."""
    now = float(divergence(runs, kept[None])[0])
    for receiver in reversed(range(kept.shape[1])):
        places = kept[:, receiver].nonzero()  # [edge, sender *place]
        groups = [places] if kept.dim() == 2 else [places[places[:, 2] == q] for q in reversed(range(kept.shape[3]))]
        for group in groups:
            if len(group):
                kept, now = without(runs, kept, receiver, group, now, tolerance)
    return kept


def without(
    runs: MaskedRuns, kept: Tensor, receiver: int, group: Tensor, now: float, tolerance: float
) -> tuple[Tensor, float]:
    """The circuit and its divergence after the removable edges of one group are gone."""
    single = kept.repeat(len(group), *([1] * kept.dim()))
    sender, *place = group.T
    single[(torch.arange(len(group)), sender, receiver, *place)] = False
    cost = divergence(runs, single) - now
    order = [int(i) for i in cost.argsort() if float(cost[i]) < tolerance]
    if not order:
        return kept, now
    prefixes = kept.repeat(len(order), *([1] * kept.dim()))
    for size in range(len(order)):
        gone = group[order[: size + 1]].T
        prefixes[(size, gone[0], receiver, *gone[1:])] = False
    found = divergence(runs, prefixes)
    allowed = now + tolerance * torch.arange(1, len(order) + 1)
    fine = (found < allowed.to(found)).nonzero()[:, 0]
    if not len(fine):
        return kept, now
    last = int(fine.max())
    return prefixes[last], float(found[last])


def divergence(runs: MaskedRuns, kept: Tensor) -> Tensor:
    """KL(model || circuit) of each circuit, mean over prompts."""
    return runs.mean(runs.values(kept, KL(runs.metric.positions)))


METHOD = Acdc()
