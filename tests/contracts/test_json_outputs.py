"""Every `--json` output is one object that its published schema accepts."""

import json
import re

import jsonschema
import pytest

from circuits.outputs import OUTPUTS as CIRCUIT_OUTPUTS
from interp.cli import main
from interp.schemas import OUTPUTS, DoctorOutput, json_schema

TINY = ["--set", "train.steps=20", "--set", "data.per_length=8", "--set", "task_params.max_length=3"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with two tiny runs, `a` and `b`, `b` started from `a`."""
    folder = tmp_path_factory.mktemp("store")
    for name, more in (("a", []), ("b", ["--init", "a", "--seed", "1"])):
        assert main(["train", "parity", *TINY, "--name", name, "--store", str(folder), "--quiet", *more]) == 0
    return folder


def output(capsys, arguments: list[str], kind: str) -> dict:
    """The one JSON object on stdout, checked against the model and the JSON Schema of its kind."""
    capsys.readouterr()
    main(arguments)
    value = json.loads(capsys.readouterr().out)
    assert (value["format"], value["kind"]) == (1, kind)
    jsonschema.validate(value, json_schema(kind))
    OUTPUTS[kind].model_validate(value)
    return value


def test_doctor_output_is_valid_and_agrees_with_the_exit_code(capsys, tmp_path):
    value = output(capsys, ["doctor", "--json", "--store", str(tmp_path / "new" / "runs")], "doctor")
    assert value["ok"] == all(check["status"] != "problem" for check in value["checks"])
    assert {"python", "torch", "threads", "triton", "browser", "package names", "entry points"} <= {
        check["name"] for check in value["checks"]
    }
    assert all(check["fix"] for check in value["checks"] if check["status"] == "problem")
    assert not (tmp_path / "new").exists()


def test_this_installation_has_no_problem(capsys, tmp_path):
    value = output(capsys, ["doctor", "--json", "--store", str(tmp_path)], "doctor")
    assert [check for check in value["checks"] if check["status"] == "problem"] == []
    assert main(["doctor", "--store", str(tmp_path)]) == 0


def test_doctor_says_how_to_repair_a_store_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    value = output(capsys, ["doctor", "--json", "--store", str(tmp_path / "file" / "runs")], "doctor")
    check = next(check for check in value["checks"] if check["name"].startswith("store"))
    assert check["status"] == "problem"
    assert "--store" in check["fix"]
    assert main(["doctor", "--store", str(tmp_path / "file" / "runs")]) == 1


def test_task_outputs_are_valid_for_every_task(capsys):
    listed = output(capsys, ["tasks", "ls", "--json"], "tasks")["tasks"]
    assert len(listed) >= 3
    for task in listed:
        shown = output(capsys, ["tasks", "show", task["name"], "--json"], "task")
        assert shown["example"][0] == "BoS"
        assert shown["preset"]["task"] == task["name"]


def test_training_prints_one_object_and_progress_goes_elsewhere(capsys, tmp_path):
    value = output(capsys, ["train", "parity", *TINY, "--store", str(tmp_path), "--json"], "train")
    assert value["run"]["name"] == "parity-s0"
    assert (value["run"]["state"], value["run"]["step"]) == ("done", 20)


def test_seeds_print_each_run_and_the_solved_share(capsys, tmp_path):
    line = ["train", "parity", *TINY, "--store", str(tmp_path), "--quiet"]
    value = output(capsys, [*line, "--seeds", "0-1", "--json"], "sweep")
    assert [run["seed"] for run in value["runs"]] == [0, 1]
    assert value["solved"]["n"] == 2
    assert main([*line, "--seeds", "0-2", "--resume"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"solved \d of 3 \(95 % Wilson interval \d\.\d\d to \d\.\d\d\)", out)


@pytest.mark.slow
def test_two_processes_train_what_one_does(capsys, tmp_path):
    line = ["train", "parity", *TINY, "--seeds", "0-1", "--quiet", "--json"]
    alone = output(capsys, [*line, "--store", str(tmp_path / "one")], "sweep")
    shared = output(capsys, [*line, "--store", str(tmp_path / "two"), "--jobs", "2"], "sweep")
    kept = ("name", "seed", "state", "step", "accuracy", "solved")
    assert [run["seed"] for run in shared["runs"]] == [0, 1]
    assert [[run[key] for key in kept] for run in alone["runs"]] == [
        [run[key] for key in kept] for run in shared["runs"]
    ]


def test_run_outputs_are_valid(capsys, store):
    where = ["--store", str(store), "--json"]
    assert [run["name"] for run in output(capsys, ["runs", "ls", *where], "runs")["runs"]] == ["a", "b"]
    shown = output(capsys, ["runs", "show", "a", *where], "run")
    assert shown["checkpoints"][0]["step"] == 0
    assert set(shown["accuracy_by_length"]) == {"1", "2", "3"}
    compared = output(capsys, ["runs", "compare", "a", "b", *where], "comparison")
    assert {row["key"]: row["values"] for row in compared["config"]} == {
        "init": [None, "a"],
        "seed": [0, 1],
        "train.eval_every": [250, 125],
        "train.track_every": [250, 125],
    }


def test_patch_output_of_a_run_that_is_not_solved_is_valid_and_names_its_files(capsys, store, tmp_path, monkeypatch):
    monkeypatch.setattr("interp.progress.PLAIN_SECONDS", float("inf"))  # however busy the machine is
    line = ["patch", "a", "--by", "head,position", "--ablation", "resample", "--n", "6", "--json"]
    capsys.readouterr()
    assert main([*line, "--store", str(store), "--output", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    value, model = json.loads(out), CIRCUIT_OUTPUTS["patch"]
    assert (value["format"], value["kind"], err) == (1, "patch", "")
    jsonschema.validate(value, model.model_json_schema())
    model.model_validate(value)
    assert {path.name for path in tmp_path.iterdir()} >= {f"{value['key']}.{kind}" for kind in value["files"]}
    assert (value["ablation"], value["direction"], value["check"]) == ("resample", None, None)
    for step in value["steps"]:
        assert 2 <= step["n"] == step["base"]["n"] <= 6
    for one in value["top"]:
        assert one["effect"]["low"] <= one["effect"]["value"] <= one["effect"]["high"]


def test_patches_are_stored_in_the_run_unless_another_folder_is_named(capsys, store):
    before = set((store / "b" / "analysis").glob("*")) if (store / "b" / "analysis").exists() else set()
    assert main(["patch", "b", "--length", "2", "--step", "1", "--verify", "4", "--store", str(store), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["check"]["n"] == 4
    made = set((store / "b" / "analysis").iterdir()) - before
    assert {path.suffix for path in made} == {".csv", ".html", ".json", ".npz", ".svg"}
    assert main(["runs", "show", "b", "--store", str(store)]) == 0


def test_run_tables_show_the_same_runs(capsys, store):
    for arguments in (["runs", "ls"], ["runs", "show", "a"], ["runs", "compare", "a", "b"]):
        assert main([*arguments, "--store", str(store)]) == 0
        assert re.search(r"\ba\b", capsys.readouterr().out)


def test_a_warm_start_says_which_rows_are_fresh(capsys, store):
    line = ["train", "polynomial", "--set", "train.steps=1", "--set", "data.per_length=8"]
    line += ["--set", "task_params.max_length=3", "--init", "a", "--name", "warm", "--store", str(store)]
    line += [f"--set=model.{key}={value}" for key, value in (("d_model", 64), ("embed_norm", "false"))]
    assert main(line) == 0
    err = capsys.readouterr().err
    assert "started from a: 5 token rows copied, re-initialised: 2, 3, 4, 5, 6, 7, 8, 9, 10" in err
    assert main(["runs", "rm", "warm", "--yes", "--store", str(store)]) == 0
    line[line.index("--name") : line.index("--name") + 2] = ["--name", "warm", "--seeds", "0-1"]
    assert main(line) == 0
    assert capsys.readouterr().err.count("started from a: 5 token rows copied, re-initialised: 2") == 1
    assert main(["runs", "rm", "warm-s0", "warm-s1", "--yes", "--store", str(store)]) == 0


def test_a_damaged_run_is_shown_and_hides_no_other(capsys, tmp_path):
    store = ["--store", str(tmp_path)]
    for seed in ("0", "1"):
        assert main(["train", "parity", *TINY, "--seed", seed, "--quiet", *store]) == 0
    (tmp_path / "parity-s0" / "config.json").write_text("{")
    runs = output(capsys, ["runs", "ls", "--json", *store], "runs")["runs"]
    assert [run["state"] for run in runs] == ["damaged", "done"]
    assert "config.json" in runs[0]["message"]


def test_runs_are_removed_together_or_not_at_all(capsys, tmp_path):
    store = ["--store", str(tmp_path)]
    assert main(["train", "parity", *TINY, "--quiet", *store]) == 0
    assert main(["runs", "rm", "parity-s0", "parity-s9", "--yes", *store]) == 2
    assert main(["runs", "rm", "parity-s0", "--json", *store]) == 2
    assert (tmp_path / "parity-s0").exists()
    value = output(capsys, ["runs", "rm", "parity-s0", "--yes", "--json", *store], "removed")
    assert value["removed"] == ["parity-s0"]
    assert not (tmp_path / "parity-s0").exists()


def test_every_kind_of_output_is_documented_with_its_keys(root):
    page = (root / "docs" / "reference" / "json.md").read_text()
    for kind, model in (OUTPUTS | CIRCUIT_OUTPUTS).items():
        section = page.split(f"## `{kind}`", 1)
        assert len(section) == 2, f"docs/reference/json.md has no section `{kind}`"
        body = section[1].split("\n## ", 1)[0]
        missing = [key for key in model.model_fields if key not in ("format", "kind") and f"`{key}`" not in body]
        assert not missing, f"{kind}: {missing}"


def test_schemas_refuse_unknown_keys_and_nan():
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"ok": True, "checks": [], "versions": {}, "extra": 1}, json_schema("doctor"))
    with pytest.raises(ValueError, match="finite"):
        OUTPUTS["sweep"].model_validate(
            {
                "task": "t",
                "store": "s",
                "runs": [],
                "solved": {"k": 0, "n": 0, "low": float("nan"), "high": 1, "method": "wilson"},
            }
        )
    assert DoctorOutput(ok=True, checks=[], versions={}).format == 1
