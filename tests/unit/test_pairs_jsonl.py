"""Prompt pairs as JSON lines: every key by hand, every refusal with its file and line, and the way out and in."""

import json

import pytest
import torch

from interp.errors import StoreError, UsageError
from interp.pairs.base import Pairs
from interp.pairs.ioi import ioi
from interp.pairs.jsonl import read_jsonl
from interp.pairs.tokenizers import text_tokenizer
from interp.rng import generator
from tests.unit.small_tokenizers import english, whole_words, wrapped

WORDS = ("Mary", "and", "Tom", "met", "John", "gave", "it", "to", "Max")  # ids from 2 on
CLEAN = "Mary and Tom met Mary gave it to"
LINE = {"clean": CLEAN, "corrupted": "Mary and Tom met Tom gave it to", "answers": " Tom", "wrong": " Mary"}


def file_of(folder, *lines) -> str:
    """A file of these objects, or raw lines."""
    path = folder / "pairs.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def read(folder, *lines, words=WORDS, **options) -> Pairs:
    return read_jsonl(file_of(folder, *lines), whole_words(*words), **options)


def same(first: Pairs, second: Pairs) -> bool:
    """Whether two sets of pairs agree in all that matters, display names included."""
    return first.fingerprint() == second.fingerprint() and first.names == second.names


def test_a_line_of_text_by_hand(tmp_path):
    pairs = read(tmp_path, LINE)
    assert pairs.clean.tolist() == [[2, 3, 4, 5, 2, 7, 8, 9]]
    assert pairs.corrupted.tolist() == [[2, 3, 4, 5, 4, 7, 8, 9]]
    assert pairs.position.tolist() == [[7]] and pairs.answers.tolist() == [[[4]]] and pairs.wrong.tolist() == [[[2]]]
    assert pairs.tokens(0)[:3] == ["Mary", "and", "Tom"] and pairs.source.kind == "jsonl"


def test_token_ids_need_no_tokenizer_but_the_size_of_the_vocabulary(tmp_path):
    path = file_of(tmp_path, {"clean": [1, 2, 3], "corrupted": [1, 4, 3], "answers": [5, 6], "wrong": 7})
    pairs = read_jsonl(path, d_vocab=8)
    assert pairs.answers.tolist() == [[[5, 6]]] and pairs.wrong.tolist() == [[[7]]]
    with pytest.raises(UsageError, match="without a tokenizer d_vocab, the number of token ids of the model, must be"):
        read_jsonl(path)


def test_several_positions_have_a_set_each(tmp_path):
    line = {**LINE, "position": [1, -1], "answers": [["Tom", "John"], ["Max"]], "wrong": [[], ["Mary"]]}
    pairs = read(tmp_path, line)
    assert pairs.position.tolist() == [[1, 7]]
    assert pairs.answers.tolist() == [[[4, 6], [10, -1]]] and pairs.wrong.tolist() == [[[-1], [2]]]


def test_spans_are_tokens_characters_or_text(tmp_path):
    spans = {
        "IO": "Tom",
        "S1": {"text": "Mary", "occurrence": 1},
        "S2": {"text": "Mary", "occurrence": 2},
        "verb": {"chars": [13, 16]},
        "END": [7, 8],
        "both": "it to",
    }
    pairs = read(tmp_path, {**LINE, "spans": spans})
    assert pairs.spans[0] == {
        "IO": (2, 3), "S1": (0, 1), "S2": (4, 5), "verb": (3, 4), "END": (7, 8), "both": (6, 8)
    }  # fmt: skip


def test_a_span_of_a_word_is_the_token_with_its_space(tmp_path):
    line = {"clean": " Mary gave", "corrupted": " Tom gave", "answers": " Tom", "spans": {"S": "Mary"}}
    path = file_of(tmp_path, line)
    assert read_jsonl(path, english()).spans[0] == {"S": (0, 1)}
    with pytest.raises(UsageError, match=r"pairs\.jsonl:1: span S: 'ary' is only part of the tokens ' Mary'"):
        read_jsonl(file_of(tmp_path, {**line, "spans": {"S": "ary"}}), english())


def test_the_answer_must_continue_the_prompt_as_written(tmp_path):
    with pytest.raises(
        UsageError, match=r"1: answers: 'Tom' changes the last token of the prompt .*; ' Tom' is one token"
    ):
        read(tmp_path, {**LINE, "answers": "Tom"})


