"""Causal checks of the iteration-head detector: interchange, key knock-out, keep-only and mean ablation."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from circuits.detectors._iteration_scan import Head, Sequences, interval, label, test_lengths
from circuits.detectors.base import CausalCheck, Interval
from circuits.patching_reference import (
    KeyEdit,
    Patch,
    record,
    relative_move,
    run_patched,
    run_with_key_edits,
    z_name,
)
from interp.errors import TaskError
from interp.hooks import HookedModel
from interp.tasks.base import PairBatch, Task
from probes.intervals import mean, share

INTERCHANGE_BAR = 0.9
KEEP_BAR = 0.9
MOVED_BAR = 1e-3
INTERCHANGE_RULE = f"lower end of the interval >= {INTERCHANGE_BAR}"
KEEP_RULE = f"lower end of (accuracy with only the target key / unedited accuracy) >= {KEEP_BAR}"
KNOCK_RULE = "accuracy lost is above 0 and above what the control loses, intervals apart"
ROLE_FAMILY = {"reading": "input", "clock": "clock"}
CONTROL_HEADS = 5


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


def pair_batches(setting: Setting, family: str) -> Iterator[PairBatch]:
    """Pairs for every length from 4 up and every step; clock donors are drawn from the possible donor lengths.

    The clock is claimed for state positions only: at EoI itself (t = 0, in either run) the token already tells t.
    """
    task = setting.task
    for length in setting.lengths:
        for t in range(length):
            donor_length = None
            if family == "clock":
                donors = [d for d in task.clock_donors(length, t) if t > 0 and length + t - d > 0]
                if not donors:
                    continue
                donor_length = donors[int(torch.randint(len(donors), (), generator=setting.generator))]
            try:
                yield task.pairs(
                    family,
                    length,
                    t,
                    n=setting.per_step,
                    generator=setting.generator,
                    donor_length=donor_length,
                    clean=setting.sequences[length],
                )
            except TaskError:
                continue  # this step has no pair of the family (a state pair at t = 0, say)


@dataclass(frozen=True)
class Cases:
    """All interchange cases of one clean length: only those whose swapped answer differs from the clean answer.

    `z` and `donor_z` are the outputs of every head at the query of each case, by layer.
    """

    length: int
    clean: Int[Tensor, "case pos"]
    query: Int[Tensor, "case"]
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
    found = []
    for length, batches in by_length.items():
        parts = [(b, record(setting.model, b.donor, names)) for b in batches]
        clean = torch.cat([b.clean[b.differs] for b in batches])
        query = torch.cat([torch.full((int(b.differs.sum()),), b.query) for b in batches])
        rows = torch.arange(len(clean))
        plain = record(setting.model, clean, names)
        found.append(
            Cases(
                length=length,
                clean=clean,
                query=query,
                clean_answer=torch.cat([b.clean_answer[b.differs] for b in batches]),
                swap_answer=torch.cat([b.swap_answer[b.differs] for b in batches]),
                z={name: plain[name][rows, query] for name in names},
                donor_z={n: torch.cat([seen[n][b.differs, b.query] for b, seen in parts]) for n in names},
                donor=batches,
            )
        )
    return found


@dataclass(frozen=True)
class Swaps:
    """Outcome of one interchange: which cases became the oracle's swapped answer, and how far z moved."""

    length: Int[Tensor, "case"]
    swapped: Bool[Tensor, "case"]
    unchanged: Bool[Tensor, "case"]
    moved: float


