"""The command `interp circuit`: what it prints, what it keeps, and how it refuses bad input."""

import json

import jsonschema
import pytest
import torch

from circuits.outputs import CircuitOutput
from circuits.stored import newest_circuit
from interp.cli import main
from interp.run import Run
from tests.unit.runs_with_circuits import LAST, run_with_circuit

QUICK = ["--method", "exact", "--reruns", "0", "--controls", "5", "--n", "64", "--length", "3"]


@pytest.fixture(autouse=True)
def room_for_tables(monkeypatch):
    """Parallel test processes inherit the width of a terminal, in which words of tables would be broken."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def threads_stay():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return run_with_circuit(tmp_path_factory.mktemp("runs"))


def called(capsys, *line: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    capsys.readouterr()
    code = main(["circuit", *line])
    return (code, *capsys.readouterr())


def of_run(run: Run, *more: str) -> list[str]:
    return [run.name, "--store", str(run.path.parent), *more]


def test_the_output_is_valid_and_stored(capsys, run):
    code, out, err = called(capsys, *of_run(run, *QUICK, "--json"))
    value = json.loads(out)
    assert (code, err, value["kind"], value["format"]) == (0, "", "circuit", 1)
    jsonschema.validate(value, CircuitOutput.model_json_schema())
    found = CircuitOutput.model_validate(value)
    assert (found.model, found.step, found.trajectory) == ("solved", LAST, None)
    assert newest_circuit(run, LAST).discovery == found.discovery


def test_the_text_begins_with_the_verdict(capsys, run):
    code, out, _ = called(capsys, *of_run(run, *QUICK))
    assert code == 0 and out.startswith(("Circuit: ", "Candidate: "))
    for part in (
        "behaviour: share of single answers right",
        "faithfulness on held-out",
        "MIB: CMD",
        "random paths",
        "minimality",
        "limit: ",
    ):
        assert part in out, part


def test_a_run_may_be_given_by_its_path(capsys, run):
    code, out, _ = called(capsys, str(run.path), *QUICK, "--json")
    assert code == 0 and json.loads(out)["model"] == "solved"


def test_an_untrained_checkpoint_has_no_behaviour(capsys, run):
    code, out, _ = called(capsys, *of_run(run, *QUICK, "--checkpoints", "0"))
    assert code == 0 and out.startswith("No behaviour to explain: ")


def test_all_checkpoints_give_a_row_each(capsys, run):
    code, out, _ = called(capsys, *of_run(run, *QUICK, "--checkpoints", "all", "--json"))
    story = json.loads(out)["trajectory"]
    assert code == 0 and [point["step"] for point in story["points"]] == [0, LAST]
    code, out, _ = called(capsys, *of_run(run, *QUICK, "--checkpoints", "all"))
    assert code == 0 and "no emergence: no three checkpoints in a row" in out and "no behaviour" in out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--ablation", "swap"], "expected resample, mean or zero"),
        (["--method", "magic"], "expected auto, acdc"),
        (["--checkpoints", "newest"], "newest"),
        (["--checkpoints", "4"], "4"),
        (["--length", "99"], "99"),
        (["--family", "odd"], "odd"),
        (["--method", "eap", "--positions"], "ranks no edges with positions"),
        (["--method", "eap_ig", "--ablation", "zero"], "needs corrupted prompts"),
        (["--pairs", "missing.jsonl"], "missing.jsonl"),
        (["--target", "1.5"], "target"),
    ],
)
def test_wrong_options_are_refused_in_one_line(capsys, run, more, said):
    code, out, err = called(capsys, *of_run(run, *more))
    assert code == 2 and out == "" and said in err, err


def test_a_model_that_is_no_run_needs_pairs(capsys, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    code, out, err = called(capsys, str(tmp_path))
    assert (code, out) == (2, "") and "--pairs" in err
    code, _, err = called(capsys, "nothing", "--store", str(tmp_path))
    assert code == 2 and "nothing" in err


def pairs_file(path, rows) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "pairs"),
        ([{"clean": [0, 1, 2], "corrupted": [0, 1], "answers": [1]}], "tokens"),
        ([{"clean": [0, 1, 2], "corrupted": [0, 2, 99], "answers": [1]}], "99"),
        ([{"clean": [0, 1, 2], "corrupted": [0, 2, 2], "answers": "text"}], "tokenizer"),
        ([{"clean": [0, 1, 2], "corrupted": [0, 2, 2]}], "answers"),
    ],
)
def test_bad_pairs_are_refused(capsys, run, tmp_path, rows, said):
    code, out, err = called(capsys, *of_run(run, "--pairs", pairs_file(tmp_path / "pairs.jsonl", rows)))
    assert code == 2 and out == "" and said in err, err


def test_a_pickle_that_wants_to_run_code_is_refused(capsys, tmp_path):
    bad = tmp_path / "ckpt.pt"
    bad.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    pairs = pairs_file(tmp_path / "pairs.jsonl", [{"clean": [0, 1], "corrupted": [1, 1], "answers": [1]}])
    code, out, _ = called(capsys, str(bad), "--pairs", pairs)
    assert code in (1, 2) and out == "" and not (tmp_path / "ran").exists()


def own_rows(run: Run, n: int = 48) -> list[dict]:
    """Pairs on which the run's model is right, as token ids."""
    from circuits.subject import Prompts
    from circuits.subject import of_run as subject_of_run

    pairs = subject_of_run(run, LAST, Prompts(3, n, "input")).pairs
    rows = []
    for i in range(len(pairs)):
        real = pairs.mask[i]
        clean, corrupted = (x[i][real].tolist() for x in (pairs.clean, pairs.corrupted))
        wrong = [token for token in pairs.wrong[i, 0].tolist() if token >= 0]
        place = int(pairs.places[i, 0])
        rows.append({"clean": clean, "corrupted": corrupted, "position": place, "wrong": wrong})
        rows[-1]["answers"] = [token for token in pairs.answers[i, 0].tolist() if token >= 0]
    return rows


def test_a_run_with_a_file_of_pairs_keeps_its_result_in_a_folder(capsys, run, tmp_path):
    line = of_run(run, *QUICK[:6], "--pairs", pairs_file(tmp_path / "pairs.jsonl", own_rows(run)))
    line += ["-o", str(tmp_path / "out"), "--json"]
    code, out, err = called(capsys, *line)
    first = json.loads(out)
    assert code == 0 and first["discovery"]["circuit"]["provenance"]["pairs"] == "pairs.jsonl", err
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(names) == 2 and names[1] == "circuit.json" and "wrote" in err
    assert json.loads(called(capsys, *line)[1]) == first, "read, with the times of the first call"
    series = json.loads(called(capsys, *line, "--checkpoints", "all")[1])
    assert [point["step"] for point in series["trajectory"]["points"]] == [0, LAST]