def test_bos_moves_everything_by_one_and_only_on_request(tmp_path):
    line = {**LINE, "spans": {"IO": "Tom"}, "position": [7]}
    plain, moved = read(tmp_path, line), read(tmp_path, line, bos="<s>")
    assert plain.source.bos == "none" and moved.source.bos == "added"
    assert moved.clean.tolist() == [[1, *plain.clean[0].tolist()]] and moved.corrupted[0, 0] == 1
    assert moved.position.tolist() == [[8]] and moved.spans[0] == {"IO": (3, 4)}
    with pytest.raises(UsageError, match=r"pairs\.jsonl:1: begins with the BOS token '<s>' that is to be added"):
        read(tmp_path, {**LINE, "clean": [1, 2], "corrupted": [1, 3]}, bos="<s>")


@pytest.mark.parametrize("padding", ["right", "left"])
def test_shorter_prompts_are_padded_on_either_side(tmp_path, padding):
    short = {"clean": "Mary met", "corrupted": "Tom met", "answers": " Max", "spans": {"S": "Mary"}}
    pairs = read(tmp_path, LINE, short, padding=padding)
    start = 6 if padding == "left" else 0
    assert pairs.lengths.tolist() == [8, 2] and pairs.starts.tolist() == [0, start]
    assert pairs.position.tolist() == [[7], [start + 1]] and pairs.spans[1] == {"S": (start, start + 1)}


def test_prompts_with_the_same_clean_tokens_are_one_sequence(tmp_path):
    other = {**LINE, "corrupted": "Mary and Tom met John gave it to"}
    assert read(tmp_path, LINE, other).unit.tolist() == [0, 0]
    assert read(tmp_path, {**LINE, "unit": "a"}, {**other, "unit": 2}).unit.tolist() == [0, 1]


def test_group_and_split_are_read(tmp_path):
    other = {**LINE, "clean": "Tom and Mary met Tom gave it to", "answers": " Mary", "wrong": " Tom"}
    pairs = read(tmp_path, {**LINE, "group": "ABBA", "split": "score"}, {**other, "split": "evaluate"})
    assert pairs.group == ("ABBA", "") and pairs.part == ("score", "evaluate")


def test_prompts_that_are_each_others_corrupted_ones_are_one_sequence(tmp_path):
    rows = [([2, 3], [3, 2]), ([3, 2], [2, 3]), ([4, 5], [2, 3]), ([2, 3], [4, 5]), ([5, 4], [2, 3]), ([6, 4], [5, 4])]
    lines = [{"clean": clean, "corrupted": corrupted, "answers": 1} for clean, corrupted in rows]
    pairs = read_jsonl(file_of(tmp_path, *lines), d_vocab=8)
    assert pairs.unit.tolist() == [0, 0, 0, 0, 1, 2], "one way only is no reason, or a whole file would be one"
    named = [{**line, "unit": number} for number, line in enumerate(lines)]
    assert read_jsonl(file_of(tmp_path, *named), d_vocab=8).n_units == 6, "what the file says stands"


