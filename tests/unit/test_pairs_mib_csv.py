"""The CSV files of MIB and EAP-IG: each task by hand, and nothing in a cell is ever run."""

import pytest

from interp.errors import StoreError, UsageError
from interp.pairs.mib_csv import read_mib_csv
from tests.unit.small_tokenizers import english, whole_words

WORDS = ("Mary", "and", "Tom", "met", "gave", "to", "a", "bird", "robin", "is", "32", "01")
ID = {word: index + 2 for index, word in enumerate(WORDS)}


def read(folder, text, **options):
    path = folder / "task.csv"
    path.write_text(text)
    return read_mib_csv(path, whole_words(*WORDS), **options)


def test_ioi_columns_are_read_as_token_ids(tmp_path):
    text = (
        ",clean,corrupted,corrupted_hard,correct_idx,incorrect_idx\n"
        '0,"Mary and Tom met Mary gave to","Mary and Tom met Tom gave to",Mary and Tom met a gave to,'
        f"{ID['Tom']},{ID['Mary']}\n"
    )
    pairs = read(tmp_path, text)
    assert pairs.tokens(0, "corrupted")[4] == "Tom"
    assert pairs.answers.tolist() == [[[ID["Tom"]]]] and pairs.wrong.tolist() == [[[ID["Mary"]]]]
    assert pairs.position.tolist() == [[6]] and pairs.spans == ({"END": (6, 7)},) and pairs.group == ("ioi",)
    assert read(tmp_path, text, corrupted="corrupted_hard").tokens(0, "corrupted")[4] == "a"


@pytest.mark.parametrize("column", ["correct_idx", "label"])
def test_greater_than_years_are_numbers_and_not_token_ids(tmp_path, column):
    path = tmp_path / "task.csv"
    path.write_text(f"clean,corrupted,{column}\n war 1732 to 17, war 1701 to 17,32\n")
    pairs = read_mib_csv(path, english())
    assert pairs.group == ("greater-than",) and pairs.tokens(0) == [" war", " 17", "32", " to", " 17"]
    assert list(map(pairs.name, pairs.answers[0, 0].tolist())) == [f"{year:02d}" for year in range(33, 100)]
    assert list(map(pairs.name, filter(lambda token: token >= 0, pairs.wrong[0, 0].tolist()))) == [
        f"{year:02d}" for year in range(33)
    ]


def test_fact_retrieval_and_hypernymy_columns(tmp_path):
    facts = read(tmp_path, f"clean,corrupted,country_idx,corrupted_country_idx\nMary is,Tom is,{ID['a']},{ID['to']}\n")
    assert facts.group == ("fact-retrieval",)
    assert (facts.answers.flatten().tolist(), facts.wrong.flatten().tolist()) == ([ID["a"]], [ID["to"]])
    text = 'clean,corrupted,answers_idx,corrupted_answers_idx\na robin is,a bird is,"[2, 3]","[4, 5, 6]"\n'
    many = read(tmp_path, text)
    assert many.group == ("hypernymy",)
    assert (many.answers.tolist(), many.wrong.tolist()) == ([[[2, 3]]], [[[4, 5, 6]]])


def test_bos_is_added_only_on_request(tmp_path):
    text = "clean,corrupted,country_idx,corrupted_country_idx\nMary is,Tom is,3,4\n"
    assert read(tmp_path, text).clean.shape == (1, 2)
    with_bos = read(tmp_path, text, bos="<s>")
    assert with_bos.tokens(0)[0] == "<s>" and with_bos.position.tolist() == [[2]] and with_bos.source.bos == "added"


