"""Greater-than: "The war lasted from the year 1732 to the year 17" -> any of 33 to 99.

Source: Hanna et al. 2023, "How does GPT-2 compute greater-than?", section 2. A year is written as two tokens, century
and two digits, as GPT-2 does; centuries and years that the tokenizer writes otherwise are left out, and a tokenizer
that writes digits one by one is refused. No BOS is added unless asked for.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator

from interp.errors import UsageError
from interp.pairs.base import Pairs
from interp.pairs.rows import Padding
from interp.pairs.text import TextPair, filled, pairs_of_texts, prepared, require_slots, single_tokens
from interp.pairs.tokenizers import Bos, TextTokenizer

TEMPLATE = "The{NOUN} lasted from the year{XX}{YY} to the year{ZZ}"  # {ZZ} repeats the century
NOUNS = """
affair attack battle campaign case challenge conflict conversation crisis debate deployment dialogue
discussion dispute domination effort exchange expedition feud fight flight growth hunt insurgency invasion
investigation journey launch marriage mission occupation operation outbreak partnership plan policy practice
process program project progression pursuit quest raid reform reign relationship research revolution riot
sanctions shift siege stay strike struggle study survey talk test trade transition trip tour voyage war
warfare work
"""
CENTURIES = tuple(range(11, 18))
LOW, HIGH = 2, 98  # so that one year lies on either side, beside the corrupted 01


def greater_than(
    tokenizer: Any,
    n: int,
    generator: Generator,
    *,
    bos: Bos = False,
    d_vocab: int | None = None,
    padding: Padding = "right",
    template: str = TEMPLATE,
    nouns: Sequence[str] | None = None,
    centuries: Sequence[int] = CENTURIES,
) -> Pairs:
    """`n` prompts of one length, with spans NOUN, XX, YY and END (the century that is to be completed).

    In the corrupted prompt YY is 01, after which every year is greater. Answers are all two-digit years above YY,
    wrong are those from 00 to YY; years that are not one token after the century are in neither set.

    Args:
        tokenizer: a local tokenizer of the `tokenizers` or `transformers` library.
        bos: put a BOS token first: True for the tokenizer's own, or the token itself.
        d_vocab: token ids of the model, which the tokenizer must fit.
        template: with the slots {NOUN}, {XX}, {YY} and {ZZ} once each, {ZZ} last.
        centuries: two-digit numbers.

    Raises:
        UsageError: if no century with enough years is left, or too few nouns are one token.
    """
    text = prepared(tokenizer, n)
    require_slots((template,), ("NOUN", "XX", "YY", "ZZ"))
    if not template.endswith("{ZZ}"):
        raise UsageError(f"template {template!r}: must end with {{ZZ}}, which the answer completes")
    words = [f" {noun}" for noun in nouns or NOUNS.split()]
    words = single_tokens(words, text, "nouns", 1, option="nouns")
    years = _years(text, centuries)
    texts = []
    for _ in range(n):
        noun = words[int(torch.randint(len(words), (), generator=generator))]
        century = list(years)[int(torch.randint(len(years), (), generator=generator))]
        inner = [year for year in years[century] if LOW <= year <= HIGH]
        year = inner[int(torch.randint(len(inner), (), generator=generator))]
        texts.append(_pair(template, noun, century, year, years[century]))
    settings = {"n": n, "seed": generator.initial_seed(), "template": template, "centuries": list(years)}
    return pairs_of_texts(texts, "greater_than", text, d_vocab=d_vocab, bos=bos, padding=padding, settings=settings)


def _years(text: TextTokenizer, centuries: Sequence[int]) -> dict[int, list[int]]:
    """By century, the two-digit years that are written as one token after it.

    Raises:
        UsageError: if no century is one token, or none has a year to ask for with years on either side.
    """
    single = single_tokens([f" {century:02d}" for century in centuries], text, "centuries", 1, option="centuries")
    found = {int(c): [y for y in range(100) if text.one(f"{y:02d}", c) is not None] for c in single}
    kept = {c: ys for c, ys in found.items() if 1 in ys and [y for y in ys if LOW <= y <= HIGH and y < max(ys)]}
    if not kept:
        best = max(found, key=lambda century: len(found[century]))
        raise UsageError(
            f"greater_than needs years of two tokens, century and two digits; after {best} this tokenizer writes only "
            f"{len(found[best])} of 100 two-digit years as one token (01 is needed, too)"
        )
    return kept


def _pair(template: str, noun: str, century: int, year: int, years: Sequence[int]) -> TextPair:
    """One prompt pair."""
    words = {"NOUN": noun, "XX": f" {century:02d}", "YY": f"{year:02d}", "ZZ": f" {century:02d}"}
    clean, spans = filled(template, words)
    return TextPair(
        clean=clean,
        corrupted=filled(template, {**words, "YY": "01"})[0],
        answers=tuple(f"{each:02d}" for each in years if each > year),
        wrong=tuple(f"{each:02d}" for each in years if each <= year),
        spans={name: spans[name] for name in ("NOUN", "XX", "YY")},
        group=f"{century:02d}",
    )
