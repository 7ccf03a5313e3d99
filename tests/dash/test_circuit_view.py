"""The circuit view: verdict, faithfulness and controls in words, a drawing for each checkpoint, lives of edges."""

# ruff: noqa: F811 - fixtures that are imported by name

import json

import pytest

from circuits.stored import newest_circuit
from circuits.subject import DEFAULT_LENGTH
from dashboards.circuit_data import (
    TASK_LENGTH,
    Life,
    control_words,
    default_length,
    frames_of,
    life_rows,
    series_of,
    spread,
)
from dashboards.components.circuit_frames import NAME, CircuitPick
from dashboards.views import circuit
from tests.dash.analysed import LAST, analysed, hostile, solved_store, worker  # noqa: F401
from tests.dash.conftest import HOSTILE
from tests.dash.seen import text


def frames(app) -> dict:
    """What the drawings' element was sent."""
    return json.loads(next(one.proto.json for one in app.get("bidi_component") if one.proto.component_name == NAME))


def test_a_run_without_a_search_teaches_the_command(view, normal_store):
    app = view(normal_store, "circuit", run="tiny")
    assert not app.exception
    assert "interp circuit tiny --checkpoints all" in text(app)
    assert any(button.label == "Search the newest checkpoint" for button in app.button)


def test_the_verdict_its_numbers_and_controls_stand_in_words(view, solved_store):
    app = view(solved_store, "circuit", run="solved")
    assert not app.exception
    stored = newest_circuit(solved_store.run("solved"))
    seen = text(app).replace("\\", "")
    assert stored.data["headline"] in seen and stored.data["verdict"] == "circuit"
    kept = stored.data["faithfulness"]["retained"]
    assert f"{kept['value']:.1%}, 95 % interval [{kept['low']:.1%}, {kept['high']:.1%}], n = {kept['n']}" in seen
    right = stored.data["gate"]["accuracy"]
    assert f"{right['value']:.1%}, 99.9 % interval [{right['low']:.1%}, {right['high']:.1%}], n = {right['n']}" in seen
    assert "better than random circuits of the same number of edges; see the controls" in seen
    for control in stored.data["controls"]:
        assert control["name"] in seen and control["what"] in seen
    (line,) = [caption.value.replace("\\", "") for caption in app.caption if "pair family" in caption.value]
    assert "ablation: resample · pair family: mixed, length 3" in line
    alone = stored.data["faithfulness"]["intervals"]["accuracy_circuit"]
    assert f"of single answers right with the circuit alone: **{spread(alone)}**" in seen


def test_the_length_that_was_not_asked_for_is_told_as_a_number(solved_store):
    run = solved_store.run("solved")
    longest = run.config.task_params["max_length"]
    assert DEFAULT_LENGTH == TASK_LENGTH and default_length(run) == min(8, longest)
    assert default_length(None) == "8, or the longest where shorter"


@pytest.mark.parametrize(("shared", "only_itself"), [(1.0, True), (0.9, False), (None, False)])
def test_a_control_that_can_only_draw_the_circuit_itself_has_no_p(shared, only_itself):
    numbers = {"n": 5, "mean": 0.9, "largest": 0.9, "p_value": 1.0, "shared": shared}
    words = control_words({"name": "same types", "what": "random unions", **numbers})
    assert ("p = 1" in words) is not only_itself
    assert ("p: \u2013, as each holds the whole circuit: no different circuit" in words) is only_itself


def test_every_checkpoint_has_a_drawing_of_the_same_size_on_one_scale(view, solved_store):
    sent = frames(view(solved_store, "circuit", run="solved", step=LAST))
    assert [frame["step"] for frame in sent["frames"]] == [0, LAST] and sent["index"] == 1
    boxes = {frame["svg"].split('viewBox="')[1].split('"')[0] for frame in sent["frames"]}
    assert len(boxes) == 1
    first, last = (frame["svg"] for frame in sent["frames"])
    stored = newest_circuit(solved_store.run("solved"), step=LAST)
    assert last.count('class="edge up"') + last.count('class="edge down"') == stored.data["n_kept"]
    assert first.count('class="edge other"') == stored.data["n_kept"] and 'class="edge up"' not in first
    assert sent["frames"][0]["words"] == "no behaviour to explain"


