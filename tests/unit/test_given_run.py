"""What a command says of an argument that is no run: which command reads it, and that no hub is asked."""

import pytest
import typer

from interp.cli import build_app, main
from interp.config import RunConfig
from interp.errors import UnknownName
from interp.given_run import dash_line, given_run
from interp.run import Store


def error_of(capsys, *line: str) -> str:
    """The one line that a refused command prints."""
    assert main(list(line)) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    return err


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty store, beside a folder that holds a model of another program."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m" / "induct").mkdir(parents=True)
    (tmp_path / "m" / "induct" / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("command", ["patch", "probe", "patterns", "detect", "report make"])
@pytest.mark.parametrize("given", ["m/induct", "m"])
def test_a_folder_of_another_model_is_told_from_a_misspelt_name(capsys, folder, command, given):
    said = error_of(capsys, *command.split(), given)
    assert f"{given}: is no run; this command reads runs trained here" in said
    assert "for a checkpoint on disk use interp circuit or interp heads" in said


def test_the_page_of_a_circuit_asks_for_the_folder_of_results(capsys, folder):
    said = error_of(capsys, "report", "circuit", "m/induct")
    assert "reads runs trained here, or the folder that interp circuit -o wrote: give that" in said


def test_no_hub_is_asked_for_a_name(capsys, folder):
    said = error_of(capsys, "circuit", "gpt2")
    assert "unknown run 'gpt2'; known: none yet" in said and "never looked up on a hub" in said
    said = error_of(capsys, "patch", "EleutherAI/pythia-70m")
    assert "no such run or folder" in said and "never looked up on a hub" in said


def test_a_run_is_found_by_name_and_by_path_and_a_name_of_the_store_comes_first(folder):
    for store in (folder / "runs", folder):
        Store(store).create("a", RunConfig(task="parity"))
    assert given_run(folder / "runs", "a").path == folder / "runs" / "a"
    assert given_run(folder / "elsewhere", "runs/a").path == folder / "runs" / "a"
    assert given_run(folder / "elsewhere", "a").path == folder / "a"
    with pytest.raises(UnknownName, match="unknown run 'b'"):
        given_run(folder / "runs", "b")


def test_the_line_for_the_dashboard_names_the_run_and_a_store_that_is_not_runs(folder):
    run = Store("runs").create("a", RunConfig(task="parity"))
    assert dash_line(run, "runs") == "interp dash a"
    assert dash_line(run, folder / "x") == f"interp dash a --store {folder / 'runs'}"


def test_steps_are_listed_by_size():
    said = str(UnknownName("checkpoint of run 'a':", "777", ["all", "10000", "0", "125", "last", "1250"]))
    assert said.endswith("known: all, last, 0, 125, 1250, 10000")


@pytest.mark.parametrize("command", ["circuit", "detect", "probe", "patch", "export", "report circuit", "heads"])
def test_a_training_step_is_asked_for_by_one_name_everywhere(command):
    leaf = typer.main.get_command(build_app())
    for word in command.split():
        leaf = leaf.commands[word]
    assert "--checkpoint" in {name for one in leaf.params for name in one.opts}


def test_the_other_name_of_checkpoints_reaches_the_same_option(capsys, folder):
    Store("runs").create("a", RunConfig(task="parity"))
    assert "expected last, all, or a step" in error_of(capsys, "detect", "a", "--checkpoint", "first")
