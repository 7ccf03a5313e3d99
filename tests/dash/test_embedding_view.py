"""The embedding view: points on axes that fit every checkpoint, with how much of the variance they show."""

# ruff: noqa: F811 - fixtures that are imported by name

import json

import pytest

from dashboards.views.embedding import explained, plane, point_rows
from probes.stored import stored_embedding
from tests.dash.analysed import LAST, analysed, hostile, solved_store  # noqa: F401
from tests.dash.conftest import HOSTILE
from tests.dash.seen import text


def chart(solved_store, what: str, frame: int, trail: bool = True) -> dict:
    """The chart as Vega-Lite."""
    return json.loads(plane(stored_embedding(solved_store.run("solved")), what, frame, trail).to_json())


def test_a_run_without_embeddings_teaches_the_command(view, normal_store):
    app = view(normal_store, "embedding", run="tiny")
    assert not app.exception
    assert "interp probe tiny --what embedding" in text(app)
    assert any(button.label == "Follow the embeddings" for button in app.button)


def test_the_view_prints_the_explained_variance_of_the_step_and_of_the_fit(view, solved_store):
    app = view(solved_store, "embedding", run="solved", step=0)
    assert not app.exception
    found = stored_embedding(solved_store.run("solved"))
    said = explained(found, "tokens", 0)
    assert said in text(app).replace("\\", "")
    assert f"{found.explained['tokens'][0]:.1%}" in said and "13,750" in said
    fitted = explained(found, "tokens", 1)
    assert fitted.count("13,750") == fitted.count(f"{found.explained['tokens'][0]:.1%}") == 1


def test_the_axes_are_the_same_at_every_checkpoint(solved_store):
    domains = set()
    for frame in (0, 1):
        shown = chart(solved_store, "tokens", frame)
        layers = [layer["encoding"] for layer in shown["layer"]]
        domains |= {json.dumps([one[axis]["scale"]["domain"] for axis in "xy"]) for one in layers}
    assert len(domains) == 1


def test_points_carry_the_names_and_the_way_begins_at_the_first_step(solved_store):
    found = stored_embedding(solved_store.run("solved"))
    rows = point_rows(found, "tokens", 1)
    assert [row["name"] for row in rows[:4]] == ["BoS", "EoI", "EoS", "0"]
    assert [row["kind"] for row in rows[:4]] == ["special"] * 3 + ["value"]
    assert rows[3]["x"] == pytest.approx(float(found.places["tokens"][1, 3, 0]))
    assert (
        len(chart(solved_store, "tokens", 1)["layer"])
        == len(chart(solved_store, "tokens", 1, trail=False)["layer"]) + 1
    )


def test_positions_are_joined_in_their_order(view, solved_store):
    app = view(solved_store, "embedding", run="solved", what="positions")
    assert not app.exception
    assert "variance of the positions" in text(app)
    first = chart(solved_store, "positions", 1)["layer"][0]
    assert first["mark"]["type"] == "line" and first["encoding"]["order"]["field"] == "number"


def test_an_address_that_names_nothing_falls_back(view, solved_store):
    app = view(solved_store, "embedding", run="solved", what="<b>", trail="maybe", step=-5)
    assert not app.exception
    assert "step 0" in text(app).replace("\\", "") or str(LAST) in text(app)


def test_markup_in_stored_names_stays_text(view, solved_store):
    def change(payload):
        payload["embedding"]["tokens"] = [HOSTILE] * len(payload["embedding"]["tokens"])

    hostile(solved_store, "embedding-", change)
    app = view(solved_store, "embedding", run="solved")
    assert not app.exception
    assert not [one for one in (*app.markdown, *app.caption) if "onerror" in one.value]
