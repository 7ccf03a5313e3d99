"""The command `interp heads`: one JSON object of its schema, tables, and one-line errors."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest

from circuits.heads.opened import vocabulary_of
from circuits.outputs import OUTPUTS
from interp.adapters.opened import Opened, Processing
from interp.cli import main
from tests.truth.hand_heads import induction_pair, without


@pytest.fixture(autouse=True)
def room_for_tables(monkeypatch):
    """Parallel test processes inherit the width of a terminal, in which words of tables would be broken."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("interp.progress.PLAIN_SECONDS", float("inf"))  # however busy the machine is


def opened(decoder, path="model", **given) -> Opened:
    """A decoder as if it had been read from disk."""
    facts = {"kind": "nanogpt checkpoint", "dtype": "float32", "processing": Processing(), "tokenizer_path": None}
    facts |= {"steps": (10, 20), "step": 20, "fingerprint": "ab" * 32, "name": "hand", "path": Path(path)}
    return Opened(decoder=decoder, **{**facts, **given})


@pytest.fixture
def asked(monkeypatch) -> list:
    """What the command asks to be opened; it gets the planted induction pair."""
    calls = []

    def open_model(path, step=None):
        calls.append((Path(path), step))
        return opened(induction_pair() if step is None else without(induction_pair(), 1, 2, "W_O"))

    monkeypatch.setitem(sys.modules, "interp.adapters.opening", SimpleNamespace(open_model=open_model))
    return calls


def test_heads_output_is_one_object_of_its_schema(asked, capsys):
    assert main(["heads", "some/folder", "--n-null", "99", "--json"]) == 0
    out, err = capsys.readouterr()
    value, model = json.loads(out), OUTPUTS["heads"]
    assert (value["format"], value["kind"], err) == (1, "heads", "")
    jsonschema.validate(value, model.model_json_schema())
    assert model.model_validate(value).model_dump(mode="json") == value
    assert asked == [(Path("some/folder"), None)]
    assert {one["detector"]: one["heads"] for one in value["detections"]} == {
        "copying": ["L1.H2"],
        "duplicate_token": [],
        "induction": ["L1.H2"],
        "previous_token": ["L0.H1"],
    }
    assert all(len(one["scores"]) == 8 for one in value["detections"])
    assert (value["model"], value["step"], value["detections"][0]["fingerprint"]) == ("hand", 20, "ab" * 32)


def test_tables_name_the_heads_and_say_what_was_not_confirmed(asked, capsys):
    assert main(["heads", "x", "--step", "10", "--types", "induction", "--n-null", "99"]) == 0
    out = capsys.readouterr().out
    assert "Candidates for induction head: L1.H2" in out
    assert "not confirmed causally" in out
    assert "without the repeat" in out
    assert "99 random twins of the same shape, 74 with sharpened QK; smallest p 0.01" in out
    assert asked == [(Path("x"), 10)]


def test_without_causal_checks_a_head_is_a_candidate_at_most(asked, capsys):
    assert main(["heads", "x", "--types", "induction", "--n-null", "99", "--no-causal", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["detections"]
    assert (found["verdict"], found["candidates"], found["causal"]) == ("candidate", ["L1.H2"], [])


def test_a_name_is_looked_up_in_the_store_where_no_such_path_exists(asked, tmp_path, capsys):
    (tmp_path / "poly1").mkdir()
    line = ["heads", "poly1", "--types", "induction", "--n-null", "99", "--no-causal", "--store", str(tmp_path)]
    assert main(line) == 0
    assert asked == [(tmp_path / "poly1", None)]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--types inductio", "unknown head type 'inductio'; did you mean 'induction'?"),
        ("--bos first", "--bos 'first': expected auto, none or a token id"),
        ("--bos 99", "token id 99 is outside the model's vocabulary of 12"),
        ("--n-null 10", "'--n-null'"),
        ("--pairs missing.jsonl", "missing.jsonl"),
    ],
)
def test_wrong_usage_is_one_line(asked, line, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["heads", "x", *line.split()]) != 0
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert says in err


def test_a_detector_of_single_heads_is_refused_by_detect_with_the_command_that_takes_it(capsys, tmp_path):
    tiny = ["--set", "train.steps=2", "--set", "data.per_length=8", "--set", "task_params.max_length=3", "--quiet"]
    store = ["--store", str(tmp_path)]
    assert main(["train", "parity", *tiny, "--name", "a", *store]) == 0
    capsys.readouterr()
    assert main(["detect", "a", "--detector", "induction", *store]) == 1
    assert "use `interp heads RUN --types induction`" in capsys.readouterr().err


def test_special_tokens_and_unused_rows_are_left_out_and_bos_is_put_first_where_the_model_uses_it(tmp_path):
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel

    words = {word: index for index, word in enumerate(["[START]", "[PAD]", "a", "b", "c", "d", "e", "f", "g"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[PAD]"))
    tokenizer.add_special_tokens([AddedToken("[START]", special=True), AddedToken("[PAD]", special=True)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "[START]"}))
    model = opened(induction_pair(), tokenizer_path=tmp_path, processing=Processing(bos=True))
    assert vocabulary_of(model, "auto").ids(12) == [2, 3, 4, 5, 6, 7, 8]
    assert vocabulary_of(model, "auto").bos == 0
    assert vocabulary_of(model, "none").bos is None
    assert vocabulary_of(model, "5").bos == 5
    unsure = opened(induction_pair(), tokenizer_path=tmp_path)
    assert vocabulary_of(unsure, "auto").bos is None
    assert vocabulary_of(opened(induction_pair()), "auto").ids(12) == list(range(12))
