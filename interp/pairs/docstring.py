"""Docstring completion: the third parameter of a Python function, after two `:param` lines -> its name.

Source: Heimersheim and Janiak 2023, "A circuit for Python docstrings in a 4-layer attention-only transformer". All
words are one token with a leading space, so that all prompts have one length. No BOS is added unless asked for.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Generator

from interp.errors import UnknownName
from interp.pairs.base import Pairs
from interp.pairs.rows import Padding
from interp.pairs.text import TextPair, filled, pairs_of_texts, prepared, single_tokens
from interp.pairs.tokenizers import Bos

CORRUPTIONS = ("definition", "docstring", "both")
TEMPLATE = (
    "def{NAME}(self,{A_def},{B_def},{C_def},{D_def}):\n"
    '    """{W1}{W2}{W3}\n'
    "\n"
    "    :param{A_doc}:{W4}{W5}\n"
    "    :param{B_doc}:{W6}{W7}\n"
    "    :param"
)
WORDS = """
access account action address age air area army art author back bank base bed bill blood board body book box
boy brain building business call camera cap car card care case cat cause cell center chance change charge
choice city class club code color command community company computer condition content control core cost
country course court cover crew crime culture cup current data date day deal death design detail development
device direction disk distance doctor document dog door dream drive earth effect energy event evidence example
experience eye face fact family farm father field figure file files film fire focus food force forest form
frame friend front function game garden girl glass goal gold group hair half hand head health heart help
history home horse hospital hotel hour house human image impact industry interest island issue item job key
kind king knowledge land language last law lead level library life light limit line list load location loss
love machine man manager map mark market mass match material matter meaning media member memory message metal
method middle milk mind model money moment month mother motion mouth movie music name nature network news
night north notice number object office oil option order page paper parent part party past path pattern people
period person picture piece place plan plant player point police policy population port position post
potential power pressure price problem process product program project property public purpose quality
question range rate reason record region report research resource rest result return river road rock role room
root rule run safety sale sample scale scene school science score screen search season seat section security
sense series service set shape share side sign signal site size skin software son song sort sound source space
speech speed spirit sport staff stage star start state station step stock stone store story strategy street
structure student study style subject success summer support surface system table tax teacher team term test
text theory thing thought time title tool top total town track trade training travel tree trial trip truth
type unit use user value version video view visit voice wall war water way week weight west wife wind window
winter woman wood word work world writing year
"""


def docstring(
    tokenizer: Any,
    n: int,
    generator: Generator,
    *,
    corruption: Literal["definition", "docstring", "both"] = "definition",
    bos: Bos = False,
    d_vocab: int | None = None,
    padding: Padding = "right",
    words: Sequence[str] | None = None,
) -> Pairs:
    """`n` prompts of one length, with spans A_def to D_def, A_doc, B_doc and END.

    The answer is the third parameter of the definition; wrong are the other three.

    Args:
        tokenizer: a local tokenizer of the `tokenizers` or `transformers` library.
        corruption: the parameter names that become other random words: those of the definition, so that the answer
            does not occur; those of the docstring, so that nothing says which comes next; or both.
        bos: put a BOS token first: True for the tokenizer's own, or the token itself.
        d_vocab: token ids of the model, which the tokenizer must fit.
        words: words to draw names and descriptions from; None: common English nouns.

    Raises:
        UsageError: if fewer than 18 words are one token for this tokenizer.
    """
    if corruption not in CORRUPTIONS:
        raise UnknownName("corruption", corruption, CORRUPTIONS)
    text = prepared(tokenizer, n)
    kept = single_tokens([f" {word}" for word in words or WORDS.split()], text, "words", 18, option="words")
    texts = [_pair(kept, generator, corruption) for _ in range(n)]
    settings = {"n": n, "seed": generator.initial_seed(), "corruption": corruption}
    return pairs_of_texts(texts, "docstring", text, d_vocab=d_vocab, bos=bos, padding=padding, settings=settings)


def _pair(words: Sequence[str], generator: Generator, corruption: str) -> TextPair:
    """One prompt pair; all its words differ."""
    order = torch.randperm(len(words), generator=generator)[:18].tolist()
    drawn = [words[index] for index in order]
    parameters, others, described = drawn[:4], drawn[4:10], drawn[10:]
    slots = dict(zip(("NAME", *(f"W{number}" for number in range(1, 8))), described, strict=True))
    clean_def = dict(zip(("A_def", "B_def", "C_def", "D_def"), parameters, strict=True))
    clean_doc = {"A_doc": parameters[0], "B_doc": parameters[1]}
    random_def, random_doc = (
        dict(zip(clean_def, others[:4], strict=True)),
        dict(zip(clean_doc, others[4:], strict=True)),
    )
    changed = {"definition": random_def, "docstring": random_doc, "both": random_def | random_doc}[corruption]
    clean, spans = filled(TEMPLATE, slots | clean_def | clean_doc)
    return TextPair(
        clean=clean,
        corrupted=filled(TEMPLATE, slots | clean_def | clean_doc | changed)[0],
        answers=(parameters[2],),
        wrong=(*parameters[:2], parameters[3]),
        spans={name: spans[name] for name in (*clean_def, *clean_doc)},
    )
