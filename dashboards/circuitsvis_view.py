"""One attention head in circuitsvis: its bundle inlined, every `<` of the data escaped, in a frame without rights.

The package is never imported: importing it loads torch, and displaying its result asks google.com whether there is an
internet and then loads a script from a CDN. Only its bundled script is read.
"""

import base64
import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Float

from circuits.report.canvas.encode import inline_json
from dashboards.components.frame import sandboxed_frame
from interp.errors import InterpError

MOST_TOKENS = 128  # it takes seconds at 128 and minutes at 512
BUNDLE = "dist/cdn/iife.js"
PLACE = "circuitsvis-head"
HEIGHT = 700


def draw_circuitsvis(tokens: list[str], pattern: Float[np.ndarray, "q_pos k_pos"], name: str) -> None:
    """Show one head in circuitsvis.

    Raises:
        InterpError: if the sequence is too long for it, or the package is not installed.
    """
    if len(tokens) > MOST_TOKENS:
        raise InterpError(f"circuitsvis is slow: at most {MOST_TOKENS} tokens are given to it, here are {len(tokens)}")
    sandboxed_frame(circuitsvis_page(tokens, pattern), f"{name} in circuitsvis", height=HEIGHT, key="circuitsvis")


def circuitsvis_page(tokens: list[str], pattern: Float[np.ndarray, "q_pos k_pos"]) -> str:
    """A page that draws the head and may ask for nothing: its script is allowed by hash, everything else is refused."""
    rounded = np.asarray(pattern, dtype=np.float64).round(4).tolist()
    props = inline_json({"tokens": tokens, "attention": rounded})
    script = f"{bundle()}\nCircuitsVis.render('{PLACE}', CircuitsVis.AttentionPattern, {props});"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{rules}"><title>circuitsvis</title>'
        "<style>body { background: #fff; color: #111; font-family: sans-serif; margin: 8px 8px 8px 3rem; }"
        f" #{PLACE} {{ max-width: 40rem; }}</style></head>"
        f'<body><div id="{PLACE}"></div><script>{script}</script></body></html>'
    )


@cache
def bundle() -> str:
    """The package's script without closing script tags.

    Raises:
        InterpError: if circuitsvis is not installed or has no bundle.
    """
    found = find_spec("circuitsvis")
    roots = list(found.submodule_search_locations or ()) if found else []
    paths = [path for root in roots if (path := Path(root) / BUNDLE).is_file()]
    if not paths:
        raise InterpError("circuitsvis is not installed with its bundle; run: pip install 'circuitsvis>=1.43'")
    return paths[0].read_text(encoding="utf-8").replace("</script", "<\\/script").replace("<!--", "<\\!--")
