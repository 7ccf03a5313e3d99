"""Patches the checkpoint of a run on the intervention pairs of its task, step by step of the task."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.detect import Tell, source_hash
from circuits.engine.edge_plan import Resolve
from circuits.engine.plan import Plan
from circuits.patch_command.prompts import metric_of, open_prompts, position_names
from circuits.patch_command.request import Request
from circuits.patch_edges import patch_edges
from circuits.patch_result import REASONS, Verification
from circuits.patch_sets import At, patch_sets
from circuits.patch_verify import verify
from circuits.patching import patch_heads
from interp.config import canonical_json
from interp.model import Transformer
from interp.provenance import code_version
from interp.run import Run
from interp.tasks.base import PairBatch, Task

if TYPE_CHECKING:
    import pandas as pd

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
    opened = open_prompts(run, request)
    model, task, chosen, steps = opened.model, opened.task, opened.chosen, []
    for done, t in enumerate(chosen):
        tell("steps of the task", done, len(chosen))
        given = arguments(request, opened.pairs[t]) | {"progress": lambda done, of: tell("chunks of a step", done, of)}
        steps.append(patch_step(model, task, request, opened.pairs[t], given))
    tell("steps of the task", len(chosen), len(chosen))
    return RunPatches(
        run=run.name,
        task=run.config.task,
        step=opened.checkpoint.step,
        checkpoint=opened.checkpoint.hash,
        config_hash=run.config.hash(),
        code_version=code_version(),
        request=request,
        length=opened.length,
        chain_of_thought=task.chain_of_thought,
        steps=tuple(steps),
        refused=opened.refused,
        left_out=opened.left_out,
        kind=steps[0].result.kind,
        backend=steps[0].result.backend,
        plan=str(together([step.result.plan for step in steps])),
        verification=verification(steps, request.verify),
    )


def arguments(request: Request, pairs: PairBatch) -> dict[str, Any]:
    """What every engine function is given besides the model."""
    return {
        "clean": pairs.clean,
        "corrupted": pairs.donor if request.ablation == "none" else None,
        "metric": metric_of(request.metric, pairs),
        "direction": request.direction or "noise",
        "ablation": request.ablation,
        "precision": request.precision,
        "seed": request.seed,
    }


def patch_step(
    model: Transformer, task: Task, request: Request, pairs: PairBatch, given: dict[str, Any]
) -> StepPatches:
    """Every patch at one step, by the engine function that the unit asks for; `given` are its arguments."""
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
    sets = pooled_sets(model, request)
    result = patch_sets(model, sets, **given)
    places = [(one.layer, one.component) for (one,) in sets]
    names = tuple(f"L{layer}" if head is None else f"L{layer}.H{head}" for layer, head in places)
    effect = result.effect[:, :, None]
    return result, names, effect, torch.zeros_like(effect, dtype=torch.int8)


def pooled_sets(model: Transformer, request: Request) -> list[list[At]]:
    """One set for each component: its site at all positions."""
    layers, heads = range(model.cfg.n_layers), range(model.cfg.n_heads)
    places = [(layer, head) for layer in layers for head in (heads if request.unit == "head" else [None])]
    return [[At(request.site, layer, head)] for layer, head in places]


def edge_patches(model: Transformer, request: Request, given: dict[str, Any]) -> Patched:
    """One sender's output into one receiver's input, at each of the sender's positions or at all of them at once."""
    resolve = resolution(request)
    result = patch_edges(model, resolve=resolve, **given)
    senders, receivers = result.asked.nonzero(as_tuple=True)
    names = tuple(result.graph.name(s, r) for s, r in zip(senders.tolist(), receivers.tolist(), strict=True))
    effect = result.effect[:, senders, receivers]
    effect = effect if resolve == "position" else effect[:, :, None]
    return result, names, effect, torch.zeros_like(effect, dtype=torch.int8)


def resolution(request: Request) -> Resolve:
    """How the edges of a unit are resolved."""
    return "position" if request.unit == "edge,position" else "pooled"


def together(plans: Sequence[Plan]) -> Plan:
    """The plans of all steps as one; their chunks run one after another, so that memory is that of the largest."""
    totals = {name: sum(getattr(plan, name) for plan in plans) for name in ("patches", "flops", "naive_flops")}
    for name in ("seconds", "branches"):
        counts = [getattr(plan, name) for plan in plans]
        totals[name] = None if None in counts else sum(counts)
    largest = {name: max(getattr(plan, name) for plan in plans) for name in ("rows", "bytes")}
    return replace(plans[0], chunks=tuple(chunk for plan in plans for chunk in plan.chunks), **totals, **largest)


def verification(steps: list[StepPatches], n: int) -> Verification | None:
    """n random effects of all steps rerun through plain hooks; see `PatchResult.verify` for those of one step."""
    return verify([step.result.checks() for step in steps], n, 0) if n else None
