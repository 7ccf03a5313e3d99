"""Local tokenizers: text to token ids with the characters of each, single-token words, and the fit to a model."""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from interp.config import canonical_json
from interp.errors import StoreError, UsageError
from interp.files import read_bytes
from interp.jsonfile import decode

WRITING = ("added_tokens", "normalizer", "pre_tokenizer", "model")  # parts of a tokenizer file
MAX_BYTES = 128 << 20
UNKNOWN = "\ue000unknown"
UNUSED_ROWS, UNUSED_SHARE = 1024, 0.1  # rows of an embedding that no token uses: padding up to a round number

Bos = bool | int | str


@dataclass(frozen=True)
class Encoded:
    """Token ids of a text and the (start, stop) characters that each stands for."""

    ids: tuple[int, ...]
    chars: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class TextTokenizer:
    """A tokenizer that adds nothing, cuts nothing and pads nothing, whatever its file asks for.

    Args:
        inner: the tokenizer itself.
        bos: id of the token that begins a text, None where none is stated.
        added: id that was added for what it cannot write, see `able_to_fail`.
        path: file that it was read from, "" where there is none.
    """

    inner: Tokenizer
    bos: int | None = None
    added: int | None = None
    path: str = ""

    @cached_property
    def d_vocab(self) -> int:
        """One more than the largest token id that it can write."""
        return max(id for id in self.inner.get_vocab(with_added_tokens=True).values() if id != self.added) + 1

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all that decides which tokens a text becomes: vocabulary, merges and the rules of splitting.

        What is added around a text (post-processing, truncation, padding) is left out, as it is never used here.
        """
        whole = json.loads(self.inner.to_str())
        if self.added is not None:
            whole["model"] = _without(whole["model"], self.added)
        return hashlib.sha256(canonical_json([whole[key] for key in WRITING])).hexdigest()

    @cached_property
    def unknown(self) -> int | None:
        """Id that stands for what it cannot write; None for tokenizers that write every text."""
        if self.added is not None:
            return self.added
        token = getattr(self.inner.model, "unk_token", None)
        return None if token is None else self.inner.token_to_id(token)

    def encode(self, text: str) -> Encoded:
        """Token ids of a text, with no special token added.

        Raises:
            UsageError: if part of the text is unknown to the tokenizer.
        """
        found = self.inner.encode(text, add_special_tokens=False)
        if self.unknown is not None and self.unknown in found.ids:
            start, stop = found.offsets[found.ids.index(self.unknown)]
            raise UsageError(f"the tokenizer cannot write {text[start:stop]!r}; use a text of its vocabulary")
        return Encoded(tuple(found.ids), tuple(found.offsets))

    def one(self, text: str, before: str = "") -> int | None:
        """The id of a text that is one token where it continues `before`; None where it is several, or unknown.

        Tokenizers differ in whether a leading space belongs to the word, and at the start of a text it may be lost;
        a word with a leading space is therefore always judged as the continuation of something.
        """
        ids = self._continuing(text, before)
        return ids[0] if ids is not None and len(ids) == 1 and ids[0] != self.unknown else None

    def _continuing(self, text: str, before: str) -> list[int] | None:
        """The ids that `text` adds to those of `before`; None where it changes them."""
        before = before or ("a" if text.startswith(" ") else "")
        first = self.inner.encode(before, add_special_tokens=False).ids
        whole = self.inner.encode(before + text, add_special_tokens=False).ids
        return whole[len(first) :] if whole[: len(first)] == first else None

    def require_one(self, text: str, what: str, before: str = "") -> int:
        """The id of a text that must be one token where it continues `before`.

        Raises:
            UsageError: naming `what`, the tokens it is, and the spelling that would do.
        """
        token = self.one(text, before)
        if token is not None:
            return token
        other = text[1:] if text.startswith(" ") else f" {text}"
        hint = f"; {other!r} is one token" if self.one(other, before) is not None else "; use a word that is one token"
        ids = self._continuing(text, before)
        if ids is None:
            raise UsageError(f"{what} {text!r} changes the last token of the prompt instead of following it{hint}")
        if self.unknown in ids:
            raise UsageError(f"{what} {text!r} is unknown to the tokenizer{hint}")
        names = ", ".join(repr(self.name(each)) for each in ids)
        raise UsageError(f"{what} {text!r} is {len(ids)} tokens ({names}){hint}")

    def name(self, token: int) -> str:
        """How a token is shown: its text with its leading space, or its own name where it is no text by itself."""
        shown = self.inner.decode([token], skip_special_tokens=False)
        if self.inner.decoder is not None:  # the space may be lost at the start of a text: take the second of two
            shown = self.inner.decode([token, token], skip_special_tokens=False)[len(shown) :]
        own = self.inner.id_to_token(token)
        return f"[{token}]" if own is None else own if not shown or "\ufffd" in shown else shown

    def bos_id(self, bos: Bos) -> int | None:
        """The id to put first: None for False; the stated BOS for True; else the given id or token.

        Raises:
            UsageError: if there is no such token.
        """
        if bos is False:
            return None
        if bos is True:
            if self.bos is None:
                raise UsageError(
                    "bos=True: this tokenizer states no BOS token; give the token itself, such as bos='<s>'"
                )
            return self.bos
        known = self.inner.token_to_id(bos) if isinstance(bos, str) else bos
        if known is None or self.inner.id_to_token(known) is None:
            raise UsageError(f"bos={bos!r}: the tokenizer has no such token")
        return known


def text_tokenizer(tokenizer: Any) -> TextTokenizer:
    """A `TextTokenizer` of a tokenizer object of `tokenizers` or `transformers`; the object itself is not changed.

    Raises:
        UsageError: for any other object, such as a tokenizer without a `tokenizer.json`.
    """
    if isinstance(tokenizer, TextTokenizer):
        return tokenizer
    inner = tokenizer if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(inner, Tokenizer):
        raise UsageError(
            f"{type(tokenizer).__name__} is not a tokenizer that can be used here: expected one of the tokenizers "
            "library, or one of transformers that is backed by it (a folder with tokenizer.json)"
        )
    bos = None if tokenizer is inner else getattr(tokenizer, "bos_token_id", None)
    copy, added = able_to_fail(inner)
    copy.no_truncation()
    copy.no_padding()
    return TextTokenizer(copy, bos, added)


def able_to_fail(inner: Tokenizer) -> tuple[Tokenizer, int | None]:
    """A copy that writes an id of its own for what it cannot write, and that id; None where it had one, or needs none.

    A tokenizer of whole words whose vocabulary lacks the token for unknown ones would end the program instead.
    """
    body = json.loads(inner.to_str())
    model, added = body["model"], max(inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    vocabulary, token = model.get("vocab"), model.get("unk_token")
    if model.get("type") == "Unigram" and model.get("unk_id") is None and added == len(vocabulary):
        worst = min((score for _, score in vocabulary), default=0.0)
        model |= {"vocab": [*vocabulary, [UNKNOWN, worst - 10.0]], "unk_id": added}
    elif isinstance(vocabulary, dict) and isinstance(token, str) and token not in vocabulary:
        model["vocab"] = {**vocabulary, token: added}
    else:
        return Tokenizer.from_str(inner.to_str()), None
    return Tokenizer.from_str(json.dumps(body)), added


def _without(model: dict[str, Any], added: int) -> dict[str, Any]:
    """The model as its file has it."""
    if isinstance(model["vocab"], dict):
        return {**model, "vocab": {token: id for token, id in model["vocab"].items() if id != added}}
    return {**model, "vocab": model["vocab"][:added], "unk_id": None}


def load_tokenizer(folder: Path | str) -> TextTokenizer:
    """The tokenizer of a folder on disk: `tokenizer.json`, with the BOS token of `tokenizer_config.json`.

    Nothing is downloaded and no code of the folder is run.

    Raises:
        UsageError: if there is no such folder; a name of a hub is not looked up.
        StoreError: if a file is missing or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(
            f"{folder}: no such folder; tokenizers are read from disk, never from a hub: download it first"
        )
    path = folder / "tokenizer.json"
    if not path.exists():
        raise StoreError(f"{folder}: has no tokenizer.json; save it there with save_pretrained of a fast tokenizer")
    try:
        inner = Tokenizer.from_buffer(read_bytes(path.resolve(), MAX_BYTES))
    except ValueError as error:
        raise StoreError(f"{path}: not a tokenizer ({str(error)[:160]})") from None
    config = folder / "tokenizer_config.json"
    bos = None
    if config.exists():
        stated = decode(read_bytes(config.resolve(), MAX_BYTES), str(config), limit=MAX_BYTES)
        token = stated.get("bos_token") if isinstance(stated, dict) else None
        token = token.get("content") if isinstance(token, dict) else token
        bos = inner.token_to_id(token) if isinstance(token, str) else None
    return replace(text_tokenizer(inner), bos=bos, path=str(path))


def fits(tokenizer: Any, d_vocab: int, *, unused: int | None = None) -> TextTokenizer:
    """The tokenizer, if it fits a model with `d_vocab` token ids.

    Args:
        unused: most embedding rows that may be without a token; None: 1024 or a tenth of them, whichever is more,
            as models pad their vocabulary to a round number.

    Raises:
        UsageError: if the tokenizer writes ids that the model does not have, or leaves too many of its rows unused.
    """
    checked = text_tokenizer(tokenizer)
    where = f"{checked.path}: " if checked.path else ""
    if checked.d_vocab > d_vocab:
        raise UsageError(
            f"{where}the tokenizer writes token ids up to {checked.d_vocab - 1}, the model has only 0 to "
            f"{d_vocab - 1}; this is the tokenizer of another model"
        )
    allowed = max(UNUSED_ROWS, int(UNUSED_SHARE * d_vocab)) if unused is None else unused
    if d_vocab - checked.d_vocab > allowed:
        raise UsageError(
            f"{where}the tokenizer writes {checked.d_vocab} token ids, the model has {d_vocab}, so that "
            f"{d_vocab - checked.d_vocab} would never occur (at most {allowed} expected); this is the tokenizer of "
            "another model"
        )
    return checked
