"""What the attention view shows of a stored sequence or of one's own inputs: no Streamlit, no torch."""

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from circuits.report.canvas.encode import frame_bytes, frame_note, grid_data, kept_keys, packed, thinned
from circuits.report.canvas.grid import AttentionGrid, grid_of_patterns
from dashboards.data import Followed
from interp.errors import JobError
from interp.run import Run
from probes.patterns_store import PatternIndex, read_patterns

FRAME_BUDGET = 16 << 20  # bytes of frames in one message
HEAD_NAME = re.compile(r"L(\d{1,4})\.H(\d{1,4})")
EXACT_CELLS = 256 * 256  # cells of a head up to which every exact value is sent

Patterns = Float[np.ndarray, "step layer head q_pos k_pos"]


@dataclass(frozen=True)
class Findings:
    """What detections said about the run: head -> role in words, and the step of emergence."""

    roles: dict[str, str] = field(default_factory=dict)
    emerged: int | None = None


@dataclass(frozen=True)
class Shown:
    """One sequence at the checkpoints that have patterns of it; `made_of` tells it from every other.

    `read(steps)` gives the patterns as they were computed, and raises StoreError where they are damaged.
    """

    label: str
    tokens: tuple[str, ...]
    targets: dict[str, list[list[int]]]
    n_layers: int
    n_heads: int
    steps: list[int]
    made_of: str
    read: Callable[[Sequence[int]], Patterns]


def stored_sequence(run: Run, index: PatternIndex, prompt: int) -> Shown:
    """One of the sequences whose patterns are stored."""
    one, record = index.record.prompts[prompt], index.record
    targets = {role: [list(pair) for pair in pairs] for role, pairs in one.targets.items()}
    made_of = repr([str(run.path), sorted(index.keys.items()), prompt, record.model_dump_json()])
    read = lambda steps: read_patterns(run, index, prompt, steps)  # noqa: E731
    return Shown(one.label, one.tokens, targets, record.n_layers, record.n_heads, index.steps, made_of, read)


def own_sequence(answer: dict[str, Any], inputs: Sequence[str], checkpoints: str) -> Shown:
    """The sequence that the worker wrote for one's own inputs.

    Raises:
        JobError: if the answer does not hold what it states.
    """
    data, shape = np.frombuffer(base64.b64decode(answer["patterns"]), dtype="<f4"), tuple(answer["shape"])
    steps, tokens = list(answer["steps"]), tuple(answer["tokens"])
    if len(shape) != 5 or data.size != np.prod(shape) or shape[0] != len(steps) or shape[3:] != (len(tokens),) * 2:
        raise JobError(f"the worker's patterns of {shape} do not fit {len(steps)} steps and {len(tokens)} tokens")
    patterns = data.reshape(shape)
    places = {step: place for place, step in enumerate(steps)}
    read = lambda wanted: patterns[[places[step] for step in wanted]]  # noqa: E731
    made_of = repr([checkpoints, list(inputs)])
    return Shown("own inputs", tokens, answer["targets"], shape[1], shape[2], steps, made_of, read)


def shown_steps(shown: Shown) -> list[int]:
    """The steps whose frames fit into one message; always the first and the last."""
    n_pos = len(shown.tokens)
    frame = shown.n_layers * shown.n_heads * n_pos * (3 * kept_keys(n_pos, n_pos) or n_pos)
    return [shown.steps[place] for place in thinned(len(shown.steps), frame, FRAME_BUDGET)]


def stamp_of(shown: Shown, found: Findings) -> str:
    """Tells one message of frames from every other: what it is made of, hashed."""
    parts = [shown.made_of, sorted(found.roles.items()), found.emerged]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def grid_message(shown: Shown, found: Findings, grid: str) -> bytes:
    """All checkpoints of one sequence, packed for the grid with the id `grid`.

    Raises:
        StoreError: if a stored array is damaged; the message names the file.
    """
    steps, n_pos = shown_steps(shown), len(shown.tokens)
    top = kept_keys(n_pos, n_pos)
    example = {
        "label": shown.label,
        "tokens": list(shown.tokens),
        "targets": shown.targets,
        "patterns": [frame_bytes(shown.read([step])[0], top) for step in steps],
        "top": top,
    }
    data = grid_data(
        [example],
        n_layers=shown.n_layers,
        n_heads=shown.n_heads,
        steps=steps,
        roles=found.roles,
        emerged=found.emerged,
        note=frame_note(top, len(steps), len(shown.steps)),
    )
    by = "head" if n_pos**2 <= EXACT_CELLS else "cell"
    return packed({**data, "id": grid, "stamp": stamp_of(shown, found), "exact_by": by})


def offline_page(shown: Shown, found: Findings, title: str) -> AttentionGrid:
    """The grid as one offline page."""
    patterns, targets = shown.read(shown.steps), {role: list(pairs) for role, pairs in shown.targets.items()}
    words = {"targets": targets, "roles": found.roles, "emerged": found.emerged, "title": title}
    return grid_of_patterns(patterns, shown.tokens, steps=shown.steps, **words)


def exact_head(shown: Shown, step: int, layer: int, head: int) -> Float[np.ndarray, "q_pos k_pos"]:
    """One head at one checkpoint, as it was computed."""
    return shown.read([step])[0, layer, head]


def findings(found: Followed | None) -> Findings:
    """Roles of heads by the newest of the detections that were followed, and when the circuit emerged."""
    if found is None:
        return Findings()
    last = found.detections[-1]
    kind = "head" if last.verdict == "iteration head" else "candidate"
    emerged = found.emergence.emerged if found.emergence else None
    return Findings({head: f"{role} {kind}" for role, head in sorted(last.heads.items())}, emerged)


def first_head(shown: Shown, found: Findings) -> tuple[int, int]:
    """The head shown first: one with a role, reading before others; else the best on some role's targets at the end."""
    named = sorted(found.roles, key=lambda head: (not found.roles[head].startswith("reading"), head))
    if named and (parts := HEAD_NAME.fullmatch(named[0])):
        return min(int(parts[1]), shown.n_layers - 1), min(int(parts[2]), shown.n_heads - 1)
    targets = [np.array(pairs) for pairs in shown.targets.values() if pairs]
    if not targets:
        return 0, 0
    last = shown.read([shown.steps[-1]])[0]  # layer head q_pos k_pos
    best = np.max([last[:, :, pairs[:, 0], pairs[:, 1]].mean(axis=-1) for pairs in targets], axis=0)  # layer head
    layer, head = np.unravel_index(best.argmax(), best.shape)
    return int(layer), int(head)