def interchange(setting: Setting, heads: list[Head], cases: list[Cases]) -> Swaps:
    """Give `heads` their donor outputs at the query position and read the prediction there."""
    lengths, swapped, unchanged, moves = [], [], [], []
    for case in cases:
        patches = [Patch(z_name(la), case.query, case.donor_z[z_name(la)][:, head], head) for la, head in heads]
        logits = run_patched(setting.model, case.clean, patches)
        prediction = logits[torch.arange(len(case.clean)), case.query].argmax(-1)
        moves += [relative_move(case.z[z_name(la)][:, h], case.donor_z[z_name(la)][:, h]) for la, h in heads]
        swapped.append(prediction == case.swap_answer)
        unchanged.append(prediction == case.clean_answer)
        lengths.append(torch.full((len(case.clean),), case.length))
    if not swapped:
        nothing = torch.zeros(0, dtype=torch.bool)
        return Swaps(torch.zeros(0, dtype=torch.long), nothing, nothing, 0.0)
    moved = float(torch.tensor(moves).median())
    return Swaps(torch.cat(lengths), torch.cat(swapped), torch.cat(unchanged), moved)


def interchange_everywhere(setting: Setting, head: Head, cases: list[Cases]) -> Bool[Tensor, "case"]:
    """As `interchange`, with one head patched at every position up to the query."""
    name, swapped = z_name(head[0]), []
    for batch in (batch for case in cases for batch in case.donor):
        keep, place = batch.differs, slice(0, batch.query + 1)
        source = record(setting.model, batch.donor[keep], [name])[name]
        patch = Patch(name, place, source[:, place, head[1]], head[1])
        prediction = run_patched(setting.model, batch.clean[keep], [patch])[:, batch.query].argmax(-1)
        swapped.append(prediction == batch.swap_answer[keep])
    return torch.cat(swapped)


def share_interval(hits: Bool[Tensor, "case"]) -> Interval:
    """Share of hits with its Wilson interval; every case is one independently drawn pair."""
    return interval(share(int(hits.sum()), len(hits)))


def interchange_check(setting: Setting, role: str, head: Head, others: list[Head]) -> CausalCheck:
    """The headline: with this head's output from a donor, does the answer become the oracle's for the donor?"""
    family = ROLE_FAMILY[role]
    cases = collect_cases(setting, family)
    found = interchange(setting, [head], cases)
    controls = [interchange(setting, [other], cases) for other in others[:CONTROL_HEADS]]
    effect = share_interval(found.swapped)
    tested = found.moved > MOVED_BAR and effect.n > 0
    unchanged = float(found.unchanged.float().mean()) if len(found.unchanged) else float("nan")
    return CausalCheck(
        name="interchange",
        component=label(*head),
        role=role,
        family=family,
        direction="clean run, z of the head at the query taken from the donor run",
        metric="share of predictions equal to the oracle's answer for the donor",
        effect=effect,
        control=share_interval(torch.cat([c.swapped for c in controls])) if controls else None,
        control_name=f"{len(controls)} other head(s), same pairs" if controls else "fewer than two other heads exist",
        moved=found.moved,
        tested=tested,
        passed=effect.low >= INTERCHANGE_BAR if tested else None,
        threshold=INTERCHANGE_RULE,
        note=f"answer unchanged in {unchanged:.3f} of the cases" if tested else "not tested by this pair",
        by_length={
            length: share_interval(found.swapped[found.length == length])
            for length in sorted(set(found.length.tolist()))
        },
    )


def role_targets(task: Task, role: str, length: int) -> dict[int, int]:
    """Query position -> target key of a role, for the positions that write a state."""
    queries = set(task.layout(length).queries)
    return {q: k for q, k in task.attention_targets(length)[role] if q in queries}


@dataclass(frozen=True)
class Edited:
    """Per-sequence step accuracy before and after an attention edit, and how far z moved."""

    before: Float[Tensor, "sequence"]
    after: Float[Tensor, "sequence"]
    length: Int[Tensor, "sequence"]
    moved: float
    removed_mass: float


def edit_keys(setting: Setting, role: str, head: Head, mode: str) -> Edited:
    """Rewrite the head's rows at every query of the role at once and score the steps they write.

    Modes: `knock-out` removes the target key; `control` removes the most attended other keys until as much mass is
    gone, or all of them; `keep-only` leaves the target key alone. Rows are renormalised.
    """
    by_length = {length: role_targets(setting.task, role, length) for length in setting.lengths}
    return _edit(setting, by_length, head, mode)


