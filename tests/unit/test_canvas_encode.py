"""Frames of the attention grid, dense and sparse, its binary message, and the data of the heat grid."""

import base64
import json

import numpy as np
import pytest

from circuits.report.canvas.encode import frame_bytes, kept_keys, levels_of, packed, thinned, top_keys
from circuits.report.canvas.grid import grid_of_patterns
from circuits.report.canvas.heat import EFFECT, NEUTRAL, NONE, SKIPPED, HeatPanel, heat_data
from interp.errors import UsageError

UNIFORM = np.full((1, 1, 2, 2), 0.5)


def causal(n_pos: int, heads: int = 1, seed: int = 0) -> np.ndarray:
    """Random causal patterns, [1 head q k]."""
    logits = np.random.default_rng(seed).normal(0, 2, (1, heads, n_pos, n_pos))
    weights = np.exp(logits) * np.tri(n_pos)
    return weights / weights.sum(-1, keepdims=True)


def test_the_strongest_keys_come_first_and_the_earlier_of_equals():
    levels = np.array([[[[5, 9, 5, 0]]]], dtype=np.uint8)
    data = top_keys(levels, 3)
    assert np.frombuffer(data[:6], "<u2").tolist() == [1, 0, 2]
    assert list(data[6:]) == [9, 5, 5]


def test_a_sparse_frame_holds_the_same_values_as_a_dense_one_at_the_keys_it_keeps():
    pattern = causal(20, heads=2)
    levels, data = levels_of(pattern), frame_bytes(pattern, 4)
    keys = np.frombuffer(data[: 2 * 20 * 4 * 2], "<u2").reshape(1, 2, 20, 4)
    kept = np.frombuffer(data[2 * 20 * 4 * 2 :], np.uint8).reshape(1, 2, 20, 4)
    assert (np.take_along_axis(levels, keys.astype(int), -1) == kept).all()
    dropped = np.sort(levels, -1)[..., -4:]
    assert (np.sort(kept, -1) == dropped).all()


@pytest.mark.parametrize(("tokens", "kept"), [(2, 0), (512, 0), (513, 32), (4096, 32)])
def test_all_keys_are_kept_up_to_512_tokens(tokens, kept):
    assert kept_keys(tokens, tokens) == kept


def test_a_message_gives_its_head_and_every_frame_back():
    frames = [frame_bytes(UNIFORM), b"\x01\x02\x03\x04"]
    data = packed({"steps": [0, 1], "examples": [{"label": "é </script>", "patterns": frames}]})
    size = int.from_bytes(data[:4], "little")
    head, body = json.loads(data[4 : 4 + size]), data[4 + size :]
    assert head["examples"][0]["label"] == "é </script>"
    assert [body[a:b] for a, b in head["examples"][0]["patterns"]] == frames


@pytest.mark.parametrize(
    ("count", "frame", "budget", "places"),
    [(3, 10, 100, [0, 1, 2]), (5, 10, 30, [0, 2, 4]), (5, 10, 1, [0, 4]), (1, 10, 1, [0]), (0, 1, 1, [])],
)
def test_thinning_keeps_the_first_and_the_last_frame(count, frame, budget, places):
    assert thinned(count, frame, budget) == places


def test_a_grid_of_patterns_is_one_deterministic_page_that_allows_only_its_own_script():
    grid = grid_of_patterns(UNIFORM, ["a", "</script><b>"], title="<i>")
    assert grid.html() == grid_of_patterns(UNIFORM, ["a", "</script><b>"], title="<i>").html()
    assert "default-src 'none'" in grid.html()
    assert "</script><b>" not in grid.html()
    assert "<i>" not in grid.html()
    assert 'sandbox="allow-scripts"' in grid._repr_html_()
    assert "http:" not in grid._repr_html_()
    assert "https:" not in grid._repr_html_()


def test_a_saved_grid_is_its_html(tmp_path):
    grid = grid_of_patterns(np.stack([UNIFORM, UNIFORM]), ["a", "b"], steps=[0, 64], roles={"L0.H0": "reading head"})
    assert grid.save(tmp_path / "a.html").read_text(encoding="utf-8") == grid.html()


@pytest.mark.parametrize(
    ("patterns", "tokens", "steps"),
    [(UNIFORM, "abc", None), (UNIFORM[0], "ab", None), (UNIFORM, "ab", [0, 1]), (UNIFORM * 3, "ab", None)],
)
def test_patterns_that_do_not_fit_are_refused_in_words(patterns, tokens, steps):
    with pytest.raises(UsageError, match=r"do not fit|must be finite"):
        grid_of_patterns(patterns, list(tokens), steps=steps)


def panel(**changes) -> HeatPanel:
    """One row of four cells: an effect, one whose interval covers 0, one not tested, one that does not exist."""
    values = np.array([[0.5, 0.1, 0.0, np.nan]])
    given = {"values": values, "low": values - 0.2, "high": values + 0.2, "tested": np.array([[1, 1, 0, 1]], bool)}
    return HeatPanel("Layer 0", ["L0.H0"], ["0", "1", "2", "3"], **{**given, **changes})


def test_cells_are_effects_neutral_not_tested_or_absent():
    assert panel().kinds().tolist() == [[[EFFECT, NEUTRAL, SKIPPED, NONE]]]


def test_the_scale_is_the_largest_effect_and_ignores_what_is_no_effect():
    values = np.array([[-0.5, 9.0, 8.0, 0.2]])
    data = heat_data(
        [panel(values=values, low=values - [[0, 10, 0, 0]], high=values)], metric="m", raises="up", lowers="down"
    )
    assert data["scale"] == 0.5
    exact = np.frombuffer(base64.b64decode(data["panels"][0]["frames"][0]["values"]), "<f4")
    assert exact.tolist() == values.astype("<f4")[0].tolist()


def test_frames_follow_the_steps_and_the_asked_step_is_shown_first():
    two = np.ones((2, 1, 4))
    parts = {"values": two, "low": None, "high": None, "tested": None}
    data = heat_data([panel(**parts)], metric="m", raises="u", lowers="d", steps=[0, 64], step=0, selected=(0, 0, 3))
    assert (data["frame"], data["selected"]) == (0, {"panel": 0, "row": 0, "column": 3})
    with pytest.raises(ValueError, match="2"):
        heat_data([panel(**parts)], metric="m", raises="u", lowers="d", steps=[0, 64, 90])


def test_tables_that_do_not_fit_their_labels_are_refused():
    with pytest.raises(ValueError, match="Layer 0"):
        heat_data([panel(values=np.ones((2, 4)))], metric="m", raises="u", lowers="d")
