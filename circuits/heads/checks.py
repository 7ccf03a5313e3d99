"""Causal checks of single heads by exact patching, each beside the same intervention on matched control heads."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from circuits.detectors.base import HeadCheck, Interval
from circuits.engine.products import Precision
from circuits.engine.record import record
from circuits.engine.runs import new_values
from circuits.heads.probe import Probe
from circuits.metrics import KL, LogProb, Metric
from circuits.patch_sets import At, patch_sets
from circuits.patching_reference import relative_move
from interp.decoder import Decoder
from probes.intervals import mean

MOVED_BAR = 1e-3
CONTROLS = 3
MOST_READ = 8  # places per prompt where a metric is read
LEAST = 1e-3  # nats: below this an effect is no effect that matters, however narrow its interval
EVERYWHERE = (None,)  # one entry of a set that stands for all places
LOST_RULE = f"effect above {LEAST} nats, and above that of the control heads sequence by sequence (95 % intervals)"
KL_WORDS = "KL divergence (nats) of the predictions from those of the unpatched run"

Head = tuple[int, int]
Effects = dict[Head, Float[Tensor, "unit"]]


def label(head: Head) -> str:
    """L1.H0."""
    return f"L{head[0]}.H{head[1]}"


@dataclass(frozen=True)
class Setting:
    """What checks need.

    Attributes:
        decoder: the whole model.
        spent: attention of each head that is neither on the first place nor on the query's own.
        attended: per head and prompt the most attended of the keys that count, at each of the probe's queries.
        flagged: heads of this type by the statistic; no control is one of them.
        typed: heads of any type by the statistic; they are controls only where a layer has no others.
        precision: of the patches.
    """

    decoder: Decoder
    probe: Probe
    spent: Float[Tensor, "layer head"]
    attended: Int[Tensor, "layer head prompt query"]
    flagged: frozenset[Head]
    typed: frozenset[Head]
    stream: Generator
    precision: Precision = "fp32"

    def controls(self, head: Head) -> tuple[list[Head], str]:
        """Up to three heads of the same layer that spend as much attention; none where all of them are flagged.

        Heads of other layers are no measure: removing one earlier removes what all later ones read.
        """
        own = [(head[0], index) for index in range(self.spent.shape[1])]
        free = [one for one in own if one not in self.flagged]
        pool = [one for one in free if one not in self.typed] or free
        if not pool:
            return [], "none: every head of the layer is flagged"
        near = sorted(pool, key=lambda one: abs(float(self.spent[one] - self.spent[head])))[:CONTROLS]
        spends = ", ".join(f"{float(self.spent[one]):.2f}" for one in near)
        return (
            near,
            f"heads of the same layer, attention spent {spends} against {float(self.spent[head]):.2f}, averaged",
        )

    def repeated_token(self) -> LogProb:
        """Log-probability of the token that followed before, at up to eight places of the second block."""
        places = thinned(self.probe.second[:-1])
        return LogProb(self.probe.clean[:, places + 1], places.expand(self.probe.n, -1))

    def predicts_repeats(self) -> bool:
        """Whether a repeated token is more likely than after another first block, beyond the interval."""
        metric = self.repeated_token()
        places = metric.positions[0]
        found = []
        for tokens in (self.probe.clean, self.probe.broken):
            rows = record(self.decoder, tokens.to(self.decoder.W_E.device)).final[:, places]
            logs = self.decoder.logits(rows).log_softmax(-1).cpu()
            found.append(logs.gather(-1, metric.target[..., None]).mean((1, 2)))
        return mean(self.probe.by_unit(found[0] - found[1]), self.stream).low > 0


def thinned(places: Int[Tensor, "place"]) -> Int[Tensor, "some"]:
    """At most eight of them, evenly spaced."""
    step = max(1, len(places) / MOST_READ)
    return places[[int(index * step) for index in range(min(len(places), MOST_READ))]]


@dataclass(frozen=True)
class Intervention:
    """One kind of patch, in words, with what it is measured by.

    Attributes:
        costs: what one unit of effect adds to the cost: -1 for a metric that should fall, 1 for a divergence.
    """

    name: str
    intervention: str
    metric: str
    costs: float


@dataclass(frozen=True)
class Ran:
    """Costs of patching each head, relative movement of its output, and the metric of the unpatched run."""

    costs: Effects
    moved: dict[Head, float]
    base: Float[Tensor, "unit"]


def without_repeat(setting: Setting, heads: Sequence[Head], metric: LogProb | None) -> list[HeadCheck]:
    """The head's outputs in the second block become those after a first block without any of its tokens.

    Args:
        metric: what should fall; None for the divergence of the predictions in the second block.
    """
    probe, second = setting.probe, setting.probe.second
    words = Intervention(
        "without the repeat",
        "output of the head in the second block taken from the same block after other tokens",
        KL_WORDS if metric is None else "log-probability (nats) of the repeated token",
        1.0 if metric is None else -1.0,
    )
    found: Metric = KL(thinned(second).expand(probe.n, -1)) if metric is None else metric
    options = {"clean": probe.clean, "corrupted": probe.broken, "direction": "noise"}
    ran = patched(setting, everyone(setting, heads), found, second.tolist(), words.costs, options)
    return [judged(setting, head, ran, words) for head in heads]


def mean_ablation(setting: Setting, heads: Sequence[Head], metric: LogProb, not_tested: str = "") -> list[HeadCheck]:
    """The head's outputs become their mean over prompts and places, everywhere at once.

    Args:
        not_tested: why there is nothing to lose; empty where there is.
    """
    words = Intervention(
        "mean ablation",
        "output of the head at all places replaced by its mean over prompts and places",
        "log-probability (nats) of the repeated token",
        -1.0,
    )
    if not_tested:
        return [untested(head, words, not_tested) for head in heads]
    options = {"clean": setting.probe.clean, "ablation": "mean"}
    ran = patched(setting, everyone(setting, heads), metric, EVERYWHERE, -1.0, options)
    return [judged(setting, head, ran, words) for head in heads]


def attended_token(setting: Setting, heads: Sequence[Head]) -> list[HeadCheck]:
    """Mean ablation, measured by the token that the head attends to most at each query."""
    words = Intervention(
        "mean ablation",
        "output of the head at all places replaced by its mean over prompts and places",
        "log-probability (nats) of the token that the head attends to most",
        -1.0,
    )
    probe, checks = setting.probe, []
    options = {"clean": probe.clean, "ablation": "mean", "mask": probe.real}
    column = thinned(torch.arange(probe.queries.shape[1]))
    for head in heads:
        target = probe.clean.gather(1, setting.attended[head].cpu())[:, column]
        metric = LogProb(target, probe.queries[:, column])
        ran = patched(setting, everyone(setting, [head]), metric, EVERYWHERE, -1.0, options)
        checks.append(judged(setting, head, ran, words))
    return checks


def other_previous_token(setting: Setting, heads: Sequence[Head]) -> list[HeadCheck]:
    """The head's output at the last place becomes the one after another previous token."""
    words = Intervention(
        "another previous token",
        "output of the head at the last place taken from the same prompt with another token before it",
        KL_WORDS,
        1.0,
    )
    tokens = setting.probe.broken
    last, other = tokens.shape[1] - 1, tokens.clone()
    pool = set(setting.probe.tokens[:, setting.probe.start :].unique().tolist())
    for row in range(len(other)):
        unused = sorted(pool - set(tokens[row].tolist())) or [int(tokens[row, setting.probe.start])]
        other[row, last - 1] = unused[int(torch.randint(len(unused), (1,), generator=setting.stream))]
    options = {"clean": tokens, "corrupted": other, "direction": "noise"}
    ran = patched(setting, everyone(setting, heads), KL(last), [last], 1.0, options)
    return [judged(setting, head, ran, words) for head in heads]