def edit_offset(setting: Setting, head: Head, offset: int) -> Edited | None:
    """Knock out the input key `offset` places from x_{t+1} at every query; None where no length has such a key."""
    by_length = {}
    for length in setting.lengths:
        inputs = set(setting.task.layout(length).inputs)
        targets = {
            q: k + offset for q, k in role_targets(setting.task, "reading", length).items() if k + offset in inputs
        }
        if targets:
            by_length[length] = targets
    return _edit(setting, by_length, head, "knock-out") if by_length else None


def _edit(setting: Setting, by_length: dict[int, dict[int, int]], head: Head, mode: str) -> Edited:
    """Apply one kind of edit at the given query -> key targets of each length."""
    before, after, lengths, moves, removed = [], [], [], [], []
    layer, index = head
    for length, targets in by_length.items():
        tokens = setting.sequences[length][: setting.per_length]
        name = f"blocks.{layer}.attn.hook_pattern"
        plain = record(setting.model, tokens, [name, z_name(layer)])
        pattern = plain[name][:, index]  # batch q_pos k_pos
        weights = {q: _row_weights(pattern[:, q], q, k, mode) for q, k in targets.items()}
        capture: dict[str, Tensor] = {}
        edited = run_with_key_edits(setting.model, tokens, [KeyEdit(layer, index, weights)], capture)
        queries = torch.tensor(sorted(targets))
        answers = tokens[:, queries + 1]
        before.append((setting.model(tokens)[:, queries].argmax(-1) == answers).float().mean(1))
        after.append((edited[:, queries].argmax(-1) == answers).float().mean(1))
        old, new = plain[z_name(layer)][:, queries, index], capture[z_name(layer)][:, queries, index]
        moves.append(relative_move(old, new))
        removed += [float((pattern[:, q] * (1 - w)).sum(-1).mean()) for q, w in weights.items()]
        lengths.append(torch.full((len(tokens),), length))
    moved = float(torch.tensor(moves).median())
    return Edited(torch.cat(before), torch.cat(after), torch.cat(lengths), moved, sum(removed) / len(removed))


def _row_weights(row: Float[Tensor, "batch k_pos"], query: int, target: int, mode: str) -> Float[Tensor, "k_pos"]:
    """Which keys of one row stay (1) and which go (0)."""
    weights = torch.ones(row.shape[-1])
    if mode == "knock-out":
        weights[target] = 0
    elif mode == "keep-only":
        weights[:] = 0
        weights[target] = 1
    else:
        mass = row.mean(0)
        goal = float(mass[target])
        others = [key for key in mass.argsort(descending=True).tolist() if key != target and key <= query]
        gone = 0.0
        for key in others[: max(0, len(others) - 1)] if goal < 1e-6 else others:
            if gone >= goal:
                break
            weights[key] = 0
            gone += float(mass[key])
    return weights


def knock_out_check(setting: Setting, role: str, head: Head) -> CausalCheck:
    """Does losing the target key hurt more than losing as much mass on other keys of the same head?"""
    hit, control = edit_keys(setting, role, head, "knock-out"), edit_keys(setting, role, head, "control")
    lost = interval(mean(hit.before - hit.after, setting.generator))
    spared = interval(mean(control.before - control.after, setting.generator))
    tested = hit.moved > MOVED_BAR
    return CausalCheck(
        name="knock-out",
        component=label(*head),
        role=role,
        family="knock-out",
        direction="clean run, target key removed at every query and the row renormalised",
        metric="step accuracy lost",
        effect=lost,
        control=spared,
        control_name=f"other keys of the same head, mass {control.removed_mass:.2f} against {hit.removed_mass:.2f}",
        moved=hit.moved,
        tested=tested,
        passed=(lost.low > 0 and lost.low > spared.high) if tested else None,
        threshold=KNOCK_RULE,
        note="" if tested else "not tested: the edit did not move the head's output",
    )


