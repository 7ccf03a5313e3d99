"""How a tokenizer on disk lays prompts out: whether it puts a BOS token first, and on which side it pads."""

from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from interp.adapters.opened import Flag
from interp.adapters.weight_files import read_json, real_file
from interp.errors import StoreError
from interp.files import read_bytes
from interp.pairs.tokenizers import able_to_fail

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
MAX_BYTES = 128 << 20

PaddingSide = Literal["left", "right", "none", "unknown"]


def tokenizer_folder(*folders: Path) -> Path | None:
    """The first folder with a tokenizer.json."""
    return next((folder for folder in folders if (folder / FILE).is_file()), None)


def prompt_layout(folder: Path | None, root: Path) -> tuple[Flag, PaddingSide]:
    """Whether prompts of this tokenizer start with a BOS token, and where it pads; "unknown" without a tokenizer.

    Raises:
        StoreError: if a file is damaged.
    """
    if folder is None:
        return "unknown", "unknown"
    stated = read_json(folder / CONFIG, root) if (folder / CONFIG).is_file() else {}
    side = stated.get("padding_side", "right")
    return _bos_first(folder / FILE, root, stated), side if side in ("left", "right") else "unknown"


def _bos_first(path: Path, root: Path, stated: dict) -> bool:
    """What `add_bos_token` says or, where it is not stated, what the tokenizer does with a text."""
    if isinstance(stated.get("add_bos_token"), bool):
        return stated["add_bos_token"]
    try:
        tokenizer = Tokenizer.from_buffer(read_bytes(real_file(path, root), MAX_BYTES))
    except ValueError as error:
        raise StoreError(f"{path}: not a tokenizer ({str(error)[:160]})") from None
    token = stated.get("bos_token")
    token = token.get("content") if isinstance(token, dict) else token
    first = able_to_fail(tokenizer)[0].encode("a").ids[:1]
    return isinstance(token, str) and first != [] and first[0] == tokenizer.token_to_id(token)
