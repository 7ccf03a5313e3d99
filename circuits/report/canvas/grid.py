"""The attention grid for notebooks, and as one offline page that asks for nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from circuits.report.canvas.encode import (
    encode_pattern,
    frame_note,
    grid_data,
    inline_json,
    kept_keys,
    sparse_text,
    thinned,
)
from circuits.report.canvas.sources import grid_script, grid_style
from circuits.report.html import policy
from interp.errors import UsageError
from interp.files import replace
from interp.run import Run
from probes.patterns_store import pattern_index, read_patterns

PAGE_BYTES = 24 << 20
PAGE_STYLE = """
:root { color-scheme: light dark; --st-background-color: light-dark(#ffffff, #10151c);
  --st-text-color: light-dark(#18212d, #e4e9f0); }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--st-background-color);
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 1.125rem; margin: 0 0 0.75rem; color: var(--st-text-color); }
"""
START = """
const data = JSON.parse(document.getElementById("grid-data").textContent);
window.attentionGrid = AttnGrid.mount(document.getElementById("grid"), data);
window.attentionGrid.set(data.view || {});
"""
Patterns = Float[np.ndarray, "step layer head q_pos k_pos"]


@dataclass(frozen=True)
class AttentionGrid:
    """Attention of one or more sequences at one or more checkpoints; shows itself in a notebook.

    Values are stored in 8 bits of the square root, to within 0.004 of the model's.
    """

    title: str
    data: dict[str, Any]

    def html(self) -> str:
        """One offline page; equal grids give equal text."""
        styles, script = grid_style() + PAGE_STYLE, grid_script() + START
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy(styles, script)}">'
            f"<title>{escape(self.title)}</title><style>{styles}</style></head>"
            f'<body><h1>{escape(self.title)}</h1><main id="grid"></main>'
            f'<script type="application/json" id="grid-data">{inline_json(self.data)}</script>'
            f"<script>{script}</script></body></html>\n"
        )

    def save(self, path: Path | str) -> Path:
        """Write the page to a file.

        Raises:
            StoreError: if the file cannot be written.
        """
        replace(Path(path), self.html().encode("utf-8"))
        return Path(path)

    def _repr_html_(self) -> str:
        """The page in a frame that may run its own script and nothing else."""
        page, title = escape(self.html(), quote=True), escape(self.title, quote=True)
        style = "width:100%;height:52rem;border:0"
        return f'<iframe sandbox="allow-scripts" title="{title}" style="{style}" srcdoc="{page}"></iframe>'


def grid_of_patterns(
    patterns: np.ndarray,
    tokens: Sequence[str],
    *,
    steps: Sequence[int] | None = None,
    targets: dict[str, Sequence[tuple[int, int]]] | None = None,
    roles: dict[str, str] | None = None,
    emerged: int | None = None,
    title: str = "Attention",
) -> AttentionGrid:
    """A grid of any model's attention: [layer head q_pos k_pos], or [step layer head q_pos k_pos] with `steps`.

    Raises:
        UsageError: if the shape does not fit tokens and steps, or the values are no probabilities.
    """
    values = np.asarray(patterns)
    values = values[None] if values.ndim == 4 else values
    known = list(steps) if steps is not None else list(range(len(values)))
    if values.ndim != 5 or values.shape[3:] != (len(tokens), len(tokens)) or len(values) != len(known):
        raise UsageError(f"patterns of shape {values.shape} do not fit {len(tokens)} tokens and {len(known)} steps")
    example = {"label": title, "tokens": list(tokens), "targets": {k: list(v) for k, v in (targets or {}).items()}}
    top = kept_keys(len(tokens), len(tokens))
    encode = (lambda one: sparse_text(one, top)) if top else encode_pattern
    places = thinned(len(known), values[0].size if not top else values[0].size // len(tokens) * 3 * top, PAGE_BYTES)
    try:
        example |= {"patterns": [encode(values[place]) for place in places], "top": top}
    except ValueError as error:
        raise UsageError(str(error)) from None
    shown = [known[place] for place in places]
    _, layers, heads, *_ = values.shape
    note = frame_note(top, len(shown), len(known))
    data = grid_data([example], n_layers=layers, n_heads=heads, steps=shown, roles=roles, emerged=emerged, note=note)
    return AttentionGrid(title, data)


def attention_grid(run: Run, *, sequence: int = 0, roles: dict[str, str] | None = None, emerged: int | None = None):
    """The stored patterns of one of a run's sequences at every checkpoint, as `interp patterns` left them.

    Raises:
        UsageError: if the run has no stored patterns or no such sequence.
        StoreError: if they are damaged.
    """
    index = pattern_index(run)
    if index is None:
        raise UsageError(f"{run.name} has no stored attention patterns; run: interp patterns {run.name}")
    prompts = index.record.prompts
    if not 0 <= sequence < len(prompts):
        raise UsageError(f"sequence {sequence}: {run.name} has the sequences 0 to {len(prompts) - 1}")
    prompt = prompts[sequence]
    return grid_of_patterns(
        read_patterns(run, index, sequence),
        prompt.tokens,
        steps=index.steps,
        targets={role: list(pairs) for role, pairs in prompt.targets.items()},
        roles=roles,
        emerged=emerged,
        title=f"{run.name}: attention through training, {prompt.label}",
    )
