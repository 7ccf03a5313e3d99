"""Heads through training: births and deaths by their rule, results found again, and a stopped call that goes on."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from circuits.detectors.base import HeadDetection
from circuits.heads import through_training
from circuits.heads.course import course
from circuits.heads.detect import HeadOptions
from circuits.heads.through_training import HeadsRequest, follow_heads, look
from circuits.outputs import HeadsOutput
from interp.adapters.opened import Opened, Processing
from interp.cli import main
from interp.errors import CheckpointError, InterpError, StoreError, UsageError
from tests.truth.hand_heads import induction_pair, without
from tests.unit.runs_with_circuits import LAST, run_with_circuit

STEPS = [0, 10, 20, 30, 40]
INTERVAL = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 16, "method": "bootstrap over sequences"}
OPTIONS = HeadOptions(n_null=99, n_sequences=16)


def opened(step: int, path: Path = Path("series")) -> Opened:
    """The planted induction pair, whose second head writes nothing at the first checkpoint."""
    decoder = induction_pair() if step else without(induction_pair(), 1, 2, "W_O")
    about = (decoder, "hugging face series", "float32", Processing(), None, tuple(STEPS), step, f"{step:064x}", "hand")
    return Opened(*about, path)


@pytest.fixture
def request_(tmp_path) -> HeadsRequest:
    return HeadsRequest(("induction",), "none", None, OPTIONS, tmp_path / "kept")


@pytest.fixture
def computed(monkeypatch) -> list[int | None]:
    """Steps that are computed from now on, not read."""
    seen, real = [], through_training.detect_heads

    def detect(*args, **given):
        seen.append(given["origin"].step)
        return real(*args, **given)

    monkeypatch.setattr(through_training, "detect_heads", detect)
    return seen


def silent(what: str, done: int, of: int) -> None:
    """No progress."""


def found(verdict: str, score: float = 0.5) -> list[HeadDetection]:
    """One type that says something of one head."""
    row = {"component": "L1.H2", "score": {**INTERVAL, "value": score}, "rate": 1.0, "p_twins": 0.01}
    row |= {"p_prompts": None, "p_value": 0.01, "copying": None, "verdict": verdict}
    null = {"name": "twins", "n": 99, "n_sharp": 74, "sharing": 1, "quantile_95": 0.1, "largest": 0.2}
    texts = dict.fromkeys(("claim", "model", "fingerprint", "code_version", "headline"), "")
    texts |= dict.fromkeys(("prompts", "statistic", "rate"), "")
    return [
        HeadDetection(
            detector="induction", step=None, seed=0, options={}, verdict=verdict, scores=[row], causal=[], limits=[],
            heads=["L1.H2"] if "head" in verdict else [], candidates=["L1.H2"] if verdict == "candidate" else [],
            null=[{**null, "smallest_p": 0.01, "scan": ""}], **texts,
        )
    ]  # fmt: skip


WORDS = {"y": "induction head", "n": "none", "c": "candidate"}


@pytest.mark.parametrize(
    ("says", "born", "died"),
    [
        ("nyyyn", 1, None),
        ("yyync", 0, None),
        ("nyynyyy", 4, None),
        ("ycyyy", 2, None),
        ("yyynnn", 0, 3),
        ("yyyncnnn", 0, 5),
        ("yyxyy", None, None),
        ("yyyxxx", 0, None),
        ("cccc", None, None),
        ("yy", None, None),
    ],
)
def test_a_head_is_born_and_dies_at_the_first_of_three_in_a_row(says, born, died):
    steps = [100 * index for index in range(len(says))]
    story = course(steps, [None if letter == "x" else found(WORDS[letter]) for letter in says], {})
    (head,) = story.heads
    assert head.born == (None if born is None else steps[born])
    assert head.died == (None if died is None else steps[died])
    assert head.bracket == (None if born is None else (steps[max(0, born - 1)], steps[born]))
    assert head.present == [step for step, letter in zip(steps, says, strict=True) if letter == "y"]
    assert head.scores == [None if letter == "x" else 0.5 for letter in says]
    assert [point.step for point in story.points] == [
        step for step, letter in zip(steps, says, strict=True) if letter != "x"
    ]


def test_a_head_that_no_checkpoint_flags_is_in_no_row():
    story = course([0, 1, 2], [found("none", score) for score in (0.1, 0.3, 0.2)])
    assert story.heads == []
    assert [point.types[0].score.value for point in story.points] == [0.1, 0.3, 0.2]


def test_a_planted_head_is_born_where_it_is_put_and_what_is_done_is_not_done_again(request_, computed):
    looked, story = follow_heads(STEPS, opened, request_, silent)
    (head,) = story.heads
    assert (head.component, head.verdict, head.born, head.bracket) == ("L1.H2", "induction head", 10, (0, 10))
    assert head.candidate == [0], "it looks where an induction head looks, and writes nothing"
    assert [one.step for one in looked] == computed == STEPS
    again, same = follow_heads(STEPS, opened, request_, silent)
    assert (computed, again, same) == (STEPS, looked, story)
    sorted(request_.folder.iterdir())[1].unlink()  # as if the call had been stopped before this one
    follow_heads(STEPS, opened, request_, silent)
    assert len(computed) == len(STEPS) + 1
    follow_heads(STEPS, opened, replace(request_, fresh=True), silent)
    assert len(computed) == 2 * len(STEPS) + 1


def test_other_options_and_code_are_computed_anew_and_a_damaged_file_is_named(request_, computed, monkeypatch):
    for request in (request_, replace(request_, options=replace(OPTIONS, causal=False)), replace(request_, bos="3")):
        look(opened(10), request, silent)
    assert computed == [10, 10, 10]
    monkeypatch.setattr(through_training, "source_hash", lambda: "edited")
    look(opened(10), request_, silent)
    assert len(computed) == len(list(request_.folder.iterdir())) == 4
    for file in request_.folder.iterdir():
        file.write_text(file.read_text().replace("L1.H2", "L1.H3"))
    with pytest.raises(StoreError, match=r"heads-hand-step-10"):
        look(opened(10), request_, silent)
    with pytest.raises(UsageError, match="is a file; give a folder"):
        look(opened(10), replace(request_, folder=file), silent)


def test_a_checkpoint_that_cannot_be_read_ends_none_of_the_others(request_):
    def open_at(step: int) -> Opened:
        if step in (20, 99):
            raise CheckpointError("weights are damaged")
        return opened(step)

    looked, story = follow_heads(STEPS, open_at, request_, silent)
    assert [one is None for one in looked] == [False, False, True, False, False]
    assert [(one.step, one.reason) for one in story.failed] == [(20, "weights are damaged")]
    assert story.heads[0].born is None, "a checkpoint that failed ends a row"
    with pytest.raises(InterpError, match="none of the 1 checkpoints could be looked at: weights are damaged"):
        follow_heads([99], open_at, request_, silent)


def test_a_run_keeps_its_results_and_the_command_tells_of_every_checkpoint(tmp_path, capsys):
    run = run_with_circuit(tmp_path, (0, 5, LAST))
    line = ["heads", run.name, "--types", "copying", "--n-null", "99", "--store", str(tmp_path), "--checkpoints", "all"]
    assert main([*line, "--json"]) == 0
    out, err = capsys.readouterr()
    value = json.loads(out)
    jsonschema.validate(value, HeadsOutput.model_json_schema())
    assert HeadsOutput.model_validate(value).model_dump(mode="json") == value
    assert [point["step"] for point in value["trajectory"]["points"]] == [0, 5, LAST]
    assert (value["step"], "nothing was kept" in err) == (LAST, False)
    assert len([key for key in run.analyses() if key.startswith("heads-")]) == 3
    assert main(line) == 0
    out, err = capsys.readouterr()
    assert "3 checkpoints" in out and "is not corrected for the 3 checkpoints" in out


def test_a_single_model_has_no_course(tmp_path, capsys):
    run = run_with_circuit(tmp_path, (LAST,))
    folder = run.path / "checkpoints"
    (checkpoint,) = [path for path in folder.iterdir() if path.name.startswith("step-")]
    assert main(["heads", str(checkpoint / "model.safetensors"), "--checkpoints", "all"]) == 2
    assert "holds a single model, not a series of steps" in capsys.readouterr().err
    assert main(["heads", str(run.path), "--checkpoints", "first"]) == 2
    assert "expected last, all, or a step" in capsys.readouterr().err
