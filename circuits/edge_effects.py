"""Measuring what leaving out each kept edge costs: exact edge patching on the held-out prompts, with intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.circuit_effects import EdgeEffect, EdgeEffects
from circuits.circuit_packed import MOST_LISTED
from circuits.find import Found
from circuits.patch_edges import patch_edges, plan_edges
from circuits.problem import Part, Problem
from circuits.search.base import Tell, silent
from interp.rng import generator

DRAWS = 2000
AT_A_TIME = 4096  # edges of one block of bootstrap means


def edge_effects(
    problem: Problem, found: Found, seconds: float, seed: int, tell: Tell = silent
) -> tuple[EdgeEffects | None, list[str]]:
    """Effects of the kept edges on the part "evaluate", and what was left out.

    An edge is left out of the clean run as a circuit leaves it out: its sender's output is the ablated one for this
    receiver alone. Where measuring all is predicted to take too long, those with the largest rank scores are measured.

    Args:
        seconds: processor seconds that it may be predicted to take.
    """
    part, kept = problem.parts["evaluate"], found.kept
    names, notes = _strongest(problem, found), []
    every, parts = len(names), _pieces(problem, part)
    if parts is None:
        room = "their table does not fit the memory allowed"
        return None, [f"no effects of edges: {room}, and under mean ablation the prompts cannot be divided"]
    predicted = _predicted(problem, parts, names)
    whole = predicted
    while names and predicted > seconds:
        names = names[: min(len(names) - 1, int(0.95 * len(names) * seconds / predicted))]
        predicted = _predicted(problem, parts, names) if names else 0.0
    if len(names) < every:
        notes.append(
            f"effects of {len(names):,} of {every:,} kept edges, those with the largest rank scores: all are predicted "
            f"to take {whole:,.0f} s of processor time, {seconds:,.0f} s allowed"
        )
    if not names:
        return None, notes
    graph = part.runs.graph
    asked = torch.zeros_like(graph.exists)
    for name in names:
        asked[graph.index(name)] = True
    places = (kept & asked.view(*asked.shape, *(1,) * (kept.dim() - 2)).to(kept.device)).nonzero()
    values = torch.cat([_lost(problem, one, names, places, tell) for one in parts])  # [prompt place]
    known = values.isfinite().all(0)
    if not bool(known.all()):
        notes.append(f"effects of {int((~known).sum())} kept edges are no finite numbers and are left out")
    mean, low, high = means(values[:, known], part.pairs.unit, generator(seed, "effects of edges"))
    rows = [
        EdgeEffect(edge=graph.name(s, r), place=tuple(place) or None, value=one[0], low=one[1], high=one[2])
        for (s, r, *place), *one in zip(places[known].tolist(), mean, low, high, strict=True)
    ]
    rows = sorted(rows, key=lambda row: -abs(row.value))
    about = {"unit": part.metric_name, "n": part.pairs.n_units, "n_prompts": len(part.pairs)}
    return EdgeEffects(**about, measured=len(rows), of=int(kept.sum()), edges=rows), notes


def _strongest(problem: Problem, found: Found) -> list[str]:
    """Names of the kept edges without positions, largest rank score first; as many places as a file lists."""
    sizes = (found.scores.abs() + 1) * found.kept
    counts = found.kept
    if problem.by_position:
        sizes, counts = sizes.amax((-2, -1)), counts.sum((-2, -1))
    graph, flat = problem.parts["evaluate"].runs.graph, sizes.flatten()
    order = flat.argsort(descending=True, stable=True)[: int((flat > 0).sum())]
    total = counts.flatten()[order].long().cumsum(0)
    order = order[total <= MOST_LISTED].tolist()
    return [graph.name(*divmod(index, len(graph.receivers))) for index in order]


def _pieces(problem: Problem, part: Part) -> list[Part] | None:
    """The prompts in as many pieces as the table of results needs, which has an entry for every edge of the graph."""
    n_pos = part.pairs.clean.shape[1]
    each = (
        part.runs.graph.exists.numel() * (n_pos**2 if problem.by_position else 1) * part.runs.writes[0].element_size()
    )
    room = max(1, (problem.max_bytes or 2 << 30) // each)
    n = len(part.pairs)
    if room >= n:
        return [part]
    if problem.ablation == "mean":
        return None
    return [Part(problem, part.pairs.subset(rows)) for rows in torch.arange(n).split(room)]


def _predicted(problem: Problem, parts: Sequence[Part], names: list[str]) -> float:
    """Processor seconds, from the plan of the first piece."""
    plan = plan_edges(problem.decoder, edges=names, **_given(problem, parts[0]))
    return plan.seconds * sum(len(one.pairs) for one in parts) / len(parts[0].pairs)


def _given(problem: Problem, part: Part) -> dict[str, Any]:
    """Arguments of a patching call that leaves edges out of the clean run as a circuit does."""
    resamples = problem.ablation == "resample"
    return {
        "clean": part.pairs.clean,
        "corrupted": part.pairs.corrupted if resamples else None,
        "metric": part.metric,
        "mask": part.pairs.mask,
        "resolve": "query" if problem.by_position else "pooled",
        "max_bytes": problem.max_bytes,
        **({"direction": "noise"} if resamples else {"ablation": problem.ablation}),
    }


def _lost(
    problem: Problem, part: Part, names: list[str], places: Int[Tensor, "place axis"], tell: Tell
) -> Float[Tensor, "prompt place"]:
    """Metric of the clean run minus that of the run without each edge."""
    found = patch_edges(
        problem.decoder,
        edges=names,
        progress=lambda done, of: tell("effects of edges", done, of),
        **_given(problem, part),
    )
    return -found.effect[(slice(None), *places.to(found.effect.device).T)].double().cpu()


def means(
    values: Float[Tensor, "prompt edge"], unit: Int[Tensor, "prompt"], stream: torch.Generator
) -> tuple[list[float], list[float], list[float]]:
    """Mean over prompts of each edge, with the ends of a 95 % percentile bootstrap over units."""
    index = unit.unique(return_inverse=True)[1].cpu()
    n = int(index.max()) + 1
    sums = values.new_zeros(n, values.shape[1]).index_add(0, index, values)
    drawn = torch.randint(n, (DRAWS, n), generator=stream)
    weight = torch.zeros(DRAWS, n, dtype=values.dtype).scatter_add_(1, drawn, torch.ones(DRAWS, n, dtype=values.dtype))
    size = weight @ torch.bincount(index, minlength=n).to(values)  # [draw]
    low: list[float] = []
    high: list[float] = []
    for first in range(0, values.shape[1], AT_A_TIME):
        ends = np.quantile(
            (weight @ sums[:, first : first + AT_A_TIME] / size[:, None]).numpy(), [0.025, 0.975], axis=0
        )
        low, high = low + ends[0].tolist(), high + ends[1].tolist()
    return values.mean(0).tolist(), low, high
