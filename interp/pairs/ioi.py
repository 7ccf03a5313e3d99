"""Indirect object identification: "When Mary and John went to the store, John gave a drink to" -> " Mary".

Source: Wang et al. 2022, "Interpretability in the Wild", section 2 and appendix on templates: names of the indirect
object (IO) and the subject (S) in the orders ABBA (IO first) and BABA (S first). All names, places and objects are one
token with a leading space, so that prompts of one template have one length. No BOS is added unless asked for.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Generator

from interp.errors import UnknownName, UsageError
from interp.pairs.base import Pairs
from interp.pairs.rows import Padding
from interp.pairs.text import TextPair, filled, pairs_of_texts, prepared, require_slots, single_tokens
from interp.pairs.tokenizers import Bos, TextTokenizer

CORRUPTIONS = ("flip", "other", "abc")
# {A} and {B} are the two names, {S} the subject's second mention; words bring their own leading space.
TEMPLATES = (
    "Then,{A} and{B} went to the{PLACE}.{S} gave a{OBJECT} to",
    "Then,{A} and{B} had a lot of fun at the{PLACE}.{S} gave a{OBJECT} to",
    "Then,{A} and{B} were working at the{PLACE}.{S} decided to give a{OBJECT} to",
    "Then,{A} and{B} were thinking about going to the{PLACE}.{S} wanted to give a{OBJECT} to",
    "Then,{A} and{B} had a long argument, and afterwards{S} said to",
    "After{A} and{B} went to the{PLACE},{S} gave a{OBJECT} to",
    "When{A} and{B} got a{OBJECT} at the{PLACE},{S} decided to give it to",
    "When{A} and{B} got a{OBJECT} at the{PLACE},{S} decided to give the thing to",
    "While{A} and{B} were working at the{PLACE},{S} gave a{OBJECT} to",
    "While{A} and{B} were commuting to the{PLACE},{S} gave a{OBJECT} to",
    "After the lunch,{A} and{B} went to the{PLACE}.{S} gave a{OBJECT} to",
    "Afterwards,{A} and{B} went to the{PLACE}.{S} gave a{OBJECT} to",
    "The{PLACE}{A} and{B} went to had a{OBJECT}.{S} gave it to",
    "Friends{A} and{B} found a{OBJECT} at the{PLACE}.{S} gave it to",
)
NAMES = """
Aaron Adam Alan Alex Alice Amy Anderson Andrew Andy Anna Anthony Arthur Austin Ben Blake Brad
Brandon Brian Carl Charles Chris Christian Christina Christopher Cody Connor Crystal Daniel David
Dean Edward Elizabeth Emily Eric Erica Frank George Georgia Graham Grace Grant Harry Henry Ian Jack
Jacob Jake James Jamie Jane Jason Jay Jennifer Jeremy Jessica John Jonathan Jordan Joseph Joshua
Justin Kate Kelly Kevin Kyle Laura Lauren Leon Lewis Lisa Louis Luke Marcus Maria Mark Martin Mary
Matthew Max Michael Michelle Morgan Neil Nick Oliver Patrick Paul Peter Rachel Richard Robert Roger
Roy Ruth Ryan Sam Samuel Sara Sarah Scott Sean Simon Stephen Steve Steven Sullivan Susan Thomas Tim
Tom Tyler Victoria Vincent Warren William
"""
PLACES = ("store", "garden", "restaurant", "school", "hospital", "office", "house", "station")
OBJECTS = ("ring", "kiss", "bone", "basketball", "computer", "necklace", "drink", "snack")


def ioi(
    tokenizer: Any,
    n: int,
    generator: Generator,
    *,
    corruption: Literal["flip", "other", "abc"] = "flip",
    equal_length: bool = False,
    bos: Bos = False,
    d_vocab: int | None = None,
    padding: Padding = "right",
    templates: Sequence[str] = TEMPLATES,
    names: Sequence[str] | None = None,
    places: Sequence[str] = PLACES,
    objects: Sequence[str] = OBJECTS,
) -> Pairs:
    """`n` prompts, half of them ABBA, with spans IO, S1, S1+1, S2 and END; the answer is IO, the wrong one S.

    Args:
        tokenizer: a local tokenizer of the `tokenizers` or `transformers` library.
        corruption: "flip": the second mention of S becomes IO, so the answer becomes S; "other": it becomes a third
            name; "abc": all three mentions become three other names (p_ABC of the paper).
        equal_length: keep only the templates of the most frequent length.
        bos: put a BOS token first: True for the tokenizer's own, or the token itself.
        d_vocab: token ids of the model, which the tokenizer must fit.
        names: None: about a hundred common first names.
        templates: with the slots {A}, {B} and {S}, and perhaps {PLACE} and {OBJECT}, each once.

    Raises:
        UsageError: if too few words are one token for this tokenizer, or a template is not as said.
    """
    if corruption not in CORRUPTIONS:
        raise UnknownName("corruption", corruption, CORRUPTIONS)
    text = prepared(tokenizer, n)
    require_slots(templates, ("A", "B", "S"), ("PLACE", "OBJECT"))
    words = {
        "names": single_tokens([f" {name}" for name in names or NAMES.split()], text, "names", 5, option="names"),
        "PLACE": single_tokens([f" {place}" for place in places], text, "places", 1, option="places"),
        "OBJECT": single_tokens([f" {thing}" for thing in objects], text, "objects", 1, option="objects"),
    }
    templates = _writable(templates, text, words, equal_length)
    texts = [_pair(index, generator, templates, words, corruption) for index in range(n)]
    settings = {"n": n, "seed": generator.initial_seed(), "corruption": corruption, "equal_length": equal_length}
    return pairs_of_texts(texts, "ioi", text, d_vocab=d_vocab, bos=bos, padding=padding, settings=settings)


def _draw(choices: Sequence[str], generator: Generator) -> str:
    return choices[int(torch.randint(len(choices), (), generator=generator))]


def _writable(
    templates: Sequence[str], text: TextTokenizer, words: dict[str, list[str]], equal_length: bool
) -> list[str]:
    """The templates that the tokenizer can write; with `equal_length` only those of the most frequent length."""
    first, second = words["names"][:2]
    lengths = {}
    for template in templates:
        example = {"A": first, "B": second, "S": second, "PLACE": words["PLACE"][0], "OBJECT": words["OBJECT"][0]}
        ids = text.inner.encode(filled(template, example)[0], add_special_tokens=False).ids
        if text.unknown not in ids:
            lengths[template] = len(ids)
    if not lengths:
        raise UsageError(f"the tokenizer can write none of the {len(templates)} templates; give others with templates=")
    most = Counter(lengths.values()).most_common(1)[0][0]
    return [template for template, length in lengths.items() if not equal_length or length == most]


def _pair(
    index: int, generator: Generator, templates: Sequence[str], words: dict[str, list[str]], corruption: str
) -> TextPair:
    """One prompt pair; even prompts are ABBA."""
    template = _draw(templates, generator)
    order = torch.randperm(len(words["names"]), generator=generator)[:5].tolist()
    io, s, *others = (words["names"][each] for each in order)
    fixed = {slot: _draw(words[slot], generator) for slot in ("PLACE", "OBJECT")}
    first, second = (io, s) if index % 2 == 0 else (s, io)
    clean, spans = filled(template, {**fixed, "A": first, "B": second, "S": s})
    if corruption == "abc":
        changed = dict(zip("ABS", others, strict=True))
    else:
        changed = {"A": first, "B": second, "S": io if corruption == "flip" else others[0]}
    where = {"IO": "A", "S1": "B"} if index % 2 == 0 else {"IO": "B", "S1": "A"}
    return TextPair(
        clean=clean,
        corrupted=filled(template, {**fixed, **changed})[0],
        answers=(io,),
        wrong=(s,),
        spans={**{name: spans[slot] for name, slot in where.items()}, "S2": spans["S"]},
        beside={"S1+1": ("S1", 1)},
        group="ABBA" if index % 2 == 0 else "BABA",
    )
