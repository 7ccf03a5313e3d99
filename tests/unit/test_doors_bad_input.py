"""What a user can bring to `interp circuit` and `interp heads` by mistake: one line of error, and nothing is run."""

import json

import pytest
import torch

from interp.cli import main
from tests.unit.random_bridges import HUGGING_FACE, hugging_face
from tests.unit.small_tokenizers import whole_words, wrapped

EQUAL = {"clean": [1, 2, 3], "corrupted": [4, 2, 3], "answers": 5, "wrong": 6}
LONGER = {"clean": [1, 2, 3, 4], "corrupted": [4, 2, 3, 4], "answers": 5, "wrong": 6}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a small model and a file of pairs, as the working folder."""
    monkeypatch.chdir(tmp_path)
    hugging_face(*HUGGING_FACE["gpt2"]).save_pretrained(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(EQUAL | {"unit": n}) + "\n" for n in range(8)))
    return tmp_path


def says(capsys, *line: str) -> str:
    """The one line of error of a command that fails."""
    capsys.readouterr()
    assert main([*line, "--json"]) in (1, 2)
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1, err
    return err


def circuit(capsys, *more: str) -> str:
    return says(capsys, "circuit", "model", "--pairs", "pairs.jsonl", *more)


def test_an_unknown_architecture(place, capsys):
    body = json.loads((place / "model" / "config.json").read_text())
    (place / "model" / "config.json").write_text(json.dumps(body | {"model_type": "mamba"}))
    for error in (circuit(capsys), says(capsys, "heads", "model")):
        assert "config.json: unknown model_type 'mamba'" in error and "gpt2, gpt_neox, llama, mistral, qwen2" in error


def test_a_tokenizer_that_does_not_fit(place, capsys):
    wrapped(whole_words(*(f"w{index}" for index in range(40)))).save_pretrained(place / "model")
    for error in (circuit(capsys), says(capsys, "heads", "model")):
        assert "token ids up to 41, the model has only 0 to 22; this is the tokenizer of another model" in error


def test_prompts_of_unequal_length_where_columns_must_agree(place, capsys):
    with (place / "pairs.jsonl").open("a") as file:
        file.write("".join(json.dumps(LONGER | {"unit": 8 + n}) + "\n" for n in range(4)))
    error = circuit(capsys, "--positions")
    assert "a circuit by position" in error or "spans" in error


def test_a_clean_prompt_and_its_corrupted_one_of_unequal_length(place, capsys):
    (place / "pairs.jsonl").write_text(json.dumps(EQUAL | {"corrupted": [4, 2]}) + "\n")
    assert "pairs.jsonl" in (error := circuit(capsys)) and "3" in error and "2" in error


@pytest.mark.parametrize("content", ["", "\n\n", "{}", "[1]", "not json"])
def test_an_empty_or_damaged_file_of_pairs(place, capsys, content):
    (place / "pairs.jsonl").write_text(content)
    assert "pairs.jsonl" in circuit(capsys)


def test_prompts_longer_than_the_context(place, capsys):
    (place / "pairs.jsonl").write_text(
        "".join(json.dumps(EQUAL | {"clean": [1] * 13, "corrupted": [2] * 13, "unit": n}) + "\n" for n in range(8))
    )
    assert "13" in (error := circuit(capsys)) and "12" in error


def test_a_pickle_that_wants_to_run_code(place, capsys):
    torch.save({"model": {}, "model_args": {}, "hook": print}, place / "ckpt.pt")
    for command in (["circuit", "ckpt.pt", "--pairs", "pairs.jsonl"], ["heads", "ckpt.pt"]):
        assert "it wants __builtin__.print, which is code or an object" in says(capsys, *command).replace(
            "builtins.", "__builtin__."
        )


def test_no_pairs_and_a_name_of_a_hub(place, capsys):
    assert "needs prompt pairs: --pairs FILE.jsonl" in says(capsys, "circuit", "model")
    for command in (["heads", "EleutherAI/pythia-70m"], ["circuit", "EleutherAI/pythia-70m", "--pairs", "pairs.jsonl"]):
        assert "EleutherAI/pythia-70m" in says(capsys, *command)
    assert "never looked up on a hub: download it" in says(capsys, "heads", "EleutherAI/pythia-70m")
