"""The prompts that a run is patched on: pairs of its task by step, whose swap changes the answer."""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from circuits.engine.sites import n_components
from circuits.graph import edge_graph
from circuits.metrics import KL, Accuracy, LogitDiff, LogProb, Metric
from circuits.patch_command.request import Request
from interp.checkpoint import Checkpoint
from interp.decoder import decoder_of
from interp.errors import TaskError
from interp.model import Transformer
from interp.rng import generator
from interp.run import Run
from interp.tasks.base import PairBatch, Task
from interp.train import load_model

ROUNDS = 8  # draws of 2 n pairs, to find n different ones whose swap changes the answer
LARGEST = 1_000_000  # effects up to which all steps are patched without being asked for


@dataclass(frozen=True)
class Prompts:
    """A checkpoint with the pairs that a request is about.

    Attributes:
        pairs: by step of the task; `chosen` are the steps to patch.
        refused: steps that have no pairs, with the reason.
    """

    model: Transformer
    task: Task
    checkpoint: Checkpoint
    length: int
    pairs: dict[int, PairBatch]
    chosen: list[int]
    refused: dict[int, str]

    @property
    def left_out(self) -> tuple[int, ...]:
        """Steps that have pairs and are not patched."""
        return tuple(t for t in self.pairs if t not in self.chosen)


def open_prompts(run: Run, request: Request) -> Prompts:
    """The checkpoint, and the pairs of every step.

    Raises:
        UsageError: for a step, length or site that the task or the model does not have.
    """
    model, task, checkpoint = load_model(run, request.step)
    model = model.double() if request.precision == "fp64" else model
    length = task.lengths[-1] if request.length is None else request.length
    held_out = task.split(run.config.seed, run.config.data).test.get(length)
    pairs, refused = pairs_by_step(task, request, length, held_out)
    return Prompts(model, task, checkpoint, length, pairs, chosen_steps(model, request, pairs, length), refused)


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
