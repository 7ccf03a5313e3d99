"""What `interp patch` would cost: the plans of every step of the task, with nothing patched."""

from dataclasses import dataclass

from circuits.engine.plan import Plan
from circuits.outputs import PatchPlanOutput
from circuits.patch_command.prompts import open_prompts
from circuits.patch_command.request import Request
from circuits.patch_command.run import arguments, pooled_sets, resolution, together
from circuits.patch_edges import plan_edges
from circuits.patch_sets import plan_sets
from circuits.patching import plan_heads
from interp.model import Transformer
from interp.run import Run
from interp.tasks.base import PairBatch


@dataclass(frozen=True)
class RunPlan:
    """The cost of a request.

    Attributes:
        ts: steps of the task that would be patched.
        refused: steps that have no pairs, with the reason.
        left_out: steps that have pairs and were not asked for.
    """

    run: str
    task: str
    step: int
    request: Request
    length: int
    ts: tuple[int, ...]
    refused: dict[int, str]
    left_out: tuple[int, ...]
    plan: Plan


def plan_run(run: Run, request: Request) -> RunPlan:
    """Plan the patches of one checkpoint of a run.

    Raises:
        UsageError: for a step, length or site that the task or the model does not have.
    """
    opened = open_prompts(run, request)
    plans = [plan_step(opened.model, request, opened.pairs[t]) for t in opened.chosen]
    return RunPlan(
        run=run.name,
        task=run.config.task,
        step=opened.checkpoint.step,
        request=request,
        length=opened.length,
        ts=tuple(opened.chosen),
        refused=opened.refused,
        left_out=opened.left_out,
        plan=together(plans),
    )


def plan_step(model: Transformer, request: Request, pairs: PairBatch) -> Plan:
    """The plan of one step, by the engine function that the unit asks for."""
    what, _, where = request.unit.partition(",")
    given = arguments(request, pairs)
    if what == "edge":
        return plan_edges(model, resolve=resolution(request), **given)
    if where:
        return plan_heads(model, site=request.site, **given)
    return plan_sets(model, pooled_sets(model, request), **given)


def plan_output(found: RunPlan) -> PatchPlanOutput:
    """What `--plan --json` prints."""
    plan = found.plan
    return PatchPlanOutput(
        run=found.run,
        task=found.task,
        step=found.step,
        by=found.request.unit,
        site=found.request.site,
        length=found.length,
        steps=list(found.ts),
        left_out=list(found.left_out),
        without_pairs=found.refused,
        plan=str(plan),
        patches=plan.patches,
        chunks=len(plan.chunks),
        rows=plan.rows,
        flops=plan.flops,
        naive_flops=plan.naive_flops,
        bytes=plan.bytes,
        budget=plan.budget,
        seconds=plan.seconds,
    )
