"""Interchange: give a head its output from a donor run and see whether the answer becomes the oracle's."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from circuits.detectors._iteration_scan import Head, Sequences, interval, label, test_lengths
from circuits.detectors.base import CausalCheck, Interval
from circuits.patching_reference import Patch, record, relative_move, run_patched, z_name
from interp.errors import TaskError
from interp.hooks import HookedModel
from interp.tasks.base import PairBatch, Task
from probes.intervals import clustered_share

INTERCHANGE_BAR = 0.9
MOVED_BAR = 1e-3
INTERCHANGE_RULE = f"lower end of the interval >= {INTERCHANGE_BAR}"
ROLE_FAMILY = {"reading": "input", "clock": "clock"}
CONTROL_HEADS = 5
NO_CONTROL = "fewer than two other heads exist"


@dataclass(frozen=True)
class Setting:
    """What every check needs: the model, the task, held-out sequences, how many, and a random stream."""

    model: HookedModel
    task: Task
    sequences: Sequences
    per_step: int
    per_length: int
    generator: Generator

    @property
    def lengths(self) -> list[int]:
        """Lengths the checks run on."""
        return test_lengths(self.task, self.sequences)

    def controls(self, head: Head, pair: tuple[Head, Head]) -> list[Head]:
        """Up to 5 random heads outside the pair, those of the head's own layer first; none where fewer than 2 exist."""
        cfg = self.model.cfg
        others = [(la, h) for la in range(cfg.n_layers) for h in range(cfg.n_heads) if (la, h) not in pair]
        if len(others) < 2:
            return []
        shuffled = [others[i] for i in torch.randperm(len(others), generator=self.generator).tolist()]
        return sorted(shuffled, key=lambda other: other[0] != head[0])[:CONTROL_HEADS]


def pair_batches(setting: Setting, family: str) -> Iterator[PairBatch]:
    """One batch of pairs per cell: a length and a step and, for the clock, every donor length, with a quarter each.

    The clock is claimed for state positions only: at EoI itself (t = 0, in either run) the token already tells t.
    """
    task = setting.task
    for length in setting.lengths:
        for t in range(length):
            donors: list[int | None] = [None]
            if family == "clock":
                donors = [d for d in task.clock_donors(length, t) if t > 0 and length + t - d > 0]
            for donor_length in donors:
                n = setting.per_step if donor_length is None else max(1, setting.per_step // 4)
                clean = setting.sequences[length]
                try:
                    yield task.pairs(
                        family, length, t, n=n, generator=setting.generator, donor_length=donor_length, clean=clean
                    )
                except TaskError:
                    continue  # this step has no pair of the family (a state pair at t = 0, say)


@dataclass(frozen=True)
class Cases:
    """All interchange cases of one clean length: only those whose swapped answer differs from the clean answer.

    `z` and `donor_z` are the outputs of every head at the query of each case, by layer. `cell` numbers the batch a
    case came from: within one, the outcome depends on positions far more than on tokens, so cells are the units.
    """

    length: int
    clean: Int[Tensor, "case pos"]
    query: Int[Tensor, "case"]
    cell: Int[Tensor, "case"]
    clean_answer: Int[Tensor, "case"]
    swap_answer: Int[Tensor, "case"]
    z: dict[str, Float[Tensor, "case head d_head"]]
    donor_z: dict[str, Float[Tensor, "case head d_head"]]
    donor: list[PairBatch]


def collect_cases(setting: Setting, family: str) -> list[Cases]:
    """Draw the pairs of a family and record both runs once, so that every head is tested on the same cases."""
    names = [z_name(layer) for layer in range(setting.model.cfg.n_layers)]
    by_length: dict[int, list[PairBatch]] = {}
    for batch in pair_batches(setting, family):
        if batch.differs.any():
            by_length.setdefault(batch.length, []).append(batch)
    found, first = [], 0
    for length, batches in by_length.items():
        batches.sort(key=lambda batch: batch.donor_length)
        counts = torch.tensor([int(b.differs.sum()) for b in batches])
        clean = torch.cat([b.clean[b.differs] for b in batches])
        query = torch.tensor([b.query for b in batches]).repeat_interleave(counts)
        plain = record(setting.model, clean, names)
        rows = torch.arange(len(clean))
        found.append(
            Cases(
                length=length,
                clean=clean,
                query=query,
                cell=torch.arange(first, first + len(batches)).repeat_interleave(counts),
                clean_answer=torch.cat([b.clean_answer[b.differs] for b in batches]),
                swap_answer=torch.cat([b.swap_answer[b.differs] for b in batches]),
                z={name: plain[name][rows, query] for name in names},
                donor_z=_donor_outputs(setting, batches, names),
                donor=batches,
            )
        )
        first += len(batches)
    return found


def _donor_outputs(setting: Setting, batches: list[PairBatch], names: list[str]) -> dict[str, Tensor]:
    """Head outputs at the query of every donor, in the order of the batches, which are sorted by donor length."""
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for donor_length in sorted({batch.donor_length for batch in batches}):
        same = [batch for batch in batches if batch.donor_length == donor_length]
        donor = torch.cat([batch.donor[batch.differs] for batch in same])
        query = torch.cat([torch.full((int(batch.differs.sum()),), batch.query) for batch in same])
        seen = record(setting.model, donor, names)
        for name in names:
            parts[name].append(seen[name][torch.arange(len(donor)), query])
    return {name: torch.cat(values) for name, values in parts.items()}


@dataclass(frozen=True)
class Swaps:
    """Outcome of one interchange: which cases became the oracle's swapped answer, and how far z moved."""

    length: Int[Tensor, "case"]
    cell: Int[Tensor, "case"]
    answer: Int[Tensor, "case"]
    swapped: Bool[Tensor, "case"]
    unchanged: Bool[Tensor, "case"]
    moved: float

    def worst_cell(self) -> float:
        """Lowest share of swapped answers in any cell."""
        return min(float(self.swapped[self.cell == cell].float().mean()) for cell in self.cell.unique())


def interchange(setting: Setting, heads: list[Head], cases: list[Cases]) -> Swaps:
    """Give `heads` their donor outputs at the query position and read the prediction there."""
    none, nothing = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool)
    parts: list[tuple[Tensor, ...]] = [(none, none, none, nothing, nothing)]
    moves = [0.0] if not cases else []
    for case in cases:
        patches = [Patch(z_name(la), case.query, case.donor_z[z_name(la)][:, head], head) for la, head in heads]
        logits = run_patched(setting.model, case.clean, patches)
        prediction = logits[torch.arange(len(case.clean)), case.query].argmax(-1)
        moves += [relative_move(case.z[z_name(la)][:, h], case.donor_z[z_name(la)][:, h]) for la, h in heads]
        length = torch.full((len(case.clean),), case.length)
        outcome = (prediction == case.swap_answer, prediction == case.clean_answer)
        parts.append((length, case.cell, case.swap_answer, *outcome))
    length, cell, answer, swapped, unchanged = (torch.cat(column) for column in zip(*parts, strict=True))
    return Swaps(length, cell, answer, swapped, unchanged, float(torch.tensor(moves).median()))


