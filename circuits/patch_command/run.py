"""Patches the checkpoint of a run on the intervention pairs of its task, step by step of the task."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from circuits.detect import Tell, source_hash
from circuits.engine.sites import n_components
from circuits.graph import edge_graph
from circuits.metrics import KL, Accuracy, LogitDiff, LogProb, Metric
from circuits.patch_command.request import Request
from circuits.patch_edges import patch_edges
from circuits.patch_result import REASONS, Verification
from circuits.patch_sets import At, patch_sets
from circuits.patch_verify import rerun
from circuits.patching import patch_heads
from interp.config import canonical_json
from interp.decoder import decoder_of
from interp.errors import TaskError
from interp.model import Transformer
from interp.provenance import code_version
from interp.rng import generator
from interp.run import Run
from interp.tasks.base import PairBatch, Task
from interp.train import load_model

if TYPE_CHECKING:
    import pandas as pd

ROUNDS = 8  # draws of 2 n pairs, to find n different ones whose swap changes the answer
LARGEST = 1_000_000  # effects up to which all steps are patched without being asked for
EVERYWHERE = "all positions"


@dataclass(frozen=True)
class StepPatches:
    """Effects of every patch at one step of the task.

    Attributes:
        t: the step; its state is written at position `query`, the last of the prompts.
        components: what is patched: a head, a layer, a neuron or an edge.
        places: names of the positions, or one entry where a patch acts on all of them.
        reason: index into REASONS; 0 for effects that were computed.
        right: whether the clean run answers right.
        result: what the engine gave.
    """

    t: int
    query: int
    components: tuple[str, ...]
    places: tuple[str, ...]
    effect: Float[Tensor, "prompt component place"]
    reason: Int[Tensor, "prompt component place"]
    base: Float[Tensor, "prompt"]
    source: Float[Tensor, "prompt"] | None
    right: Bool[Tensor, "prompt"]
    pairs: PairBatch
    result: Any

    def reasons(self) -> list[str]:
        """The reason of every effect that was not computed."""
        return [REASONS[index] for index in self.reason.flatten().tolist() if index]

    def frame(self) -> "pd.DataFrame":
        """The engine's table, with the step, the name of the position and, for sets, that of the component."""
        frame = self.result.to_frame()
        frame.insert(0, "t", self.t)
        if "pos" in frame:
            frame.insert(list(frame).index("pos") + 1, "position", frame["pos"].map(dict(enumerate(self.places))))
        if "set" in frame:
            frame["set"] = frame["set"].map(dict(enumerate(self.components)))
            frame = frame.rename(columns={"set": "component"})
        return frame


@dataclass(frozen=True)
class RunPatches:
    """The patches of a run at one checkpoint.

    Attributes:
        chain_of_thought: whether step t writes s_{t+1}; else t counts the inputs, and one state is written.
        refused: steps that have no pairs, with the reason.
        left_out: steps that have pairs and were not asked for.
        plan: what it cost, in words.
        kind: what an effect is, in the engine's words.
    """

    run: str
    task: str
    step: int
    checkpoint: str
    config_hash: str
    code_version: str
    request: Request
    length: int
    chain_of_thought: bool
    steps: tuple[StepPatches, ...]
    refused: dict[int, str]
    left_out: tuple[int, ...]
    kind: str
    backend: str
    plan: str
    verification: Verification | None

    @property
    def key(self) -> str:
        """Key of the stored analysis: checkpoint, configuration, request and code."""
        parts = [self.checkpoint, self.config_hash, self.request.options(), self.length, source_hash()]
        return f"patch-{hashlib.sha256(canonical_json(parts)).hexdigest()[:20]}"

    def frame(self) -> "pd.DataFrame":
        """One row per patch and prompt of every step."""
        import pandas as pd

        return pd.concat([step.frame() for step in self.steps], ignore_index=True)


def patch_run(run: Run, request: Request, tell: Tell | None = None) -> RunPatches:
    """Patch one checkpoint of a run.

    Each step of the task is patched on its own prompts: clean and donor up to the position that writes the step's
    state, where the metric is read.

    Raises:
        UsageError: for a step, length or site that the task or the model does not have.
    """
    tell = tell or (lambda what, done, of: None)
    model, task, checkpoint = load_model(run, request.step)
    model = model.double() if request.precision == "fp64" else model
    length = task.lengths[-1] if request.length is None else request.length
    held_out = task.split(run.config.seed, run.config.data).test.get(length)
    pairs, refused = pairs_by_step(task, request, length, held_out)
    chosen = chosen_steps(model, request, pairs, length)
    steps = []
    for done, t in enumerate(chosen):
        tell("steps of the task", done, len(chosen))
        steps.append(patch_step(model, task, request, pairs[t], lambda done, of: tell("chunks of a step", done, of)))
    tell("steps of the task", len(chosen), len(chosen))
    return RunPatches(
        run=run.name,
        task=run.config.task,
        step=checkpoint.step,
        checkpoint=checkpoint.hash,
        config_hash=run.config.hash(),
        code_version=code_version(),
        request=request,
        length=length,
        chain_of_thought=task.chain_of_thought,
        steps=tuple(steps),
        refused=refused,
        left_out=tuple(t for t in pairs if t not in chosen),
        kind=steps[0].result.kind,
        backend=getattr(steps[0].result, "backend", "torch"),
        plan=cost([step.result for step in steps]),
        verification=verification(steps, request.verify),
    )


