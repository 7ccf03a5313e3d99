"""The page of a circuit: all that was found, nothing that runs, the same bytes each time, and commands that work."""

import base64
import hashlib
import json
import re
import shlex
from collections import Counter
from html.parser import HTMLParser

import jsonschema
import pytest

from circuits.find import Settings
from circuits.interchange.export import circuit_of_path
from circuits.outputs import CircuitReportOutput
from circuits.report.circuit_page import MOST_DRAWINGS, Background, chosen, render_circuit_page
from circuits.report.circuit_stored import fellows, shelf_of_run, stored_circuit
from circuits.report.circuit_tables import behaviour, controls, keys, pairs, roles, stability, story_table
from circuits.stored import StoredCircuit, discovery_payload, stored_circuits
from circuits.trajectory import trajectory
from interp.cli import main
from interp.config import RunConfig
from interp.jsonfile import write_sealed
from interp.run import Store
from tests.security.test_report_injection import PAYLOADS
from tests.unit.small_circuits import circuit, discovery, interval, placed, provenance, same

EARLY = circuit(edges={"embed->L0.H1.k": 1.0, "M1->logits": 3.0})
LATE = circuit(edges={"embed->L0.H1.k": 1.0, "L0.H1->M1": -2.0, "M1->logits": 3.0})
SETTINGS = Settings().model_dump(mode="json")
REQUEST = {
    "prompts": {"length": None, "n": 128, "family": "mixed", "seed": 0},
    "ablation": "resample",
    "by_position": False,
    "settings": SETTINGS,
}