def interchange_everywhere(setting: Setting, head: Head, cases: list[Cases]) -> Interval:
    """As `interchange`, with one head patched at every position up to the query; share of swapped answers."""
    name, swapped = z_name(head[0]), []
    for batch in (batch for case in cases for batch in case.donor):
        keep, place = batch.differs, slice(0, batch.query + 1)
        source = record(setting.model, batch.donor[keep], [name])[name]
        patch = Patch(name, place, source[:, place, head[1]], head[1])
        prediction = run_patched(setting.model, batch.clean[keep], [patch])[:, batch.query].argmax(-1)
        swapped.append(prediction == batch.swap_answer[keep])
    cell, answer = torch.cat([case.cell for case in cases]), torch.cat([case.swap_answer for case in cases])
    return interval(clustered_share(torch.cat(swapped), cell, answer, setting.generator))


def swap_interval(setting: Setting, swaps: Swaps, length: int | None = None) -> Interval:
    """Share of swapped answers with an interval over cells, at one length or at all."""
    rows = slice(None) if length is None else swaps.length == length
    return interval(clustered_share(swaps.swapped[rows], swaps.cell[rows], swaps.answer[rows], setting.generator))


def interchange_check(setting: Setting, role: str, head: Head, others: list[Head]) -> CausalCheck:
    """The headline: with this head's output from a donor, does the answer become the oracle's for the donor?"""
    family = ROLE_FAMILY[role]
    cases = collect_cases(setting, family)
    found = interchange(setting, [head], cases)
    effect = swap_interval(setting, found)
    tested = found.moved > MOVED_BAR and effect.n > 0
    note = "not tested by this pair"
    if tested:
        unchanged = float(found.unchanged.float().mean())
        note = (
            f"{len(found.swapped)} cases in {len(found.cell.unique())} cells of length, step and donor length; "
            f"worst cell {found.worst_cell():.2f}; answer unchanged in {unchanged:.3f} of the cases"
        )
    return CausalCheck(
        name="interchange",
        component=label(*head),
        role=role,
        family=family,
        direction="clean run, z of the head at the query taken from the donor run",
        metric="share of predictions equal to the oracle's answer for the donor",
        effect=effect,
        control=_other_heads(setting, others, cases),
        control_name=f"{len(others)} random other heads, same pairs" if others else NO_CONTROL,
        moved=found.moved,
        tested=tested,
        passed=effect.low >= INTERCHANGE_BAR if tested else None,
        threshold=INTERCHANGE_RULE,
        note=note,
        by_length={length: swap_interval(setting, found, length) for length in sorted(set(found.length.tolist()))},
    )


def _other_heads(setting: Setting, others: list[Head], cases: list[Cases]) -> Interval | None:
    """The same interchange on the control heads; their outcomes in one cell count as one unit."""
    if not others or not cases:
        return None
    swaps = [interchange(setting, [other], cases) for other in others]
    swapped, cell, answer = (torch.cat([getattr(s, name) for s in swaps]) for name in ("swapped", "cell", "answer"))
    return interval(clustered_share(swapped, cell, answer, setting.generator))
