"""A folder of `-o` holds circuits of one model: results are told apart by all that gave them, and none is mistaken."""

import json
from dataclasses import replace

import pytest

from circuits import foreign_series
from circuits.find import Settings
from circuits.foreign_series import PathRequest, discover_path, follow_path
from circuits.interchange.own import write_circuit
from circuits.kept_folder import kept_in, kept_path, model_of, read_kept, require_own
from circuits.stored import discovery_payload
from interp.cli import main
from interp.errors import UsageError
from interp.jsonfile import write_sealed
from tests.unit.random_bridges import HUGGING_FACE, hugging_face, shaken
from tests.unit.small_circuits import circuit, discovery, provenance

PAIRS = [
    {"clean": [1, 2, n], "corrupted": [2, 2, n], "answers": [1], "wrong": [2], "split": part}
    for n in range(3, 11)
    for part in (["score", "score", "choose", "evaluate"][n % 4],)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two series of two steps, equal but for their weights, and a folder of pairs."""
    root = tmp_path_factory.mktemp("models")
    for number, place in enumerate(("a/run/step1", "a/run/step2", "b/run/step1", "b/run/step3", "c/run/step1")):
        shaken(hugging_face(*HUGGING_FACE["llama"]), 0 if place[0] == "c" else number).save_pretrained(root / place)
    (root / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in PAIRS))
    return root


def request(models, place: str, folder, **changes) -> PathRequest:
    settings = Settings(method="exact", reruns=0, controls=0, removals=1).model_dump()
    given = PathRequest(str(models / place), str(models / "pairs.jsonl"), None, False, "resample", False, settings)
    return replace(given, folder=str(folder), **changes)


def counted(monkeypatch) -> list:
    """Names and steps that are searched from now on, not read."""
    seen, real = [], foreign_series.discover

    def discover(subject, *given):
        seen.append((subject.model, subject.step))
        return real(subject, *given)

    monkeypatch.setattr(foreign_series, "discover", discover)
    return seen


def test_equal_weights_under_another_name_or_step_are_another_result(models, tmp_path, monkeypatch):
    seen = counted(monkeypatch)
    one, series = models / "c" / "run" / "step1", tmp_path / "copies"
    series.mkdir()
    for step in ("step5", "step6"):
        (series / step).mkdir()
        for file in one.iterdir():
            (series / step / file.name).write_bytes(file.read_bytes())
    found = [discover_path(request(models, str(series), tmp_path / "out", step=step)) for step in (5, 6)]
    assert seen == [("copies", 5), ("copies", 6)], "the second is no copy of the first"
    kept = [read_kept(path) for path in kept_in(tmp_path / "out")]
    assert [one.step for one in kept] == [5, 6] and len({one.checkpoint for one in kept}) == 1
    assert [one.discovery for one in kept] == found
    discover_path(request(models, str(series), tmp_path / "out", step=5))
    assert len(seen) == 2, "asked for again it is read"


def test_the_same_folder_copied_is_a_model_of_its_own(models, tmp_path, monkeypatch):
    seen = counted(monkeypatch)
    copy = tmp_path / "other"
    copy.mkdir()
    for file in (models / "c" / "run" / "step1").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    discover_path(request(models, "c/run/step1", tmp_path / "out"))
    with pytest.raises(UsageError, match=r"holds a circuit of step1.*give other a folder of its own"):
        discover_path(request(models, str(copy), tmp_path / "out"))
    assert seen == [("step1", None)]


def test_a_series_of_the_same_name_with_other_weights_is_refused(models, tmp_path, monkeypatch):
    discover_path(request(models, "a/run", tmp_path / "out", step=1))
    seen = counted(monkeypatch)
    with pytest.raises(UsageError, match="another run, with other weights at the same step"):
        discover_path(request(models, "b/run", tmp_path / "out", step=1))
    assert seen == [], "refused before the search"
    with pytest.raises(UsageError, match="holds a circuit of another run"):
        follow_path((1, 3), request(models, "b/run", tmp_path / "out"), 1, lambda done, of: None)
    assert len(kept_in(tmp_path / "out")) == 1


def test_steps_and_settings_of_one_series_stay_together(models, tmp_path):
    out = tmp_path / "out"
    follow_path((1, 2), request(models, "a/run", out), 1, lambda done, of: None)
    discover_path(request(models, "a/run", out, step=1))
    discover_path(request(models, "a/run", out, step=2, ablation="mean"))
    kept = [read_kept(path) for path in kept_in(out)]
    assert sorted(one.step for one in kept) == [1, 1, 2, 2] and {model_of(one) for one in kept} == {"run"}
    assert all(path.name.startswith("circuit-run-step-") for path in kept_in(out))


def old_result(folder, model: str | None, step: int, checkpoint: str = "cd" * 32) -> None:
    """A file as it was named before names had the model in them."""
    folder.mkdir(exist_ok=True)
    found = discovery(None, "no behaviour to explain", "Nothing.")
    asked = {"pairs": "ioi.jsonl", "settings": {}} | ({} if model is None else {"model": model})
    write_sealed(folder / f"circuit-{'0' * 20}.json", discovery_payload(step, checkpoint, asked, found))


def test_files_of_older_versions_are_told_apart_by_what_they_hold(tmp_path):
    old_result(tmp_path, "gpt2", -1)
    require_own(tmp_path, "gpt2", None, "cd" * 32)
    require_own(tmp_path, "gpt2", 5, "ef" * 32)
    with pytest.raises(UsageError, match="holds a circuit of gpt2"):
        require_own(tmp_path, "pythia", None, "cd" * 32)
    with pytest.raises(UsageError, match="another gpt2, with other weights"):
        require_own(tmp_path, "gpt2", None, "ef" * 32)


def test_names_with_dots_and_steps_in_them_stay_apart(tmp_path):
    names = ["Qwen2.5-0.5B", "Qwen2.5-0.7B", "run-step-3", "run", "org/run", "ckpt.pt"]
    key = "0" * 20
    paths = {kept_path(tmp_path, name, step, key).name for name in names for step in (None, 3)}
    assert len(paths) == 11, "run-step-3 and step 3 of run share a name; what they hold tells them apart"
    assert kept_path(tmp_path, "Qwen2.5-0.5B", None, key).name == f"circuit-Qwen2.5-0.5B-{key}.json"


@pytest.mark.parametrize(("model", "step"), [("pythia-step-2000", None), ("pythia", None), ("pythia", 2000)])
def test_a_model_whose_name_ends_like_a_step_is_no_step_of_another(tmp_path, model, step):
    found = discovery(None, "no behaviour to explain", "Nothing.")
    payload = discovery_payload(-1, "cd" * 32, {"model": "pythia-step-1000"}, found)
    write_sealed(kept_path(tmp_path, "pythia-step-1000", None, "0" * 20), payload)
    require_own(tmp_path, "pythia-step-1000", None, "cd" * 32)
    with pytest.raises(UsageError, match="holds a circuit of pythia-step-1000"):
        require_own(tmp_path, model, step, "cd" * 32)


def test_a_circuit_json_of_another_model_is_not_written_over(tmp_path):
    one = circuit(edges={"embed->M0": 1.0}, provenance=provenance(model="modela", step=None))
    write_circuit(tmp_path / "circuit.json", one)
    require_own(tmp_path, "modela", None, "cd" * 32)
    with pytest.raises(UsageError, match=r"circuit.json in it is of modela; give modelb a folder of its own"):
        require_own(tmp_path, "modelb", None, "cd" * 32)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match=r"-o .*file: is a file; give a folder"):
        require_own(file, "modela", None, "cd" * 32)


def test_a_search_that_finds_nothing_leaves_no_circuit_of_before(models, tmp_path, capsys):
    out, step1 = tmp_path / "out", models / "a" / "run" / "step1"
    out.mkdir()
    one = circuit(edges={"embed->M0": 1.0}, provenance=provenance(model="step1", step=None))
    write_circuit(out / "circuit.json", one)
    line = ["circuit", str(step1), "--pairs", str(models / "pairs.jsonl"), "-o", str(out), "--json"]
    assert main(line) == 0
    printed, said = capsys.readouterr()
    assert json.loads(printed)["discovery"]["circuit"] is None, "chance"
    assert not (out / "circuit.json").exists() and (out / "earlier-circuit.json").exists()
    assert "held a circuit of an earlier search; it is now earlier-circuit.json" in said
    other = ["circuit", str(models / "b" / "run" / "step3"), *line[2:]]
    assert main(other) == 2
    assert "give step3 a folder of its own" in capsys.readouterr().err
