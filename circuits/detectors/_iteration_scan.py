"""Statistic and null of the iteration-head detector: attention mass on the clock and reading diagonals."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from circuits.detectors.base import Interval, NullSummary, Statistic
from interp.config import ModelConfig
from interp.hooks import HookedModel
from interp.tasks.base import Task
from probes.attention import attention_patterns, diagonal_score, shifted
from probes.intervals import Estimate, mean, mean_of_strata
from probes.null import NullScan, null_scan, p_value

MIN_LENGTH = 4  # at length 1 a mass above 0.5 occurs in 26-67 % of untrained 8-head models, at 4 or more in none of 100
OFFSETS = tuple(range(-3, 4))
SCAN_LENGTHS = 6
SCAN_SEQUENCES = 8
ROLES = ("reading", "clock")

Sequences = dict[int, Int[Tensor, "_sequence _pos"]]
Head = tuple[int, int]


@dataclass(frozen=True)
class Cells:
    """Mean over lengths of the attention mass, for every head and key offset; offset 0 is the textbook target."""

    reading: Float[Tensor, "twin layer head offset"]
    clock: Float[Tensor, "twin layer head offset"]

    @property
    def joint(self) -> Float[Tensor, "twin clock reading clock_offset reading_offset"]:
        """min(clock mass, reading mass) for each pair of a clock head and a reading head in a later layer.

        Heads are numbered layer by layer; pairs in the wrong layer order are 0.
        """
        n_layers, n_heads = self.clock.shape[1:3]
        clock, reading = self.clock.flatten(1, 2), self.reading.flatten(1, 2)  # twin component offset
        both = torch.minimum(clock[:, :, None, :, None], reading[:, None, :, None, :])
        layer = torch.arange(n_layers, device=both.device).repeat_interleave(n_heads)
        return both * (layer[:, None] < layer[None, :])[:, :, None, None]


def label(layer: int, head: int) -> str:
    """Name of a head, as L1.H0."""
    return f"L{layer}.H{head}"


def parse_label(component: str) -> tuple[int, int]:
    """Layer and head of a name such as L1.H0."""
    layer, head = component.removeprefix("L").split(".H")
    return int(layer), int(head)


def test_lengths(task: Task, sequences: Sequences) -> list[int]:
    """Lengths from 4 up that have held-out sequences."""
    return [length for length in task.lengths if length >= MIN_LENGTH and len(sequences.get(length, ()))]


def scan_sequences(task: Task, sequences: Sequences) -> Sequences:
    """The probe set of the scan: up to 6 lengths spread from shortest to longest, 8 sequences each."""
    lengths = test_lengths(task, sequences)
    if len(lengths) > SCAN_LENGTHS:
        places = torch.linspace(0, len(lengths) - 1, SCAN_LENGTHS).round().long().tolist()
        lengths = [lengths[place] for place in places]
    return {length: sequences[length][:SCAN_SEQUENCES] for length in lengths}


def cells(task: Task, patterns: dict[int, Float[Tensor, "_twin layer _batch head _q_pos _k_pos"]]) -> Cells:
    """Average the mass of each head, role and offset over sequences, targets and lengths.

    Averaging over lengths asks a head to hold its diagonal at every length. The reading diagonal moves with the
    length, so no fixed relative offset and no fixed position can score high at all of them.
    """
    by_role: dict[str, list[Tensor]] = {}
    for role in ROLES:
        per_offset = []
        for offset in OFFSETS:
            masses = []
            for length, pattern in patterns.items():
                targets = shifted(task.attention_targets(length)[role], offset)
                queries = torch.tensor([q for q, _ in targets])
                keys = torch.tensor([k for _, k in targets])
                masses.append(pattern[..., queries, keys].mean(-1).mean(-2))  # twin layer head
            per_offset.append(torch.stack(masses).mean(0))
        by_role[role] = torch.stack(per_offset, -1)
    return Cells(by_role["reading"], by_role["clock"])


def scanned_maxima(found: Cells) -> Float[Tensor, "twin statistic"]:
    """One maximum per twin for the statistics reading, clock and joint, over all heads, pairs and offsets."""
    return torch.stack(
        [found.reading.flatten(1).amax(1), found.clock.flatten(1).amax(1), found.joint.flatten(1).amax(1)], 1
    )


def model_cells(model: HookedModel, task: Task, sequences: Sequences) -> Cells:
    """Cells of one model (a twin axis of length 1)."""
    return cells(task, {length: attention_patterns(model, t)[None] for length, t in sequences.items()})


def build_null(
    cfg: ModelConfig,
    task: Task,
    sequences: Sequences,
    *,
    n: int,
    generator: Generator,
    progress: Callable[[int, int], None] | None = None,
) -> NullScan:
    """Scan `n` untrained twins of the configuration on the same probe set."""
    return null_scan(
        cfg, sequences, lambda p: scanned_maxima(cells(task, p)), n=n, generator=generator, progress=progress
    )


def family_p(observed: float, maxima: Float[Tensor, "twin"], checkpoints: int) -> tuple[float, int]:
    """p over the whole family: (1 + exceedances) / (1 + n) for one checkpoint, then 1 - (1 - p)^checkpoints.

    The second step (Sidak) treats the checkpoints as independent; those of one training are positively dependent, so
    it errs on the safe side.
    """
    single, exceedances = p_value(observed, maxima)
    return any_of(single, checkpoints), exceedances


def any_of(p: float, count: int) -> float:
    """Probability of at least one of `count` independent events of probability p."""
    return p if count == 1 or p >= 1 else -math.expm1(count * math.log1p(-p))


def summarise_null(
    found: Cells, null: NullScan, checkpoints: int, pair: tuple[Head, Head] | None = None
) -> list[NullSummary]:
    """The observed mass on the textbook targets against one maximum per twin over heads, pairs and offsets.

    Args:
        pair: the clock and reading head whose masses are judged, where a pair is under test; None judges the heads
            with the most mass. A pair is never judged by the attention of other heads.
    """
    zero, n_heads = OFFSETS.index(0), found.clock.shape[2]
    n = found.clock.shape[1] * n_heads
    joint = found.joint[0]
    chosen = {"reading": None, "clock": None, "joint": None}
    if pair is not None:
        clock, reading = (layer * n_heads + head for layer, head in pair)
        chosen = {"reading": reading, "clock": clock, "joint": clock * n + reading}
    tables = {
        "reading": (found.reading[0, ..., zero].flatten(), found.reading[0].flatten(0, 1)),
        "clock": (found.clock[0, ..., zero].flatten(), found.clock[0].flatten(0, 1)),
        "joint": (joint[..., zero, zero].flatten(), joint.flatten(0, 1).flatten(1)),
    }
    summaries = []
    for index, (role, (observed, everywhere)) in enumerate(tables.items()):
        place = int(observed.argmax()) if chosen[role] is None else chosen[role]
        value, maxima = float(observed[place]), null.maxima[:, index]
        p, exceedances = family_p(value, maxima, checkpoints)
        parts = divmod(place, n) if role == "joint" else (place,)
        offset = int(everywhere.amax(0).argmax()) % len(OFFSETS)  # of a pair: the reading head's offset
        summaries.append(
            NullSummary(
                role=role,
                observed=value,
                component="+".join(label(*divmod(part, n_heads)) for part in parts),
                offset=OFFSETS[offset],
                n=null.n,
                n_sharp=null.n_sharp,
                exceedances=exceedances,
                p_value=p,
                smallest_p=any_of(1 / (1 + null.n), checkpoints),
                quantile_95=float(torch.quantile(maxima, 0.95)),
                scan=_scan_text(role, found, checkpoints),
            )
        )
    return summaries


def _scan_text(role: str, found: Cells, checkpoints: int) -> str:
    """What the maximum runs over, in words."""
    heads = found.clock.shape[1] * found.clock.shape[2]
    what = f"{heads} heads" if role != "joint" else "pairs of a clock head and a later reading head"
    saved = "1 checkpoint" if checkpoints == 1 else f"{checkpoints} checkpoints"
    return f"{what} x {len(OFFSETS)} key offsets x {saved}, mass averaged over lengths"


def interval(estimate: Estimate) -> Interval:
    """The report form of an estimate."""
    return Interval(value=estimate.value, low=estimate.low, high=estimate.high, n=estimate.n, method=estimate.method)


def statistics(model: HookedModel, task: Task, sequences: Sequences, generator: Generator) -> list[Statistic]:
    """Mass, argmax rate and invariance of every head, role and length from 4 up."""
    rows = []
    for length in test_lengths(task, sequences):
        patterns = attention_patterns(model, sequences[length])
        for role in ROLES:
            score = diagonal_score(patterns, task.attention_targets(length)[role])
            for layer in range(model.cfg.n_layers):
                for head in range(model.cfg.n_heads):
                    rows.append(
                        Statistic(
                            component=label(layer, head),
                            role=role,
                            length=length,
                            mass=interval(mean(score.sequence_mass[layer, :, head], generator, 200)),
                            argmax_rate=interval(mean(score.sequence_argmax[layer, :, head], generator, 200)),
                            invariance=float(score.invariance[layer, head]),
                        )
                    )
    return rows


def with_intervals(
    summaries: list[NullSummary], model: HookedModel, task: Task, sequences: Sequences
) -> list[NullSummary]:
    """The same rows with the interval of the observed mass over the sequences of the scan, and what it is a mean over.

    The joint statistic is the smaller of two masses and has the interval of that one.
    """
    masses: dict[str, list[Tensor]] = {role: [] for role in ROLES}  # of each length: [layer sequence head]
    for length, tokens in sequences.items():
        patterns = attention_patterns(model, tokens)
        for role in ROLES:
            masses[role].append(diagonal_score(patterns, task.attention_targets(length)[role]).sequence_mass)

    def spread(role: str, component: str) -> Estimate:
        layer, head = parse_label(component)
        return mean_of_strata([one[layer, :, head] for one in masses[role]])

    over, found = scan_words(sequences), []
    for row in summaries:
        clock_and_reading = row.component.split("+")
        roles = [row.role] if len(clock_and_reading) == 1 else ["clock", "reading"]
        estimates = [spread(*one) for one in zip(roles, clock_and_reading, strict=True)]
        known = interval(min(estimates, key=lambda one: one.value))
        found.append(row.model_copy(update={"observed_interval": known, "over": over}))
    return found


def scan_words(sequences: Sequences) -> str:
    """Lengths and number of sequences of the scan, in words."""
    counts = {len(tokens) for tokens in sequences.values()}
    each = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    lengths = ", ".join(map(str, sequences))
    of = f"each of the lengths {lengths}" if len(sequences) > 1 else f"length {lengths}"
    return f"{each} held-out sequences of {of}"
