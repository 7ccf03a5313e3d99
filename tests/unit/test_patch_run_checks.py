"""Patching a run: every unit can be checked by plain forwards, and planned without being patched."""

import json

import pytest
import torch

from circuits.outputs import OUTPUTS
from circuits.patch_command import run as patch_run_module
from circuits.patch_command.cells import cells_of, resolution
from circuits.patch_command.panels import panels_of
from circuits.patch_command.planning import plan_run
from circuits.patch_command.request import UNITS, request
from circuits.patch_command.run import RunPatches, patch_run
from interp.cli import main
from interp.run import Run
from tests.unit.test_patch_run import N, patched, solved_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A solved run."""
    return solved_run(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("unit", UNITS)
def test_effects_of_every_unit_are_checked_by_plain_forwards_and_a_wrong_one_is_seen(run, unit):
    found = patched(run, by=unit, t="2", verify=8)
    assert (found.verification.n, found.verification.max_error < 1e-9) == (min(8, n_effects(found)), True)
    found.steps[0].result.effect.add_(1e-3)
    assert patch_run_module.verification(list(found.steps), 8).max_error == pytest.approx(1e-3, rel=1e-4)


def n_effects(found: RunPatches) -> int:
    """Effects that were run."""
    return len(found.steps[0].result.checks().places)


@pytest.mark.parametrize("unit", ["edge", "edge,position", "layer"])
def test_a_coarse_precision_of_every_unit_comes_with_its_error(run, unit):
    check = patched(run, by=unit, t="2", precision="bf16").verification
    assert check.n == min(32, n_effects(patched(run, by=unit, t="2")))
    assert 1e-6 < check.l2_error < 0.1


@pytest.mark.parametrize("unit", UNITS)
def test_a_plan_of_every_unit_is_that_of_the_patches_and_patches_nothing(run, unit, monkeypatch):
    asked = request(by=unit, n=N, length=3, ablation="zero", precision="fp64")  # so that no value stays as it is
    found = patch_run(run, asked)
    for name in ("patch_heads", "patch_sets", "patch_edges"):
        monkeypatch.delattr(patch_run_module, name)
    planned = plan_run(run, asked)
    flops = sum(step.result.flops for step in found.steps)
    assert planned.plan.flops == pytest.approx(flops, rel=0.01)
    assert planned.ts == tuple(step.t for step in found.steps)
    assert planned.plan.patches == sum(step.result.plan.patches for step in found.steps)
    assert planned.plan.seconds > 0


def test_the_option_plan_says_the_cost_and_writes_nothing(run, capsys, tmp_path):
    line = ["patch", "solved", "--store", str(run.path.parent), "--length", "3", "--n", "8", "--by", "edge", "--plan"]
    assert main([*line, "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "Plan: " in out and "GFLOP" in out and out.endswith("nothing was patched\n")
    assert not (tmp_path / "out").exists()
    assert main([*line, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    value = OUTPUTS["patch-plan"].model_validate(printed)
    assert (value.by, value.steps, value.site) == ("edge", [0, 1, 2], None)
    assert value.patches > 0 and value.naive_flops > value.flops


@pytest.mark.parametrize("metric", ["logit-diff", "log-prob"])
def test_rounding_is_no_effect_in_the_table_the_heatmap_or_the_arrays(run, metric):
    exact, rounded = (patched(run, metric=metric, precision=precision) for precision in ("fp64", "fp32"))
    noise = []
    for step, true, cells in zip(rounded.steps, exact.steps, cells_of(rounded), strict=True):
        least = resolution(rounded, step)
        assert least == pytest.approx(8 * 2**-23 * max(1, *(float(v.abs().max()) for v in (step.base, step.source))))
        assert float((step.effect.double() - true.effect).mean(0).abs().max()) < least / 4
        noise += [cell for row in cells for cell in row if not cell.skipped and 0 < abs(cell.effect.value) <= least]
    assert noise and not any(cell.is_sure or cell.share for cell in noise)
    assert all(cell.effect.low < 0 < cell.effect.high for cell in noise)  # what the dashboard reads
    tips = [heat for panel in panels_of(rounded, cells_of(rounded)) for row in panel.cells for heat in row if heat]
    assert sum("not resolved" in heat.tip for heat in tips) >= len([c for c in noise if c.component == "L0.H0"]) > 0
    assert all(heat.kind == "neutral" for heat in tips if "not resolved" in heat.tip)


def test_a_small_effect_that_the_precision_resolves_still_counts(run):
    found = patched(run, precision="fp32", t="2")
    step = found.steps[0]
    step.effect[:, 0, -1] = 3 * resolution(found, step) + torch.linspace(0, 1e-6, N)
    cell = cells_of(found)[0][0][-1]
    assert cell.is_sure and cell.resolved and 0 < cell.effect.value < 1e-4
    step.effect[:, 0, -1] /= 6
    assert not cells_of(found)[0][0][-1].is_sure
