"""Causal checks by attention edits and ablation: key knock-out, keep-only and mean ablation."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.detectors._iteration_interchange import MOVED_BAR, NO_CONTROL, Setting
from circuits.detectors._iteration_scan import Head, interval, label
from circuits.detectors.base import CausalCheck
from circuits.patching_reference import KeyEdit, Patch, record, relative_move, run_patched, run_with_key_edits, z_name
from interp.tasks.base import Task
from probes.intervals import mean

KEPT_SHARE = 0.5
KEEP_RULE = "accuracy lost with only the target key (upper end) <= half of that lost without it (lower end)"
KNOCK_RULE = "accuracy lost is above 0 and above what the control loses, intervals apart"


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

    Modes: `knock-out` removes the target key; `control` removes exactly as much mass from the other keys, the most
    attended first, or all they have; `keep-only` leaves the target key alone. Rows are renormalised.
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


def _row_weights(row: Float[Tensor, "batch k_pos"], query: int, target: int, mode: str) -> Float[Tensor, "batch k_pos"]:
    """What share of each key stays, from 1 (all of it) to 0, for every sequence."""
    weights = torch.ones_like(row)
    if mode == "knock-out":
        weights[:, target] = 0
    elif mode == "keep-only":
        weights = torch.zeros_like(row)
        weights[:, target] = 1
    else:
        other = row.clone()
        other[:, target] = 0
        ordered, place = other.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # mass gone before this key's turn
        take = (row[:, target : target + 1] - before).clamp(min=0).minimum(ordered)
        kept = torch.where(ordered > 0, 1 - take / ordered.clamp(min=1e-12), torch.ones_like(ordered))
        weights = torch.ones_like(row).scatter(-1, place, kept)
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
    """Does the accuracy survive when the head reads its target key and nothing else?

    The loss is measured against the loss without the target key: the target has to be worth at least twice as much
    as all other keys together. A fixed share of the accuracy would ask less of a head that hardly matters.
    """
    kept, gone = edit_keys(setting, role, head, "keep-only"), edit_keys(setting, role, head, "knock-out")
    base = float(kept.before.mean())
    ratio = interval(mean(kept.after / max(base, 1e-9), setting.generator))
    lost = interval(mean(kept.before - kept.after, setting.generator))
    without = interval(mean(gone.before - gone.after, setting.generator))
    tested = gone.moved > MOVED_BAR and base > 0
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
        passed=lost.high <= KEPT_SHARE * without.low if tested else None,
        threshold=KEEP_RULE,
        note=f"lost {lost.value:.3f} [{lost.low:.3f}, {lost.high:.3f}] with only the target, {without.value:.3f} "
        f"[{without.low:.3f}, {without.high:.3f}] without it",
    )


def mean_ablation_check(setting: Setting, role: str, head: Head, others: list[Head]) -> CausalCheck:
    """Step accuracy lost when the head's output is its mean over lengths, positions and sequences.

    A mean within one length would leave a clock head alone: EoI is the same token at the same place in all sequences
    of a length, so its output hardly varies there.
    """
    hit = _mean_ablated(setting, head)
    controls = [_mean_ablated(setting, other) for other in others]
    lost = interval(mean(hit.before - hit.after, setting.generator))
    tested = hit.moved > MOVED_BAR
    rest = torch.stack([c.before - c.after for c in controls]).mean(0) if controls else None
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
        control_name=f"{len(controls)} random other heads, averaged" if controls else NO_CONTROL,
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
