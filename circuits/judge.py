"""How good a found circuit is, on held-out prompts: faithfulness, curve, controls of the same size, tests."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.circuit_tests import completeness, equivalence, independence, minimality
from circuits.controls import Control, control_sets
from circuits.detectors.base import Interval
from circuits.discovery_result import ControlSummary, CurvePoint, Faithfulness, TestSummary
from circuits.faithfulness import (
    Curve,
    curve,
    mib_areas,
    optimal_frontier,
    retained,
    share_kept,
    share_tie,
    sizes_for,
)
from circuits.faithfulness_intervals import Draws, share_intervals
from circuits.find import Found, Settings
from circuits.masked import MaskedRuns
from circuits.metrics import KL
from circuits.problem import Part, Problem
from circuits.search.base import Tell, silent
from interp.decoder import attend, normed, qkv
from interp.errors import UsageError
from interp.rng import generator

HEAVY_BYTES = 2**26  # of one circuit's run; above it curves take fewer points
BESIDE = 20  # random circuits beside the matched ones, and half as many pairs of runs, where a run is heavy
FEW = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Judgement:
    """What `judged` gives."""

    faithfulness: Faithfulness
    controls: tuple[ControlSummary, ...]
    tests: tuple[TestSummary, ...]


def judged(problem: Problem, found: Found, settings: Settings, tell: Tell, n_edges: int) -> Judgement:
    """Faithfulness, controls and tests of a found circuit on the part "evaluate".

    Raises:
        UsageError: as `require_effect` does.
    """
    part = problem.parts["evaluate"]
    stream = generator(settings.seed, "judge")
    values = part.runs.values(torch.stack((found.kept, problem.live & ~found.kept)))
    tell("faithfulness", 1, 3)
    faithfulness = _faithfulness(problem, part, found, values[0], n_edges, stream)
    tell("faithfulness", 2, 3)
    heavy = part.runs.bytes_each(problem.by_position) > HEAVY_BYTES
    n, mass = settings.controls, attention_mass(part)
    beside = min(n, BESIDE) if heavy else n
    controls = control_sets(part.runs, problem.live, found.kept, n, stream, mass, beside)
    share = faithfulness.retained.value
    summaries = tuple(summary_of(part.runs, control, found.kept, share, tell) for control in controls)
    random = controls[0].circuits if settings.controls else ()
    tests = (
        equivalence(part, values[0]),
        independence(part, values[1], stream),
        minimality(part.runs, found.kept, found.scores, random[: BESIDE if heavy else 60], stream),
        completeness(part.runs, problem.live, found.kept, stream, BESIDE // 2 if heavy else BESIDE),
    )
    tell("faithfulness", 3, 3)
    return Judgement(faithfulness, summaries, tests)


def require_effect(problem: Problem, settings: Settings) -> None:
    """Check before any search that the share kept can be computed at its end.

    Raises:
        UsageError: if on the held-out prompts clean minus ablated may be 0, so that every share of it would be noise.
    """
    part = problem.parts["evaluate"]
    _retained(part, part.runs.clean, generator(settings.seed, "judge"))


def _retained(part: Part, values: Float[Tensor, "prompt"], stream: torch.Generator) -> Interval:
    runs = part.runs
    kept = retained(values, runs.clean, runs.ablated, part.pairs.unit, stream)
    if kept is None:
        raise UsageError("pairs: on the held-out prompts the metric may not differ between clean and ablated run")
    return kept


def _faithfulness(
    problem: Problem, part: Part, found: Found, values: Tensor, n_edges: int, stream: torch.Generator
) -> Faithfulness:
    runs, n_live = part.runs, int(problem.live.sum())
    kept = _retained(part, values, stream)
    heavy = runs.bytes_each(problem.by_position) > HEAVY_BYTES
    sizes = sorted({max(1, round(share * n_live)) for share in FEW}) if heavy else sizes_for(n_live)
    found_curve = curve(runs, found.scores, problem.live, sizes)
    areas = mib_areas(runs, found.scores, problem.live, n_edges)
    best = optimal_frontier(runs, problem.live)
    both = torch.stack((problem.live, found.kept))
    kl = runs.values(both, KL(runs.metric.positions))
    accuracy = runs.values(both, part.accuracy)
    unit, draws = part.pairs.unit, Draws(part.pairs.unit, generator(stream.initial_seed(), "intervals"))
    means = {"metric_model": runs.clean, "metric_circuit": values, "metric_ablated": runs.ablated, "kl": kl[1]}
    shares = {"accuracy_model": accuracy[0], "accuracy_circuit": accuracy[1]}
    return Faithfulness(
        retained=kept,
        metric_model=float(runs.clean.mean()),
        metric_circuit=float(values.mean()),
        metric_ablated=float(runs.ablated.mean()),
        kl=float(kl[1].mean()),
        accuracy_model=float(accuracy[0].mean()),
        accuracy_circuit=float(accuracy[1].mean()),
        cmd=areas.cmd,
        cpr=areas.cpr,
        log_area=areas.log_area,
        curve=_points(found_curve),
        optimal=[] if best is None else _points(best),
        intervals=draws.means(means) | share_intervals(shares, unit) | draws.areas(areas, runs),
    )


def _points(found: Curve) -> list[CurvePoint]:
    rows = zip(found.size, found.kept, found.share, strict=True)
    return [CurvePoint(size=size, kept=kept, faithfulness=share) for size, kept, share in rows]


def summary_of(
    runs: MaskedRuns, control: Control, kept: Bool[Tensor, "sender receiver *place"], share: float, tell: Tell = silent
) -> ControlSummary:
    """The share that each circuit of a control keeps.

    A control that is the found circuit itself has its share and is not run again. Another one is as good where its
    share is no more than `share_tie` below.

    Args:
        kept, share: the found circuit and what it keeps.
    """
    n, tie = len(control.circuits), share_tie(runs)
    other = [index for index, one in enumerate(control.circuits) if not torch.equal(one, kept)]
    shares = torch.full((n,), share, dtype=torch.float64)
    if other:
        masks = torch.stack([control.circuits[index] for index in other])
        values = runs.values(masks, progress=lambda done, of: tell(control.name, done, of))
        shares[other] = share_kept(values, runs.clean, runs.ablated)
    drawn = n > 1 and control.name in ("random paths", "same types", "uniform")
    least, largest = float(shares.min()), float(shares.max())
    return ControlSummary(
        name=control.name,
        what=control.what,
        n=n,
        mean=min(least + float((shares - least).mean()), largest),  # of equal shares their very value
        largest=largest,
        matched=control.matched,
        shared=control.shared,
        p_value=(1 + int((shares >= share - tie).sum())) / (1 + n) if drawn else None,
        tie=tie,
        headline=control.headline,
    )


@torch.no_grad()
def attention_mass(part: Part) -> Float[Tensor, "layer head q_pos k_pos"]:
    """Mean attention of each query over the clean prompts that have it; 0 where none does."""
    decoder, prompts = part.problem.decoder, part.runs.prompts
    x, found = decoder.embed(prompts.base), []
    real = torch.arange(x.shape[1], device=x.device) < prompts.lengths[:, None]  # [batch q_pos]
    weight = (real / real.sum(0).clamp(min=1)).to(x)
    for layer in decoder.layers:
        y = normed(layer.ln1, x)
        z, pattern = attend(layer.attn, *qkv(layer, y))
        found.append(torch.einsum("bhqk,bq->hqk", pattern, weight))
        out = z.flatten(-2) @ layer.attn.W_O.flatten(0, 1)
        out = out if layer.attn.b_O is None else out + layer.attn.b_O
        mid = (y if layer.adds_to_normed else x) + out
        x = mid if layer.mlp is None else mid + layer.mlp(normed(layer.ln2, x if layer.parallel else mid))
    return torch.stack(found)
