"""Turns attention patterns into the 8-bit frames that the canvas grid draws, and back.

A probability p is stored as round(255 sqrt(p)): small values keep their resolution and the error of the value read
back is at most 0.004 (at p = 1). Loads no torch.
"""

import base64
import json
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

MAX_ERROR = 0.004
WHOLE = 512  # tokens up to which a frame holds every cell; beyond, the strongest keys of each query
TOP = 32


def levels_of(pattern: Float[np.ndarray, "layer head q_pos k_pos"]) -> UInt8[np.ndarray, "layer head q_pos k_pos"]:
    """round(255 sqrt(p)) as uint8.

    Raises:
        ValueError: if a value is not a probability (a rounding error up to 1e-4 is clipped).
    """
    values = np.asarray(pattern)
    low, high = values.min(initial=0.0), values.max(initial=0.0)
    if not np.isfinite([low, high]).all() or low < -1e-4 or high > 1 + 1e-4:
        raise ValueError("attention must be finite and lie in [0, 1]")
    return np.rint(255.0 * np.sqrt(values.astype(np.float64).clip(0.0, 1.0))).astype(np.uint8)


def encode_pattern(pattern: Float[np.ndarray, "layer head q_pos k_pos"]) -> str:
    """Base64 of `levels_of`, row-major."""
    return base64.b64encode(levels_of(pattern).tobytes()).decode("ascii")


def decode_pattern(text: str, shape: tuple[int, ...]) -> Float[np.ndarray, "layer head q_pos k_pos"]:
    """The probabilities behind `encode_pattern`, to within `MAX_ERROR`."""
    levels = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    return (levels.reshape(shape) / 255.0) ** 2


def top_keys(levels: UInt8[np.ndarray, "layer head q_pos k_pos"], top: int) -> bytes:
    """The `top` strongest keys of each query: their positions as uint16 (little-endian), then their levels.

    Both parts are [layer head q_pos top], the strongest key first, the earlier one where two are equal.
    """
    order = np.argsort(255 - levels, axis=-1, kind="stable")[..., :top]
    kept = np.take_along_axis(levels, order, axis=-1)
    return order.astype("<u2").tobytes() + kept.tobytes()


def frame_bytes(pattern: Float[np.ndarray, "layer head q_pos k_pos"], top: int = 0) -> bytes:
    """One frame: every cell, or the `top` strongest keys of each query."""
    levels = levels_of(pattern)
    return top_keys(levels, top) if top else levels.tobytes()


def kept_keys(n_queries: int, n_keys: int) -> int:
    """How many keys of each query a frame keeps: 0 (all of them) up to `WHOLE` tokens, `TOP` beyond."""
    return TOP if max(n_queries, n_keys) > WHOLE else 0


def sparse_text(pattern: Float[np.ndarray, "layer head q_pos k_pos"], top: int) -> str:
    """Base64 of a frame of the `top` strongest keys of each query."""
    return base64.b64encode(frame_bytes(pattern, top)).decode("ascii")


def thinned(count: int, frame: int, budget: int) -> list[int]:
    """Places of the frames that fit: all of `count`, or the first, the last and evenly chosen ones."""
    keep = max(2, min(count, budget // max(1, frame)))
    return sorted({round(place * (count - 1) / max(keep - 1, 1)) for place in range(min(keep, count))})


def frame_note(top: int, shown: int, stored: int) -> str:
    """What a picture leaves out, in words: its precision, keys that are not drawn, checkpoints that are not shown."""
    words = ["8 bits of the square root, within 0.004 of the model's values."]
    if top:
        words.append(f"Only the {top} strongest keys of each query are drawn.")
    if shown < stored:
        words.append(f"{shown} of {stored} checkpoints, evenly chosen.")
    return " ".join(words)


def grid_data(
    examples: list[dict[str, Any]],
    *,
    n_layers: int,
    n_heads: int,
    steps: list[int],
    roles: dict[str, str] | None = None,
    emerged: int | None = None,
    note: str = "",
) -> dict[str, Any]:
    """What `AttnGrid.mount` takes as its data.

    Args:
        examples: one dict per sequence with `label`, `tokens` (or `query_tokens` and `key_tokens`), `patterns` (one
            text from `encode_pattern` per step) and, if known, `targets` {role: [[query, key], ...]}.
        roles: head -> role, as {"L1.H0": "reading"}, written beside the head's name.
        emerged: the step that is marked on the slider.
        note: a line under the picture, such as `frame_note`.
    """
    return {
        "n_layers": n_layers,
        "n_heads": n_heads,
        "steps": steps,
        "examples": examples,
        "roles": roles or {},
        "emerged": emerged,
        "note": note,
    }


def packed(data: dict[str, Any]) -> bytes:
    """`grid_data` whose patterns are bytes (`frame_bytes`), as one message: uint32 size of a JSON head, head, frames.

    A quarter smaller than base64, and the browser reads a frame without decoding it.
    """
    frames, at, examples = [], 0, []
    for example in data["examples"]:
        places = []
        for frame in example["patterns"]:
            places.append([at, at + len(frame)])
            frames.append(frame)
            at += len(frame)
        examples.append({**example, "patterns": places})
    head = json.dumps({**data, "examples": examples}, allow_nan=False, separators=(",", ":")).encode()
    return len(head).to_bytes(4, "little") + head + b"".join(frames)


def inline_json(value: Any) -> str:
    """JSON that can stand inside a script element: no `<`, `>`, `&` or line separators that end or change it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