def pairs_by_step(
    task: Task, request: Request, length: int, held_out: Tensor | None
) -> tuple[dict[int, PairBatch], dict[int, str]]:
    """Pairs of every step that can be patched, and why the others cannot.

    Raises:
        TaskError: if the step asked for has none, or no step has.
    """
    task.layout(length)
    one = isinstance(request.t, int)
    pairs: dict[int, PairBatch] = {}
    refused: dict[int, str] = {}
    for t in [request.t] if one else range(length):
        try:
            pairs[t] = pairs_of(task, request, length, t, held_out)
        except TaskError as error:
            if one:
                raise
            refused[t] = str(error)
    if not pairs:
        raise TaskError(f"no step of length {length} has {request.pairs} pairs; the last one: {refused[length - 1]}")
    return pairs, refused


def pairs_of(task: Task, request: Request, length: int, t: int, held_out: Tensor | None) -> PairBatch:
    """Up to n different pairs whose swap changes the answer, cut after the position that writes the step's state.

    The clean sequences are held-out ones, unless the length has none.

    Raises:
        TaskError: if there are fewer than two, the least that has an interval.
    """
    stream = generator(request.seed, "patch pairs", request.pairs, length, t)
    found: list[PairBatch] = []
    seen: set[tuple[int, ...]] = set()
    for _ in range(ROUNDS):
        found.append(_new_pairs(task, request, length, t, stream, held_out, seen))
        if len(seen) >= request.n:
            break
    if len(seen) < 2:
        raise TaskError(
            f"{task.name}: {len(seen)} different {request.pairs} pairs at t={t}, length {length}, change the answer; "
            "an interval needs at least 2; use another step, length or pair family"
        )
    joined = {
        name: torch.cat([getattr(some, name) for some in found])[: request.n]
        for name in ("clean", "donor", "clean_answer", "donor_answer", "swap_answer")
    }
    return replace(found[0], **joined)


def _new_pairs(
    task: Task, request: Request, length: int, t: int, stream: Generator, held_out: Tensor | None, seen: set
) -> PairBatch:
    """A draw without the pairs that are known or whose swap changes nothing; `seen` grows."""
    clean = held_out if held_out is not None and len(held_out) else None
    drawn = task.pairs(request.pairs, length, t, n=2 * request.n, generator=stream, clean=clean)
    prompts = {name: getattr(drawn, name)[:, : drawn.query + 1] for name in ("clean", "donor")}
    keep = []
    for row, (tokens, differs) in enumerate(
        zip(torch.cat(list(prompts.values()), 1).tolist(), drawn.differs.tolist(), strict=True)
    ):
        if differs and tuple(tokens) not in seen:
            seen.add(tuple(tokens))
            keep.append(row)
    answers = {name: getattr(drawn, name)[keep] for name in ("clean_answer", "donor_answer", "swap_answer")}
    return replace(drawn, **{name: tokens[keep] for name, tokens in prompts.items()}, **answers)