def keep_only_check(setting: Setting, role: str, head: Head) -> CausalCheck:
    """Does the accuracy survive when the head reads its target key and nothing else?"""
    kept = edit_keys(setting, role, head, "keep-only")
    base = float(kept.before.mean())
    ratio = interval(mean(kept.after / max(base, 1e-9), setting.generator))
    tested = base > 0
    return CausalCheck(
        name="keep-only",
        component=label(*head),
        role=role,
        family="keep-only",
        direction="clean run, all attention of the head on the target key",
        metric="step accuracy as a share of the unedited accuracy",
        effect=ratio,
        control=None,
        control_name="none: the edit removes every other key",
        moved=kept.moved,
        tested=tested,
        passed=ratio.low >= KEEP_BAR if tested else None,
        threshold=KEEP_RULE,
        note="a head that already reads only its target is moved little, which is what the claim says",
        by_length={
            length: interval(mean(kept.after[kept.length == length] / max(base, 1e-9), setting.generator, 200))
            for length in setting.lengths
        },
    )


def mean_ablation_check(setting: Setting, role: str, head: Head, others: list[Head]) -> CausalCheck:
    """Step accuracy lost when the head's output is its mean over lengths, positions and sequences.

    A mean within one length would leave a clock head alone: EoI is the same token at the same place in all sequences
    of a length, so its output hardly varies there.
    """
    hit = _mean_ablated(setting, head)
    controls = [_mean_ablated(setting, other) for other in others[:CONTROL_HEADS]]
    lost = interval(mean(hit.before - hit.after, setting.generator))
    tested = hit.moved > MOVED_BAR
    rest = torch.cat([c.before - c.after for c in controls]) if controls else None
    spared = interval(mean(rest, setting.generator)) if rest is not None else None
    return CausalCheck(
        name="mean ablation",
        component=label(*head),
        role=role,
        family="mean",
        direction="clean run, z at every query replaced by its mean over lengths, positions and sequences",
        metric="step accuracy lost",
        effect=lost,
        control=spared,
        control_name=f"{len(controls)} other head(s)" if controls else "fewer than two other heads exist",
        moved=hit.moved,
        tested=tested,
        passed=(lost.low > 0 and (spared is None or lost.low > spared.high)) if tested else None,
        threshold=KNOCK_RULE,
        note="" if tested else "not tested: the head's output does not vary",
    )


def _mean_ablated(setting: Setting, head: Head) -> Edited:
    """Replace z at all queries by the grand mean."""
    layer, index = head
    name = z_name(layer)
    outputs = {}
    for length in setting.lengths:
        tokens = setting.sequences[length][: setting.per_length]
        queries = list(setting.task.layout(length).queries)
        outputs[length] = record(setting.model, tokens, [name])[name][:, queries, index]
    grand = torch.cat([value.flatten(0, 1) for value in outputs.values()]).mean(0)
    before, after, lengths, moves = [], [], [], []
    for length, z in outputs.items():
        tokens = setting.sequences[length][: setting.per_length]
        queries = list(setting.task.layout(length).queries)
        answers = tokens[:, [q + 1 for q in queries]]
        patches = [Patch(name, q, grand.expand(len(tokens), -1), index) for q in queries]
        ablated = run_patched(setting.model, tokens, patches)
        before.append((setting.model(tokens)[:, queries].argmax(-1) == answers).float().mean(1))
        after.append((ablated[:, queries].argmax(-1) == answers).float().mean(1))
        lengths.append(torch.full((len(tokens),), length))
        moves.append(relative_move(z, grand.expand_as(z)))
    return Edited(torch.cat(before), torch.cat(after), torch.cat(lengths), float(torch.tensor(moves).median()), 0.0)
