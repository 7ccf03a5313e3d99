"""Every option of `interp circuit` either reaches the search or is refused by its name, in every combination."""

import itertools
import json

import pytest
import torch

from circuits import foreign_series, through_training
from circuits.trajectory import trajectory
from interp.cli import main
from interp.config import RunConfig
from interp.run import Store
from tests.unit.small_circuits import circuit, discovery

OPTIONS = {
    "-o": ["-o", "FOLDER"],
    "--bos": ["--bos"],
    "--length": ["--length", "3"],
    "--family": ["--family", "input"],
    "--n": ["--n", "32"],
    "--workers": ["--workers", "2"],
    "--threads": ["--threads", "2"],
    "--store": ["--store", "STORE"],
    "--fresh": ["--fresh"],
    "--seed": ["--seed", "7"],
    "--positions": ["--positions"],
    "--controls": ["--controls", "50"],
    "--reruns": ["--reruns", "2"],
}
TASK = {"--length", "--family", "--n"}
SUBJECTS = ("task of a run", "run with pairs", "run by its path", "series with pairs", "model with pairs")


def refused(subject: str, checkpoints: str) -> set[str]:
    """Options that have no meaning there; this is the table of the manual, written a second time."""
    of_task = subject in ("task of a run", "run by its path")
    found = {"-o", "--bos"} if of_task else set(TASK)
    found |= {"--store"} if subject in ("run by its path", "series with pairs", "model with pairs") else set()
    return found | ({"--workers"} if checkpoints != "all" else set())


@pytest.fixture(autouse=True)
def threads_stay():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def place(tmp_path):
    """A store with a run, a series of two folders, a single folder, and a file of pairs; none is ever searched."""
    run = Store(tmp_path / "store").create("poly", RunConfig(task="parity"))
    with run.writer() as writer:
        writer.save(0, model={}, optim={}, state={})
    for name in ("series/step0", "series/step1", "model"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "pairs.jsonl").write_text("")
    return tmp_path


@pytest.fixture
def asked(monkeypatch):
    """Requests that reach a search, each as (request, workers, threads, settings kept)."""
    seen = []
    found = discovery(circuit(edges={"embed->M0": 1.0}))

    def one(request, tell):
        seen.append((request, None, torch.get_num_threads(), ()))
        return found

    def many(steps, template, workers, keep):
        seen.append((template, workers, torch.get_num_threads(), keep))
        return [found] * len(steps), trajectory(steps, [found] * len(steps))

    monkeypatch.setattr(through_training, "discover_at", one)
    monkeypatch.setattr(foreign_series, "discover_path", one)
    follow = lambda run, steps, template, workers, progress, keep: many(steps, template, workers, keep)  # noqa: E731
    monkeypatch.setattr(through_training, "follow", follow)
    path = lambda steps, template, workers, progress, keep: many(steps, template, workers, keep)  # noqa: E731
    monkeypatch.setattr(foreign_series, "follow_path", path)
    return seen


def line(place, subject: str, checkpoints: str, options: list[str], monkeypatch) -> list[str]:
    monkeypatch.chdir(place)
    names = {"series with pairs": "series", "model with pairs": "model", "run by its path": "store/poly"}
    words = ["circuit", names.get(subject, "poly"), "--checkpoints", checkpoints]
    words += ["--pairs", "pairs.jsonl"] if subject.endswith("with pairs") else []
    words += [] if subject in names or "--store" in options else ["--store", "store"]
    given = [word for option in options for word in OPTIONS[option]]
    return words + [{"FOLDER": "out", "STORE": "store"}.get(word, word) for word in given]


def arrived(option: str, seen) -> bool:
    """Whether the value on the line is that of the search."""
    request, workers, threads, keep = seen
    prompts = getattr(request, "prompts", None)
    return {
        "-o": lambda: request.folder == "out",
        "--bos": lambda: request.bos is True,
        "--length": lambda: prompts.length == 3,
        "--family": lambda: prompts.family == "input",
        "--n": lambda: prompts.n == 32,
        "--workers": lambda: workers == 2,
        "--threads": lambda: threads == 2,
        "--store": lambda: True,  # the run was found in it
        "--fresh": lambda: request.fresh is True,
        "--seed": lambda: request.settings["seed"] == 7,
        "--positions": lambda: request.by_position is True,
        "--controls": lambda: request.settings["controls"] == 50 and (workers is None or "controls" in keep),
        "--reruns": lambda: request.settings["reruns"] == 2 and (workers is None or "reruns" in keep),
    }[option]()


COMBINATIONS = [
    (subject, checkpoints)
    for subject, checkpoints in itertools.product(SUBJECTS, ("last", "0", "all"))
    if (subject, checkpoints) != ("model with pairs", "all")
]


@pytest.mark.parametrize(("subject", "checkpoints"), COMBINATIONS)
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_arrives_or_is_refused_by_its_name(subject, checkpoints, option, place, asked, monkeypatch, capsys):
    code = main(line(place, subject, checkpoints, [option], monkeypatch))
    out, err = capsys.readouterr()
    if option in refused(subject, checkpoints):
        assert (code, out, asked) == (2, "", []) and err.startswith(f"error: {option}"), err
    else:
        assert code == 0 and len(asked) == 1 and arrived(option, asked[0]), err


@pytest.mark.parametrize("subject", SUBJECTS[:-1])
def test_each_of_several_processes_has_one_thread(subject, place, asked, monkeypatch, capsys):
    assert main(line(place, subject, "all", ["--workers", "--threads"], monkeypatch)) == 2
    assert "--threads: is for one process" in capsys.readouterr().err and asked == []


@pytest.mark.parametrize(("subject", "checkpoints"), COMBINATIONS)
def test_all_options_that_fit_may_stand_together(subject, checkpoints, place, asked, monkeypatch, capsys):
    fit = [option for option in OPTIONS if option not in refused(subject, checkpoints) | {"--threads"}]
    assert main(line(place, subject, checkpoints, fit, monkeypatch)) == 0, capsys.readouterr().err
    assert all(arrived(option, asked[0]) for option in fit)


def test_a_name_with_a_store_is_a_run_of_it_whatever_lies_here(place, asked, monkeypatch, capsys):
    (place / "poly").mkdir()
    assert main(line(place, "task of a run", "last", ["--store"], monkeypatch)) == 0
    assert asked[0][0].run == "poly", capsys.readouterr().err


def test_all_checkpoints_of_a_single_model_are_refused(place, asked, monkeypatch, capsys):
    assert main(line(place, "model with pairs", "all", [], monkeypatch)) == 2
    assert capsys.readouterr().err.startswith("error: --checkpoints all: ") and asked == []


def test_a_checkpoint_that_failed_gives_exit_code_1_beside_the_others(place, monkeypatch, capsys):
    found = discovery(circuit(edges={"embed->M0": 1.0}))
    steps = [0, 1]
    story = trajectory(steps, [found, None], {1: "damaged"})
    monkeypatch.setattr(foreign_series, "follow_path", lambda *given: ([found, None], story))
    line_of = line(place, "series with pairs", "all", ["-o"], monkeypatch)
    assert main([*line_of, "--json"]) == 1
    out, err = capsys.readouterr()
    value = json.loads(out)
    assert (value["step"], value["trajectory"]["failed"]) == (0, [{"step": 1, "reason": "damaged"}])
    assert "error: 1 of 2 checkpoints failed: step 1: damaged; the same command looks at them again" in err
    assert main(line_of) == 1
    assert "step 1 failed: damaged" in capsys.readouterr().out