@pytest.mark.parametrize(
    "cell",
    [
        "__import__('os').abort()",
        "[].__class__",
        "[1 for _ in [1]]",
        "[True]",
        "{1: 2}",
        "'3'",
        "[]",
        "(" * 5000,
        "2.0",
    ],
)
def test_a_cell_that_is_no_list_of_numbers_is_refused_and_never_run(tmp_path, cell):
    with pytest.raises(UsageError, match=r"task\.csv:2: answers_idx: .*: expected a token id or a list of token ids"):
        read(tmp_path, f'clean,corrupted,answers_idx,corrupted_answers_idx\nMary is,Tom is,"{cell}",3\n')


FACT = "clean,corrupted,country_idx,corrupted_country_idx\n"
YEAR = "clean,corrupted,correct_idx\n"
REFUSED = {
    "unequal": (FACT + "Mary is,Tom and Mary is,3,4\n", r"csv:2: the clean prompt has 2 tokens, the corrupted one 4"),
    "unknown word": (FACT + "Mary is,Tom was,3,4\n", r"csv:2: corrupted: the tokenizer cannot write 'was'"),
    "token outside": (FACT + "Mary is,Tom is,3,999\n", r"csv:2: wrong: token id 999 is outside the vocabulary"),
    "overlap": (FACT + "Mary is,Tom is,3,3\n", r"csv:2: 'and' is in both answers and wrong"),
    "fields": (FACT + "Mary is,Tom is,3\n", r"csv:2: has another number of fields than the 4 columns"),
    "more fields": (FACT + "Mary is,Tom is,3,4,5\n", r"csv:2: has another number of fields"),
    "quotes": (FACT + '"Mary" is,Tom is,3,4\n', r"csv:2: not CSV"),
    "no year": (YEAR + "met 32 to,met 01 to,99\n", r"csv:2: correct_idx: '99': expected a year from 0 to 98"),
    "year text": (YEAR + "met 32 to,met 01 to,x\n", r"csv:2: correct_idx: 'x': expected a year from 0 to 98"),
    "empty": (FACT, r"csv: holds no prompt pairs"),
    "nothing": ("", r"csv: holds no prompt pairs"),
    "columns": ("clean,corrupted,plural\nMary is,Tom is,1\n", "columns clean, corrupted, plural: expected clean, corr"),
    "no corrupted": ("clean,correct_idx\nMary is,1\n", r"expected clean, corrupted and those of a task \(ioi: correct"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_file_is_refused_with_line_and_column(tmp_path, name):
    text, message = REFUSED[name]
    with pytest.raises(UsageError, match=message):
        read(tmp_path, text)


def test_a_file_that_is_not_text_or_missing_is_said(tmp_path):
    (tmp_path / "task.csv").write_bytes(b"clean,\xff\n")
    with pytest.raises(UsageError, match=r"task\.csv: not UTF-8 text \(invalid start byte at byte 6\)"):
        read_mib_csv(tmp_path / "task.csv", whole_words(*WORDS))
    with pytest.raises(StoreError, match="No such file"):
        read_mib_csv(tmp_path / "none.csv", whole_words(*WORDS))


def test_unequal_pairs_are_left_out_on_request_and_counted(tmp_path):
    text = FACT + "Mary is,Tom and Mary is,3,4\nMary is,Tom is,3,4\n"
    pairs = read(tmp_path, text, drop_unequal=True)
    assert len(pairs) == 1 and pairs.source.settings["dropped_unequal"] == 1
    with pytest.raises(UsageError, match="in all 1 pairs the prompts differ in length"):
        read(tmp_path, FACT + "Mary is,Tom and Mary is,3,4\n", drop_unequal=True)


def test_years_that_are_not_one_token_are_refused(tmp_path):
    path = tmp_path / "task.csv"
    path.write_text(YEAR + " war 1732 to 17, war 1701 to 17,32\n")
    with pytest.raises(UsageError, match=r"csv:2: correct_idx: the year '00' is 2 tokens \('0', '0'\)"):
        read_mib_csv(path, english(digits=1))


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    with pytest.raises(UsageError, match="the model has only 0 to 4"):
        read(tmp_path, FACT + "Mary is,Tom is,3,4\n", d_vocab=5)
