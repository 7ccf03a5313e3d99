"""Tiny local tokenizers for tests: words with a leading space, a BPE that keeps two digits, single digits."""

from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from interp.pairs import docstring, greater_than, ioi

LETTERS = pre_tokenizers.ByteLevel.alphabet()


def byte_level(words: list[str], texts: list[str], *, digits: int = 2) -> Tokenizer:
    """A byte-level BPE in which each of `words` is one token with a leading space, trained on `texts`.

    Args:
        digits: digits that a token holds at most; with 2, years are a century with its space and two digits.
    """
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\d{2}" if digits == 2 else r"\d"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, min_frequency=1, show_progress=False, initial_alphabet=LETTERS, special_tokens=["<s>"]
    )
    tokenizer.train_from_iterator([f" {word}" for word in words] * 3 + texts, trainer)
    if digits == 2:
        years = [f" {century}" for century in range(11, 18)] + [f"{year:02d}" for year in range(100)]
        tokenizer.add_tokens([AddedToken(year, normalized=False) for year in years])
    return tokenizer


def english(extra: Sequence[str] = (), **options) -> Tokenizer:
    """A tokenizer that knows all words of the generators, trained on `extra` texts, too."""
    words = [*ioi.NAMES.split(), *ioi.PLACES, *ioi.OBJECTS, *greater_than.NOUNS.split(), *docstring.WORDS.split()]
    texts = [template.replace("{", " ").replace("}", "") for template in (*ioi.TEMPLATES, greater_than.TEMPLATE)]
    return byte_level(words, [*texts, *extra, docstring.TEMPLATE.replace("{", " {")], **options)


def whole_words(*words: str) -> Tokenizer:
    """A tokenizer of these words, split at spaces, that writes <unk> for any other."""
    vocabulary = {word: index for index, word in enumerate(("<unk>", "<s>", *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def marked_spaces(extra: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer that marks spaces, puts one before each text, and writes digits one by one."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(True)]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=4000, min_frequency=1, show_progress=False, special_tokens=["<unk>", "<s>"]
    )
    words = [*ioi.NAMES.split(), *ioi.PLACES, *ioi.OBJECTS]
    texts = [template.replace("{", " ").replace("}", "") for template in ioi.TEMPLATES]
    tokenizer.train_from_iterator([f" {word}" for word in words] * 3 + [*texts, *extra], trainer)
    return tokenizer


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The same tokenizer as transformers has it, with <s> as BOS."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