def everyone(setting: Setting, heads: Sequence[Head]) -> list[Head]:
    """The heads and all their controls, each once."""
    return list(dict.fromkeys(one for head in heads for one in (head, *setting.controls(head)[0])))


def patched(
    setting: Setting, heads: Sequence[Head], metric: Metric, places: Sequence[int | None], costs: float, options: dict
) -> Ran:
    """One branch per head, by the exact engine."""
    sets = [[At("z", layer, head, place) for place in places] for layer, head in heads]
    device = setting.decoder.W_E.device
    options = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in options.items()}
    result = patch_sets(setting.decoder, sets, metric=metric, precision=setting.precision, **options)
    source = new_values(result.runs, lambda run: run.z)
    where = slice(None) if places[0] is None else list(places)
    moved = {}
    for layer, head in heads:
        old, new = result.runs.base.layers[layer].z[:, where, head], source[layer][:, where, head]
        moved[layer, head] = relative_move(old, new)
    effect = setting.probe.by_unit(costs * result.effect.cpu())
    by_head = {head: effect[:, index] for index, head in enumerate(heads)}
    return Ran(by_head, moved, setting.probe.by_unit(result.base.cpu()))


def judged(setting: Setting, head: Head, ran: Ran, words: Intervention) -> HeadCheck:
    """The outcome for one head; a divergence is never negative, so that without a control it says nothing."""
    controls, control_name = setting.controls(head)
    cost, moved = ran.costs[head], ran.moved[head]
    rest = torch.stack([ran.costs[one] for one in controls]).mean(0) if controls else None
    effect = interval(cost, setting.stream)
    control = None if rest is None else interval(rest, setting.stream)
    difference = None if rest is None else interval(cost - rest, setting.stream)
    divergence = words.costs > 0
    reason = "" if moved > MOVED_BAR else "not tested: the intervention did not move the head's output"
    if not reason and divergence and not controls:
        reason = "not tested: a divergence needs a control head to compare with"
    passed = effect.low > LEAST and (difference is None or difference.low > 0)
    return HeadCheck(
        name=words.name,
        component=label(head),
        intervention=words.intervention,
        metric=words.metric,
        base=None if divergence else interval(ran.base, setting.stream),
        effect=effect,
        control=control,
        difference=difference,
        controls=[label(one) for one in controls],
        control_name=control_name,
        moved=moved,
        tested=not reason,
        passed=None if reason else passed,
        threshold=LOST_RULE,
        note=reason,
    )


def untested(head: Head, words: Intervention, reason: str) -> HeadCheck:
    """A check that does not apply."""
    return HeadCheck(
        name=words.name,
        component=label(head),
        intervention=words.intervention,
        metric=words.metric,
        base=None,
        effect=None,
        control=None,
        difference=None,
        controls=[],
        control_name="",
        moved=0.0,
        tested=False,
        passed=None,
        threshold=LOST_RULE,
        note=f"not tested: {reason}",
    )


def interval(values: Float[Tensor, "unit"], stream: Generator) -> Interval:
    """Mean with a bootstrap over sequences."""
    return Interval(**vars(mean(values, stream)))
