"""What if this head or edge were gone: accuracy on new sequences beside five matched controls, exploratory."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from circuits.detectors.base import Interval
from circuits.engine.record import Record, record
from circuits.engine.runs import check_finite
from circuits.graph import EdgeGraph, edge_graph
from circuits.patching_reference import relative_move
from circuits.problem import Ablation
from circuits.whatif_controls import control_words, kind_of, matched
from circuits.whatif_prompts import Sequences, new_sequences
from circuits.whatif_runs import Change, ablation_of, changed_logits, turned, write_of
from interp.config import Frozen, validated
from interp.decoder import Decoder, decoder_of
from interp.evaluate import logit_margin, step_positions
from interp.rng import generator
from interp.run import Run
from interp.tasks.base import Split, Task
from interp.train import load_model
from probes.intervals import Estimate, mean, share

if TYPE_CHECKING:
    from interp.checkpoint import Checkpoint
    from interp.model import Transformer
    from interp.worker import Warm

MOVED_BAR = 1e-3  # relative; a change of what is written below this is no test of anything
NOTE = (
    "Exploratory: one look at one place, on sequences of its own. Confirm it on held-out prompts with `interp detect` "
    "or `interp circuit` before it is claimed."
)
ABLATIONS = {
    "zero": "zero",
    "mean": "its mean over prompts and positions",
    "resample": "its value in another prompt",
}


class WhatIfRequest(Frozen):
    """What is asked."""

    run: str
    target: str = Field(description="head L1.H0, MLP M0, or edge L0.H0->L1.H0.k")
    step: int | None = Field(None, ge=0, description="checkpoint; null: the newest")
    ablation: Ablation = "mean"
    length: int | None = Field(None, ge=1, description="inputs of a sequence; null: the longest")
    n: int = Field(128, ge=8, le=2048, description="sequences")
    controls: int = Field(5, ge=0, le=20)
    seed: int = Field(0, ge=0)


class Outcome(Frozen):
    """How the run answers with one change in place; for the run itself nothing is lost."""

    component: str
    kind: Literal["run", "head", "mlp", "edge", "random"]
    accuracy: Interval = Field(description="share of sequences with every state right")
    steps: Interval = Field(description="share of single states right, mean over sequences")
    margin: Interval = Field(description="logit of the right answer minus that of the best wrong one")
    lost: Interval | None = Field(description="single states lost against the unchanged run, sequence by sequence")
    moved: float = Field(description="median relative change of what the node writes; 0: not moved")
    tested: bool = Field(description="whether it moved at all")


class WhatIf(Frozen):
    """The answer."""

    format: Literal[1] = 1
    exploratory: bool = True
    run: str
    step: int
    checkpoint: str
    task: str
    length: int
    target: str
    ablation: Ablation
    intervention: str
    prompts: str
    disjoint: bool = Field(description="whether no sequence can be one of `interp detect` or `interp circuit`")
    base: Outcome
    changed: Outcome
    controls: list[Outcome]
    control_name: str
    reading: str = Field(description="the answer in a sentence")
    note: str = NOTE


@dataclass(frozen=True)
class Scored:
    """Single answers of sequences under one change."""

    correct: Bool[Tensor, "sequence step"]
    margin: Float[Tensor, "sequence step"]


@dataclass(frozen=True)
class Subject:
    """A checkpoint on its sequences, recorded once and asked often."""

    decoder: Decoder
    graph: EdgeGraph
    task: Task
    run: str
    step: int
    checkpoint: str
    length: int
    sequences: Sequences
    base: Record

    def scored(self, logits: Float[Tensor, "sequence pos d_vocab"]) -> Scored:
        """Which states are right, and by how much."""
        at = step_positions(self.task, self.length)
        margin = logit_margin(logits[:, at], self.sequences.tokens[:, [place + 1 for place in at]])
        return Scored(margin > 0, margin)


def answer(warm: "Warm", request: dict[str, Any]) -> dict[str, Any]:
    """The request `what_if` of the warm worker: plain values in and out; see `WhatIfRequest` and `WhatIf`.

    Raises:
        InterpError: for a run, checkpoint, length, head or edge that does not exist, naming it.
    """
    asked: WhatIfRequest = validated(WhatIfRequest, request, "what-if")
    run = warm.store.run(asked.run)
    loaded = warm.model(asked.run, asked.step)
    task, config = loaded[1], run.config
    split = warm.keep(("split", run.name, config.hash()), lambda: task.split(config.seed, config.data))
    return what_if(subject_of(run, asked, loaded, split), asked).model_dump(mode="json")


def subject_of(
    run: Run,
    asked: WhatIfRequest,
    loaded: "tuple[Transformer, Task, Checkpoint] | None" = None,
    split: Split | None = None,
) -> Subject:
    """The checkpoint and the sequences that a request asks for; what is loaded already can be given.

    Raises:
        InterpError: for a checkpoint or length that does not exist.
    """
    model, task, checkpoint = loaded or load_model(run, asked.step)
    length = max(task.lengths) if asked.length is None else asked.length
    task.layout(length)
    split = split or task.split(run.config.seed, run.config.data)
    sequences = new_sequences(task, split, length, asked.n, generator(asked.seed, "what-if prompts", length))
    decoder = decoder_of(model)
    with torch.no_grad():
        base = record(decoder, sequences.tokens)
    check_finite(decoder, base)
    graph = edge_graph(decoder)
    return Subject(decoder, graph, task, run.name, checkpoint.step, checkpoint.hash, length, sequences, base)


@torch.no_grad()
def what_if(subject: Subject, asked: WhatIfRequest) -> WhatIf:
    """One ablation on a checkpoint, with the run itself and its controls beside it."""
    decoder, base = subject.decoder, subject.base
    change = ablation_of(decoder, base, subject.graph, asked.target, asked.ablation, asked.seed)
    stream = generator(asked.seed, "what-if controls", asked.target, asked.ablation)
    others = matched(subject.graph, asked.target, asked.controls, stream)
    plain = subject.scored(decoder.logits(base.final))

    def outcome(name: str, kind: str, made: Change, sender: str) -> Outcome:
        after = subject.scored(changed_logits(decoder, base, made))
        old = write_of(decoder, base, sender)
        return _outcome(name, kind, after, plain, relative_move(old, old + made.delta), asked.seed)

    sender = asked.target.partition("->")[0]
    changed = outcome(asked.target, kind_of(asked.target), change, sender)
    controls = []
    for other in others:
        made = ablation_of(decoder, base, subject.graph, other, asked.ablation, asked.seed)
        controls.append(outcome(other, kind_of(other), made, other.partition("->")[0]))
    n_random = asked.controls - len(others)
    for number in range(1, n_random + 1):
        controls.append(outcome(f"random directions {number}", "random", turned(change, stream), sender))
    run = _outcome(subject.run, "run", plain, None, 0.0, asked.seed)
    return WhatIf(
        run=subject.run,
        step=subject.step,
        checkpoint=subject.checkpoint,
        task=subject.task.name,
        length=subject.length,
        target=asked.target,
        ablation=asked.ablation,
        intervention=_intervention(asked),
        prompts=subject.sequences.words,
        disjoint=subject.sequences.disjoint,
        base=run,
        changed=changed,
        controls=controls,
        control_name=control_words(asked.target, others, n_random),
        reading=_reading(changed, run, controls),
    )


def _outcome(name: str, kind: str, after: Scored, before: Scored | None, moved: float, seed: int) -> Outcome:
    right, units = after.correct.all(1), after.correct.double().mean(1)
    lost = None
    if before is not None:
        lost = _interval(_of_differences(before.correct.double().mean(1) - units, seed))
    return Outcome(
        component=name,
        kind=kind,
        accuracy=_interval(share(int(right.sum()), len(right))),
        steps=_interval(mean(units, generator(seed, "what-if intervals"))),
        margin=_interval(mean(after.margin.double().mean(1), generator(seed, "what-if intervals"))),
        lost=lost,
        moved=moved,
        tested=before is None or moved > MOVED_BAR,
    )


def _of_differences(lost: Float[Tensor, "sequence"], seed: int) -> Estimate:
    """Mean loss; where no sequence loses anything the bootstrap has no spread, and a Wilson interval is given."""
    if bool((lost == 0).all()):
        bound = share(0, len(lost)).high
        return Estimate(0.0, -bound, bound, len(lost), "wilson")
    return mean(lost, generator(seed, "what-if intervals"))


def _interval(estimate: Estimate) -> Interval:
    return Interval(**vars(estimate))


def _intervention(asked: WhatIfRequest) -> str:
    what = "carries" if "->" in asked.target else "writes"
    return f"what {asked.target} {what} becomes {ABLATIONS[asked.ablation]}, at every position; all else recomputed"


def _reading(changed: Outcome, run: Outcome, controls: list[Outcome]) -> str:
    """The loss beside that of the controls."""
    if not changed.tested:
        return f"Not tested: the ablation did not change what {changed.component} writes."
    said = (
        f"With {changed.component} ablated {changed.steps.value:.0%} of single states are right, "
        f"{run.steps.value:.0%} without the ablation"
    )
    shown = [one.steps.value for one in controls if one.tested]
    if not shown:
        return f"{said}; no control could be tested."
    span = f"{min(shown):.0%} to {max(shown):.0%}" if max(shown) - min(shown) >= 0.005 else f"{max(shown):.0%}"
    if changed.lost.low <= 0:
        return f"{said}: the interval of what is lost covers 0. Under {len(shown)} controls it is {span}."
    as_much = sum(one.lost.value >= changed.lost.value for one in controls if one.tested)
    return f"{said}, {span} under {len(shown)} controls; {as_much} of these lose as much or more."