UNEQUAL = {**LINE, "corrupted": "Mary and Tom met gave it to"}
REFUSED = {
    "unequal length": (UNEQUAL, "the clean prompt has 8 tokens, the corrupted one 7; patching needs equal numbers"),
    "equal prompts": ({**LINE, "corrupted": CLEAN}, "the clean and the corrupted prompt are the same tokens"),
    "no tokens": ({**LINE, "clean": [], "corrupted": []}, "the prompt has no tokens"),
    "answer of two tokens": ({**LINE, "answers": " Tom Max"}, "answers: ' Tom Max' is 2 tokens \\('Tom', 'Max'\\)"),
    "unknown answer": ({**LINE, "answers": " Anna"}, "answers: ' Anna' is unknown to the tokenizer"),
    "unknown word": ({**LINE, "clean": "Anna and"}, "clean: the tokenizer cannot write 'Anna'"),
    "overlap": ({**LINE, "wrong": [" Mary", " Tom"]}, "'Tom' is in both answers and wrong"),
    "no answer": ({**LINE, "answers": []}, "answers: a position has no answer"),
    "token outside": ({**LINE, "answers": 11}, "answers: token id 11 is outside the vocabulary, 0 to 10"),
    "prompt token outside": ({**LINE, "clean": [2, -1]}, "the clean prompt has 2 tokens, the corrupted one 8"),
    "span not found": ({**LINE, "spans": {"IO": "Max"}}, "span IO: 'Max' does not occur in the clean prompt"),
    "span twice": ({**LINE, "spans": {"S": "Mary"}}, "span S: 'Mary' occurs 2 times; say which with \"occurrence\""),
    "span thrice": (
        {**LINE, "spans": {"S": {"text": "Mary", "occurrence": 3}}},
        "span S: 'Mary' occurs 2 times, occurrence 3 was asked for",
    ),
    "span occurrence": ({**LINE, "spans": {"S": {"text": "Mary", "occurrence": 0}}}, "and an occurrence from 1"),
    "span form": ({**LINE, "spans": {"S": 3}}, r"span S: 3: expected \[start, stop\]"),
    "span key": ({**LINE, "spans": {"S": {"text": "Tom", "nth": 1}}}, r"span S: .*expected \[start, stop\]"),
    "span characters": ({**LINE, "spans": {"S": {"chars": [5, 99]}}}, r"characters \[5, 99\]: expected .* 0 to 32"),
    "span of a gap": ({**LINE, "spans": {"S": {"chars": [4, 5]}}}, "no token stands for the characters ' '"),
    "span range": ({**LINE, "spans": {"S": [7, 9]}}, r"span S: \[7, 9\] is not a range of the 8 tokens"),
    "span of ids": (
        {**LINE, "clean": [2, 3], "corrupted": [2, 4], "spans": {"S": "Mary"}},
        r"span S: the prompt is given as token ids; give the span as \[start, stop\] in tokens",
    ),
    "spans form": ({**LINE, "spans": [1, 2]}, "spans: expected an object of name to span"),
    "position outside": ({**LINE, "position": 8}, "position 8 is outside the prompt of 8 tokens"),
    "position form": ({**LINE, "position": 1.5}, "position 1.5: expected a whole number or a list of them"),
    "sets missing": ({**LINE, "position": [1, 2]}, "answers: 2 positions are read; give a list of 2 lists"),
    "sets too many": (
        {**LINE, "answers": [[" Tom"], [" Max"]]},
        "2 sets of answers for 1 positions; give one for each",
    ),
    "answer form": ({**LINE, "answers": {"a": 1}}, "answers: {'a': 1}: expected a text or a token id"),
    "prompt form": ({**LINE, "clean": 3}, "clean: 3: expected a text or a list of token ids"),
    "unknown key": ({**LINE, "answer": 3}, "unknown key 'answer'; known: clean, corrupted, answers"),
    "missing key": (
        {"clean": CLEAN, "corrupted": "Tom"},
        "key 'answers' is missing; a line needs clean, corrupted, answers",
    ),
    "split": ({**LINE, "split": "train"}, "split one of score, choose, evaluate"),
    "unit": ({**LINE, "unit": [1]}, r"unit \[1\]: expected a text or a whole number"),
    "reads differ": (
        {**LINE, "position": [1, 2], "answers": [["Tom"], ["Max"]], "wrong": [[], []]},
        r"2 read positions, .*pairs\.jsonl:1 has 1; give each prompt the same number",
    ),
    "not an object": ("[1, 2]", "is a list; expected one JSON object to a line, such as {"),
    "cut": (
        '{"clean": ',
        "not valid JSON at column 11, in or after the field 'clean': Expecting value, where the line",
    ),
    "no comma": (
        '{"clean": "Tom" "corrupted": "Max"}',
        "not valid JSON at column 17, in or after the field 'clean': Expecting ',' delimiter, found '\"corrupted\"",
    ),
    "single quotes": ("{'clean': 'Tom'}", "not valid JSON at column 2: Expecting property name .*, found \"'clean'"),
    "text": ("Tom and Mary", "not valid JSON at column 1: Expecting value, found 'Tom and Mary'; expected one JSON"),
    "no number": ('{"clean": NaN}', r"not valid JSON \(NaN is not JSON\); expected one JSON object"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_line_is_refused_with_its_file_and_number(tmp_path, name):
    line, message = REFUSED[name]
    with pytest.raises(UsageError, match=rf"pairs\.jsonl:2: .*{message}|pairs\.jsonl:2: {message}"):
        read(tmp_path, LINE, line)


def test_a_token_outside_the_vocabulary_of_a_prompt_is_said(tmp_path):
    with pytest.raises(UsageError, match="1: corrupted: token id 30 is outside the vocabulary, 0 to 10"):
        read(tmp_path, {**LINE, "clean": [2, 3], "corrupted": [2, 30]})


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_is_said(tmp_path, text):
    path = tmp_path / "pairs.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"pairs\.jsonl: holds no prompt pairs"):
        read_jsonl(path, d_vocab=5)


def test_a_line_that_is_not_json_or_a_missing_file_is_said(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"clean": "\xe9"}')
    with pytest.raises(UsageError, match=r"latin\.jsonl:1: not UTF-8 text \(.* at byte 12\); expected one JSON object"):
        read_jsonl(path, d_vocab=5)
    with pytest.raises(StoreError, match="No such file"):
        read_jsonl(tmp_path / "none.jsonl", d_vocab=5)


def test_text_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"pairs\.jsonl:1: clean is text, which needs a tokenizer .*; give token ids"):
        read_jsonl(file_of(tmp_path, LINE), d_vocab=20)
    with pytest.raises(UsageError, match="a BOS token to put first needs a tokenizer; write its id into the prompts"):
        read_jsonl(file_of(tmp_path, {"clean": [1], "corrupted": [2], "answers": 3}), d_vocab=20, bos=True)


def test_a_tokenizer_of_another_model_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UsageError, match="the tokenizer writes token ids up to 10, the model has only 0 to 4"):
        read(tmp_path, LINE, d_vocab=5)


