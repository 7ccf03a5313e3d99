"""What the Patching view shows, from stored results: panels, cells in words, targets. No Streamlit, no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from circuits.patch_command.stored import SHOWN, StoredPatches
from circuits.report.canvas.heat import HeatPanel
from interp.config import ModelConfig
from interp.run import Run, Store

MOST_ROWS = 64
LARGEST_NAMED = 4000  # edges up to which every one is offered by name
NOTHING = "nothing"
NOT_RUN = "not run: exactly 0"  # a patch that cannot change anything, as the page of `interp patch` says it
POOLED = ("edge", "head", "layer")  # units that are patched at all positions at once


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


Cell = tuple[int, int, int]  # component, step of the task, place


@dataclass(frozen=True)
class Sheet:
    """Panels as they are drawn, and which cell stands at (row, column) of each."""

    panels: list[HeatPanel]
    cells: list[dict[tuple[int, int], Cell]]

    def find(self, cell: Cell) -> tuple[int, int, int] | None:
        """(panel, row, column) of a cell; None where it is not drawn."""
        for panel, known in enumerate(self.cells):
            for (row, column), one in known.items():
                if one == cell:
                    return panel, row, column
        return None


def strongest(frames: Frames, ts: Sequence[int]) -> list[int]:
    """Components that are drawn, in the order of the model: those with the largest sure effects at any checkpoint."""
    size = np.zeros(len(frames.components))
    for t in ts:
        value, low, high = (frames.part(name, t) for name in ("value", "low", "high"))
        sure = np.where((low <= 0) & (high >= 0), 0, np.abs(value))
        size = np.maximum(size, sure.max((0, 2)))
    return sorted(np.argsort(-size, kind="stable")[:MOST_ROWS].tolist())


def sheet_of(frames: Frames, layout: str, t: int, component: int) -> Sheet:
    """One step of the task with all components, or all steps of one component."""
    if frames.found[0].about["by"] in POOLED and layout == "heads":
        return both_ends(frames, t)
    return one_step(frames, t) if layout == "heads" else one_component(frames, component)


def one_step(frames: Frames, t: int) -> Sheet:
    """A panel for each layer (for edges each receiver): components are rows, the positions of step t columns."""
    shown = strongest(frames, [t])
    groups: dict[str, list[int]] = {}
    for row in shown:
        groups.setdefault(_group(frames.components[row]), []).append(row)
    if max(map(len, groups.values()), default=0) == 1:  # a title for each single row would only repeat it
        groups = {f"step t={t}": shown}
    columns = frames.found[0].places(t)
    panels, cells = [], []
    for title, rows in groups.items():
        names = [_row_name(frames.components[row], title) for row in rows]
        cells.append({(r, c): (row, t, c) for r, row in enumerate(rows) for c in range(len(columns))})
        panels.append(_panel(frames, (title, names, columns), cells[-1], "component"))
    return Sheet(panels, cells)


def one_component(frames: Frames, component: int) -> Sheet:
    """One panel: the steps of the task are rows, positions columns."""
    ts = frames.found[0].ts
    columns = max((frames.found[0].places(t) for t in ts), key=len)
    cells = {(r, c): (component, t, c) for r, t in enumerate(ts) for c in range(len(frames.found[0].places(t)))}
    labels = (frames.components[component], [f"t={t}" for t in ts], columns)
    return Sheet([_panel(frames, labels, cells, "step of the task")], [cells])


def both_ends(frames: Frames, t: int) -> Sheet:
    """One panel of patches at all positions at once: senders by receivers, or layers by heads."""
    ends = [_ends(name) for name in frames.components]
    rows, columns = (list(dict.fromkeys(one[side] for one in ends)) for side in (0, 1))
    cells = {(rows.index(a), columns.index(b)): (index, t, 0) for index, (a, b) in enumerate(ends)}
    row_name, column_name = ("sender", "receiver") if "->" in frames.components[0] else ("layer", "head")
    panel = _panel(frames, (f"step t={t}, all positions at once", rows, columns), cells, row_name, column_name)
    return Sheet([panel], [cells])


def _panel(
    frames: Frames,
    labels: tuple[str, list[str], list[str]],
    cells: dict[tuple[int, int], Cell],
    row_name: str,
    column_name: str = "position",
) -> HeatPanel:
    """The values of some cells, absent ones empty."""
    title, rows, columns = labels
    shape = (len(frames.steps), len(rows), len(columns))
    parts = {name: np.full(shape, np.nan) for name in ("value", "low", "high")}
    tested, reasons = np.ones(shape, dtype=bool), {}
    stored = {(name, t): frames.part(name, t) for _, t, _ in cells.values() for name in SHOWN}
    for (row, column), (component, t, place) in cells.items():
        for name, table in parts.items():
            table[:, row, column] = stored[name, t][:, component, place]
        tested[:, row, column] = stored["skipped", t][:, component, place] == 0
        if said := frames.reason(-1, t, component, place):
            reasons[row, column] = said
    values = parts.pop("value")
    words = {"title": title, "rows": rows, "columns": columns, "row_name": row_name, "column_name": column_name}
    return HeatPanel(**words, values=values, **parts, tested=tested, reasons=reasons)


def _group(component: str) -> str:
    """Layer that a component belongs to; for edges the receiver."""
    sender, arrow, receiver = component.partition("->")
    return f"into {receiver}" if arrow else f"layer {sender[1:].split('.')[0]}"


def _row_name(component: str, title: str) -> str:
    """The component; of an edge the sender, where the title names its receiver."""
    return component.partition("->")[0] if title.startswith("into ") else component


def _ends(component: str) -> tuple[str, str]:
    """Sender and receiver of an edge, layer and head of a head, and a layer with the word all."""
    first, _, second = component.partition("->" if "->" in component else ".")
    return first, second or "all"


def cell_words(frames: Frames, frame: int, component: int, t: int, place: int) -> str:
    """One cell in a sentence."""
    one, name = frames.found[frame], frames.components[component]
    where = f"{name} at {one.places(t)[place]} (position {place}), step t={t}, checkpoint {one.step:,}"
    if said := frames.reason(frame, t, component, place):
        return f"{where}: {NOT_RUN} ({said})."
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
