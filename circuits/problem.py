"""What a circuit is looked for in: a model, prompt pairs in disjoint parts, and what is written outside the circuit."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.live import live_edges
from circuits.masked import MaskedRuns
from circuits.metrics import AnswerDiff, ChoiceAccuracy, LogProb, Metric
from interp.decoder import Decoder
from interp.errors import UsageError
from interp.pairs.base import Pairs

Ablation = Literal["resample", "mean", "zero"]


@dataclass(frozen=True)
class Problem:
    """A model with prompt pairs whose parts are disjoint: "score" to rank edges, "choose" for the size, "evaluate".

    Attributes:
        ablation: what senders write outside the circuit: their output in the corrupted run ("resample"), the mean of
            their clean output over prompts and positions, or zero.
        by_position: edges have positions; the prompts must then agree column by column.
        max_bytes: memory for batched runs; None for a quarter of what is free, with which results may vary a little.
    """

    decoder: Decoder
    pairs: Pairs
    ablation: Ablation = "resample"
    by_position: bool = False
    max_bytes: int | None = 2 << 30

    def __post_init__(self) -> None:
        if self.by_position and not self.pairs.aligned():
            self.pairs.position_labels("a circuit by position")
            raise UsageError(
                "by_position: the prompts are of unequal length or their spans stand in different columns; a circuit "
                "by position needs prompts that agree column by column: choose one group, or leave positions out"
            )

    @cached_property
    def parts(self) -> dict[str, "Part"]:
        """Recorded runs of each part.

        Raises:
            UsageError: if a part has no prompts; `Pairs.split` gives parts.
        """
        return {name: Part(self, self.pairs.of_part(name)) for name in ("score", "choose", "evaluate")}

    @cached_property
    def live(self) -> Bool[Tensor, "sender receiver *place"]:
        """Edges that are live on the prompts that a search sees, those of "score" and "choose".

        Held-out prompts decide nothing, not even the denominator of a circuit's share of live edges. An edge that is
        live on them alone is in no circuit and no control, and the model that shares are measured against has it.
        """
        found = [live_edges(self.parts[name].runs, self.by_position) for name in ("score", "choose")]
        return torch.stack(found).any(0)

    @property
    def columns(self) -> tuple[str, ...]:
        """A label for every position; empty without positions."""
        return tuple(self.pairs.position_labels().names) if self.by_position else ()

    def half(self, which: int) -> "Problem":
        """The same problem with every second unit of "score" and "choose": halves 0 and 1 share no sequence."""
        parts = []
        for name in ("score", "choose"):
            pairs = self.pairs.of_part(name)
            index = pairs.unit.unique(return_inverse=True)[1]
            parts.append(Part(self, pairs.subset(index % 2 == which)))
        return self._with_parts(*parts)

    def resampled(self, generator: torch.Generator) -> "Problem":
        """The same problem with the units of "score" and "choose" drawn again, with replacement within each part.

        A unit that is drawn twice counts twice and is run once, except where prompts are ablated to their common mean.
        """
        return self._with_parts(*(self._drawn(self.parts[name], generator) for name in ("score", "choose")))

    def _drawn(self, part: "Part", generator: torch.Generator) -> "Part":
        units, unit = part.pairs.unit.unique(return_inverse=True)
        counts = torch.randint(len(units), (len(units),), generator=generator).bincount(minlength=len(units))
        times = counts[unit]  # [prompt]
        if self.ablation == "mean":
            return Part(self, part.pairs.subset(torch.arange(len(unit)).repeat_interleave(times)))
        drawn = times.nonzero()[:, 0]
        known = {direction: values[drawn] for direction, values in part.effects.items()}
        return Part(self, part.pairs.subset(drawn), times[drawn].float(), known)

    def _with_parts(self, score: "Part", choose: "Part") -> "Problem":
        """Other prompts to search with; live edges and held-out prompts stay."""
        other = Problem(self.decoder, self.pairs, self.ablation, self.by_position, self.max_bytes)
        again = {"score": replace(score, problem=other), "choose": replace(choose, problem=other)}
        other.__dict__["parts"] = again | {"evaluate": self.parts["evaluate"]}
        other.__dict__["live"] = self.live
        return other


@dataclass(frozen=True)
class Part:
    """The prompts of one part and runs of circuits on them.

    Attributes:
        weight: how often each prompt counts; None for once.
        effects: exact effects of edges by direction, [prompt sender receiver *place], once they are known.
    """

    problem: Problem
    pairs: Pairs
    weight: Float[Tensor, "prompt"] | None = None
    effects: dict[str, Float[Tensor, "prompt sender receiver *place"]] = field(default_factory=dict)

    @cached_property
    def metric(self) -> Metric:
        """Mean logit of the right answers minus that of the wrong ones; log-probability where none are wrong."""
        pairs, places = self.pairs, self.pairs.places
        with_wrong = (self.problem.pairs.wrong >= 0).any(-1)  # of all parts: one problem has one metric
        if bool(with_wrong.any()) and not bool(with_wrong.all()):
            raise UsageError("pairs: some prompts have wrong answers and others none; give all of them some, or none")
        if bool(with_wrong.any()):
            return AnswerDiff(pairs.answers, pairs.wrong, places)
        if pairs.answers.shape[-1] == 1:
            return LogProb(pairs.answers[..., 0], places)
        raise UsageError("pairs: prompts with several right answers need wrong ones to compare them with")

    @property
    def accuracy(self) -> ChoiceAccuracy:
        """Whether a right answer beats every wrong one."""
        return ChoiceAccuracy(self.pairs.answers, self.pairs.wrong, self.pairs.places)

    @property
    def metric_name(self) -> str:
        """The metric in words."""
        if isinstance(self.metric, LogProb):
            return "log-probability of the answer (nats)"
        return "mean logit of the right answers minus mean logit of the wrong ones"

    @cached_property
    def runs(self) -> MaskedRuns:
        """The recorded clean and ablated runs."""
        pairs, problem = self.pairs, self.problem
        return MaskedRuns(
            problem.decoder,
            clean=pairs.clean,
            corrupted=pairs.corrupted if problem.ablation == "resample" else None,
            metric=self.metric,
            mask=pairs.mask,
            max_bytes=problem.max_bytes,
            weight=self.weight,
            **({} if problem.ablation == "resample" else {"ablation": problem.ablation}),
        )
