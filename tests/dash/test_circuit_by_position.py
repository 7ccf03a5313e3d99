"""The circuit view of circuits by position: their own story and drawing, and the files that it offers."""

# ruff: noqa: F811 - fixtures that are imported by name

import json
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from circuits.circuit import Circuit
from circuits.stored import choose, discovery_payload, stored_circuits
from dashboards.circuit_data import frames_of, has_columns, lives, series_of
from dashboards.circuit_download import drawing_file, page_file
from dashboards.components.circuit_frames import NAME, CircuitPick
from dashboards.views import circuit
from interp.errors import InterpError
from interp.run import Run
from tests.dash.analysed import LAST, analysed, solved_store  # noqa: F401
from tests.dash.seen import text
from tests.unit.small_circuits import discovery, placed, shape
from tests.unit.test_circuit_page import REQUEST

EDGES = {("embed->L0.H0.k", 1, 3): 1.0, ("embed->L0.H0.k", 0, 2): 0.5, ("L0.H0->logits", 3, 3): -2.0}


@pytest.fixture
def run(solved_store) -> Run:
    """`solved`, searched at every checkpoint without positions, and at the last one by position."""
    keep(solved_store.run("solved"), LAST, placed(EDGES, shape(heads=1)))
    return solved_store.run("solved")


def keep(run: Run, step: int, one: Circuit) -> None:
    """Store a circuit by position of one checkpoint."""
    found = discovery(one)
    run.write_analysis(f"circuit-p{step}", discovery_payload(step, "ab" * 32, REQUEST | {"by_position": True}, found))


def sent(app) -> list[dict]:
    """The frames that the drawings' element was sent."""
    proto = next(one.proto for one in app.get("bidi_component") if one.proto.component_name == NAME)
    return json.loads(proto.json)["frames"]


def test_a_search_by_position_is_not_given_the_story_of_the_search_without(view, run, solved_store):
    series = series_of(run)
    whole, by_position = (lives(run, series[name]) for name in ("whole", "by position"))
    assert whole[2] and not by_position[2]
    assert {one.edge for one in by_position[0]} == {"embed->L0.H0.k", "L0.H0->logits"}
    app = view(solved_store, "circuit", run="solved", edges="by position")
    assert not app.exception
    seen = text(app).replace("\\", "")
    assert "**Edges through training**, of the search by position" in seen and "Born" not in seen
    assert "Circuits by position of 1 checkpoint are stored." in seen
    assert "interp circuit solved --checkpoints all --positions --store" in seen
    whole_seen = text(view(solved_store, "circuit", run="solved", edges="whole"))
    assert "of the search without positions" in whole_seen and "Born" in whole_seen


def test_a_circuit_by_position_is_drawn_with_a_column_for_each_position_or_as_one(view, run, solved_store):
    (frame,) = sent(view(solved_store, "circuit", run="solved", edges="by position"))
    assert "edges by position, none pooled" in frame["svg"]
    assert 'data-edge="embed@x1-&gt;L0.H0.k@s1" data-whole="embed-&gt;L0.H0.k"' in frame["svg"]
    assert frame["svg"].count('data-whole="embed-&gt;L0.H0.k"') == 2 and 'data-node="L0.H0"' in frame["svg"]
    (frame,) = sent(view(solved_store, "circuit", run="solved", edges="by position", drawn="pooled"))
    assert "all positions of an edge drawn as one" in frame["svg"] and "none pooled" not in frame["svg"]
    app = view(solved_store, "circuit", run="solved", edges="whole", drawn="columns")
    assert not any("none pooled" in frame["svg"] for frame in sent(app))
    assert not [one for one in app.get("button_group") if one.proto.label == "Positions"]


def test_columns_share_a_scale_and_a_checkpoint_without_room_for_them_says_so(run, monkeypatch):
    keep(run, 0, placed({("embed->L0.H0.k", 1, 3): 8.0}, shape(heads=1)))
    series = series_of(run)["by position"]
    first, last = frames_of(run, series, columns=True)
    assert first.svg.count("score| 8.000") == last.svg.count("score| 8.000") == 1
    monkeypatch.setattr("circuits.report.circuit_positions.MOST_EDGES", 2)
    assert has_columns(run, series)
    first, last = frames_of(run, series, columns=True)
    assert "none pooled" in first.svg and "too large" not in first.words
    assert "none pooled" not in last.svg and last.words.endswith("too large for a column for each position")
    monkeypatch.setattr("circuits.report.circuit_positions.MOST_EDGES", 0)
    assert not has_columns(run, series) and not has_columns(run, series_of(run)["whole"])


def test_the_view_shows_the_search_that_the_report_takes(view, run, solved_store):
    old = choose(stored_circuits(run), LAST, False)
    payload = run.analysis(old.key)
    payload["request"]["settings"]["reruns"] = 3
    run.write_analysis("circuit-complete", payload | {"saved": "2000"})
    assert series_of(run)["whole"].at(LAST).key == "circuit-complete"
    app = view(solved_store, "circuit", run="solved", edges="whole")
    (python,) = [code.value for code in app.code if "stored_circuits" in code.value]
    line = f"{python}\nprint(found.key)"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "circuit-complete", done.stderr


def test_drawing_and_page_of_the_shown_circuit_are_files_made_on_demand(view, run, solved_store):
    app = view(solved_store, "circuit", run="solved", edges="by position")
    labels = [one.proto.label for one in app.get("download_button")]
    assert labels == ["Drawing (SVG)", "circuit.json", "Report (HTML)"]
    one = series_of(run)["by position"].at(LAST)
    for columns, said in ((True, "none pooled"), (False, "drawn as one")):
        drawing = drawing_file(run, one, columns)
        assert said in drawing and "var(" not in drawing and ET.fromstring(drawing).get("height")
    text = page_file(run, one).decode("utf-8")
    assert f"<h1>Circuit by position for polynomial: solved, step {LAST:,}</h1>" in text and "none pooled" in text
    assert not (run.path / "report").exists()


def test_a_page_that_cannot_be_written_says_why(run):
    one = series_of(run)["by position"].at(LAST)
    (run.path / "analysis" / f"{one.key}.json").write_text("{}")
    with pytest.raises(InterpError, match=one.key):
        page_file(run, one)


def test_the_files_are_those_of_the_checkpoint_that_the_slider_was_let_go_at(view, solved_store, monkeypatch):
    monkeypatch.setattr(circuit, "circuit_frames", lambda *given, **named: CircuitPick(None, 0))
    app = view(solved_store, "circuit", run="solved", step=LAST)
    assert [one.proto.label for one in app.get("download_button")] == ["Report (HTML)"]  # step 0 has no circuit
    assert any("step=0, by_position=False" in code.value for code in app.code)


def test_without_a_circuit_there_is_a_page_and_no_drawing_to_download(view, run, solved_store):
    app = view(solved_store, "circuit", run="solved", edges="whole", step=0)
    assert [one.proto.label for one in app.get("download_button")] == ["Report (HTML)"]
