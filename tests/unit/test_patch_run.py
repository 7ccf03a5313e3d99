"""Patching a run: what is asked for, the pairs, the effects with their intervals, the figure and the files."""

import base64
import hashlib
import re
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
import torch

from circuits.engine.sites import SITES
from circuits.metrics import LogitDiff
from circuits.patch_command import prompts as prompts_module
from circuits.patch_command import run as patch_run_module
from circuits.patch_command.cells import DRAWS, bounds, cells_of, of_runs, of_shares, resampled, strongest
from circuits.patch_command.files import write_patches
from circuits.patch_command.panels import panels_of
from circuits.patch_command.prompts import pairs_of
from circuits.patch_command.request import UNITS, request
from circuits.patch_command.run import RunPatches, patch_run
from circuits.patch_command.stored import stored_patches, through_training
from circuits.patching import patch_heads
from circuits.report.heatmap import HeatCell, Legend, Panel, heatmap
from interp.analysis import read_analysis, read_arrays
from interp.cli import main
from interp.errors import UsageError
from interp.rng import generator
from interp.run import Run, Store
from interp.train import load_model
from probes.intervals import Estimate, mean
from tests.truth.exported import exported

LENGTH, N = 5, 12
SVG = "{http://www.w3.org/2000/svg}"


def solved_run(folder: Path) -> Run:
    """A run folder around a trained polynomial model, which has the reading head in L1.H0."""
    (trained,) = exported("polynomial-d32-s1")
    model, _, _ = trained.load()
    made = Store(folder).create("solved", trained.config)
    with made.writer() as writer:
        writer.save(trained.step, model=model.state_dict(), optim={}, state={})
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A solved run."""
    return solved_run(tmp_path_factory.mktemp("runs"))


def patched(run: Run, **asked) -> RunPatches:
    """Few prompts of a short length."""
    return patch_run(run, request(**{"n": N, "length": LENGTH, "precision": "fp64", **asked}))


@pytest.fixture(scope="module")
def solved(run) -> RunPatches:
    """Every head at every position, on input pairs."""
    return patched(run, verify=24)


def test_the_reading_head_at_the_query_carries_nearly_the_whole_effect_of_an_input_pair(solved):
    for step, cells in zip(solved.steps, cells_of(solved), strict=True):
        best = strongest([cells], 1)[0]
        assert (best.component, best.pos) == ("L1.H0", step.query)
        assert best.share.low > 0.99
        others = [cell for row in cells for cell in row if (cell.component, cell.pos) != ("L1.H0", step.query)]
        assert max(abs(cell.share.value) for cell in others) < 0.05
    assert [step.t for step in solved.steps] == list(range(LENGTH))


def test_effects_of_all_steps_are_those_of_plain_hooked_forwards(solved):
    assert solved.verification.n == 24
    assert solved.verification.max_error < 1e-10
    assert solved.verification.largest_effect > 1


def test_a_wrong_effect_is_seen_by_the_check(solved):
    step = solved.steps[-1]
    saved = step.result.effect.clone()
    step.result.effect.add_(1e-6 * (step.result.reason == 0))
    try:
        assert patch_run_module.verification(list(solved.steps), 24).max_error > 5e-7
    finally:
        step.result.effect.copy_(saved)


@pytest.mark.parametrize("family", ["input", "state", "clock"])
def test_pairs_are_different_held_out_and_change_the_answer(run, family):
    task = load_model(run)[1]
    held_out = task.split(run.config.seed, run.config.data).test[LENGTH]
    pairs = pairs_of(task, request(pairs=family, n=N), LENGTH, 2, held_out)
    rows = torch.cat((pairs.clean, pairs.donor), 1)
    assert len(rows) == len(rows.unique(dim=0)) == N
    assert pairs.clean.shape[1] == pairs.donor.shape[1] == pairs.query + 1
    assert bool(pairs.differs.all())
    known = set(map(tuple, held_out[:, : pairs.query + 1].tolist()))
    assert set(map(tuple, pairs.clean.tolist())) <= known


def test_where_few_pairs_exist_none_is_counted_twice(run):
    task = load_model(run)[1]
    held_out = task.split(run.config.seed, run.config.data).test[1]
    pairs = pairs_of(task, request(n=80), 1, 0, held_out)
    rows = torch.cat((pairs.clean, pairs.donor), 1)
    assert len(rows) == len(rows.unique(dim=0)) == 9 * len(held_out)  # each with the nine other inputs as donors


def test_clock_pairs_move_the_clock_head_and_have_no_whole_difference(run):
    found = patched(run, pairs="clock", t="2")
    (cells,) = cells_of(found)
    best = strongest([cells], 1)[0]
    assert (best.component, best.pos, best.share) == ("L0.H0", found.steps[0].query, None)
    assert best.effect.high < 0 < of_runs(found)["base"].low
    assert all(cell.share is None for row in cells for cell in row)


def test_the_metric_of_the_clean_run_is_higher_than_that_of_the_donor(solved, run):
    denoised, noised = of_runs(solved), of_runs(patched(run, direction="noise"))
    assert denoised["base"].high < 0 < denoised["source"].low
    assert (noised["base"].value, noised["source"].value) == pytest.approx(
        (denoised["source"].value, denoised["base"].value), abs=1e-10
    )
    assert denoised["right"] == Estimate(1.0, denoised["right"].low, 1.0, LENGTH * N, "wilson")


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_gives_named_components_and_a_table_of_its_effects(run, unit):
    found = patched(run, by=unit, t="2")
    (step,) = found.steps
    places = step.query + 1 if unit.endswith("position") else 1
    counts = {"head": 2, "layer": 2, "neuron": 256, "edge": 23}
    assert step.effect.shape == (N, counts[unit.partition(",")[0]], places)
    assert len(set(step.components)) == len(step.components)
    frame = found.frame()
    assert len(frame) == step.effect.numel()
    assert float(frame["effect"].sum()) == pytest.approx(float(step.effect.sum()), abs=1e-9)
    assert found.kind == step.result.kind
    assert strongest(cells_of(found), 1)


def test_units_agree_where_they_patch_the_same_thing(run):
    at = {unit: patched(run, by=unit, t="2").steps[0] for unit in UNITS}
    last = at["head,position"].effect[:, 1, -1]  # the last layer writes at the query only
    assert float((at["head"].effect[:, 1, 0] - last).abs().max()) < 1e-10
    whole = at["layer"].source - at["layer"].base  # the whole stream before the first block
    assert float((at["layer"].effect[:, 0, 0] - whole).abs().max()) < 1e-10
    pooled, resolved = at["edge"], at["edge,position"]
    index = pooled.components.index("embed->M0")  # an input pair differs in one embedding only
    assert float((pooled.effect[:, index, 0] - resolved.effect[:, index, 3]).abs().max()) < 1e-10
    assert resolved.places[3] == "x3"


def test_ablations_act_on_the_clean_run_and_have_no_source(run):
    noised = patched(run, direction="noise", t="2").steps[0]
    effects = set()
    for kind in ("zero", "mean", "resample"):
        found = patched(run, ablation=kind, t="2")
        (step,) = found.steps
        assert (found.request.direction, step.source) == (None, None)
        assert float((step.base - noised.base).abs().max()) < 1e-10
        assert all(cell.share is None for row in cells_of(found)[0] for cell in row)
        effects.add(round(float(step.effect[:, 1, -1].mean()), 6))
    assert len(effects) == 3


def test_resampling_takes_the_value_of_another_clean_prompt(run):
    found = patched(run, ablation="resample", t="2")
    (step,) = found.steps
    order = torch.randperm(N, generator=generator(0, "resample"))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    model, clean = load_model(run)[0].double(), step.pairs.clean
    metric = LogitDiff(step.pairs.clean_answer, step.pairs.swap_answer)
    given = {"corrupted": clean[partner], "metric": metric, "direction": "noise", "precision": "fp64"}
    assert float((patch_heads(model, clean=clean, **given).effect.flatten(1, 2) - step.effect).abs().max()) < 1e-10


def test_too_many_effects_leave_the_middle_step(run, monkeypatch):
    monkeypatch.setattr(prompts_module, "LARGEST", 100)
    found = patched(run)
    assert [step.t for step in found.steps] == [2]
    assert found.left_out == (0, 1, 3, 4)
    assert len(patched(run, t="all").steps) == LENGTH


def test_steps_without_pairs_are_named_with_the_reason(run):
    found = patched(run, pairs="state")
    assert [step.t for step in found.steps] == [1, 2, 3, 4]
    assert "no state pair at t=0" in found.refused[0]
    with pytest.raises(UsageError, match="no state pair at t=0"):
        patched(run, pairs="state", t="0")


def test_intervals_are_those_of_the_bootstrap_over_prompts():
    values = torch.randn(10, 3, generator=generator(0, "values"), dtype=torch.float64)
    low, high = bounds(values, resampled(10, generator(5, "draws")))
    for cell in range(3):
        expected = mean(values[:, cell], generator(5, "draws"), DRAWS)
        assert (low[cell], high[cell]) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_share_is_a_ratio_of_means_within_each_sample():
    whole = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    low, high = bounds(0.25 * whole[:, None], resampled(4, generator(0, "draws")), whole)
    assert (low[0], high[0]) == pytest.approx((0.25, 0.25), abs=1e-12)


def test_prompts_that_all_agree_leave_an_accuracy_uncertain():
    flat = Estimate(0.0, 0.0, 0.0, 20, "bootstrap over prompts")
    lost, same = of_shares(-torch.ones(20), flat), of_shares(torch.zeros(20), flat)
    assert (lost.value, lost.low, lost.n) == (-1.0, -1.0, 20)
    assert -0.9 < lost.high < -0.8
    assert same.low == -same.high < 0
    mixed = torch.tensor([0.0, -1.0])
    assert of_shares(mixed, flat) is flat


WRONG = [
    ({"by": "position"}, "--by position: names no activation"),
    ({"by": "head,edge"}, "--by head,edge: expected head,position"),
    ({"by": "heads"}, "unknown word of --by 'heads'; did you mean 'head'?"),
    ({"by": "layer,position", "site": "z"}, "--site z: with --by layer,position expected resid_pre"),
    ({"site": "mlp_out"}, "mlp_out goes with --by layer,position"),
    ({"site": "zz"}, "unknown --site 'zz'"),
    ({"by": "edge", "site": "z"}, "an edge is named by its two ends"),
    ({"ablation": "mean", "direction": "noise"}, "--ablation mean acts on the clean run"),
    ({"pairs": "clock", "direction": "denoise"}, "use --direction noise"),
    ({"pairs": "inputs"}, "unknown --pairs 'inputs'; did you mean 'input'?"),
    ({"metric": "logit"}, "unknown --metric 'logit'"),
    ({"precision": "fp16"}, "unknown --precision 'fp16'"),
    ({"t": "-1"}, "--step '-1': expected all"),
    ({"checkpoint": "first"}, "--checkpoint 'first': expected last"),
]


@pytest.mark.parametrize(("asked", "says"), WRONG)
def test_a_request_without_a_meaning_names_the_option(asked, says):
    with pytest.raises(UsageError) as caught:
        request(**asked)
    assert says in str(caught.value)


def test_requests_fill_in_what_follows_from_the_rest():
    assert {site for sites in UNITS.values() for site in sites} == set(SITES)
    assert request(by="position, head,layer").unit == "head,position"
    assert (request().site, request(by="layer,position").site, request(by="edge").site) == ("z", "resid_pre", None)
    assert (request().direction, request(pairs="clock").direction) == ("denoise", "noise")
    assert {request(by=unit, precision="bf16").verify for unit in UNITS} == {32}
    assert {request(by=unit).verify for unit in UNITS} == {0}
    assert request(verify=0, precision="bf16").verify == 0


CELLS = (
    HeatCell(-2.0, "lowers <it>", "effect"),
    HeatCell(1.0, "raises it", "effect"),
    HeatCell(0.5, "maybe", "neutral"),
    HeatCell(0.0, "not run, exactly 0 (after the metric)", "skipped"),
    HeatCell(0.0, "not run, exactly 0 (after the metric)", "skipped"),
    None,
)


def drawn(cells=CELLS, alone: bool = True) -> ElementTree.Element:
    """The figure of one row of cells, parsed."""
    panel = Panel("<b>", ("L1.H0",), tuple(f"x{i}" for i in range(len(cells))), (cells,), "", "position & more")
    return ElementTree.fromstring(heatmap([panel], Legend("metric", "up", "down"), "Title", "Words", alone=alone))


def cell_rectangles(figure: ElementTree.Element) -> list[ElementTree.Element]:
    """Rectangles that carry a tooltip."""
    return [one for one in figure.iter(f"{SVG}rect") if one.find(f"{SVG}title") is not None]


def test_hue_is_the_sign_and_strength_the_size_of_an_effect():
    down, up, neutral, skipped = cell_rectangles(drawn())
    assert (down.get("class"), down.get("fill-opacity")) == ("cell down", "1.000")
    assert (up.get("class"), up.get("fill-opacity")) == ("cell up", "0.500")
    assert (neutral.get("class"), neutral.get("fill-opacity")) == ("cell flat", None)
    assert (skipped.get("class"), skipped.get("fill")) == ("cell skipped", "url(#not-run)")
    assert skipped.find(f"{SVG}title").text == "not run, exactly 0 (after the metric)"
    assert float(skipped.get("width")) == pytest.approx(2 * float(down.get("width")) + 1, abs=0.02)


def test_the_figure_escapes_words_and_works_alone_in_both_themes():
    alone, inside = drawn(), drawn(alone=False)
    assert [one.text for one in alone.iter(f"{SVG}text")].count("<b>") == 1
    (style,) = alone.iter(f"{SVG}style")
    assert "prefers-color-scheme: dark" in style.text
    assert list(inside.iter(f"{SVG}style")) == []
    assert float(alone.get("height")) > 0


def test_a_figure_without_effects_claims_none():
    words = [one.text for one in drawn((CELLS[2],)).iter(f"{SVG}text")]
    assert "no effect" in words
    assert not [word for word in words if word and "raises" in word]


def test_cells_are_drawn_by_what_is_known_of_them(solved):
    step = solved.steps[2]
    cells = cells_of(solved)
    panels = {panel.title: panel for panel in panels_of(solved, cells)}
    row = panels["L1.H0"].cells[2]
    assert row[step.query].kind == "effect"
    assert {cell.kind for cell in row[: step.query]} == {"skipped"}
    assert row[step.query + 1] is None
    assert "before the first difference" in row[0].tip
    assert "last layer, row not read" in row[step.query - 1].tip
    for cell, heat in zip(cells[2][0], panels["L0.H0"].cells[2], strict=False):
        covers = cell.effect.low <= 0 <= cell.effect.high
        assert heat.kind == ("skipped" if cell.skipped else "neutral" if covers else "effect")


def test_files_hold_the_frame_the_arrays_and_one_offline_page(solved, tmp_path):
    cells = cells_of(solved)
    written = write_patches(solved, cells, tmp_path / "new" / "folder")
    frame = pd.read_csv(written.files["csv"], keep_default_na=False)
    assert list(frame) == ["t", "prompt", "layer", "head", "pos", "position", "effect", "reason"]
    folder = tmp_path / "new" / "folder"
    payload, arrays = read_analysis(folder, solved.key)["patch"], read_arrays(folder, solved.key)
    assert payload == written.model_dump(mode="json", exclude={"files"})
    at = frame[(frame.t == 2) & (frame.layer == 1) & (frame.prompt == 3) & (frame.position == "s2")]
    assert float(at["effect"].iloc[0]) == pytest.approx(float(arrays["effect.t2"][3, 1, -1]), abs=1e-12)
    assert set(frame["reason"]) == {"", "before the first difference", "last layer, row not read"}
    page = (folder / f"{solved.key}.html").read_text()
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'".replace("'", "&#39;") in page
    assert "<script" not in page
    assert "&" not in style  # an escaped style is none
    assert ".facts > div" in style
    figure = ElementTree.parse(folder / f"{solved.key}.svg").getroot()
    kinds = {
        kind: [one for one in cell_rectangles(figure) if one.get("class") == f"cell {kind}"] for kind in ("up", "flat")
    }
    assert len(kinds["up"]) >= LENGTH and kinds["flat"]
    assert set(re.findall(r"https?://[^\"' <]+", page)) == {"http://www.w3.org/2000/svg"}


def test_a_stored_heatmap_reads_back_with_the_names_and_intervals_of_its_cells(run, solved):
    cells = cells_of(solved)
    write_patches(solved, cells, run.path / "analysis")
    (stored,) = stored_patches(run)
    arrays = stored.arrays(run)
    assert (stored.step, stored.ts, stored.n(3)) == (solved.step, [step.t for step in solved.steps], N)
    for step, rows in zip(solved.steps, cells, strict=True):
        assert stored.places(step.t) == list(step.places)
        for row, name in enumerate(stored.drawn["components"]):
            for column, cell in enumerate(rows[row]):
                shown = [float(arrays[f"{part}.t{step.t}"][row, column]) for part in ("value", "low", "high")]
                assert shown == [cell.effect.value, cell.effect.low, cell.effect.high]
                reason = stored.drawn["reasons"][arrays[f"skipped.t{step.t}"][row, column]]
                assert (cell.component, cell.skipped) == (name, reason)
    assert [one.key for one in through_training(stored_patches(run), stored.setting)] == [solved.key]
    assert through_training(stored_patches(run), ("another", "setting")) == []


def test_equal_patches_give_equal_numbers_and_keys(run, tmp_path):
    texts = []
    for name in ("one", "two"):
        found = patched(run, t="2")
        write_patches(found, cells_of(found), tmp_path / name)
        texts.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert texts[0].keys() == texts[1].keys()
    said = (".html", ".json")  # these name the memory that was free, and the state of the checkout
    assert [name for name in texts[0] if texts[0][name] != texts[1][name] and not name.endswith(said)] == []
    assert patched(run, t="2", seed=1).key != patched(run, t="2").key


def test_ctrl_c_exits_130_and_leaves_no_file(run, monkeypatch, capsys, tmp_path):
    def stopped(done: int, of: int) -> None:
        raise KeyboardInterrupt

    real = patch_run_module.patch_heads
    monkeypatch.setattr(
        patch_run_module, "patch_heads", lambda model, **given: real(model, **given | {"progress": stopped})
    )
    line = ["patch", "solved", "--store", str(run.path.parent), "--length", "3", "--output", str(tmp_path / "out")]
    assert main(line) == 130
    assert capsys.readouterr().err == "error: stopped by the user; nothing was written\n"
    assert not (tmp_path / "out").exists()


def test_the_terminal_names_what_was_done_and_each_effect_has_its_interval(run, capsys, tmp_path):
    line = ["patch", "solved", "--store", str(run.path.parent), "--length", "3", "--n", "8", "--output", str(tmp_path)]
    assert main([*line, "--by", "head,position", "--ablation", "resample"]) == 0
    out = capsys.readouterr().out
    for said in ("resample ablation", "input (", "8 prompts", "fp32", "single site, everything", "Plan: ", "Metric: "):
        assert said in out
    assert re.search(
        r"t=0 +\u2502 L1\.H0 +\u2502 EoI \(4\) +\u2502 \u2212\d+\.\d+ \[\u2212\d+\.\d+, \u2212\d+\.\d+\] \u2502 8 ", out
    )
    assert re.search(r"^L1\.H0 +E s s$", out, re.MULTILINE)
    assert main([*line, "--by", "edge", "--step", "1"]) == 0
    assert "M1->logits" in capsys.readouterr().out
