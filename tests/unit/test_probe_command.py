"""interp probe: what it stores is found again, read back whole, and refused by name where it is damaged."""

import json

import jsonschema
import numpy as np
import pytest

from interp.cli import main
from interp.errors import StoreError
from interp.run import Run, Store
from probes.outputs import OUTPUTS
from probes.percent import percents
from probes.stored import stored_embedding, stored_lens

TINY = ["--set", "train.steps=20", "--set", "data.per_length=16", "--set", "task_params.max_length=4", "--quiet"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with one tiny run `a`, lens and embedding stored."""
    folder = tmp_path_factory.mktemp("store")
    assert main(["train", "parity", *TINY, "--name", "a", "--store", str(folder)]) == 0
    assert main(["probe", "a", "--store", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def run(store) -> Run:
    return Store(store).run("a")


def test_the_output_fits_its_schema_and_says_what_is_stored(capsys, store, run):
    capsys.readouterr()
    assert main(["probe", "a", "--store", str(store), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    jsonschema.validate(value, OUTPUTS["probe"].model_json_schema())
    OUTPUTS["probe"].model_validate(value)
    steps = [ref.step for ref in run.checkpoints()]
    assert [point["step"] for point in value["lens"]["points"]] == value["embedding"]["steps"] == steps
    assert {point["key"] for point in value["lens"]["points"]} | {value["embedding"]["key"]} <= set(run.analyses())
    assert all(0 <= share <= 1 for one in value["embedding"]["explained"] for share in one["last"])


def test_the_table_has_n_and_an_interval_beside_each_probability(capsys, monkeypatch, store, run):
    monkeypatch.setenv("COLUMNS", "100")
    capsys.readouterr()
    assert main(["probe", "a", "--what", "lens", "--store", str(store), "--json"]) == 0
    point = json.loads(capsys.readouterr().out)["lens"]["points"][-1]
    one = stored_lens(run)[-1]
    arrays, scored = one.arrays(run), np.array(one.about["scored"])
    assert point["low"] == pytest.approx(arrays["low"][:, scored].mean(1).tolist())
    rows = list(zip(point["low"], point["probability"], point["high"], strict=True))
    assert all(low <= value <= high for low, value, high in rows) and any(low < high for low, _, high in rows)
    assert main(["probe", "a", "--what", "lens", "--store", str(store)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = (line for line in lines if line.startswith(f"│ {point['step']} "))
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[1:-1] == [percents(value, low, high) for low, value, high in rows]
    assert f"n={one.about['n']} held-out sequences" in " ".join(lines) and max(map(len, lines)) <= 100


def test_a_second_call_computes_nothing_and_fresh_does(store, run):
    files = sorted((run.path / "analysis").iterdir())
    before = [path.stat().st_mtime_ns for path in files]
    assert main(["probe", "a", "--store", str(store)]) == 0
    assert [path.stat().st_mtime_ns for path in files] == before
    assert main(["probe", "a", "--what", "lens", "--checkpoints", "last", "--fresh", "--store", str(store)]) == 0
    after = [path.stat().st_mtime_ns for path in sorted((run.path / "analysis").iterdir())]
    assert sum(new != old for new, old in zip(after, before, strict=True)) == 2  # one analysis and its arrays


def test_the_lens_reads_back_with_scored_places_and_chances(run):
    found = stored_lens(run)
    assert [one.step for one in found] == [ref.step for ref in run.checkpoints()]
    arrays, about = found[-1].arrays(run), found[-1].about
    assert about["positions"][0] == "BoS" and about["positions"][about["scored"].index(True)] == "EoI"
    assert sum(about["scored"]) == about["length"] + 1
    assert np.all((arrays["low"] <= arrays["probability"]) & (arrays["probability"] <= arrays["high"]))
    assert np.all(arrays["rank"] >= 1) and np.all(arrays["rank"] <= len(about["vocabulary"]))


def test_the_newest_probe_set_is_shown_and_never_mixed_with_another(store, run):
    assert main(["probe", "a", "--what", "lens", "--length", "3", "--store", str(store)]) == 0
    assert {one.about["length"] for one in stored_lens(run)} == {3}
    line = ["probe", "a", "--what", "lens", "--length", "2", "--checkpoints", "last", "--store", str(store)]
    assert main(line) == 0
    assert [one.about["length"] for one in stored_lens(run)] == [2]


def test_the_embedding_reads_back_with_a_name_for_every_point(run):
    found = stored_embedding(run)
    assert found.places["tokens"].shape == (len(found.steps), len(found.labels("tokens")), 2)
    assert found.places["positions"].shape[1] == len(found.labels("positions")) == 11
    assert found.labels("tokens")[:3] == ["BoS", "EoI", "EoS"]


def test_wrong_words_are_refused_with_what_is_known(capsys, store):
    for arguments, said in (
        (["--what", "lense"], "did you mean 'lens'"),
        (["--checkpoints", "newest"], "expected all, last"),
        (["--checkpoints", "7"], "unknown checkpoint"),
        (["--length", "9"], "no length 9"),
    ):
        capsys.readouterr()
        assert main(["probe", "a", *arguments, "--store", str(store)]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "kind", "shape"])
def test_a_damaged_analysis_is_refused_by_its_name(store, run, damage):
    run.write_analysis("lens-damaged", *_hostile(run, damage))
    path = run.path / "analysis" / "lens-damaged.json"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StoreError, match="lens-damaged"):
        for one in stored_lens(run):
            one.arrays(run)
    path.unlink()
    for left in path.parent.glob("lens-damaged.*.npz"):
        left.unlink()


def _hostile(run: Run, damage: str) -> tuple[dict, dict]:
    """The newest lens with one thing wrong, stored as if it were newer."""
    newest = stored_lens(run)[-1]
    about = {**newest.about, "saved": "9999"}
    if damage == "kind":
        about["depths"] = "all of them"
    if damage == "shape":
        about["depths"] = about["depths"][:-1]
    return {"format": 1, "lens": about}, newest.arrays(run)
