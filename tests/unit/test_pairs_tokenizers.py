"""Local tokenizers: one token or not, what fits a model, and folders that are refused without running anything."""

import hashlib
import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from interp.adapters.prompts_of import prompt_layout
from interp.config import canonical_json
from interp.errors import StoreError, UsageError
from interp.pairs.tokenizers import WRITING, fits, load_tokenizer, text_tokenizer
from tests.unit.small_tokenizers import english, marked_spaces, whole_words, wrapped


def test_a_word_with_its_space_is_one_token_and_without_is_not():
    text = text_tokenizer(english())
    assert text.name(text.one(" Mary")) == " Mary"
    assert text.one("Mary") is None
    with pytest.raises(UsageError, match=r"answers 'Mary' is 2 tokens \('M', 'ary'\); ' Mary' is one token"):
        text.require_one("Mary", "answers")


def test_a_word_of_several_tokens_has_no_spelling_that_helps():
    with pytest.raises(UsageError, match=r"wrong ' zyx' is 4 tokens .*; use a word that is one token"):
        text_tokenizer(english()).require_one(" zyx", "wrong")


def test_an_answer_is_judged_as_the_continuation_of_its_prompt():
    text = text_tokenizer(english())
    assert text.name(text.one("32", " 17")) == "32"
    with pytest.raises(UsageError, match="'ary' changes the last token of the prompt instead of following it"):
        text.require_one("ary", "answers", " M")


def test_unknown_words_are_refused_wherever_they_stand():
    text = text_tokenizer(whole_words("the", "cat"))
    with pytest.raises(UsageError, match="the tokenizer cannot write 'dog'"):
        text.encode("the dog cat")
    assert text.one(" dog") is None
    with pytest.raises(UsageError, match="answers ' dog' is unknown to the tokenizer"):
        text.require_one(" dog", "answers")


WITHOUT_UNKNOWN = {
    "WordLevel": models.WordLevel({"the": 0, "cat": 1}, unk_token="<unk>"),
    "WordPiece": models.WordPiece({"the": 0, "cat": 1}, unk_token="[UNK]"),
    "Unigram": models.Unigram([("the", -1.0), ("cat", -2.0)]),
    "BPE": models.BPE({"the": 0, "cat": 1}, [], unk_token="<unk>"),
}


@pytest.mark.parametrize("kind", WITHOUT_UNKNOWN)
def test_unknown_words_are_refused_by_tokenizers_without_a_token_for_them_too(kind, tmp_path):
    inner = Tokenizer(WITHOUT_UNKNOWN[kind])
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.save(str(tmp_path / "tokenizer.json"))
    text = load_tokenizer(tmp_path)
    if kind != "BPE":
        assert text.encode("the cat the").ids == (0, 1, 0)
    with pytest.raises(UsageError, match=r"the tokenizer cannot write '(dog|d|t)'"):
        text.encode("the dog cat")
    assert text.one(" dog") is None and text.d_vocab == 2
    assert fits(text, 2) is text and prompt_layout(tmp_path, tmp_path)[0] is False
    written = json.loads((tmp_path / "tokenizer.json").read_text())
    wanted = [written[key] for key in WRITING]
    assert text.fingerprint == hashlib.sha256(canonical_json(wanted)).hexdigest(), "that of the file"


def test_truncation_and_padding_of_a_tokenizer_file_are_not_applied():
    inner = english()
    inner.enable_truncation(2)
    inner.enable_padding(length=9)
    assert len(text_tokenizer(inner).encode(" Mary John Tom").ids) == 3
    assert len(inner.encode(" Mary John Tom").ids) == 9  # the object of the user is as it was


def test_the_fingerprint_names_the_tokenizer_however_it_comes():
    assert text_tokenizer(english()).fingerprint == text_tokenizer(wrapped(english())).fingerprint
    assert text_tokenizer(english()).fingerprint != text_tokenizer(english(digits=1)).fingerprint


def test_bos_is_the_stated_token_or_the_given_one():
    text, stated = text_tokenizer(english()), text_tokenizer(wrapped(english()))
    start = text.inner.token_to_id("<s>")
    assert stated.bos_id(True) == text.bos_id("<s>") == text.bos_id(start) == start
    assert text.bos_id(False) is None
    with pytest.raises(UsageError, match="bos=True: this tokenizer states no BOS token; give the token itself"):
        text.bos_id(True)
    with pytest.raises(UsageError, match="bos='<bos>': the tokenizer has no such token"):
        text.bos_id("<bos>")


def test_a_tokenizer_of_no_known_kind_is_refused():
    with pytest.raises(UsageError, match="str is not a tokenizer that can be used here"):
        text_tokenizer("gpt2")


def test_a_tokenizer_must_fit_the_vocabulary_of_the_model():
    tokenizer = english()
    size = text_tokenizer(tokenizer).d_vocab
    assert fits(tokenizer, size).d_vocab == fits(tokenizer, size + 1024).d_vocab == size
    with pytest.raises(UsageError, match=f"writes token ids up to {size - 1}, the model has only 0 to {size - 2}"):
        fits(tokenizer, size - 1)
    with pytest.raises(
        UsageError, match=rf"the model has 50257, so that {50257 - size} would never occur \(at most 5025"
    ):
        fits(tokenizer, 50257)
    assert fits(tokenizer, 50257, unused=50257).d_vocab == size


def test_a_folder_gives_the_tokenizer_and_its_bos(tmp_path):
    wrapped(english()).save_pretrained(tmp_path)
    found = load_tokenizer(tmp_path)
    assert found.fingerprint == text_tokenizer(english()).fingerprint
    assert found.bos == found.inner.token_to_id("<s>")


def test_a_bos_written_as_an_object_is_read(tmp_path):
    english().save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).bos is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<s>"}}))
    assert load_tokenizer(tmp_path).bos == english().token_to_id("<s>")


def test_a_hub_name_is_never_looked_up():
    with pytest.raises(UsageError, match="no such folder; tokenizers are read from disk, never from a hub"):
        load_tokenizer("openai-community/gpt2")


def test_a_folder_without_a_tokenizer_or_with_a_damaged_one_is_said(tmp_path):
    with pytest.raises(StoreError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(StoreError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_puts_a_space_before_each_text_is_judged_in_context():
    text = text_tokenizer(marked_spaces())
    mary = text.one(" Mary")
    assert text.one("Mary") == text.one(" Mary", "gave it to") == mary and text.name(mary) == " Mary"
    with pytest.raises(UsageError, match=r"answers 'Mary' is 3 tokens \('M', 'ar', 'y'\); ' Mary' is one token"):
        text.require_one("Mary", "answers", "gave it to")


def test_names_keep_their_space_and_special_tokens_their_name():
    text = text_tokenizer(english())
    ids = text.encode("The store, Mary 1732").ids
    assert [text.name(token) for token in ids] == ["The", " store", ",", " Mary", " 17", "32"]
    assert text.name(text.inner.token_to_id("<s>")) == "<s>" and text.name(10**6) == "[1000000]"
