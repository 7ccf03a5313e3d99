"""The heat grid as a Streamlit element: tables of signed effects, with the cell that was clicked as its result."""

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from circuits.report.canvas.heat import HeatPanel, heat_data
from circuits.report.canvas.sources import heat_script, heat_style, host_script

NAME = "interp_heat_grid"
MOUNT = """
export default function (component) {
  const create = (host) => {
    let text = JSON.stringify(host.data);
    const options = {
      onPick: (cell) => host.setTriggerValue("pick", cell),
      onStep: (step) => host.setTriggerValue("step", step),
    };
    let grid = HeatGrid.mount(host.parentElement, host.data, options);
    const update = () => {
      const next = JSON.stringify(host.data);
      if (next === text) return grid.refresh();
      text = next;
      grid.destroy();
      grid = HeatGrid.mount(host.parentElement, host.data, options);
    };
    return { update, destroy: () => grid.destroy() };
  };
  return CanvasHost.host(component, create, (handle) => handle.update());
}
"""


@dataclass(frozen=True)
class HeatPick:
    """The cell that was clicked, or picked with Enter; `step` where the grid has several checkpoints."""

    panel: int
    row: int
    column: int
    step: int | None
    kind: int
    value: float | None


def heat_grid(
    panels: Sequence[HeatPanel],
    *,
    key: str,
    metric: str,
    raises: str,
    lowers: str,
    hatched: str = "not tested",
    note: str = "",
    steps: Sequence[int] | None = None,
    step: int | None = None,
    selected: tuple[int, int, int] | None = None,
) -> HeatPick | None:
    """Draw panels of signed effects on one colour scale.

    Args:
        panels: tables, see `HeatPanel`: values with intervals, and which cells were tested.
        metric, raises, lowers, hatched, note: words of the legend, see `heat_data`.
        steps, step: checkpoints of the frames and the one shown first; scrubbing needs no server.
        selected: (panel, row, column) that is outlined.

    Returns:
        The cell clicked since the last run of the script, once; None otherwise.
    """
    words = {"metric": metric, "raises": raises, "lowers": lowers, "hatched": hatched, "note": note}
    data = heat_data(panels, **words, steps=steps, step=step, selected=selected)
    draw = st.components.v2.component(NAME, js=heat_script() + host_script() + MOUNT, css=heat_style())
    result = draw(key=key, data=data, on_pick_change=_nothing, on_step_change=_nothing)
    picked = result.get("pick")
    if not isinstance(picked, dict):
        return None
    return _checked(picked, panels, steps)


def _nothing() -> None:
    """Makes Streamlit return the trigger with the element."""


def _checked(picked: dict, panels: Sequence[HeatPanel], steps: Sequence[int] | None) -> HeatPick | None:
    """The pick if it names a cell that exists; what a browser sends is not trusted."""
    panel, row, column = (picked.get(name) for name in ("panel", "row", "column"))
    if not all(type(part) is int and part >= 0 for part in (panel, row, column)) or panel >= len(panels):
        return None
    if row >= len(panels[panel].rows) or column >= len(panels[panel].columns):
        return None
    step, value = picked.get("step"), picked.get("value")
    return HeatPick(
        panel,
        row,
        column,
        step if steps and step in steps else None,
        picked["kind"] if picked.get("kind") in (0, 1, 2, 3) else 0,
        float(value) if isinstance(value, int | float) else None,
    )
