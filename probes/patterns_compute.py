"""Computes attention patterns of fixed held-out sequences at every checkpoint of a run, for views that only read."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from interp.checkpoint_folders import CheckpointRef
from interp.errors import TaskError
from interp.run import Run
from interp.tasks.base import Split, Task
from interp.train import load_model, resolve
from probes.attention import attention_patterns
from probes.patterns_store import PER_LENGTH, PatternPrompt, PatternRecord, followed, pattern_key

BYTES_PER_CHECKPOINT = 4 << 20  # beyond this, fewer sequences of each length; beyond it with one, half precision


@dataclass(frozen=True)
class StoredPatterns:
    """What `store_patterns` did: steps that were computed now, and those that were there."""

    computed: list[int]
    kept: list[int]
    prompts: tuple[PatternPrompt, ...]


def store_patterns(
    run: Run, *, fresh: bool = False, tell: Callable[[str, int, int], None] = lambda what, done, of: None
) -> StoredPatterns:
    """Store the patterns of every followed checkpoint that has none yet, the newest first.

    Args:
        fresh: compute again what is stored.
        tell: called with (what, done, of).

    Raises:
        TaskError: if the run's task has no held-out sequence.
    """
    config, task = resolve(run.config)
    split = task.split(config.seed, config.data)
    lengths, per = _sizes(task, split, config.model.n_layers * config.model.n_heads)
    prompts = tuple(prompt for length in lengths for prompt in _prompts(task, split, length, per))
    known, refs = set(run.analyses()), followed(run)
    due = [ref for ref in refs if fresh or pattern_key(run, ref) not in known]
    for done, ref in enumerate(reversed(due)):
        tell("attention patterns", done, len(due))
        _store(run, ref, split, lengths, prompts, per)
    tell("attention patterns", len(due), len(due))
    computed = [ref.step for ref in due]
    return StoredPatterns(computed, [ref.step for ref in refs if ref.step not in computed], prompts)


def _sizes(task: Task, split: Split, heads: int) -> tuple[list[int], int]:
    """A long, a middle and a short length, the longest first, and how many sequences of each."""
    lengths = [length for length in task.lengths if len(split.test.get(length, ()))]
    if not lengths:
        raise TaskError(f"{task.name}: no held-out sequence; give the run more data (data.per_length)")
    long = [length for length in lengths if length >= 4] or lengths
    chosen = sorted({long[0], long[len(long) // 2], long[-1]}, reverse=True)
    cells = heads * sum(task.layout(length).n_pos ** 2 for length in chosen)
    return chosen, max(1, min(PER_LENGTH, BYTES_PER_CHECKPOINT // (4 * cells)))


def _prompts(task: Task, split: Split, length: int, per: int) -> list[PatternPrompt]:
    """The first held-out sequences of one length, in the order of the split."""
    return [
        PatternPrompt(
            label=f"length {length}, sequence {place + 1}",
            length=length,
            tokens=tuple(task.vocabulary.names(sequence)),
            targets={role: tuple(pairs) for role, pairs in task.attention_targets(length).items()},
        )
        for place, sequence in enumerate(split.test[length][:per])
    ]


def _store(
    run: Run, ref: CheckpointRef, split: Split, lengths: list[int], prompts: tuple[PatternPrompt, ...], per: int
) -> None:
    """Compute and store one checkpoint."""
    model, _, checkpoint = load_model(run, ref.step)
    found = []
    for length in lengths:
        patterns = attention_patterns(model, split.test[length][:per])  # layer batch head q_pos k_pos
        found += [patterns[:, one].numpy() for one in range(patterns.shape[1])]
    small = sum(array.nbytes for array in found) <= BYTES_PER_CHECKPOINT
    arrays = {f"prompt_{place}": array.astype(np.float32 if small else np.float16) for place, array in enumerate(found)}
    listed = ", ".join(map(str, lengths))
    record = PatternRecord(
        step=checkpoint.step,
        checkpoint=checkpoint.hash,
        n_layers=model.cfg.n_layers,
        n_heads=model.cfg.n_heads,
        rule=f"the first {per} held-out sequences, in the order of the split, of lengths {listed}",
        prompts=prompts,
    )
    run.write_analysis(pattern_key(run, ref), record.model_dump(mode="json"), arrays)
