"""The command `interp export`: what a run has stored, what a file holds, and what it says where there is nothing."""

import json

import jsonschema
import pytest

from circuits.interchange.export import ENDINGS, circuit_of_path, stem_of
from circuits.interchange.own import write_circuit
from circuits.kept_folder import kept_path
from circuits.outputs import ExportOutput
from circuits.stored import discovery_payload
from interp.cli import main
from interp.config import RunConfig
from interp.errors import StoreError
from interp.jsonfile import write_sealed
from interp.run import Store
from tests.unit.small_circuits import circuit, discovery, placed, provenance, same, shape

FLAT = circuit(edges={"embed->L0.H1.k": 1.0, "L0.H1->M1": -2.0, "M1->logits": 3.0})
PLACED = placed({("embed->L0.H0.k", 1, 3): 1.0, ("L0.H0->logits", 3, 3): 2.0})


def stored(store: Store, name: str, *found) -> None:
    """A run that holds discoveries: (step, circuit or None)."""
    run = store.create(name, RunConfig(task="parity"))
    for number, (step, one) in enumerate(found):
        verdict = ("circuit", "Circuit: it is one.") if one else ("no behaviour to explain", "No behaviour: chance.")
        request = {"by_position": bool(one and one.by_position)}
        run.write_analysis(
            f"circuit-{number:020x}", discovery_payload(step, "ab" * 32, request, discovery(one, *verdict))
        )


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def exported(capsys, store, *words: str) -> dict:
    """The JSON output of a call that succeeds, checked against its schema."""
    assert main(["export", *words, "--store", str(store.root), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    jsonschema.validate(value, ExportOutput.model_json_schema())
    return value


def refused(capsys, *words: str) -> str:
    """The one line of a call that is refused as wrong usage."""
    assert main(["export", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize("to", ["mib", "mib-pt", "neuronpedia", "circuit"])
def test_a_stored_circuit_goes_to_each_format_and_comes_back(to, store, capsys, tmp_path):
    stored(store, "one", (1375, FLAT))
    value = exported(capsys, store, "one", "--to", to)
    path = store.root / "one" / "export" / f"poly1-step-1375.{ENDINGS[to]}"
    assert value["files"] == {to: str(path)}
    assert (value["n_kept"], value["step"]) == (3, 1375)
    back = exported(capsys, store, str(path), "--to", "circuit", "-o", str(tmp_path / "back"))
    found, _ = circuit_of_path(tmp_path / "back" / "poly1-step-1375.circuit.json")
    assert same(found, FLAT)
    assert back["notes"] == []


def test_the_newest_circuit_without_positions_goes_where_positions_have_no_place(store, capsys):
    stored(store, "both", (10, FLAT), (20, PLACED))
    assert exported(capsys, store, "both", "--to", "mib")["n_kept"] == 3
    assert exported(capsys, store, "both", "--to", "neuronpedia")["n_kept"] == 2
    assert exported(capsys, store, "both", "--to", "neuronpedia", "--checkpoint", "10")["n_kept"] == 3


def test_a_report_and_an_export_take_the_same_circuit_and_say_what_else_is_stored(store, capsys, tmp_path):
    stored(store, "both", (20, FLAT), (20, PLACED))
    where = ["--store", str(store.root)]
    assert main(["report", "circuit", "both", *where, "-o", str(tmp_path)]) == 0
    note = "this is the discovery with positions at step 20; one without positions at step 20 is stored too"
    assert f"{note}: --no-positions" in capsys.readouterr().err
    value = exported(capsys, store, "both", "--to", "circuit")
    assert value["n_kept"] == circuit_of_path(tmp_path / "circuit.json")[0].n_kept == 2
    assert value["notes"] == [f"{note}: --no-positions"]
    chosen = exported(capsys, store, "both", "--to", "circuit", "--no-positions")
    assert (chosen["n_kept"], chosen["notes"]) == (3, [])
    said = exported(capsys, store, "both", "--to", "mib")["notes"][0]
    assert said.startswith("--to mib has no positions: this is the discovery without positions")
    assert said.endswith("is stored too: --positions --pool")
    assert exported(capsys, store, "both", "--to", "mib", "--positions", "--pool")["n_kept"] == 2
    assert main(["export", "both", "--to", "mib", "--positions", *where]) == 1
    assert "this circuit has positions, and the MIB form has none" in capsys.readouterr().err


def kept(folder, *found) -> None:
    """A folder as `interp circuit -o` leaves it: (step, circuit or None)."""
    for number, (step, one) in enumerate(found):
        request = {"by_position": bool(one and one.by_position), "model": "poly1", "pairs": "pairs.jsonl"}
        payload = discovery_payload(step, "ab" * 32, request, discovery(one, headline="No behaviour: chance."))
        write_sealed(kept_path(folder, "poly1", step, f"{number:020x}"), payload)


def test_the_folder_of_a_search_is_exported_as_it_is_reported(store, capsys, tmp_path):
    folder = tmp_path / "found"
    folder.mkdir()
    kept(folder, (10, FLAT), (20, PLACED))
    value = exported(capsys, store, str(folder), "--to", "mib")
    assert (value["n_kept"], value["model"]) == (3, "poly1")
    assert value["files"]["mib"].startswith(str(folder))
    assert exported(capsys, store, str(folder), "--to", "circuit")["n_kept"] == 2
    assert exported(capsys, store, str(folder), "--to", "circuit", "--checkpoint", "10")["n_kept"] == 3
    assert "this folder has circuits and no weights" in refused(capsys, str(folder), "--to", "hf")
    kept(folder, (30, None))
    assert "no circuit to export. No behaviour: chance." in refused(capsys, str(folder), "--to", "circuit")


def test_positions_are_refused_unless_pooling_is_asked_for(store, capsys):
    stored(store, "placed", (20, PLACED))
    line = refused(capsys, "placed", "--to", "mib", "--store", str(store.root))
    assert "its stored circuit has positions and --to mib has none; give --pool" in line
    value = exported(capsys, store, "placed", "--to", "mib", "--pool")
    assert any("positions were pooled" in note for note in value["notes"])


def test_where_nothing_is_stored_the_command_that_helps_is_named(store, capsys):
    stored(store, "none")
    where = ["--store", str(store.root)]
    assert "run `interp circuit none` first" in refused(capsys, "none", "--to", "mib", *where)
    line = refused(capsys, "none", "--to", "mib", "--checkpoint", "64", *where)
    assert "none at step 64: no circuit is stored; run `interp circuit none --checkpoints 64` first" in line
    stored(store, "chance", (5, None))
    assert "no circuit to export. No behaviour: chance." in refused(capsys, "chance", "--to", "mib", *where)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("nowhere --to mib", "unknown run 'nowhere'"),
        ("nowhere --to mibb", "unknown format 'mibb'; did you mean 'mib'?"),
        ("nowhere --to mib --checkpoint first", "--checkpoint 'first': expected last or a step"),
        ("FILE --to hf", "--to hf writes the model of a run; this file has no weights"),
        ("nowhere --to hf --pool", "--pool, --positions and --no-positions are for circuits; --to hf writes the model"),
        ("nowhere --to hf --no-positions", "--no-positions are for circuits"),
        ("FILE --to mib --checkpoint 5", "--checkpoint is for a run"),
        ("FILE --to mib --positions", "--positions and --no-positions are for a run"),
        ("FOLDER/nothing.json --to mib", "nothing.json: no such file; export takes a run or a circuit file"),
        ("nothing.json --to mib", "nothing.json: no such file"),
        ("FOLDER/nothing --to hf", "nothing: no such file"),
        (
            "FOLDER --to mib",
            "no run; export takes a run, the folder of interp circuit -o or a circuit file; give FOLDER/",
        ),
        ("FOLDER/.. --to hf", "/..: a folder that is no run; export takes a run, the folder of interp circuit -o or"),
    ],
)
def test_wrong_usage_is_one_line_and_writes_nothing(words, says, capsys, tmp_path):
    write_circuit(tmp_path / "circuit.json", FLAT)
    line = words.replace("FILE", str(tmp_path / "circuit.json")).replace("FOLDER", str(tmp_path)).split()
    assert says.replace("FOLDER", str(tmp_path)) in refused(capsys, *line, "--store", str(tmp_path / "runs"))
    assert [path.name for path in tmp_path.rglob("*")] == ["circuit.json"]


def test_names_of_files_keep_the_dots_of_a_model_and_lose_its_ending():
    for model, step, stem in (
        ("Qwen2.5-0.5B", None, "Qwen2.5-0.5B"),
        ("org/pythia-1.4b", 1000, "org-pythia-1.4b-step-1000"),
        ("weights.pt", None, "weights"),
        ("their.mib.json", None, "their.mib"),
        ("..", None, "model"),
    ):
        one = circuit(edges={"embed->M0": 1.0}, provenance=provenance(model=model, step=step))
        assert stem_of(one) == stem


def test_every_kind_of_file_of_ours_is_told_by_what_it_holds(tmp_path):
    file = FLAT.to_file().model_dump(mode="json")
    found = discovery(FLAT).model_dump(mode="json")
    write_circuit(tmp_path / "sealed.json", FLAT)
    for name, body in {"plain": file, "discovery": found, "output": {"kind": "circuit", "discovery": found}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(body))
    for path in tmp_path.iterdir():
        assert same(circuit_of_path(path)[0], FLAT), path.name


def test_a_circuit_of_a_large_model_is_written_and_read(tmp_path):
    one = circuit(shape(n_layers=10, heads=10))
    write_circuit(tmp_path / "circuit.json", one)
    assert one.n_live > 15_000
    assert (tmp_path / "circuit.json").stat().st_size > 2 << 20
    assert same(circuit_of_path(tmp_path / "circuit.json")[0], one)


@pytest.mark.parametrize(
    "changes",
    [{"heads": [10**9, 2]}, {"kv_heads": [1]}, {"heads": [3] * 10**5, "kv_heads": [3] * 10**5}],
    ids=["heads", "lengths", "layers"],
)
def test_a_shape_of_impossible_size_is_refused_before_it_fills_the_memory(changes, tmp_path):
    body = FLAT.to_file().model_dump(mode="json")
    body["shape"] |= changes
    (tmp_path / "circuit.json").write_text(json.dumps(body))
    with pytest.raises(StoreError, match=r"circuit\.json: shape: no model that can be read"):
        circuit_of_path(tmp_path / "circuit.json")
    body = FLAT.to_file().model_dump(mode="json")
    (tmp_path / "circuit.json").write_text(json.dumps({**body, "n_pos": 10**6}))
    with pytest.raises(StoreError, match="1000000 positions"):
        circuit_of_path(tmp_path / "circuit.json")


def test_edited_empty_and_unknown_files_are_refused(tmp_path):
    write_circuit(tmp_path / "edited.json", FLAT)
    text = (tmp_path / "edited.json").read_text()
    (tmp_path / "edited.json").write_text(text.replace('"score": 3.0', '"score": 4.0'))
    (tmp_path / "chance.json").write_text(json.dumps(discovery(None, "candidate", "Nothing.").model_dump(mode="json")))
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for name, says in {
        "edited": "does not match its own check sum",
        "chance": "holds no circuit: Nothing.",
        "other": "no circuit of a format known here",
        "list": "expected a JSON object, found list",
        "deep": "not valid JSON",
    }.items():
        with pytest.raises(StoreError, match=says):
            circuit_of_path(tmp_path / f"{name}.json")
