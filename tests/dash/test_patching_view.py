"""The patching view: stored heatmaps, clicks into the address, a what-if with controls, and no torch of its own."""

# ruff: noqa: F811 - fixtures that are imported by name

import base64
import json
import subprocess
import sys

import numpy as np
import pytest

from circuits.graph import edge_graph
from circuits.patch_command.stored import stored_patches
from dashboards.components.heat_grid import NAME, HeatPick
from dashboards.patching_data import what_if_targets
from dashboards.views import patching
from interp.cli import main
from interp.config import ModelConfig
from interp.decoder import decoder_of
from interp.errors import InterpError
from interp.model import Transformer
from tests.dash.analysed import LAST, analysed, hostile, solved_store, worker  # noqa: F401
from tests.dash.conftest import HOSTILE, damage
from tests.dash.seen import text

VIEWS = ("patching", "circuit", "lens", "embedding")


def heat(app) -> dict:
    """What the heat grid was sent."""
    return json.loads(next(one.proto.json for one in app.get("bidi_component") if one.proto.component_name == NAME))


def test_a_run_without_patches_teaches_the_command_and_still_asks_what_if(view, normal_store, worker):
    app = view(normal_store, "patching", run="tiny", step=16, target="L1.H0")
    assert not app.exception
    assert "interp patch tiny --checkpoint 16" in text(app)
    assert any(button.label == "Patch this checkpoint" for button in app.button)
    assert "With L1.H0 ablated" in text(app).replace("\\", "")
    assert worker[0][1]["step"] == 16


def test_the_heatmap_has_a_frame_for_each_patched_checkpoint_and_says_how_it_was_made(view, solved_store):
    app = view(solved_store, "patching", run="solved", t=2)
    assert not app.exception
    (line,) = [caption.value for caption in app.caption if "pair family" in caption.value]
    assert line.replace("\\", "").startswith("direction: denoise · ablation: none · pair family: input (")
    assert line.endswith("n: 6 prompts")
    sent = heat(app)
    assert sent["steps"] == [0, LAST] and sent["frame"] == 1
    (panel,) = sent["panels"]
    assert panel["rows"] == ["L0.H0", "L1.H0"]
    assert panel["columns"] == [
        "BoS",
        "x1",
        "x2",
        "x3",
        "x4",
        "EoI",
        "s1",
        "s2",
    ]
    assert any("last layer" in words for words in panel["reasons"].values())


def test_a_patch_that_cannot_change_anything_is_an_effect_of_zero_as_on_the_page_of_the_command(view, solved_store):
    place = 5  # the last layer writes to positions that no answer is read at
    app = view(solved_store, "patching", run="solved", t=2, component="L1.H0", place=place, step=LAST)
    sent, seen = heat(app), text(app).replace("\\", "")
    assert sent["hatched"] == "not run: exactly 0" and "ested" not in sent["note"]
    assert "checkpoint 13,750: not run: exactly 0 (" in seen and "not tested" not in seen
    run = solved_store.run("solved")
    stored = next(one for one in stored_patches(run) if one.step == LAST)
    assert stored.arrays(run)["value.t2"][1, place] == 0
    figure = (run.path / "analysis" / f"{stored.key}.svg").read_text(encoding="utf-8")
    assert sent["hatched"] in figure


