"""The exact value of one cell of a patching heatmap, at any checkpoint: effect by prompt, mean and interval."""

from typing import TYPE_CHECKING, Any

from pydantic import Field
from torch import Tensor

from circuits.detectors.base import Interval
from circuits.patch_command.cells import SHARED, bounds, of_shares, resampled
from circuits.patch_command.prompts import metric_of, pairs_of, position_names
from circuits.patch_command.request import HEADED, Request, request
from circuits.patch_edges import patch_edges
from circuits.patch_result import REASONS
from circuits.patching import patch_heads
from interp.config import Frozen, validated
from interp.errors import UsageError
from interp.rng import generator
from interp.tasks.base import PairBatch
from probes.intervals import Estimate

if TYPE_CHECKING:
    from interp.worker import Warm


class CellRequest(Frozen):
    """One cell; what is not named is as in `interp patch`."""

    run: str
    component: str = Field(description="head L1.H0, layer L1, or edge L0.H0->L1.H0.q")
    position: int = Field(ge=0)
    t: int = Field(ge=0, description="step of the task")
    step: int | None = Field(None, ge=0, description="checkpoint; null: the newest")
    site: str | None = None
    pairs: str = "input"
    length: int | None = Field(None, ge=1)
    ablation: str = "none"
    direction: str | None = None
    metric: str = "logit-diff"
    n: int = Field(32, ge=2)
    seed: int = Field(0, ge=0)


class CellAnswer(Frozen):
    """The effect of that one patch."""

    format: int = 1
    run: str
    step: int
    checkpoint: str
    component: str
    position: int
    position_name: str
    t: int
    effect: Interval
    share: Interval | None = Field(description="of the difference between source run and base run; null: has none")
    skipped: str = Field(description="why it is exactly zero and was not run; empty if it was")
    effects: list[float] = Field(description="by prompt")
    clean: list[list[str]] = Field(description="token names of each prompt")
    donor: list[list[str]] = Field(description="of the prompt that is patched from; empty for ablations")


def answer(warm: "Warm", given: dict[str, Any]) -> dict[str, Any]:
    """The request `patch_cell` of the warm worker: plain values in and out; see `CellRequest` and `CellAnswer`.

    Raises:
        InterpError: for a run, checkpoint, component, position or step that does not exist, naming it.
    """
    asked: CellRequest = validated(CellRequest, given, "cell")
    options = asked.model_dump(exclude={"run", "component", "position", "t", "step"})
    checked = request(by=_unit(asked.component), t=str(asked.t), **options)
    run = warm.store.run(asked.run)
    model, task, checkpoint = warm.model(asked.run, asked.step)
    length = task.lengths[-1] if asked.length is None else asked.length
    task.layout(length)
    split = warm.keep(("split", run.name, run.config.hash()), lambda: task.split(run.config.seed, run.config.data))
    pairs = pairs_of(task, checked, length, asked.t, split.test.get(length))
    names = position_names(task, pairs)
    if asked.position >= len(names):
        raise UsageError(f"position {asked.position}: the prompts of step {asked.t} have positions 0 to {pairs.query}")
    result, effect, skipped = _patched(model, checked, pairs, asked)
    shown, share = _estimates(effect, result, checked, asked.t)
    donor = pairs.donor if checked.ablation == "none" else pairs.donor[:0]
    return CellAnswer(
        run=run.name,
        step=checkpoint.step,
        checkpoint=checkpoint.hash,
        component=asked.component,
        position=asked.position,
        position_name=names[asked.position],
        t=asked.t,
        effect=Interval(**vars(shown)),
        share=None if share is None else Interval(**vars(share)),
        skipped=skipped,
        effects=effect.tolist(),
        clean=[task.vocabulary.names(row) for row in pairs.clean],
        donor=[task.vocabulary.names(row) for row in donor],
    ).model_dump(mode="json")


def _unit(component: str) -> str:
    """What `interp patch --by` calls a component at one position."""
    return "edge,position" if "->" in component else "head,position" if ".H" in component else "layer,position"


def _patched(model: Any, checked: Request, pairs: PairBatch, asked: CellRequest) -> tuple[Any, Tensor, str]:
    """Result, effects [prompt] in float64, and why they are exactly zero."""
    given = {
        "clean": pairs.clean,
        "corrupted": pairs.donor if checked.ablation == "none" else None,
        "metric": metric_of(checked.metric, pairs),
        "direction": checked.direction or "noise",
        "ablation": checked.ablation,
        "seed": checked.seed,
    }
    if "->" in asked.component:
        sender, _, receiver = asked.component.partition("->")
        result = patch_edges(model, senders=[sender], receivers=[receiver], resolve="position", **given)
        return result, result.score(asked.component)[:, asked.position].double(), ""
    layer, component = _numbers(asked.component, checked.site)
    place = {"layers": [layer], "components": [component], "positions": [asked.position]}
    result = patch_heads(model, site=checked.site, **place, **given)
    reason = result.reason.flatten()
    skipped = "" if bool((reason == 0).any()) else REASONS[int(reason.mode().values)]
    return result, result.effect.flatten().double(), skipped


def _numbers(component: str, site: str | None) -> tuple[int, int]:
    """Layer and head of a name such as L1.H0 or L1.

    Raises:
        UsageError: for another name.
    """
    layer, dot, head = component.removeprefix("L").partition(".H")
    if not layer.isdecimal() or (dot and not head.isdecimal()) or bool(dot) != (site in HEADED):
        raise UsageError(f"component {component!r}: expected a head L1.H0, a layer L1 or an edge L0.H0->L1.H0.q")
    return int(layer), int(head) if dot else 0


def _estimates(effect: Tensor, result: Any, checked: Request, t: int) -> tuple[Estimate, Estimate | None]:
    """Mean effect and share of the whole difference, with the intervals that `interp patch` gives the same cell."""
    drawn = resampled(len(effect), generator(checked.seed, "patch intervals", t))
    (low,), (high,) = bounds(effect[:, None], drawn)
    shown = Estimate(float(effect.mean()), low, high, len(effect), "bootstrap over prompts")
    if checked.metric == "accuracy":
        shown = of_shares(effect, shown)
    if result.source is None or checked.metric not in SHARED or checked.pairs == "clock":
        return shown, None
    whole = (result.source - result.base).double()
    (least,), (most,) = bounds(whole[:, None], drawn)
    if least <= 0 <= most:
        return shown, None
    (low,), (high,) = bounds(effect[:, None], drawn, whole)
    return shown, Estimate(float(effect.mean() / whole.mean()), low, high, len(effect), shown.method)
