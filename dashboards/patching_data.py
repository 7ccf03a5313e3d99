"""What the Patching view shows, from stored results: panels, cells in words, targets. No Streamlit, no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from circuits.patch_command.stored import StoredPatches
from circuits.report.canvas.heat import HeatPanel
from interp.config import ModelConfig
from interp.run import Run, Store

MOST_ROWS = 64
LARGEST_NAMED = 4000  # edges up to which every one is offered by name
NOTHING = "nothing"


@dataclass(frozen=True)
class Frames:
    """Stored patches of one setting: the same table at several checkpoints, read once.

    Attributes:
        arrays: of each checkpoint, see `StoredPatches.arrays`.
    """

    found: tuple[StoredPatches, ...]
    arrays: tuple[dict[str, np.ndarray], ...]

    @property
    def steps(self) -> list[int]:
        """Checkpoints that were patched."""
        return [one.step for one in self.found]

    @property
    def components(self) -> list[str]:
        """Rows of the stored tables."""
        return [str(name) for name in self.found[0].drawn["components"]]

    def part(self, name: str, t: int) -> np.ndarray:
        """[frame component place] of one step of the task."""
        return np.stack([arrays[f"{name}.t{t}"] for arrays in self.arrays])

    def reason(self, frame: int, t: int, row: int, place: int) -> str:
        """Why this cell was not run; empty if it was."""
        reasons = self.found[frame].drawn["reasons"]
        number = int(self.arrays[frame][f"skipped.t{t}"][row, place])
        return str(reasons[number]) if number < len(reasons) else "not run"


def run_at(path: str) -> Run:
    """The run in a folder; caches are keyed by text."""
    return Store(Path(path).parent).run(Path(path).name)


def frames_of(run: Run, found: Sequence[StoredPatches]) -> Frames:
    """Read the arrays of all checkpoints.

    Raises:
        StoreError: if those of one are damaged; the message names the file.
    """
    return Frames(tuple(found), tuple(one.arrays(run) for one in found))


@dataclass(frozen=True)
class Sheet:
    """Panels as they are drawn, and what each cell stands for.

    Attributes:
        cells: by panel and row: component and step of the task; the column is the place.
    """

    panels: list[HeatPanel]
    cells: list[list[tuple[int, int]]]

    def find(self, component: int, t: int, place: int) -> tuple[int, int, int] | None:
        """(panel, row, column) of a cell; None where it is not drawn."""
        for panel, rows in enumerate(self.cells):
            if (component, t) in rows and place < len(self.panels[panel].columns):
                return panel, rows.index((component, t)), place
        return None


def strongest(frames: Frames, ts: Sequence[int]) -> list[int]:
    """Components that are drawn, in the order of the model: those with the largest sure effects at any checkpoint."""
    size = np.zeros(len(frames.components))
    for t in ts:
        value, low, high = (frames.part(name, t) for name in ("value", "low", "high"))
        sure = np.where((low <= 0) & (high >= 0), 0, np.abs(value))
        size = np.maximum(size, sure.max((0, 2)))
    return sorted(np.argsort(-size, kind="stable")[:MOST_ROWS].tolist())


def one_step(frames: Frames, t: int) -> Sheet:
    """A panel for each layer: its components are rows, the positions of step t columns."""
    shown = strongest(frames, [t])
    by_layer: dict[str, list[int]] = {}
    for row in shown:
        by_layer.setdefault(_group(frames.components[row]), []).append(row)
    if max(map(len, by_layer.values()), default=0) == 1:  # a title for each single row would only repeat it
        by_layer = {f"step t={t}": shown}
    panels, cells = [], []
    for title, rows in by_layer.items():
        panels.append(_panel(frames, title, [(row, t) for row in rows], [frames.components[row] for row in rows]))
        cells.append([(row, t) for row in rows])
    return Sheet(panels, cells)


def one_component(frames: Frames, component: int) -> Sheet:
    """One panel: the steps of the task are rows, positions columns."""
    rows = [(component, t) for t in frames.found[0].ts]
    names = [f"t={t}" for _, t in rows]
    return Sheet([_panel(frames, frames.components[component], rows, names, "step of the task")], [rows])


def _panel(
    frames: Frames, title: str, rows: list[tuple[int, int]], names: list[str], row_name: str = "component"
) -> HeatPanel:
    """Cells of several (component, t) rows over the positions of the longest step among them."""
    columns = max((frames.found[0].places(t) for _, t in rows), key=len)
    shape = (len(frames.steps), len(rows), len(columns))
    parts = {name: np.full(shape, np.nan) for name in ("value", "low", "high")}
    tested, reasons = np.ones(shape, dtype=bool), {}
    for index, (component, t) in enumerate(rows):
        width = len(frames.found[0].places(t))
        for name, table in parts.items():
            table[:, index, :width] = frames.part(name, t)[:, component]
        tested[:, index, :width] = frames.part("skipped", t)[:, component] == 0
        for place in range(width):
            if said := frames.reason(-1, t, component, place):
                reasons[index, place] = said
    values = parts.pop("value")
    return HeatPanel(
        title=title,
        rows=names,
        columns=columns,
        values=values,
        **parts,
        tested=tested,
        reasons=reasons,
        row_name=row_name,
    )


def _group(component: str) -> str:
    """Layer that a component belongs to; for edges that of the receiver."""
    owner = component.partition("->")[2] or component
    return "logits" if owner == "logits" else f"layer {owner[1:].split('.')[0]}"


def cell_words(frames: Frames, frame: int, component: int, t: int, place: int) -> str:
    """One cell in a sentence."""
    one, name = frames.found[frame], frames.components[component]
    where = f"{name} at {one.places(t)[place]} (position {place}), step t={t}, checkpoint {one.step:,}"
    if said := frames.reason(frame, t, component, place):
        return f"{where}: not tested by this pair family ({said})."
    value, low, high = (
        float(frames.arrays[frame][f"{part}.t{t}"][component, place]) for part in ("value", "low", "high")
    )
    sure = "" if not low <= 0 <= high else "; the interval covers 0"
    return f"{where}: {value:+.3g} [{low:.3g}, {high:.3g}], n = {one.n(t)} prompts{sure}."


def setting_words(one: StoredPatches) -> str:
    """A stored setting in short, for a list to choose from."""
    about = one.about
    how = f"{about['ablation']} ablation" if about["ablation"] != "none" else f"{about.get('direction')}"
    site = f" {about['site']}" if about.get("site") else ""
    what = f"{about['by'].replace(',', ' x ')}{site}"
    return f"{what}, {about['pairs']} pairs, length {about['length']}, {how}, {about['metric']}"


def patch_arguments(one: StoredPatches, step: int) -> list[str]:
    """The options of `interp patch` that give the same table at another checkpoint."""
    about = one.about
    words = [
        "--by",
        about["by"],
        "--pairs",
        about["pairs"],
        "--length",
        str(about["length"]),
        "--metric",
        about["metric"],
    ]
    words += ["--site", about["site"]] if about.get("site") else []
    words += ["--direction", about["direction"]] if about.get("direction") else []
    words += ["--ablation", about["ablation"]] if about["ablation"] != "none" else []
    if len(one.ts) == 1:
        words += ["--step", str(one.ts[0])]
    return [*words, "--n", str(one.n(one.ts[0])), "--seed", str(about.get("seed", 0)), "--checkpoint", str(step)]


def what_if_targets(model: ModelConfig) -> list[str]:
    """Heads and MLPs, then edges where they are few enough to list, in the order of the model."""
    senders, edges = ["embed"], []
    for layer in range(model.n_layers):
        heads = [f"L{layer}.H{head}" for head in range(model.n_heads)]
        edges += [f"{sender}->{head}.{slot}" for slot in "qkv" for head in heads for sender in senders]
        senders += heads
        if not model.attn_only:
            edges += [f"{sender}->M{layer}" for sender in senders]
            senders.append(f"M{layer}")
    edges += [f"{sender}->logits" for sender in senders]
    single = model.residual == "standard" and len(edges) <= LARGEST_NAMED
    return [*senders[1:], *(edges if single else [])]


def outcome_rows(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per bar of a what-if: the unchanged run, what was ablated, and each control."""
    named = [("unchanged", answer["base"]), ("ablated", answer["changed"])]
    named += [("control", one) for one in answer["controls"]]
    rows = []
    for role, one in named:
        name = {"unchanged": "unchanged run", "ablated": f"{one['component']} ablated"}.get(role, one["component"])
        shares = {part: one["steps"][part] for part in ("value", "low", "high")}
        rows.append(
            {
                "name": name,
                "role": role if one["tested"] else "not tested",
                **shares,
                "n": one["steps"]["n"],
                "sequences": one["accuracy"]["value"],
                "margin": one["margin"]["value"],
                "lost": None if one["lost"] is None else one["lost"]["value"],
            }
        )
    return rows