def test_a_checkpoint_without_behaviour_says_so_and_has_no_controls(view, solved_store):
    app = view(solved_store, "circuit", run="solved", step=0)
    assert not app.exception
    assert "no behaviour to explain" in text(app).replace("\\", "")
    assert "None were run" in text(app)


def test_a_click_on_an_edge_ablates_it_and_the_slider_moves_the_address(view, solved_store, worker, monkeypatch):
    done = [CircuitPick("L0.H0->M0", None)]
    monkeypatch.setattr(circuit, "circuit_frames", lambda *given, **named: done.pop() if done else CircuitPick(None, 0))
    app = view(solved_store, "circuit", run="solved", step=LAST)
    assert not app.exception
    assert worker[-1][1]["target"] == "L0.H0->M0" and worker[-1][1]["step"] == LAST
    assert "Exploratory" in text(app)
    app.run()
    step = app.query_params["step"]
    assert str(step[0] if isinstance(step, list) else step) == "0"


def test_lives_of_edges_come_from_the_stored_trajectory(view, solved_store):
    app = view(solved_store, "circuit", run="solved")
    assert "Born: the first of three circuits in a row" in text(app)
    assert "No circuit emerged" in text(app)


def test_without_a_trajectory_nothing_is_said_to_be_born(view, solved_store):
    run = solved_store.run("solved")
    for path in (run.path / "analysis").glob("circuitpath-*"):
        path.unlink()
    app = view(solved_store, "circuit", run="solved")
    assert not app.exception
    assert "Born" not in text(app)
    assert "interp circuit solved --checkpoints all" in text(app)


def test_rows_of_lives_mark_births_deaths_and_presence():
    found = [Life("a->b", (1, 2, 3), 1, 9), Life("c->d", (2,), None, None)]
    rows = life_rows(found, [1, 2, 3])
    assert [(row["edge"], row["step"], row["what"]) for row in rows] == [
        ("a->b", 1, "born"), ("a->b", 2, "present"), ("a->b", 3, "present"), ("c->d", 2, "present"),
        ("a->b", 9, "died"),
    ]  # fmt: skip


def test_the_newest_search_of_a_checkpoint_is_shown(solved_store):
    run = solved_store.run("solved")
    old = newest_circuit(run, step=LAST)
    payload = run.analysis(old.key)
    payload["saved"] = "9999"
    payload["discovery"] = payload["discovery"] | {"headline": "another"}
    run.write_analysis("circuit-again", payload)
    series = series_of(run)["whole"]
    assert series.steps == [0, LAST] and series.at(LAST).data["headline"] == "another"
    assert len(frames_of(run, series)) == 2


def test_markup_in_a_stored_search_stays_text(view, solved_store):
    def change(payload):
        if "discovery" in payload:
            payload["discovery"] |= {"headline": HOSTILE, "notes": [HOSTILE]}
            for control in payload["discovery"]["controls"]:
                control["name"] = control["what"] = HOSTILE

    hostile(solved_store, "circuit", change)
    app = view(solved_store, "circuit", run="solved")
    assert not app.exception
    raw = [one.value for one in (*app.markdown, *app.caption) if "onerror" in one.value]
    assert len(raw) >= 3 and all("\\<img" in value for value in raw)


@pytest.mark.parametrize("edge", ["<img src=x onerror=alert(1)>->logits", "L9.H0->logits", "L0.H0"])
def test_edges_that_the_model_does_not_have_are_refused_or_stay_text(view, solved_store, edge):
    def change(payload):
        circuit = payload.get("discovery", {}).get("circuit")
        if circuit:
            circuit["edges"][0]["edge"] = edge

    hostile(solved_store, "circuit-", change)
    app = view(solved_store, "circuit", run="solved")
    assert not app.exception
    assert app.error or "<img" not in frames(app)["frames"][1]["svg"]
