"""What the attention view shows of a run, from its stored patterns and detections: no Streamlit, no torch."""

import hashlib
import re
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from circuits.report.canvas.encode import frame_bytes, frame_note, grid_data, kept_keys, packed, thinned
from dashboards.data import Followed
from interp.run import Run
from probes.patterns_store import PatternIndex, read_patterns

FRAME_BUDGET = 16 << 20  # bytes of frames in one message
HEAD_NAME = re.compile(r"L(\d{1,4})\.H(\d{1,4})")
EXACT_CELLS = 256 * 256  # cells of a head up to which every exact value is sent


@dataclass(frozen=True)
class Findings:
    """What detections said about the run: head -> role in words, and the step of emergence."""

    roles: dict[str, str] = field(default_factory=dict)
    emerged: int | None = None


def shown_steps(index: PatternIndex) -> list[int]:
    """The steps whose frames fit into one message, for the longest sequence; always the first and the last."""
    record = index.record
    longest = max(len(prompt.tokens) for prompt in record.prompts)
    per_query = 3 * kept_keys(longest, longest) or longest
    steps = index.steps
    places = thinned(len(steps), record.n_layers * record.n_heads * longest * per_query, FRAME_BUDGET)
    return [steps[place] for place in places]


def stamp_of(index: PatternIndex, prompt: int, findings: Findings) -> str:
    """Tells one message of frames from every other: what it is made of, hashed."""
    parts = [sorted(index.keys.items()), prompt, sorted(findings.roles.items()), findings.emerged]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def grid_message(run: Run, index: PatternIndex, prompt: int, findings: Findings, grid: str) -> bytes:
    """All checkpoints of one sequence, packed for the grid with the id `grid`.

    Raises:
        StoreError: if a stored array is damaged; the message names the file.
    """
    one, steps = index.record.prompts[prompt], shown_steps(index)
    top = kept_keys(len(one.tokens), len(one.tokens))
    frames = [frame_bytes(read_patterns(run, index, prompt, [step])[0], top) for step in steps]
    example = {
        "label": one.label,
        "tokens": list(one.tokens),
        "targets": {role: [list(pair) for pair in pairs] for role, pairs in one.targets.items()},
        "patterns": frames,
        "top": top,
    }
    data = grid_data(
        [example],
        n_layers=index.record.n_layers,
        n_heads=index.record.n_heads,
        steps=steps,
        roles=findings.roles,
        emerged=findings.emerged,
        note=frame_note(top, len(steps), len(index.steps)),
    )
    by = "head" if len(one.tokens) ** 2 <= EXACT_CELLS else "cell"
    more = {"id": grid, "stamp": stamp_of(index, prompt, findings), "exact_by": by}
    return packed({**data, **more})


def exact_head(
    run: Run, index: PatternIndex, prompt: int, step: int, layer: int, head: int
) -> Float[np.ndarray, "q_pos k_pos"]:
    """One head at one checkpoint, as it was computed."""
    return read_patterns(run, index, prompt, [step])[0, layer, head]


def findings(found: Followed | None) -> Findings:
    """Roles of heads by the newest of the detections that were followed, and when the circuit emerged."""
    if found is None:
        return Findings()
    last = found.detections[-1]
    kind = "head" if last.verdict == "iteration head" else "candidate"
    emerged = found.emergence.emerged if found.emergence else None
    return Findings({head: f"{role} {kind}" for role, head in sorted(last.heads.items())}, emerged)


def first_head(run: Run, index: PatternIndex, prompt: int, found: Findings) -> tuple[int, int]:
    """The head shown first: one with a role, reading before others; else the best on some role's targets at the end."""
    named = sorted(found.roles, key=lambda head: (not found.roles[head].startswith("reading"), head))
    if named and (parts := HEAD_NAME.fullmatch(named[0])):
        return min(int(parts[1]), index.record.n_layers - 1), min(int(parts[2]), index.record.n_heads - 1)
    targets = [np.array(pairs) for pairs in index.record.prompts[prompt].targets.values() if pairs]
    if not targets:
        return 0, 0
    last = read_patterns(run, index, prompt, [index.steps[-1]])[0]  # layer head q_pos k_pos
    best = np.max([last[:, :, pairs[:, 0], pairs[:, 1]].mean(axis=-1) for pairs in targets], axis=0)  # layer head
    layer, head = np.unravel_index(best.argmax(), best.shape)
    return int(layer), int(head)
