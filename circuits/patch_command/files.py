"""Writes the patches of a run: effects and prompts as an analysis, the frame as CSV, the heatmap as SVG and page."""

from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from circuits.detectors.base import Interval
from circuits.outputs import PatchCheck, PatchEffect, PatchOutput, PatchStep
from circuits.patch_command.cells import Cell, Cells, of_runs, resolution, strongest
from circuits.patch_command.panels import panels_of
from circuits.patch_command.run import RunPatches, StepPatches
from circuits.patch_command.words import (
    METRICS,
    PAIRS,
    TOP,
    caption,
    facts,
    heading,
    intervention,
    legend,
    reading,
    table,
)
from circuits.report.heatmap import heatmap
from circuits.report.heatmap_page import PatchPage, render_page
from circuits.report.numbers import count
from interp.analysis import write_analysis
from interp.files import disk_errors, replace
from probes.intervals import Estimate


def write_patches(found: RunPatches, cells: Cells, folder: Path) -> PatchOutput:
    """Write `<key>.json` with its arrays, and `<key>.csv`, `<key>.svg` and `<key>.html`; each whole or not at all.

    Raises:
        StoreError: if a file cannot be written (StoreFull where the disk is full).
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    panels, meaning = panels_of(found, cells), legend(found)
    texts = {
        "csv": found.frame().to_csv(index=False, lineterminator="\n"),
        "svg": heatmap(panels, meaning, heading(found), caption(found, cells), alone=True) + "\n",
        "html": render_page(page_of(found, cells), panels, meaning),
    }
    for kind, text in texts.items():
        replace(folder / f"{found.key}.{kind}", text.encode("utf-8"))
    files = {kind: str(folder / f"{found.key}.{kind}") for kind in ("json", *texts)}
    output = output_of(found, cells, files)
    payload = {"patch": output.model_dump(mode="json", exclude={"files"})}  # a run folder holds no absolute path
    write_analysis(
        folder, found.key, payload | {"drawn": drawn_of(found, cells)}, arrays_of(found) | shown_arrays(cells)
    )
    return output


def output_of(found: RunPatches, cells: Cells, files: dict[str, str]) -> PatchOutput:
    """What `--json` prints."""
    request, check = found.request, found.verification
    return PatchOutput(
        run=found.run,
        task=found.task,
        step=found.step,
        checkpoint=found.checkpoint,
        config_hash=found.config_hash,
        code_version=found.code_version,
        seed=request.seed,
        by=request.unit,
        site=request.site,
        pairs=request.pairs,
        length=found.length,
        ablation=request.ablation,
        direction=request.direction,
        metric=request.metric,
        precision=request.precision,
        backend=found.backend,
        effect_kind=found.kind,
        plan=found.plan,
        steps=[_step(found, step) for step in found.steps],
        left_out=list(found.left_out),
        without_pairs=found.refused,
        top=[_effect(cell) for cell in strongest(cells, TOP)],
        skipped=dict(Counter(reason for step in found.steps for reason in step.reasons())),
        check=None if check is None else PatchCheck(**asdict(check)),
        key=found.key,
        files=files,
    )


def page_of(found: RunPatches, cells: Cells) -> PatchPage:
    """The words of the page."""
    columns, rows = table(found, cells)
    return PatchPage(
        title=heading(found),
        overline=f"Activation patching · run {found.run} · step {count(found.step)}",
        heading=heading(found),
        facts=facts(found),
        reading=reading(),
        caption=caption(found, cells),
        columns=columns,
        rows=rows,
        provenance=[
            ("Run", f"{found.run}, step {count(found.step)}"),
            ("Checkpoint", found.checkpoint),
            ("Config", found.config_hash),
            ("Code", found.code_version),
            ("Seed", str(found.request.seed)),
            ("Analysis", found.key),
        ],
    )


def arrays_of(found: RunPatches) -> dict[str, Any]:
    """Effects, reasons, metrics and prompts of each step."""
    arrays = {}
    for step in found.steps:
        named = {"effect": step.effect, "reason": step.reason, "base": step.base, "source": step.source}
        named |= {"clean": step.pairs.clean, "donor": step.pairs.donor, "right": step.right}
        arrays |= {f"{name}.t{step.t}": value.cpu().numpy() for name, value in named.items() if value is not None}
    return arrays


def drawn_of(found: RunPatches, cells: Cells) -> dict[str, Any]:
    """Names and words that a reader of the stored heatmap needs, so that it computes nothing; see `stored.py`."""
    return {
        "saved": datetime.now(UTC).isoformat(timespec="microseconds"),
        "components": list(found.steps[0].components),
        "places": {str(step.t): list(step.places) for step in found.steps},
        "reasons": reasons_of(cells),
        "intervention": intervention(found),
        "metric": METRICS[found.request.metric],
        "pairs": PAIRS[found.request.pairs],
        "raises": legend(found).raises,
        "lowers": legend(found).lowers,
    }


def shown_arrays(cells: Cells) -> dict[str, np.ndarray]:
    """Mean effect, its interval and the number of its reason (0: it was run) by step, [component place]."""
    reasons, arrays = reasons_of(cells), {}
    for step in cells:
        t = step[0][0].t
        for name in ("value", "low", "high"):
            arrays[f"{name}.t{t}"] = np.array([[getattr(cell.effect, name) for cell in row] for row in step])
        arrays[f"skipped.t{t}"] = np.array([[reasons.index(cell.skipped) for cell in row] for row in step], np.uint8)
    return arrays


def reasons_of(cells: Cells) -> list[str]:
    """Why effects were not run, the empty word first."""
    return ["", *sorted({cell.skipped for step in cells for row in step for cell in row} - {""})]


def _step(found: RunPatches, step: StepPatches) -> PatchStep:
    runs = {name: _interval(one) for name, one in of_runs(found, [step]).items()}
    return PatchStep(
        t=step.t, query=step.query, n=len(step.base), resolution=resolution(found, step), **({"source": None} | runs)
    )


def _effect(cell: Cell) -> PatchEffect:
    return PatchEffect(
        t=cell.t,
        component=cell.component,
        position=cell.pos,
        position_name=cell.place,
        effect=_interval(cell.effect),
        share=None if cell.share is None else _interval(cell.share),
    )


def _interval(estimate: Estimate) -> Interval:
    return Interval(**asdict(estimate))
