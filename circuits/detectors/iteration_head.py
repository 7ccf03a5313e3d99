"""Iteration-head detector: a clock head and a reading head that carry a chain of thought one state at a time.

Claim: in an early layer a clock head looks from each state position back to EoI, which tells the step t; in a later
layer a reading head looks from state t at input t+1; the residual stream carries s_t and the MLP applies the update.

Statistic: attention mass (and argmax rate) on the two target diagonals, averaged over lengths from 4 up; invariance
to token values is reported beside it.

Null: untrained twins of the same configuration, three quarters of them with sharpened QK, scanned in the same way; one
maximum per twin over heads (or pairs of a clock head and a later reading head) and key offsets, so that p is
family-wise. Several checkpoints are corrected by 1 - (1 - p)^n.

Threshold: joint p <= 0.01 for the tested pair itself, its targets the most attended keys at half of the queries or
more, and every causal check passed. Heads that attend rightly and do nothing cannot lend their p-value to others.

Causal check: interchange, the headline. With the reading head's output from an input donor the answer becomes the
oracle's for (s_t, donor x_{t+1}); with the clock head's output from a donor of another length it becomes the oracle's
for (s_t, x_{t'+1}); both with the lower end of the interval at 0.9 or more. Beside it, removing the target key must
hurt more than removing as much mass elsewhere, keeping only the target key must cost at most half of what removing it
costs, and replacing the head's output by its mean must cost accuracy.

Known failure: a role shared by several heads of a layer is not an iteration head by this rule, since no single head
passes the interchange; the group then stands among the carriers and in the headline.

Source: "Iteration Head: A Mechanistic Study of Chain-of-Thought" (NeurIPS 2024), sections on the circuit and its
attention metrics; the null, the interchange checks and the verdict are ours.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from circuits.detectors._iteration_carriers import carriers
from circuits.detectors._iteration_checks import keep_only_check, knock_out_check, mean_ablation_check
from circuits.detectors._iteration_interchange import (
    ROLE_FAMILY,
    Setting,
    collect_cases,
    interchange,
    interchange_check,
)
from circuits.detectors._iteration_scan import (
    MIN_LENGTH,
    OFFSETS,
    Cells,
    Head,
    Sequences,
    build_null,
    interval,
    label,
    model_cells,
    scan_sequences,
    statistics,
    summarise_null,
    test_lengths,
    with_intervals,
)
from circuits.detectors._iteration_verdict import decide, headline, limits, significant, statistic_pair
from circuits.detectors.base import CausalCheck, Detection, LengthAccuracy, NullSummary, Statistic
from interp.errors import DetectorError
from interp.evaluate import free_steps, teacher_forced
from interp.hooks import HookedModel
from interp.rng import generator
from interp.tasks.base import Task
from probes.intervals import mean, share
from probes.null import NullScan

CANDIDATES = 3


@dataclass(frozen=True)
class Origin:
    """Where the tested weights came from; copied into the result."""

    run: str = "unnamed"
    step: int = 0
    checkpoint: str = ""
    config_hash: str = ""
    code_version: str = ""


@dataclass(frozen=True)
class Options:
    """How much work a detection does; the defaults take a few seconds on one core for the preset model."""

    seed: int = 0
    n_null: int = 500
    per_step: int = 16
    per_length: int = 64
    accuracy_sequences: int = 1024
    causal: bool = True
    checkpoints: int = 1


class IterationHead:
    """The detector; see the module docstring for claim, statistic, null, threshold, causal check and known failure."""

    name = "iteration_head"
    claim = "a clock head tells the step t; a later reading head fetches input t+1 for the state update"

    def null(
        self,
        model: HookedModel,
        task: Task,
        sequences: Sequences,
        options: Options,
        progress: Callable[[int, int], None] | None = None,
    ) -> NullScan:
        """The null for this configuration; one null serves every checkpoint of a run."""
        stream = generator(options.seed, "iteration head null")
        probe = scan_sequences(task, sequences)
        return build_null(model.cfg, task, probe, n=options.n_null, generator=stream, progress=progress)

    def detect(
        self,
        model: HookedModel,
        task: Task,
        *,
        sequences: Sequences,
        origin: Origin | None = None,
        options: Options | None = None,
        null: NullScan | None = None,
        causal_if_attending: bool = False,
    ) -> Detection:
        """Scan one model on held-out sequences by length.

        With `causal_if_attending` the causal checks run only where the statistic passes; over many checkpoints most
        of the time is saved and no verdict "iteration head" is lost, since it needs the statistic.

        Raises:
            DetectorError: if the task has no iteration circuit to look for, or no held-out length of 4 or more.
        """
        started = time.process_time()
        origin, options = origin or Origin(), options or Options()
        _require_applicable(task, sequences)
        null = null or self.null(model, task, sequences, options)
        stream = generator(options.seed, "iteration head", origin.step)
        setting = Setting(model, task, sequences, options.per_step, options.per_length, stream)
        found = _gather(setting, options, null, causal_if_attending)
        outcome = decide(found.summary, found.rows, found.checks, found.lengths, chance_step_accuracy(task, sequences))
        carried = carriers(setting, found.cells) if outcome.verdict == "solved without the textbook head" else []
        heads = found.heads
        return Detection(
            detector=self.name,
            **vars(origin),
            seed=options.seed,
            options=asdict(options),
            verdict=outcome.verdict,
            headline=headline(outcome, heads, found.summary, found.checks, carried, options.checkpoints),
            heads=heads if outcome.verdict in ("iteration head", "candidate") else {},
            solved=outcome.solved,
            lengths=found.lengths,
            statistics=found.rows,
            null=found.summary,
            causal=found.checks + found.rejected,
            carriers=carried,
            missing=outcome.missing,
            limits=limits(model, sequences),
            timing={"detection": round(time.process_time() - started, 2)},
        )


@dataclass(frozen=True)
class _Evidence:
    """Everything measured before the verdict; `rejected` are heads that only look right."""

    lengths: list[LengthAccuracy]
    rows: list[Statistic]
    summary: list[NullSummary]
    pair: tuple[Head, Head] | None
    checks: list[CausalCheck]
    rejected: list[CausalCheck]
    cells: Cells

    @property
    def heads(self) -> dict[str, str]:
        """Role -> head: the causally tested pair, or the one with the most attention."""
        if self.pair is None:
            return statistic_pair(self.summary)
        return {"clock": label(*self.pair[0]), "reading": label(*self.pair[1])}


def _gather(setting: Setting, options: Options, null: NullScan, causal_if_attending: bool) -> _Evidence:
    """Accuracy, statistic, null and causal checks of one model."""
    model, task, sequences = setting.model, setting.task, setting.sequences
    lengths = accuracy_table(model, task, sequences, options, setting.generator)
    found = model_cells(model, task, scan_sequences(task, sequences))
    most = summarise_null(found, null, options.checkpoints)
    few = {length: tokens[: options.per_length] for length, tokens in sequences.items()}
    rows = statistics(model, task, few, setting.generator)
    wanted = options.causal and not (causal_if_attending and not significant(most))
    pair = best_pair(setting, found, null) if wanted else None
    summary = summarise_null(found, null, options.checkpoints, pair) if pair else most
    summary = with_intervals(summary, model, task, scan_sequences(task, sequences))
    checks = causal_checks(setting, pair) if pair else []
    rejected = rejected_checks(setting, found, null, pair) if pair else []
    return _Evidence(lengths, rows, summary, pair, checks, rejected, found)


DETECTOR = IterationHead()


def _require_applicable(task: Task, sequences: Sequences) -> None:
    """Raise DetectorError unless there is a state-by-state chain of thought of length 4 or more to look at."""
    if not task.chain_of_thought:
        raise DetectorError(f"{task.name}: trained without chain of thought, so there is no iteration to look for")
    if not test_lengths(task, sequences):
        raise DetectorError(f"{task.name}: no held-out sequences of length {MIN_LENGTH} or more")


def accuracy_table(
    model: HookedModel, task: Task, sequences: Sequences, options: Options, stream: torch.Generator
) -> list[LengthAccuracy]:
    """Held-out accuracy and margin by length; the unit of every interval is the sequence."""
    rows = []
    for length, tokens in sorted(sequences.items()):
        tokens = tokens[: options.accuracy_sequences]
        if not len(tokens):
            continue
        forced = teacher_forced(model, task, tokens, length)
        own = free_steps(model, task, tokens, forced)
        n = len(tokens)
        rows.append(
            LengthAccuracy(
                length=length,
                n=n,
                sequence=interval(share(int(forced.sequence.sum()), n)),
                step=interval(mean(forced.correct.float().mean(1), stream, 200)),
                free_running=interval(share(int(own.all(1).sum()), n)),
                margin=interval(mean(forced.margin.mean(1), stream, 200)),
            )
        )
    return rows


def chance_step_accuracy(task: Task, sequences: Sequences) -> float:
    """Accuracy of always answering the most common token at each step of each length: what needs no input."""
    hits = total = 0.0
    for length, tokens in sequences.items():
        if not len(tokens):
            continue
        layout = task.layout(length)
        answers = tokens[:, [*(q + 1 for q in layout.queries), layout.end + 1]]
        common = answers.mode(0).values
        hits += float((answers == common).float().mean())
        total += 1
    return hits / total


def best_pair(setting: Setting, found: Cells, null: NullScan) -> tuple[Head, Head] | None:
    """Clock and reading head to test: of the heads that attend to the role's target, the best by interchange.

    Up to three readers and three clocks with more mass than the null's 95 % quantile are screened, or the one with
    the most mass where none has; the checks that decide use fresh pairs afterwards. A head that carries the input
    without attending to it is a carrier, never the textbook head.
    """
    zero = OFFSETS.index(0)
    n_layers, n_heads = found.clock.shape[1:3]
    heads = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    readers = [h for h in heads if h[0] > 0]
    if not readers:
        return None
    best: dict[str, Head] = {}
    for index, (role, pool, mass) in enumerate((("reading", readers, found.reading), ("clock", heads, found.clock))):
        bar = float(torch.quantile(null.maxima[:, index], 0.95))
        pool = pool if role == "reading" else [h for h in heads if h[0] < best["reading"][0]]
        ranked = sorted(pool, key=lambda h: -float(mass[0, h[0], h[1], zero]))
        top = [h for h in ranked if float(mass[0, h[0], h[1], zero]) > bar][:CANDIDATES] or ranked[:1]
        if len(top) == 1:
            best[role] = top[0]
            continue
        cases = collect_cases(setting, ROLE_FAMILY[role])
        swaps = {head: interchange(setting, [head], cases).swapped for head in top}
        best[role] = max(top, key=lambda head: float(swaps[head].float().mean()))
    return best["clock"], best["reading"]


def causal_checks(setting: Setting, pair: tuple[Head, Head]) -> list[CausalCheck]:
    """Every check for both roles, with other heads as controls where they exist."""
    clock, reading = pair
    others = {head: setting.controls(head, pair) for head in pair}
    return [
        interchange_check(setting, "reading", reading, others[reading]),
        interchange_check(setting, "clock", clock, others[clock]),
        knock_out_check(setting, "reading", reading),
        knock_out_check(setting, "clock", clock),
        keep_only_check(setting, "reading", reading),
        keep_only_check(setting, "clock", clock),
        mean_ablation_check(setting, "reading", reading, others[reading]),
        mean_ablation_check(setting, "clock", clock, others[clock]),
    ]


def rejected_checks(setting: Setting, found: Cells, null: NullScan, pair: tuple[Head, Head]) -> list[CausalCheck]:
    """Interchange of every other head whose attention on a target exceeds the null's 95 % quantile.

    They do not enter the verdict; they show which heads look right and are not needed.
    """
    zero = OFFSETS.index(0)
    checks = []
    for index, (role, mass) in enumerate((("reading", found.reading), ("clock", found.clock))):
        bar = float(torch.quantile(null.maxima[:, index], 0.95))
        for layer, head in (mass[0, ..., zero] > bar).nonzero().tolist():
            if (layer, head) not in pair:
                checks.append(interchange_check(setting, role, (layer, head), []))
    return checks
