"""What random prompts and prompt pairs need to know of a model that was read from disk."""

from pathlib import Path

from circuits.heads.probe import Vocabulary
from interp.adapters.opened import Opened
from interp.pairs.base import Pairs


def vocabulary_of(opened: Opened, bos: str) -> Vocabulary:
    """Ids that random prompts may use: without the tokenizer's special ones and without rows that no token has.

    Args:
        bos: a token id, none, or auto: the tokenizer's, where the model is known to use one.

    Raises:
        UsageError: for a tokenizer of another model.
    """
    from interp.pairs.tokenizers import fits, load_tokenizer

    given = int(bos) if bos.isdecimal() else None
    if opened.tokenizer_path is None:
        return Vocabulary(bos=given)
    text = fits(load_tokenizer(opened.tokenizer_path), len(opened.decoder.W_E))
    if bos == "auto" and opened.processing.bos is True:
        given = text.bos
    added = text.inner.get_added_tokens_decoder()
    special = tuple(sorted(token for token, entry in added.items() if entry.special))
    return Vocabulary(usable=range(text.d_vocab), special=special, bos=given)


def pairs_of(file: Path, opened: Opened) -> Pairs:
    """Prompt pairs in the model's tokens, with a BOS token where the model uses one.

    Raises:
        UsageError: for a file that is missing or does not fit the model.
    """
    from interp.pairs.jsonl import read_jsonl
    from interp.pairs.tokenizers import load_tokenizer

    text = None if opened.tokenizer_path is None else load_tokenizer(opened.tokenizer_path)
    first = text is not None and text.bos is not None and opened.processing.bos is True
    return read_jsonl(file, text, d_vocab=len(opened.decoder.W_E), bos=first)
