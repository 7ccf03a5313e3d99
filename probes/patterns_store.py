"""Attention patterns stored under a run, one analysis per checkpoint: their keys and reading them, without torch."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field, model_validator

from interp.checkpoint_folders import CheckpointRef
from interp.config import Frozen, canonical_json, validated
from interp.errors import ConfigError, StoreError
from interp.files import read_bytes
from interp.run import Run
from interp.schemas import Output

PER_LENGTH = 3  # sequences of each length
MOST_CHECKPOINTS = 200
MANIFEST, MANIFEST_BYTES = "MANIFEST.json", 64 << 10
# What the patterns of a checkpoint depend on; edited code never finds old patterns.
SOURCES = (
    "interp/model.py",
    "interp/hooks.py",
    "interp/tasks/*.py",
    "probes/attention.py",
    "probes/patterns_compute.py",
)


class PatternPrompt(Frozen):
    """One held-out sequence; `targets` are the task's own (query, key) positions by role, where it has any."""

    label: str
    length: int = Field(ge=0)
    tokens: tuple[str, ...] = Field(min_length=1)
    targets: dict[str, tuple[tuple[int, int], ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _targets_lie_inside(self) -> "PatternPrompt":
        places = [place for pairs in self.targets.values() for pair in pairs for place in pair]
        if any(not 0 <= place < len(self.tokens) for place in places):
            raise ValueError(f"{self.label}: a target lies outside its {len(self.tokens)} tokens")
        return self


class PatternRecord(Frozen):
    """What is stored with the arrays of one checkpoint; array `prompt_<i>` is [layer head q_pos k_pos]."""

    format: Literal[1] = 1
    kind: Literal["attention patterns"] = "attention patterns"
    step: int = Field(ge=0)
    checkpoint: str
    n_layers: int = Field(ge=1)
    n_heads: int = Field(ge=1)
    rule: str = Field(description="how the sequences were chosen")
    prompts: tuple[PatternPrompt, ...] = Field(min_length=1)


class PatternsOutput(Output):
    """`interp patterns RUN --json`."""

    kind: Literal["patterns"] = "patterns"
    run: str
    computed: list[int] = Field(description="steps of the checkpoints that were computed now")
    kept: list[int] = Field(description="steps whose patterns were stored before")
    prompts: list[str] = Field(description="the sequences, by label")


@dataclass(frozen=True)
class PatternIndex:
    """Which checkpoints of a run have patterns, and of what; `record` is the newest stored one's."""

    record: PatternRecord
    keys: dict[int, str]
    missing: tuple[int, ...]

    @property
    def steps(self) -> list[int]:
        """Steps with patterns, ascending."""
        return sorted(self.keys)


@cache
def code_hash() -> str:
    """sha256 over the sources that patterns depend on."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for pattern in SOURCES:
        for path in sorted(root.glob(pattern)):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def pattern_key(run: Run, ref: CheckpointRef) -> str:
    """Key of the patterns of one checkpoint: its hash, the probe set (configuration and rule) and the code.

    Raises:
        StoreError: if the checkpoint has no readable manifest.
    """
    manifest = hashlib.sha256(read_bytes(ref.path / MANIFEST, MANIFEST_BYTES)).hexdigest()
    parts = [manifest, run.config.hash(), PER_LENGTH, code_hash()]
    return f"patterns-{hashlib.sha256(canonical_json(parts)).hexdigest()[:20]}"


def followed(run: Run) -> list[CheckpointRef]:
    """The checkpoints whose patterns are kept: all, or the first, the last and evenly chosen ones of very many."""
    refs = run.checkpoints()
    if len(refs) <= MOST_CHECKPOINTS:
        return refs
    places = np.linspace(0, len(refs) - 1, MOST_CHECKPOINTS).round().astype(int)
    return [refs[place] for place in places]


def pattern_index(run: Run) -> PatternIndex | None:
    """What is stored; None where nothing is.

    Raises:
        StoreError: if the newest record or a manifest is damaged; the message names the file.
    """
    known = set(run.analyses())
    keys = {ref.step: pattern_key(run, ref) for ref in followed(run)}
    stored = {step: key for step, key in keys.items() if key in known}
    if not stored:
        return None
    missing = tuple(step for step in keys if step not in stored)
    return PatternIndex(_record(run, stored[max(stored)]), stored, missing)


def _record(run: Run, key: str) -> PatternRecord:
    where = f"{run.path / 'analysis' / key}.json"
    try:
        return validated(PatternRecord, run.analysis(key), where)
    except ConfigError as error:
        raise StoreError(f"{error}; remove the file and store the patterns again") from None


def read_patterns(
    run: Run, index: PatternIndex, prompt: int, steps: Iterable[int] | None = None
) -> Float[np.ndarray, "step layer head q_pos k_pos"]:
    """Patterns of one prompt at the given steps (all stored ones by default), as they were computed.

    Raises:
        StoreError: if an array is damaged, missing, of another shape, or no probabilities; the message names the file.
    """
    chosen = index.steps if steps is None else list(steps)
    n_pos = len(index.record.prompts[prompt].tokens)
    shape = (index.record.n_layers, index.record.n_heads, n_pos, n_pos)
    return np.stack([_pattern(run, index.keys[step], prompt, shape) for step in chosen])


def _pattern(run: Run, key: str, prompt: int, shape: Sequence[int]) -> Float[np.ndarray, "layer head q_pos k_pos"]:
    found = run.analysis_arrays(key).get(f"prompt_{prompt}")
    where = f"{run.path / 'analysis' / key}"
    if found is None or found.shape != tuple(shape) or found.dtype.kind != "f":
        raise StoreError(f"{where}: expected prompt_{prompt} of shape {tuple(shape)}; store the patterns again")
    if not (np.isfinite(found).all() and found.min() >= -1e-4 and found.max() <= 1 + 1e-4):
        raise StoreError(f"{where}: prompt_{prompt} holds values outside [0, 1]; store the patterns again")
    return found