def test_unequal_pairs_are_left_out_on_request_and_counted(tmp_path):
    pairs = read(tmp_path, LINE, UNEQUAL, drop_unequal=True)
    assert len(pairs) == 1 and pairs.source.settings == {"dropped_unequal": 1}
    with pytest.raises(UsageError, match="in all 1 pairs the prompts differ in length; none is left"):
        read(tmp_path, UNEQUAL, drop_unequal=True)


@pytest.mark.parametrize("padding", ["right", "left"])
def test_pairs_written_and_read_are_the_same(tmp_path, padding):
    made = ioi(wrapped(english()), 20, generator(0, "pairs"), bos=True, padding=padding).split(0)
    made.to_jsonl(tmp_path / "first.jsonl")
    back = Pairs.from_jsonl(tmp_path / "first.jsonl")
    assert same(made, back) and back.aligned() == made.aligned()
    assert (back.source.tokenizer, back.source.bos) == (made.source.tokenizer, "added")
    assert back.source.settings["origin"]["settings"]["corruption"] == "flip"
    back.to_jsonl(tmp_path / "second.jsonl")
    again = Pairs.from_jsonl(tmp_path / "second.jsonl")
    assert same(made, again) and again.source.settings == back.source.settings


def test_a_written_file_read_with_its_tokenizer_does_not_get_a_second_bos(tmp_path):
    made = ioi(wrapped(english()), 4, generator(0, "pairs"), bos=True)
    made.to_jsonl(tmp_path / "pairs.jsonl")
    assert same(made, read_jsonl(tmp_path / "pairs.jsonl", wrapped(english())))
    with pytest.raises(UsageError, match="begins with the BOS token"):
        read_jsonl(tmp_path / "pairs.jsonl", wrapped(english()), bos=True)


def test_the_source_names_the_file_by_its_content(tmp_path):
    first, second = read(tmp_path, LINE).source, read(tmp_path, LINE, UNEQUAL, drop_unequal=True).source
    assert first.file == second.file and first.sha256 != second.sha256
    assert first.tokenizer == text_tokenizer(whole_words(*WORDS)).fingerprint


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"pairs": 2}, "format 2, this version reads 1; a newer version may read it"),
        ({"pairs": 1, "vocab": 3}, "header key 'vocab' is not one of pairs, d_vocab"),
        ({"pairs": 1, "d_vocab": "9"}, "header key 'd_vocab' is not one of .*, or has a wrong value"),
        ({"pairs": 1, "names": {"one": "x"}}, "header key 'names': expected token ids as keys"),
        ({"pairs": 1, "names": {"1": 2}}, "header key 'names': expected token ids as keys and texts as values"),
        ({"pairs": 1, "source": {"settings": 3}}, "header key 'source': expected texts, and an object as settings"),
        ({"pairs": 1, "padding": "middle"}, r"jsonl:1: header key 'padding': expected 'left' or 'right', got 'middle'"),
    ],
)
def test_a_bad_header_is_refused(tmp_path, header, message):
    with pytest.raises(UsageError, match=message):
        read(tmp_path, header, LINE)


def test_padding_is_left_or_right_and_nothing_else(tmp_path):
    with pytest.raises(UsageError, match="padding='middle': expected 'left' or 'right'"):
        read(tmp_path, LINE, padding="middle")


def test_a_header_without_pairs_is_an_empty_file(tmp_path):
    with pytest.raises(UsageError, match="holds no prompt pairs"):
        read(tmp_path, {"pairs": 1})


def test_read_pairs_are_on_the_cpu_as_whole_numbers(tmp_path):
    pairs = read(tmp_path, LINE)
    assert {getattr(pairs, name).dtype for name in ("clean", "corrupted", "answers", "position")} == {torch.int64}
