"""Prompt pairs given as text, turned into token ids with checks that name the prompt."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from interp.errors import UsageError
from interp.pairs.alignment import Span
from interp.pairs.base import Pairs, Source
from interp.pairs.rows import Padding, Row, refuse_unequal, stack
from interp.pairs.tokenizers import Bos, Encoded, TextTokenizer, fits, text_tokenizer

SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class TextPair:
    """A prompt pair as text, with its answers and spans; each answer is one token where it continues the prompt.

    Args:
        spans: name to (start, stop) in characters of the clean prompt. END, the last token, is added.
        beside: name to (span, offset): the token that many places after the first of that span.
    """

    clean: str
    corrupted: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...]
    spans: Mapping[str, Span] = field(default_factory=dict)
    beside: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    group: str = ""


def filled(template: str, words: Mapping[str, str]) -> tuple[str, dict[str, Span]]:
    """A template with each `{slot}` replaced by its word, and the characters where each word stands."""
    text, spans = "", {}
    for index, piece in enumerate(SLOT.split(template)):
        if index % 2:
            spans[piece] = len(text), len(text) + len(words[piece])
            piece = words[piece]
        text += piece
    return text, spans


def require_slots(templates: Sequence[str], needed: Sequence[str], allowed: Sequence[str] = ()) -> None:
    """Raise UsageError unless each template has each needed slot once, and only slots that are known."""
    if not templates:
        raise UsageError("templates: give at least one")
    for template in templates:
        found = SLOT.findall(template)
        if any(found.count(slot) != 1 for slot in needed) or set(found) - {*needed, *allowed}:
            optional = f", and may have {', '.join(f'{{{slot}}}' for slot in allowed)}" if allowed else ""
            raise UsageError(
                f"template {template!r}: must have {', '.join(f'{{{slot}}}' for slot in needed)} once each{optional}"
            )


def single_tokens(
    words: Sequence[str], text: TextTokenizer, what: str, at_least: int, *, before: str = "", option: str = ""
) -> list[str]:
    """The words that the tokenizer writes as one token, in their order and without repeats.

    Args:
        before: text that the words follow.
        option: name of the argument by which the user may give other words.

    Raises:
        UsageError: if too few remain; with their number and some that do not.
    """
    kept = [word for word in dict.fromkeys(words) if text.one(word, before) is not None]
    if len(kept) < at_least:
        lost = [repr(word) for word in dict.fromkeys(words) if word not in set(kept)]
        give = f"; give others with {option}=" if option else ""
        raise UsageError(
            f"{len(kept)} of {len(set(words))} {what} are one token for this tokenizer, at least {at_least} are needed "
            f"(not one token: {', '.join(lost[:5])}{', ...' if len(lost) > 5 else ''}){give}"
        )
    return kept


def pairs_of_texts(
    texts: Sequence[TextPair],
    kind: str,
    text: TextTokenizer,
    *,
    d_vocab: int | None = None,
    bos: Bos = False,
    padding: Padding = "right",
    settings: Mapping[str, Any] | None = None,
) -> Pairs:
    """Text pairs as token ids.

    Args:
        kind: name of what made them, for the source and the errors.
        d_vocab: token ids of the model, which the tokenizer must fit; None: those of the tokenizer.
        bos: put a BOS token before each prompt: True for the tokenizer's own, or the token itself.

    Raises:
        UsageError: for prompts of unequal length, answers that are not one token, and whatever else `rows` refuses.
    """
    if d_vocab is not None:
        fits(text, d_vocab)
    first = text.bos_id(bos)
    made = Source(
        kind=kind,
        tokenizer=text.fingerprint,
        bos="none" if first is None else "added",
        settings=dict(settings or {}),
    )
    rows = [_row(pair, f"{kind}: prompt {index}", text) for index, pair in enumerate(texts)]
    return stack(rows, made, d_vocab or text.d_vocab, name=text.name, bos=first, padding=padding)


def _row(pair: TextPair, where: str, text: TextTokenizer) -> Row:
    """One text pair as a row."""
    clean, corrupted = text.encode(pair.clean), text.encode(pair.corrupted)
    n = len(clean.ids)
    spans = {
        name: tokens_of_chars(clean, pair.clean, chars, f"{where}: span {name}") for name, chars in pair.spans.items()
    }
    spans |= {name: (spans[at][0] + by, spans[at][0] + by + 1) for name, (at, by) in pair.beside.items()}
    sets = {
        key: (tuple(text.require_one(word, f"{where}: {key}", pair.clean) for word in getattr(pair, key)),)
        for key in ("answers", "wrong")
    }
    row = Row(where, clean.ids, corrupted.ids, (-1,), **sets, spans=spans | {"END": (n - 1, n)}, group=pair.group)
    refuse_unequal(row)
    return row


def tokens_of_chars(encoded: Encoded, prompt: str, chars: Span, where: str) -> Span:
    """The tokens that make up these characters; the space before a word may belong to its token.

    Raises:
        UsageError: if a token lies only partly within.
    """
    start, stop = chars
    inside = [index for index, (a, b) in enumerate(encoded.chars) if a < stop and b > start]
    if not inside:
        raise UsageError(f"{where}: no token stands for the characters {prompt[start:stop]!r}")
    first, last = encoded.chars[inside[0]][0], encoded.chars[inside[-1]][1]
    if prompt[min(first, start) : start].strip() or prompt[stop : max(last, stop)].strip():
        raise UsageError(
            f"{where}: {prompt[start:stop]!r} is only part of the tokens {prompt[first:last]!r}; name whole tokens"
        )
    return inside[0], inside[-1] + 1


def prepared(tokenizer: Any, n: int) -> TextTokenizer:
    """The tokenizer of a generator that was asked for `n` prompts.

    Raises:
        UsageError: for fewer than one prompt, or an object that is no tokenizer.
    """
    if n < 1:
        raise UsageError(f"n={n} prompts asked for; ask for at least 1")
    return text_tokenizer(tokenizer)
