"""Turns tables of signed effects with intervals into the data that the heat grid draws.

A cell is an effect, neutral (its interval covers zero), hatched (not measured, for a reason that the table names), or
absent. Values travel as exact 32-bit floats. Loads no torch.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

EFFECT, NEUTRAL, SKIPPED, NONE = range(4)


@dataclass(frozen=True)
class HeatPanel:
    """One table of effects, for example the heads of one layer (rows) at each position (columns).

    Args:
        values: [row column], or [frame row column] with one frame per checkpoint; NaN where there is no such cell.
        low, high: interval of each value, same shape; a cell whose interval covers 0 is drawn neutral.
        tested: same shape; False is drawn hatched, in the words of `heat_data(hatched=...)`.
        reasons: (row, column) -> words shown with that cell, for example why it was not run.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    tested: np.ndarray | None = None
    row_name: str = "head"
    column_name: str = "position"
    reasons: Mapping[tuple[int, int], str] = field(default_factory=dict)

    def kinds(self) -> np.ndarray:
        """EFFECT, NEUTRAL, SKIPPED or NONE of each cell, [frame row column]."""
        values = _frames(self.values, self)
        kinds = np.full(values.shape, EFFECT, dtype=np.uint8)
        if self.low is not None and self.high is not None:
            kinds[(_frames(self.low, self) <= 0) & (_frames(self.high, self) >= 0)] = NEUTRAL
        kinds[np.isnan(values)] = NONE
        if self.tested is not None:
            kinds[~_frames(self.tested, self).astype(bool)] = SKIPPED
        return kinds


def heat_data(
    panels: Sequence[HeatPanel],
    *,
    metric: str,
    raises: str,
    lowers: str,
    hatched: str = "not tested",
    note: str = "",
    steps: Sequence[int] | None = None,
    step: int | None = None,
    selected: tuple[int, int, int] | None = None,
) -> dict[str, Any]:
    """What `HeatGrid.mount` takes as its data.

    Args:
        metric: what an effect is, in words, with its direction ("logit difference, patched minus clean").
        raises, lowers: what a positive and a negative effect means, two or three words each.
        hatched: what a hatched cell is, in the legend and beside the cell.
        note: ablation, pair family and n, shown under the metric.
        steps: training steps of the frames; a slider is shown when there is more than one.
        selected: (panel, row, column) that is outlined.

    Raises:
        ValueError: if a panel's arrays do not fit its labels, or panels differ in their number of frames.
    """
    shapes = {len(_frames(panel.values, panel)) for panel in panels}
    if steps is not None and shapes - {len(steps)}:
        raise ValueError(f"panels have {sorted(shapes)} frames for {len(steps)} steps")
    effects = [np.abs(_frames(panel.values, panel)[panel.kinds() == EFFECT]).max(initial=0.0) for panel in panels]
    at = dict(zip(("panel", "row", "column"), selected, strict=True)) if selected else None
    known = list(steps or [])
    return {
        "metric": metric,
        "raises": raises,
        "lowers": lowers,
        "hatched": hatched,
        "note": note,
        "scale": float(max(effects, default=0.0)) or 1.0,
        "steps": known or None,
        "frame": known.index(step) if step in known else max(0, len(known) - 1),
        "selected": at,
        "panels": [_panel(panel) for panel in panels],
    }


def _panel(panel: HeatPanel) -> dict[str, Any]:
    values, kinds = _frames(panel.values, panel), panel.kinds()
    bounds = [None if part is None else _frames(part, panel) for part in (panel.low, panel.high)]
    frames = [
        {
            "values": _floats(np.nan_to_num(values[index])),
            "low": None if bounds[0] is None else _floats(np.nan_to_num(bounds[0][index])),
            "high": None if bounds[1] is None else _floats(np.nan_to_num(bounds[1][index])),
            "kinds": base64.b64encode(kinds[index].tobytes()).decode("ascii"),
        }
        for index in range(len(values))
    ]
    return {
        "title": panel.title,
        "rows": list(panel.rows),
        "columns": list(panel.columns),
        "row_name": panel.row_name,
        "column_name": panel.column_name,
        "reasons": {f"{row},{column}": words for (row, column), words in panel.reasons.items()},
        "frames": frames,
    }


def _frames(part: np.ndarray, panel: HeatPanel) -> np.ndarray:
    """[frame row column], with a frame added to a single table."""
    array = np.asarray(part)
    array = array[None] if array.ndim == 2 else array
    if array.shape[1:] != (len(panel.rows), len(panel.columns)):
        raise ValueError(
            f"{panel.title}: {array.shape} does not fit {len(panel.rows)} rows, {len(panel.columns)} columns"
        )
    return array


def _floats(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")
