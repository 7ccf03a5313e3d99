"""The report view where circuits are stored: the page of the circuit is made as a job, shown, and kept up to date."""

# ruff: noqa: F811 - fixtures that are imported by name

import json
import os

import pytest

from circuits.report.circuit_stored import shelf_of_run, stored_circuit, write_circuit_page
from interp import jobs
from tests.dash.analysed import analysed, solved_store  # noqa: F401
from tests.dash.seen import text

PREVIEW = "interp_report_preview"


@pytest.fixture
def made(solved_store):
    """The page of the stored circuit of `solved`."""
    shelf = shelf_of_run(solved_store.run("solved"))
    return write_circuit_page(shelf, stored_circuit(shelf, None))


def shown(app) -> list[dict]:
    """What the frames that show a page were sent."""
    return [json.loads(one.proto.json) for one in app.get("bidi_component") if one.proto.component_name == PREVIEW]


def kinds(app) -> list:
    """The choice between the two reports, where there is one."""
    return [one for one in app.get("button_group") if one.proto.label == "Report"]


def test_a_run_without_circuits_has_one_report_and_no_choice(view, normal_store):
    assert not kinds(view(normal_store, "report", run="tiny"))


def test_where_circuits_are_stored_their_page_is_offered_and_made_by_a_job(view, solved_store, monkeypatch):
    app = view(solved_store, "report", run="solved")
    assert not app.exception and len(kinds(app)) == 1
    assert "This run has no report yet." in text(app)
    app = view(solved_store, "report", run="solved", about="circuit")
    assert "The page of this circuit is not made yet." in text(app)
    assert "interp report circuit solved --store" in text(app)
    asked = []
    monkeypatch.setattr(jobs, "start", lambda store, words, run: asked.append((words, run)))
    app.button(key="report.offer").click().run()
    assert not app.exception
    assert asked == [(["report", "circuit", "solved"], "solved")]


def test_a_page_that_is_there_comes_first_and_can_be_downloaded(view, solved_store, made):
    app = view(solved_store, "report", run="solved")
    assert not app.exception
    (frame,) = shown(app)
    assert frame["html"] == made["html"].read_text(encoding="utf-8") and frame["title"] == "Circuit of run solved"
    labels = [button.proto.label for button in app.get("download_button")]
    assert labels == ["Download circuit.html", "Download circuit.svg", "Download circuit.json"]
    assert not app.warning
    newest = max((solved_store.run("solved").path / "analysis").glob("circuit-*.json"))
    os.utime(newest, ns=(1 << 62, 1 << 62))
    app = view(solved_store, "report", run="solved")
    assert "stored after this page was made" in app.warning[0].value
