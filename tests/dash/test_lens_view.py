"""The lens view: probabilities over a guess with intervals, hatched where nothing is asked, and single prompts."""

# ruff: noqa: F811 - fixtures that are imported by name

import base64
import json
import re

import numpy as np
import pytest

from dashboards.components.heat_grid import NAME, HeatPick
from dashboards.lens_data import cell_words, example_rows, lens_frames, lens_panel
from dashboards.views import lens
from tests.dash.analysed import LAST, analysed, hostile, solved_store  # noqa: F401
from tests.dash.conftest import HOSTILE
from tests.dash.seen import text


def heat(app) -> dict:
    """What the heat grid was sent."""
    return json.loads(next(one.proto.json for one in app.get("bidi_component") if one.proto.component_name == NAME))


def test_a_run_without_a_lens_teaches_the_command(view, normal_store):
    app = view(normal_store, "lens", run="tiny")
    assert not app.exception
    assert "interp probe tiny --what lens" in text(app)
    assert any(button.label == "Look through the lens" for button in app.button)


def test_the_grid_has_the_last_depth_on_top_and_hatches_what_is_not_asked(view, solved_store):
    sent = heat(view(solved_store, "lens", run="solved", step=0))
    assert sent["steps"] == [0, LAST] and sent["frame"] == 0
    (panel,) = sent["panels"]
    assert sent["hatched"] == "the task does not ask for the next token there" and not panel["reasons"]
    assert panel["rows"] == ["L1", "L1 attention", "L0", "L0 attention", "embed"]
    kinds = np.frombuffer(base64.b64decode(panel["frames"][1]["kinds"]), np.uint8).reshape(5, -1)
    asked = [name in ("EoI", "s1", "s2", "s3", "s4") for name in panel["columns"]]
    assert ((kinds == 2) == ~np.array(asked)).all()
    assert (kinds[0, asked] == 0).all()  # the solved model is far above a guess at its last depth


def test_values_are_probabilities_above_a_guess(solved_store):
    frames = lens_frames(solved_store.run("solved"))
    panel = lens_panel(frames)
    assert frames.chance == 1 / 14
    assert panel.values[-1, 0, frames.about["positions"].index("s2")] > 0.8
    assert np.abs(panel.values[0]).max() < 0.5
    words = cell_words(frames, 1, 0, frames.about["positions"].index("s2"))
    assert words.startswith("L1 at s2, checkpoint 13,750: probability of the right token 1.000 [")
    assert words.endswith("of 16 prompts.")


def test_a_click_goes_into_the_address_and_is_told_in_words(view, solved_store, monkeypatch):
    picks = [HeatPick(panel=0, row=0, column=7, step=0, kind=0, value=0.1)]
    monkeypatch.setattr(lens, "heat_grid", lambda *given, **named: picks.pop() if picks else None)
    app = view(solved_store, "lens", run="solved")
    assert not app.exception
    values = {name: app.query_params[name] for name in ("depth", "place", "step")}
    assert {name: str(one[0] if isinstance(one, list) else one) for name, one in values.items()} == {
        "depth": "0", "place": "7", "step": "0",
    }  # fmt: skip
    assert "L1 at s2, checkpoint 0: probability" in text(app).replace("\\", "")


def test_a_prompt_is_shown_token_by_token(solved_store):
    frames = lens_frames(solved_store.run("solved"))
    rows = example_rows(frames, 1, 3)
    tokens = frames.about["examples"][3]
    last = [row for row in rows if row["depth"] == "L1" and row["said"] != "not asked"]
    assert len(last) == 5
    for row in last:
        assert row["right"] == tokens[row["place"] + 1]
        assert (row["top"] == row["right"]) == (row["said"] == "right") == (row["rank"] == 1)
    assert sum(row["said"] == "right" for row in last) >= 4


def test_an_address_beyond_the_table_is_clamped(view, solved_store):
    app = view(solved_store, "lens", run="solved", depth=77, place=-3, example=99, step="x")
    assert not app.exception
    assert heat(app)["selected"] is None and heat(app)["frame"] == 1


def test_markup_in_a_stored_lens_stays_text(view, solved_store):
    def change(payload):
        about = payload["lens"]
        about["vocabulary"] = [HOSTILE] * len(about["vocabulary"])
        about["positions"] = [HOSTILE] * len(about["positions"])
        about["examples"] = [[HOSTILE] * len(one) for one in about["examples"]]
        about["prompts"] = HOSTILE

    hostile(solved_store, "lens-", change)
    app = view(solved_store, "lens", run="solved", depth=0, place=7)
    assert not app.exception
    raw = [one.value for one in (*app.markdown, *app.caption) if "onerror" in one.value]
    assert raw and all("\\<img" in value for value in raw)


def brightness(colour: np.ndarray) -> float:
    """Relative luminance of red, green and blue from 0 to 255, as in WCAG 2."""
    part = colour / 255
    return float(np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize(("ground", "which"), [("#ffffff", 0), ("#171614", 1)])
def test_a_token_is_readable_on_a_cell_of_any_strength_in_both_themes(ground, which):
    cells, words = (layer["encoding"] for layer in lens.tokens([], []).to_dict()["layer"])
    written = re.findall("#[0-9a-f]{6}", words["color"]["value"]["expr"])[which]
    named = [written, ground, *cells["color"]["scale"]["range"]]
    ink, back, *colours = (np.array([int(one[at : at + 2], 16) for at in (1, 3, 5)]) for one in named)
    low, high = cells["opacity"]["scale"]["range"]
    mixed = [part * colour + (1 - part) * back for colour in colours for part in np.linspace(low, high, 50)]
    pairs = [sorted((brightness(one), brightness(ink))) for one in mixed]
    assert min((high + 0.05) / (low + 0.05) for low, high in pairs) >= 4.5
