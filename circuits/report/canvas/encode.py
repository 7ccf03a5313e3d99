"""Turns attention patterns into the 8-bit text that the canvas grid draws, and back.

A probability p is stored as round(255 sqrt(p)): small values keep their resolution and the error of the value read
back is at most 0.004 (at p = 1). Loads no torch.
"""

import base64
import json
from typing import Any

import numpy as np
from jaxtyping import Float

MAX_ERROR = 0.004


def encode_pattern(pattern: Float[np.ndarray, "layer head q_pos k_pos"]) -> str:
    """Base64 of uint8 round(255 sqrt(p)), row-major.

    Raises:
        ValueError: if a value is not a probability (a rounding error up to 1e-4 is clipped).
    """
    values = np.asarray(pattern, dtype=np.float64)
    if not np.isfinite(values).all() or values.min(initial=0.0) < -1e-4 or values.max(initial=0.0) > 1 + 1e-4:
        raise ValueError("attention must be finite and lie in [0, 1]")
    levels = np.rint(255.0 * np.sqrt(values.clip(0.0, 1.0))).astype(np.uint8)
    return base64.b64encode(levels.tobytes()).decode("ascii")


def decode_pattern(text: str, shape: tuple[int, ...]) -> Float[np.ndarray, "layer head q_pos k_pos"]:
    """The probabilities behind `encode_pattern`, to within `MAX_ERROR`."""
    levels = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    return (levels.reshape(shape) / 255.0) ** 2


def grid_data(
    examples: list[dict[str, Any]],
    *,
    n_layers: int,
    n_heads: int,
    steps: list[int],
    roles: dict[str, str] | None = None,
    emerged: int | None = None,
) -> dict[str, Any]:
    """What `AttnGrid.mount` takes as its data.

    Args:
        examples: one dict per sequence with `label`, `tokens` (or `query_tokens` and `key_tokens`), `patterns` (one
            text from `encode_pattern` per step) and, if known, `targets` {role: [[query, key], ...]}.
        roles: head -> role, as {"L1.H0": "reading"}, written beside the head's name.
        emerged: the step that is marked on the slider.
    """
    return {
        "n_layers": n_layers,
        "n_heads": n_heads,
        "steps": steps,
        "examples": examples,
        "roles": roles or {},
        "emerged": emerged,
    }


def inline_json(value: Any) -> str:
    """JSON that can stand inside a script element: no `<`, `>`, `&` or line separators that end or change it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