@pytest.mark.parametrize(
    "address", [{"t": 3, "step": 0}, {"t": 1, "step": LAST}, {"layout": "steps", "component": "L1.H0", "step": 0}]
)
def test_the_python_gives_the_table_that_is_shown(view, solved_store, address):
    app = view(solved_store, "patching", run="solved", **address)
    (python,) = [code.value for code in app.code if "stored_patches" in code.value]
    told = "effect = {t: row.tolist() for t, row in effect.items()} if isinstance(effect, dict) else effect.tolist()"
    lines = [python, "import json", told, "print(json.dumps([patches.step, effect]))"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    step, effect = json.loads(done.stdout)
    run = solved_store.run("solved")
    stored = next(one for one in stored_patches(run) if one.step == address["step"]).arrays(run)
    shown = {str(t): stored[f"value.t{t}"][1].tolist() for t in range(4)}  # of L1.H0
    if "t" in address:
        shown = stored[f"value.t{address['t']}"].tolist()
    assert (step, effect) == (address["step"], shown)


def test_the_steps_of_one_component_are_rows_of_growing_length(view, solved_store):
    sent = heat(view(solved_store, "patching", run="solved", layout="steps", component="L1.H0"))
    (panel,) = sent["panels"]
    assert panel["title"] == "L1.H0" and panel["rows"] == ["t=0", "t=1", "t=2", "t=3"]
    assert len(panel["columns"]) == 9


def test_a_click_goes_into_the_address_and_answers_with_five_controls(view, solved_store, worker, monkeypatch):
    picks = [HeatPick(panel=0, row=1, column=7, step=LAST, kind=0, value=1.0)]
    drawn = []

    def grid(panels, **options):
        drawn.append(options)
        return picks.pop() if picks else None

    monkeypatch.setattr(patching, "heat_grid", grid)
    app = view(solved_store, "patching", run="solved", t=2)
    assert not app.exception
    found = {name: app.query_params[name] for name in ("target", "component", "place", "t", "step", "layer", "head")}
    assert [str(value[0] if isinstance(value, list) else value) for value in found.values()] == [
        "L1.H0", "L1.H0", "7", "2", str(LAST), "1", "0",
    ]  # fmt: skip
    seen = text(app)
    assert "L1.H0 at s2 (position 7)" in seen.replace("\\", "")
    assert "With L1.H0 ablated" in seen.replace("\\", "") and "Exploratory" in seen
    (name, asked) = worker[-1]
    assert name == "what_if" and asked["length"] == 4 and asked["target"] == "L1.H0"
    table = next(frame.value for frame in app.dataframe if "states lost" in frame.value)
    assert len(table) == 7 and list(table[""])[:3] == ["unchanged run", "L1.H0 ablated", "L0.H0"]
    said = "asked = WhatIfRequest(run='solved', step=13750, target='L1.H0', ablation='mean', length=4, n="
    assert any(said in code.value for code in app.code)
    app.run()
    assert drawn[-1]["selected"] == (0, 1, 7)


def test_a_rerun_asks_the_worker_nothing_twice(view, solved_store, worker):
    app = view(solved_store, "patching", run="solved", target="L0.H0->L1.H0.v", ablate="zero")
    asked = len(worker)
    app.run()
    assert len(worker) == asked == 1
    assert "L0.H0->L1.H0.v ablated" in text(app).replace("\\", "") or "covers 0" in text(app)


def test_single_prompts_are_recomputed_exactly_on_demand(view, solved_store, worker):
    app = view(solved_store, "patching", run="solved", component="L1.H0", t=2, place=7, prompts="show")
    assert not app.exception
    (table,) = [frame.value for frame in app.dataframe if "donor" in frame.value]
    said = next(one.value for one in app.markdown if "position 7" in one.value).replace("\\", "")
    shown = float(said.split("13,750: ")[1].split(" ")[0])
    assert len(table) == 6 and table["effect"].mean() == pytest.approx(shown, rel=0.01)


def test_what_the_worker_refuses_is_said_and_the_heatmap_stays(view, solved_store, monkeypatch):
    def refuse(*arguments):
        raise InterpError("the worker did not start within 120 s; see its log")

    monkeypatch.setattr("interp.jobs.ask", refuse)
    app = view(solved_store, "patching", run="solved", target="L1.H0")
    assert not app.exception
    assert "did not start within 120 s" in text(app)
    assert heat(app)["steps"] == [0, LAST]


def test_an_address_names_only_what_exists(view, solved_store, worker):
    wild = {"t": -7, "place": 999, "component": "<b>", "target": "../../etc", "ablate": "maim", "stored": 9}
    app = view(solved_store, "patching", run="solved", **wild)
    assert not app.exception and not worker
    assert heat(app)["selected"] == {"panel": 0, "row": 1, "column": 5}  # the last head at the last place of t=0
    link = next(code.value for code in app.code if "?run=solved" in code.value)
    assert not any(word in link for word in ("etc", "maim", "999", "%3Cb"))


def test_targets_are_the_nodes_and_edges_of_the_model():
    for attn_only in (False, True):
        cfg = ModelConfig(n_layers=3, n_heads=2, d_model=8, d_vocab=7, n_ctx=5, attn_only=attn_only)
        graph = edge_graph(decoder_of(Transformer(cfg, seed=0)))
        expected = [*graph.senders[1:], *(graph.name(*edge) for edge in graph.edges)]
        assert sorted(what_if_targets(cfg)) == sorted(expected)
    renormalised = ModelConfig(n_layers=2, n_heads=1, residual="normed")
    assert what_if_targets(renormalised) == ["L0.H0", "M0", "L1.H0", "M1"]


def test_markup_in_stored_patches_stays_text(view, solved_store, worker):
    def change(payload):
        payload["drawn"] |= dict.fromkeys(("intervention", "metric", "pairs", "raises", "lowers"), HOSTILE)
        payload["drawn"]["components"] = [HOSTILE, "L1.H0"]
        payload["drawn"]["reasons"] = [HOSTILE] * len(payload["drawn"]["reasons"])
        payload["drawn"]["places"] = {t: [HOSTILE] * len(names) for t, names in payload["drawn"]["places"].items()}

    hostile(solved_store, "patch-", change)
    app = view(solved_store, "patching", run="solved", t=2, place=7, component=HOSTILE[:200])
    assert not app.exception
    raw = [one.value for one in (*app.markdown, *app.caption) if "onerror" in one.value]
    assert raw and all("\\<img" in value or "&lt;img" in value for value in raw)


@pytest.mark.parametrize("name", VIEWS)
def test_damaged_analyses_are_named_with_the_command_that_makes_them_again(view, solved_store, name):
    damage(solved_store.run("solved"), "analysis")
    app = view(solved_store, name, run="solved")
    assert not app.exception
    assert app.error and "analysis" in text(app)
    assert any(code.value.startswith("interp ") for code in app.code)


@pytest.mark.parametrize("name", VIEWS)
def test_arrays_that_do_not_fit_their_names_are_refused(view, solved_store, name):
    def change(payload):
        for part in ("drawn", "lens", "embedding"):
            if part in payload:
                for field in ("components", "depths", "tokens"):
                    payload[part][field] = payload[part].get(field, [])[:1]
        if "discovery" in payload:
            payload["discovery"]["circuit"] = {"edges": 7}

    hostile(solved_store, "", change)
    app = view(solved_store, name, run="solved")
    assert not app.exception
    assert app.error


def test_the_views_load_no_torch():
    modules = ", ".join(f"dashboards.views.{name}" for name in VIEWS)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {modules}; print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr


def test_edges_at_all_positions_are_a_table_of_senders_by_receivers(view, solved_store):
    line = ["patch", "solved", "--by", "edge", "--length", "3", "--step", "1", "--n", "4"]
    assert main([*line, "--store", str(solved_store.root)]) == 0
    app = view(solved_store, "patching", run="solved", stored=1, component="M0->L1.H0.v", place=0, t=1)
    assert not app.exception
    sent = heat(app)
    (panel,) = sent["panels"]
    assert panel["rows"] == ["embed", "L0.H0", "M0", "L1.H0", "M1"]
    assert panel["columns"][:4] == ["L0.H0.q", "L0.H0.k", "L0.H0.v", "M0"]
    assert sent["selected"] == {"panel": 0, "row": 2, "column": panel["columns"].index("L1.H0.v")}
    kinds = np.frombuffer(base64.b64decode(panel["frames"][0]["kinds"]), np.uint8).reshape(5, -1)
    assert kinds[3, 0] == 3  # a later head writes into no earlier one
