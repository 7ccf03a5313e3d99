"""Circuit discovery on one checkpoint: gate, search, held-out faithfulness, controls, tests, stability, verdict."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from circuits.circuit import Circuit, Example, Provenance
from circuits.detectors.base import Interval
from circuits.discovery_result import DiscoveryFile, RankingSummary, Stability
from circuits.edge_effects import edge_effects
from circuits.find import Found, Settings, find_circuit
from circuits.gate import LEVEL, NO_BEHAVIOUR, TOO_FEW, Gate, behaviour
from circuits.graph import shape_of
from circuits.judge import Judgement, judged, require_effect
from circuits.problem import Problem
from circuits.search.base import Tell, silent
from circuits.subject import Subject, example_of
from interp.provenance import code_version
from interp.rng import generator

RERUN_STAGES = 3  # stages' worth of processor time that whole searches on resampled prompts may take
WIDEST = 0.5  # of the interval of the share kept, for a verdict
GATED = {"evaluate": "that evaluate", "score": "that rank edges", "choose": "that choose the size"}
FEWEST = 19  # random circuits with which the smallest p is .05
LIMITS = (
    "Edges are ranked and the size is chosen on other prompts than the faithfulness is measured on.",
    "A faithful circuit need not be the only one: stand-ins that are silent in the clean run are no part of it.",
)


@dataclass
class Stages:
    """Processor seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Book what runs inside."""
        started = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - started


def discover(
    subject: Subject, problem: Problem, settings: Settings, tell: Tell = silent
) -> tuple[DiscoveryFile, Circuit | None]:
    """Look for the circuit of a problem, and say how sure that is.

    Without behaviour beyond its interval, on each part of the prompts, no ratio is computed and no circuit looked for.

    Raises:
        UsageError: for prompts or a method that do not fit.
    """
    stages = Stages()
    with stages.of("runs and gate"):
        gates = {name: behaviour(problem.parts[name]) for name in GATED}
    part, gate = _decisive(gates)
    if not gate.passed:
        return _file(*_not_passed(part, gate), gate, settings, stages), None
    require_effect(problem, settings)
    with stages.of("search"):
        found = find_circuit(problem, settings, tell)
    circuit = circuit_of(subject, problem, settings, found)
    given = _about_search(problem, circuit, found)
    if not circuit.n_kept:
        headline = f"No circuit of the {circuit.n_live:,} live edges keeps {settings.target:.0%} of the metric."
        return _file("no faithful circuit", headline, gate, settings, stages, **given), None
    with stages.of("faithfulness and controls"):
        judgement = judged(problem, found, settings, tell, given["n_edges"])
    with stages.of("stability"):
        reruns = min(settings.reruns, int(RERUN_STAGES * settings.seconds / max(stages.seconds["search"], 1e-9)))
        stability, frequency = stable(problem, found, settings.model_copy(update={"reruns": reruns}), tell)
        if reruns < settings.reruns:
            spent = f"the search took {stages.seconds['search']:,.0f} s"
            given["notes"].append(f"{reruns} searches rerun for stability, {settings.reruns} asked for: {spent}")
        enough = all(problem.parts[name].pairs.n_units > 1 for name in ("score", "choose"))
        split_half = split_half_overlap(problem, settings, tell) if settings.halves and enough else None
        if settings.halves and not enough:
            given["notes"].append("no overlap of two halves: one part of the prompts has a single sequence")
    with stages.of("effects of edges"):
        effects, left_out = edge_effects(problem, found, settings.seconds, settings.seed, tell)
        given["notes"] += left_out
    kept = judgement.faithfulness.retained
    circuit = replace(circuit, faithfulness=kept, frequency=frequency, effects=effects)
    verdict, headline = verdict_of(circuit, judgement, settings)
    given |= {
        "circuit": circuit.to_file(),
        "nodes": list(circuit.nodes),
        "n_kept": circuit.n_kept,
        "faithfulness": judgement.faithfulness,
        "controls": list(judgement.controls),
        "tests": list(judgement.tests),
        "stability": stability,
        "split_half": split_half,
    }
    return _file(verdict, headline, gate, settings, stages, **given), circuit


def _decisive(gates: dict[str, Gate]) -> tuple[str, Gate]:
    """The first part that shows no behaviour though it has prompts enough, else one that has too few; else any."""
    failed = sorted((one for one in gates.items() if not one[1].passed), key=lambda one: one[1].too_few)
    return failed[0] if failed else ("", gates["evaluate"])


def _not_passed(part: str, gate: Gate) -> tuple[str, str]:
    """Verdict and headline where a part of the prompts did not pass the gate."""
    if not gate.too_few:
        return NO_BEHAVIOUR, f"{NO_BEHAVIOUR.capitalize()}: {gate.reason}, on the prompts {GATED[part]}."
    few = f"n = {gate.accuracy.n} on the prompts {GATED[part]}; at least {gate.needed} needed at the {100 * LEVEL:g} % "
    return TOO_FEW, f"{TOO_FEW.capitalize()} ({few}level): {gate.reason}."


def _about_search(problem: Problem, circuit: Circuit, found: Found) -> dict[str, Any]:
    """What a result says of the search, whether or not it gave a circuit."""
    rankings = [
        RankingSummary(name=name, method=one.method, kind=one.kind, chosen=name == found.chosen)
        for name, one in found.rankings.items()
    ]
    seen, notes = found.interactions, list(found.notes)
    shared, held_out = problem.pairs.seen_by("evaluate", ("score", "choose")), len(problem.parts["evaluate"].pairs)
    if shared:
        notes.append(
            f"{shared} of {held_out} held-out pairs have a prompt, clean or corrupted, that the search saw too"
        )
    return {
        "rankings": rankings,
        "notes": notes,
        "n_live": circuit.n_live,
        "n_edges": edges_of_graph(problem),
        "limits": list(LIMITS),
        "pairs": [] if seen is None else list(seen.pairs),
        "roles": [] if seen is None else list(seen.roles),
    }


def circuit_of(subject: Subject, problem: Problem, settings: Settings, found: Found) -> Circuit:
    """The kept edges with where they come from."""
    parts = {name: part.pairs for name, part in problem.parts.items()}
    provenance = Provenance(
        model=subject.model,
        step=subject.step,
        fingerprint=subject.fingerprint,
        dtype=subject.dtype,
        processing=dict(subject.processing),
        pairs=subject.pairs_name,
        pairs_fingerprint=subject.pairs.fingerprint(),
        n_prompts={name: len(pairs) for name, pairs in parts.items()},
        n_units={name: pairs.n_units for name, pairs in parts.items()},
        metric=problem.parts["score"].metric_name,
        ablation=problem.ablation,
        method=found.rankings[found.chosen].method if found.chosen else "",
        seed=settings.seed,
        code_version=code_version(),
        threads=torch.get_num_threads(),
    )
    return Circuit(
        graph=problem.parts["score"].runs.graph,
        shape=shape_of(problem.decoder),
        kept=found.kept,
        live=problem.live,
        scores=found.scores,
        provenance=provenance,
        columns=problem.columns,
        example=Example(**example_of(subject)),
    )


def edges_of_graph(problem: Problem) -> int:
    """Edges of the whole graph; by position every causal (key, query) pair of a key or value edge counts."""
    runs = problem.parts["score"].runs
    exists, n_pos = runs.graph.exists, runs.n_pos
    if not problem.by_position:
        return int(exists.sum())
    keyed = torch.tensor([name[-2:] in (".k", ".v") for name in runs.graph.receivers])
    return int(exists[:, keyed].sum()) * n_pos * (n_pos + 1) // 2 + int(exists[:, ~keyed].sum()) * n_pos


def stable(problem: Problem, found: Found, settings: Settings, tell: Tell) -> tuple[Stability | None, Tensor | None]:
    """The whole search on resampled prompts: how often each edge is kept again, and how much circuits overlap."""
    if not settings.reruns:
        return None, None
    kept, sizes, overlaps = torch.zeros_like(found.scores), [], []
    for number in range(settings.reruns):
        tell("searches on resampled prompts", number, settings.reruns)
        drawn = problem.resampled(generator(settings.seed, f"rerun {number}"))
        again = find_circuit(drawn, settings, look_for_interactions=False).kept
        kept += again / settings.reruns
        sizes.append(int(again.sum()))
        overlaps.append(overlap(found.kept, again))
    tell("searches on resampled prompts", settings.reruns, settings.reruns)
    ordered = sorted(overlaps)
    interval = Interval(
        value=sum(overlaps) / len(overlaps),
        low=ordered[0],
        high=ordered[-1],
        n=len(overlaps),
        method="lowest and highest of whole searches on resampled prompts",
    )
    return Stability(reruns=settings.reruns, overlap=interval, sizes=sizes), kept


def split_half_overlap(problem: Problem, settings: Settings, tell: Tell) -> float:
    """Overlap of the circuits of two halves of the prompts."""
    found = [find_circuit(problem.half(which), settings, tell, look_for_interactions=False).kept for which in (0, 1)]
    return overlap(*found)


def overlap(one: Tensor, two: Tensor) -> float:
    """Jaccard overlap of two sets of edges; 1 for two empty ones."""
    union = int((one | two).sum())
    return int((one & two).sum()) / union if union else 1.0


def verdict_of(circuit: Circuit, judgement: Judgement, settings: Settings) -> tuple[str, str]:
    """ "circuit" where it keeps the target on held-out prompts and no matched control comes near; else "candidate"."""
    kept, f = judgement.faithfulness.retained, circuit.n_kept
    size = f"{f:,} of {circuit.n_live:,} live edges"
    said = (
        f"{size} keep {kept.value:.1%} [{kept.low:.1%}, {kept.high:.1%}] of the metric on {kept.n} held-out sequences "
        f"under {circuit.provenance.ablation} ablation"
    )
    missing = []
    if kept.value < settings.target:
        missing.append(f"less than the {settings.target:.0%} asked for")
    elif kept.value > 2 - settings.target:
        missing.append(f"that is {kept.value - 1:.0%} more than the model has, so it is no copy of the model")
    if kept.high - kept.low > WIDEST:
        missing.append("the interval is too wide to tell")
    paths = next((one for one in judgement.controls if one.headline), None)
    if paths is None or paths.largest is None:
        missing.append("no matched control could be made")
    else:
        said += f"; the best of {paths.n} {paths.what.replace(', matched', ' matched')} keeps {paths.largest:.1%}"
        same = next((one for one in judgement.controls if one.name == "same types" and one.largest is not None), None)
        if same is not None:
            said += f" (all types matched: {same.largest:.1%}, holding {same.shared:.0%} of the circuit)"
        if paths.n < FEWEST:
            missing.append(f"{paths.n} random circuits are too few for a p of .05")
        elif not paths.largest < kept.low - (paths.tie or 0.0):
            missing.append("that random circuit is as good")
    if missing:
        return "candidate", f"Candidate: {said}, but {'; '.join(missing)}."
    return "circuit", f"Circuit: {said}."


def _file(verdict: str, headline: str, gate, settings: Settings, stages: Stages, **given) -> DiscoveryFile:
    seconds = {name: round(spent, 3) for name, spent in stages.seconds.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return DiscoveryFile(
        verdict=verdict, headline=headline, gate=gate, settings=settings, timing=seconds, peak_mib=round(peak), **given
    )