def chosen_steps(model: Transformer, request: Request, pairs: dict[int, PairBatch], length: int) -> list[int]:
    """The steps to patch: those that have pairs if all of them stay under LARGEST effects, else the middle one."""
    possible = sorted(pairs)
    if request.t is not None or len(possible) == 1:
        return possible
    per_place = count_components(model, request)
    effects = sum(
        len(one.clean) * per_place * (one.query + 1 if request.unit.endswith("position") else 1)
        for one in pairs.values()
    )
    return possible if effects <= LARGEST else [possible[len(possible) // 2]]


def count_components(model: Transformer, request: Request) -> int:
    """How many components the unit has, over all layers."""
    decoder, what = decoder_of(model), request.unit.partition(",")[0]
    if what == "edge":
        return int(edge_graph(decoder).exists.sum())
    return len(decoder.layers) * (n_components(decoder, request.site) if what in ("head", "neuron") else 1)


def patch_step(
    model: Transformer, task: Task, request: Request, pairs: PairBatch, progress: Callable[[int, int], None]
) -> StepPatches:
    """Every patch at one step, by the engine function that the unit asks for."""
    given = {
        "clean": pairs.clean,
        "corrupted": pairs.donor if request.ablation == "none" else None,
        "metric": metric_of(request.metric, pairs),
        "direction": request.direction or "noise",
        "ablation": request.ablation,
        "precision": request.precision,
        "seed": request.seed,
        "progress": progress,
    }
    what, _, where = request.unit.partition(",")
    by = edge_patches if what == "edge" else single_patches if where else pooled_patches
    result, components, effect, reason = by(model, request, given)
    names = position_names(task, pairs) if where else (EVERYWHERE,)
    with torch.no_grad():
        answers = model(pairs.clean)[:, -1].argmax(-1)
    return StepPatches(
        t=pairs.t,
        query=pairs.query,
        components=components,
        places=names,
        effect=effect,
        reason=reason,
        base=result.base,
        source=result.source,
        right=answers == pairs.clean_answer,
        pairs=pairs,
        result=result,
    )


Patched = tuple[Any, tuple[str, ...], Tensor, Tensor]


def single_patches(model: Transformer, request: Request, given: dict[str, Any]) -> Patched:
    """One component at one position."""
    result = patch_heads(model, site=request.site, **given)
    letter = {"head": ".H", "neuron": ".N"}.get(request.unit.split(",")[0])
    names = tuple(
        f"L{layer}{letter}{component}" if letter else f"L{layer}"
        for layer in result.layers
        for component in result.components
    )
    return result, names, result.effect.flatten(1, 2), result.reason.flatten(1, 2)


def pooled_patches(model: Transformer, request: Request, given: dict[str, Any]) -> Patched:
    """One component at all positions at once."""
    layers, heads = range(model.cfg.n_layers), range(model.cfg.n_heads)
    places = [(layer, head) for layer in layers for head in (heads if request.unit == "head" else [None])]
    result = patch_sets(model, [[At(request.site, layer, head)] for layer, head in places], **given)
    names = tuple(f"L{layer}" if head is None else f"L{layer}.H{head}" for layer, head in places)
    effect = result.effect[:, :, None]
    return result, names, effect, torch.zeros_like(effect, dtype=torch.int8)


def edge_patches(model: Transformer, request: Request, given: dict[str, Any]) -> Patched:
    """One sender's output into one receiver's input, at each of the sender's positions or at all of them at once."""
    resolve = "position" if request.unit == "edge,position" else "pooled"
    result = patch_edges(model, resolve=resolve, **given)
    senders, receivers = result.asked.nonzero(as_tuple=True)
    names = tuple(result.graph.name(s, r) for s, r in zip(senders.tolist(), receivers.tolist(), strict=True))
    effect = result.effect[:, senders, receivers]
    effect = effect if resolve == "position" else effect[:, :, None]
    return result, names, effect, torch.zeros_like(effect, dtype=torch.int8)


def metric_of(name: str, pairs: PairBatch) -> Metric:
    """The metric at the last position of the prompts."""
    return {
        "logit-diff": LogitDiff(pairs.clean_answer, pairs.swap_answer),
        "log-prob": LogProb(pairs.clean_answer),
        "kl": KL(),
        "accuracy": Accuracy(pairs.clean_answer),
    }[name]


def position_names(task: Task, pairs: PairBatch) -> tuple[str, ...]:
    """x1.. for inputs, EoI, s1.. for written states, and the token's own name for what else all sequences share."""
    layout = task.layout(pairs.length)
    names = dict(zip(layout.inputs, (f"x{i + 1}" for i in range(len(layout.inputs))), strict=True))
    names |= dict(zip(layout.states, (f"s{i + 1}" for i in range(len(layout.states))), strict=True))
    tokens = task.vocabulary.names(pairs.clean[0])
    return tuple(names.get(position, token) for position, token in enumerate(tokens))


def cost(results: list[Any]) -> str:
    """The plans of all steps as one line."""
    if hasattr(results[0], "plan"):
        plans = [result.plan for result in results]
        total = {name: sum(getattr(plan, name) for plan in plans) for name in ("patches", "flops", "naive_flops")}
        chunks = tuple(chunk for plan in plans for chunk in plan.chunks)
        return str(replace(plans[0], chunks=chunks, bytes=max(plan.bytes for plan in plans), **total))
    flops = sum(result.flops for result in results) / 1e9
    if hasattr(results[0], "branches"):
        return f"{sum(result.branches for result in results):,} branches, one per edge and place: {flops:,.2f} GFLOP"
    return f"{sum(len(result.sets) for result in results):,} sets of patches: {flops:,.2f} GFLOP"


def verification(steps: list[StepPatches], n: int) -> Verification | None:
    """n random patches of all steps rerun through plain hooks; see `PatchResult.verify` for those of one step."""
    if not n:
        return None
    ran = [(step, *place) for step in steps for place in (step.result.reason == 0).any(0).nonzero().tolist()]
    order = torch.randperm(len(ran), generator=generator(0, "verify"))[:n].tolist()
    errors, effects = [torch.zeros(1)], [torch.zeros(1)]
    for step, *place in (ran[index] for index in order):
        at = (slice(None), *place)
        compared = step.result.reason[at] == 0
        expected = rerun(step.result, *place)[compared]
        errors.append(step.result.effect[at][compared] - expected)
        effects.append(expected)
    error, effect = torch.cat(errors).double(), torch.cat(effects).double()
    relative = float(error.norm() / effect.norm()) if bool(effect.any()) else 0.0
    return Verification(len(order), float(error.abs().max()), relative, float(effect.abs().max()))