class Tags(HTMLParser):
    """Counts elements and attribute names, and keeps the words."""

    def __init__(self, text: str):
        super().__init__()
        self.counts, self.words = Counter(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.counts[tag] += 1
        self.counts.update(f"{tag} {name}" for name, _ in attrs)

    def handle_data(self, data):
        self.words.append(data)


def page(found=None, around: Background | None = None) -> str:
    return render_circuit_page(found or discovery(LATE), "poly1", 1375, around)


def test_the_page_has_every_part_of_a_discovery_with_its_numbers():
    text = page()
    words = " ".join(Tags(text).words)
    for part in (
        "Circuit: it is one.",
        "97.0 %",
        "[96.0, 98.0] %",
        "random paths (the claim rests on it)",
        "0.0099",
        "minimality",
        "backup of L1.H0",
        "while L1.H0 is ablated 40.0 %, which is 39.0 % [30.0 %, 50.0 %] more",
        "embed->L0.H0.k and embed->M0",
        "\u221220.0 % [\u221230.0 %, \u221210.0 %]",
        "L0.H1->M1",
        "CMD 0.110",
        "5 whole searches on resampled prompts keep 14 to 17 edges",
        "Left out: eap left out",
        "A faithful circuit need not be the only one.",
        "ab" * 32,
    ):
        assert part in words, part
    assert text.count('<svg xmlns="http://www.w3.org/2000/svg" class="circuit-graph"') == 1
    assert "Faithfulness by size" in text


def test_numbers_of_the_page_have_n_and_an_interval_or_say_that_none_is_stored():
    bare = discovery(LATE)
    (right,) = (key for key in keys(bare) if key.name.startswith("Answers right"))
    assert right.number == "98.0 %" and "32 sequences, no interval stored" in right.detail
    names = (
        "metric_model",
        "metric_circuit",
        "metric_ablated",
        "kl",
        "accuracy_model",
        "accuracy_circuit",
        "cmd",
        "cpr",
    )
    known = {name: interval(getattr(bare.faithfulness, name)) for name in names}
    found = bare.model_copy(update={"faithfulness": bare.faithfulness.model_copy(update={"intervals": known})})
    (right,) = (key for key in keys(found) if key.name.startswith("Answers right"))
    assert "[97.0, 99.0] %" in right.detail and "32 sequences" in right.detail
    rows = dict(behaviour(found))
    assert "circuit 9.200 [9.190, 9.210]" in rows["Metric"] and "0.020 [0.010, 0.030] nats" in rows["KL"]
    assert "CMD 0.110 [0.100, 0.120] (0 is best), CPR 0.910 [0.900, 0.920]" in rows["MIB areas"]
    assert all("32 held-out sequences, 95 % intervals" in rows[name] for name in ("Metric", "KL", "MIB areas"))
    assert "no interval stored" in dict(behaviour(bare))["KL"]


def test_roles_and_pairs_have_n_and_intervals():
    found = discovery(LATE)
    grid = pairs(found)
    assert grid.columns[-1] == "n" and grid.rows[0][1:] == ("50.0 %", grid.rows[0][2], "64"), (
        "n of the prompts that rank"
    )
    pair = found.pairs[0].model_copy(update={"together_low": 0.4, "together_high": 0.6, "n": 63})
    row = pairs(found.model_copy(update={"pairs": [pair]})).rows[0]
    assert row[1] == "50.0 % [40.0 %, 60.0 %]" and row[3] == "63"
    spread = {"alone_low": 0.0, "alone_high": 0.02, "given_low": 0.35, "given_high": 0.45}
    role = found.roles[0].model_copy(update=spread)
    grid = roles(found.model_copy(update={"roles": [role]}))
    assert grid.columns[0] == "component", "an MLP can have a role too"
    assert "alone 1.0 % [0.0 %, 2.0 %]; while L1.H0 is ablated 40.0 % [35.0 %, 45.0 %]" in grid.rows[0][2]


def test_the_page_prints_how_much_of_the_circuit_controls_hold():
    found = discovery(LATE)
    control = found.controls[0].model_copy(update={"shared": 0.789})
    grid = controls(found.model_copy(update={"controls": [control]}))
    assert dict(zip(grid.columns, grid.rows[0], strict=True))["shared"] == "78.9 %"


def test_the_heading_is_short_and_the_headline_stands_below_it_as_it_is():
    def opening(found, step: int | None = 1375, task: str = "parity") -> tuple[str, str]:
        text = render_circuit_page(found, "poly1", step, Background(task=task))
        (heading,), (lead,) = re.findall(r"<h1>(.*?)</h1>", text), re.findall(r'<p class="lead">(.*?)</p>', text)
        assert text.index("<h1>") < text.index('<p class="lead">') < text.index('class="badge')
        assert f"<title>{heading}</title>" in text
        return heading, lead

    assert opening(discovery(LATE)) == ("Circuit for parity: poly1, step 1,375", "Circuit: it is one.")
    by_place = discovery(placed({("L0.H0->logits", 3, 3): 2.0}), "candidate", "Candidate: but no control.")
    assert opening(by_place, None, "ioi.jsonl") == (
        "Candidate circuit by position for ioi.jsonl: poly1", "Candidate: but no control.",
    )  # fmt: skip
    nothing = discovery(None, "no behaviour to explain", "Nothing: chance.")
    assert opening(nothing, 0, "") == ("No circuit: poly1, step 0", "Nothing: chance.")


def test_the_page_runs_nothing_loads_nothing_and_allows_its_own_style_only():
    text = page()
    tags = Tags(text).counts
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(tags)
    assert not [name for name in tags if re.search(r" (on\w+|style|href|src)$", name)]
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    (styles,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(styles.encode()).digest()).decode()
    assert policy.startswith("default-src &#39;none&#39;; ")
    assert f"style-src &#39;sha256-{digest}&#39;" in policy
    assert tags["style"] == 1


def test_equal_discoveries_give_equal_pages_whatever_they_cost():
    slow = discovery(LATE).model_copy(update={"timing": {"search": 99.0}, "peak_mib": 9000.0})
    assert page() == page() == page(slow)


def test_no_behaviour_and_no_circuit_have_a_page_of_their_own():
    for verdict in ("no behaviour to explain", "no faithful circuit"):
        text = page(discovery(None, verdict, "Nothing: chance."))
        assert "Nothing: chance." in text
        assert "circuit-graph" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
        assert 'id="provenance"' in text


def test_a_circuit_by_position_is_drawn_with_its_positions_and_pooled():
    one = placed({("embed->L0.H0.k", 1, 3): 1.0, ("embed->L0.H0.k", 0, 2): 0.5, ("L0.H0->logits", 3, 3): 2.0})
    text = page(discovery(one))
    assert text.count('class="circuit-graph"') == 2
    assert "One column for each position." in text
    assert "at 2 places; positions back (times): 2 (2)" in text


def series():
    """Two checkpoints with circuits, one without."""
    found = [
        (0, discovery(None, "no behaviour to explain", "Nothing.")),
        (64, discovery(EARLY)),
        (128, discovery(LATE)),
    ]
    return found, trajectory([step for step, _ in found], [one for _, one in found])


def test_checkpoints_share_a_scale_and_show_what_the_others_keep():
    found, story = series()
    text = page(around=Background(found, story))
    assert text.count('class="circuit-graph"') == 3
    assert text.count('class="edge other"') == 1
    words = " ".join(Tags(text).words)
    assert "step 128" in words
    assert "No three checkpoints in a row have the verdict circuit." in words
    assert "2 of 45 edges keep 0.970 [0.960, 0.980], n\u00a0=\u00a032" in words


def test_the_table_of_checkpoints_has_the_band_and_n_beside_shares():
    found, _ = series()
    grid = story_table(trajectory([64, 128, 192], [found[1][1], found[2][1], found[2][1]]))
    row = dict(zip(grid.columns, grid.rows[1], strict=True))
    assert row["answers right"].startswith("1.000 [1.000, 1.000], n") and row["metric kept"].endswith("32")
    assert (row["overlap"], row["two halves"], row["band"], row["changed"]) == ("0.667", "0.800", "0.800", "yes")
    assert "each read position by itself" in grid.caption and "These three have no interval" in grid.caption
    assert "what chance changes" not in " ".join(stability(found[2][1]))


def test_many_checkpoints_are_thinned_evenly_with_both_ends():
    steps = list(range(0, 1000, 10))
    some = chosen(steps)
    assert len(some) == MOST_DRAWINGS
    assert {0, 990} <= some
    assert chosen(steps[:5]) == set(steps[:5])


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_words_add_no_element_and_no_attribute(payload):
    def drawn(word: str) -> Counter:
        one = placed({("embed->L0.H0.k", 1, 3): 1.0})
        file = discovery(one, headline=word).model_dump(mode="json")
        file["circuit"]["columns"][1] = word
        file["circuit"]["provenance"] = provenance(model=word, pairs=word, processing={"bos": word}).model_dump()
        for key in ("notes", "limits", "nodes"):
            file[key] = [word]
        file["controls"][0]["what"] = file["tests"][0]["reading"] = word
        found = type(discovery(one)).model_validate(file)
        around = Background(commands=[(word, word)], origin=[(word, word)], task=word)
        return Tags(render_circuit_page(found, word, 1, around)).counts

    assert drawn(payload) == drawn("w" * len(payload))


def keep(store: Store, *found) -> None:
    """A run that holds (step, discovery, request)."""
    run = store.create("poly1", RunConfig(task="parity"))
    for number, (step, one, request) in enumerate(found):
        run.write_analysis(f"circuit-{number:020x}", discovery_payload(step, "ab" * 32, request, one))


def test_the_command_writes_page_and_circuit_from_what_is_stored(tmp_path, capsys):
    store = Store(tmp_path / "runs")
    keep(store, (64, discovery(EARLY), REQUEST), (128, discovery(LATE), REQUEST))
    line = ["report", "circuit", "poly1", "--store", str(store.root), "--json"]
    assert main(line) == 0
    value = json.loads(capsys.readouterr().out)
    jsonschema.validate(value, CircuitReportOutput.model_json_schema())
    assert (value["step"], value["verdict"]) == (128, "circuit")
    folder = store.root / "poly1" / "report"
    assert {path.name for path in folder.iterdir()} == {"circuit.html", "circuit.json", "circuit.svg"}
    assert same(circuit_of_path(folder / "circuit.json")[0], LATE)
    first = (folder / "circuit.html").read_bytes()
    assert b"Through training" in first
    assert b"<h1>Circuit for parity: poly1, step 128</h1>" in first
    assert main([*line, "-o", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "circuit.html").read_bytes() == first
    capsys.readouterr()
    assert main([*line, "--checkpoint", "64"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 64


def test_a_folder_of_a_model_that_is_no_run_has_a_page_too(tmp_path, capsys):
    request = {"pairs": "ioi.jsonl", "bos": True, "ablation": "resample", "by_position": False, "settings": SETTINGS}
    one = circuit(edges={"embed->M0": 1.0}, provenance=provenance(model="gpt2", step=None))
    folder = tmp_path / "found"
    folder.mkdir()
    write_sealed(folder / "circuit-00.json", discovery_payload(-1, "cd" * 32, request, discovery(one)))
    assert main(["report", "circuit", str(folder), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    jsonschema.validate(value, CircuitReportOutput.model_json_schema())
    assert (value["run"], value["step"]) == ("gpt2", None)
    words = " ".join(Tags((folder / "circuit.html").read_text()).words)
    assert "Circuit for ioi.jsonl: gpt2" in words
    assert "interp circuit path/to/gpt2 --pairs path/to/ioi.jsonl --bos -o found" in words
    assert "interp report circuit found --no-positions" in words
    damaged = (folder / "circuit-00.json").read_text().replace("0.97", "0.98")
    (folder / "circuit-00.json").write_text(damaged)
    assert main(["report", "circuit", str(folder)]) == 1
    assert "check sum" in capsys.readouterr().err


@pytest.mark.parametrize("second", ["modelb", None])
def test_a_page_without_a_circuit_names_no_other_model_and_leaves_none_of_its_circuits(second, tmp_path, capsys):
    request = {"pairs": "ioi.jsonl", "bos": False, "ablation": "resample", "by_position": False, "settings": SETTINGS}
    one = circuit(edges={"embed->M0": 1.0}, provenance=provenance(model="modela", step=None))
    folder = tmp_path / "out"
    folder.mkdir()
    first = discovery_payload(-1, "cd" * 32, {**request, "model": "modela"}, discovery(one))
    write_sealed(folder / "circuit-ff.json", first)
    assert main(["report", "circuit", str(folder)]) == 0
    nothing = discovery(None, "no behaviour to explain", "No behaviour: chance.")
    asked = request if second is None else {**request, "model": second}
    write_sealed(folder / "circuit-00.json", discovery_payload(-1, "ef" * 32, asked, nothing))
    capsys.readouterr()
    name = second or "model in out"
    assert main(["export", str(folder / "circuit.json"), "--to", "mib", "-o", str(tmp_path)]) == 0
    said = f"this is a circuit of modela; the discovery made last in its folder, {name}, has none"
    assert said in capsys.readouterr().out
    assert main(["report", "circuit", str(folder), "--json"]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["run"], list(json.loads(out)["files"])) == (name, ["html"])
    assert f"this is {name}, searched last; the folder holds also modela" in err
    text = (folder / "circuit.html").read_text()
    assert f"<title>No circuit for ioi.jsonl: {name}</title>" in text
    assert "modela" not in text
    assert f"interp circuit path/to/{second or 'model'} --pairs path/to/ioi.jsonl -o out" in text
    assert not (folder / "circuit.json").exists()
    assert same(circuit_of_path(folder / "earlier-circuit.json")[0], one)


def test_where_nothing_is_stored_the_command_that_helps_is_named(tmp_path, capsys):
    keep(Store(tmp_path))
    for more, says in (
        ([], "poly1: no circuit is stored; run `interp circuit poly1` first"),
        (["--checkpoint", "8"], "run `interp circuit poly1 --checkpoints 8` first"),
        (["--positions"], "poly1 with positions: no circuit is stored; run `interp circuit poly1 --positions` first"),
        (["--checkpoint", "first"], "--checkpoint 'first': expected last, or a step"),
    ):
        assert main(["report", "circuit", "poly1", "--store", str(tmp_path), *more]) == 2
        assert says in capsys.readouterr().err


def test_of_one_step_the_search_that_says_how_stable_it_is_makes_the_page(tmp_path):
    light = {**REQUEST, "settings": {**SETTINGS, "reruns": 0, "controls": 20}}
    keep(Store(tmp_path), (64, discovery(EARLY), REQUEST), (64, discovery(LATE), light), (8, discovery(LATE), light))
    run = Store(tmp_path).run("poly1")
    assert stored_circuit(shelf_of_run(run), None).data["n_kept"] == EARLY.n_kept
    assert stored_circuit(shelf_of_run(run), 8).data["n_kept"] == LATE.n_kept


def test_only_discoveries_that_were_asked_for_in_the_same_way_stand_together(tmp_path):
    other = {**REQUEST, "ablation": "zero"}
    halves = discovery(EARLY)
    whole = halves.model_copy(update={"split_half": None})
    keep(Store(tmp_path), (64, halves, REQUEST), (64, whole, REQUEST), (64, halves, other), (128, halves, REQUEST))
    stored = stored_circuits(Store(tmp_path).run("poly1"))
    found = fellows(stored, stored[-1])
    assert [(one.step, one.data["split_half"] is not None) for one in found] == [(64, True), (128, True)]
    assert [one.step for one in fellows(stored, next(one for one in stored if one.request == other))] == [64]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "interp circuit poly1 --checkpoints 64 --store STORE"),
        (
            {"by_position": True, "ablation": "zero", "prompts": {**REQUEST["prompts"], "length": 16, "n": 64}},
            "interp circuit poly1 --checkpoints 64 --length 16 --n 64 --positions --ablation zero --store STORE",
        ),
        (
            {"settings": {**SETTINGS, "reruns": 0, "controls": 20, "method": "exact", "seed": 3}},
            "interp circuit poly1 --checkpoints all --method exact --seed 3 --store STORE",
        ),
    ],
)
def test_the_commands_ask_for_the_same_again_with_options_that_exist(changes, line, tmp_path):
    import typer

    from interp.cli import build_app

    run = Store(tmp_path / "kept").create("poly1", RunConfig(task="parity"))
    stored = StoredCircuit(64, "circuit-a", "ab" * 32, "2026", {**REQUEST, **changes}, {})
    (_, search), (_, again) = shelf_of_run(run).commands(stored)
    assert search == line.replace("STORE", "kept")
    which = "--positions" if changes.get("by_position") else "--no-positions"
    assert again == f"interp report circuit poly1 --checkpoint 64 {which} --store kept"
    command = typer.main.get_command(build_app()).commands["circuit"]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in shlex.split(search) if word.startswith("--")} <= known
