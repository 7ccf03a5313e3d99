"""The attention grid as a Streamlit element: all checkpoints in one message, the cell that was chosen as its result."""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st

from circuits.report.canvas.sources import grid_script, grid_style, host_script

GRID, GUIDE = "interp_attention_grid", "interp_attention_guide"
# Moves and scrubbing are told once they rest; heads and cells at once; nothing while it plays.
MOUNT = """
const wait = { step: 400, stop: 0, head: 0, cell: 150, mode: 0 };
export default function (component) {
  const create = (host) => {
    const guides = (window.interpGuides ??= new Map());
    let [data, grid, timer] = [null, null, 0];
    const send = (state, reason) => {
      guides.get(data.id).sent.push(placeOf(state));
      host.setTriggerValue("pick", { ...state, reason });
    };
    const onChange = (state, reason) => {
      if (!(reason in wait)) return;
      clearTimeout(timer);
      timer = setTimeout(() => send(state, reason), wait[reason]);
    };
    const update = () => {
      const next = AttnData.unpacked(host.data);
      if (data && next.stamp === data.stamp) return grid.refresh();
      const kept = grid ? grid.state() : null;
      if (grid) grid.destroy();
      if (data) guides.delete(data.id);
      data = next;
      grid = AttnGrid.mount(host.parentElement, data, { onChange, exact: true });
      if (kept) grid.set({ layer: kept.layer, head: kept.head, mode: kept.mode });
      const early = guides.get(data.id);
      guides.set(data.id, { grid, place: "", sent: [] });
      if (early && early.wanted) guide(data.id, early.wanted);
      return undefined;
    };
    update();
    const destroy = () => {
      clearTimeout(timer);
      guides.delete(data.id);
      grid.destroy();
    };
    return { update, destroy };
  };
  return CanvasHost.host(component, create, (handle) => handle.update());
}
"""
# Leads the grid of one id to a selection when that changes, and hands it exact values; waits for a grid to come. What
# the grid itself has sent comes back too, perhaps after the next move: it must not lead the grid back.
GUIDE_SCRIPT = """
const placeOf = ({ checkpoint, layer, head, q, k }) => [checkpoint, layer, head, q, k].join();
function guide(id, { selection, exact }) {
  const guides = (window.interpGuides ??= new Map());
  const entry = guides.get(id);
  if (!entry || !entry.grid) return guides.set(id, { wanted: { selection, exact } });
  const place = placeOf(selection);
  const echo = entry.sent.indexOf(place);
  entry.sent.splice(0, echo + 1);
  const change = echo >= 0 || entry.place === place ? {} : selection;
  entry.place = place;
  if (!exact || !exact.values) return entry.grid.set({ ...change, exact: exact && "value" in exact ? exact : null });
  const values = new Float32Array(AttnData.decode(exact.values).buffer);
  return entry.grid.set({ ...change, exact: { ...exact, values } });
}
"""
GUIDE_MOUNT = """
export default function ({ data }) {
  guide(data.grid, data);
}
"""


@dataclass(frozen=True)
class AttentionPick:
    """What was chosen in the browser; `step` is a training step."""

    step: int
    layer: int
    head: int
    q: int
    k: int
    reason: str


def attention_grid(frames: bytes, *, key: str) -> AttentionPick | None:
    """Draw `packed` grid data; the same bytes draw nothing anew.

    Args:
        frames: from `circuits.report.canvas.encode.packed`, with the keys `id` (the element's key) and `stamp` (what
            tells these data from others).

    Returns:
        What was chosen since the last run of the script, once; its numbers are whole but not yet checked for range.
    """
    draw = st.components.v2.component(GRID, js=grid_script() + host_script() + GUIDE_SCRIPT + MOUNT, css=grid_style())
    picked = draw(key=key, data=frames, on_pick_change=_nothing).get("pick")
    if not isinstance(picked, dict):
        return None
    numbers = {name: picked.get(name) for name in ("step", "layer", "head", "q", "k")}
    if not all(type(value) is int for value in numbers.values()):
        return None
    return AttentionPick(**numbers, reason=str(picked.get("reason"))[:20])


def guide_attention(
    grid: str, *, checkpoint: int, layer: int, head: int, cell: tuple[int, int] | None, exact: dict[str, Any] | None
) -> None:
    """Lead a grid to a selection, by a message of its own, so that its frames are not sent again.

    Args:
        grid: key of the grid.
        checkpoint: place of the step in the grid's `steps`.
        cell: (query, key); chosen by the grid if None.
        exact: `step`, `layer` and `head`, with the [query key] array `values` of that head as it is stored, or with
            one cell `q`, `k` and its `value`.
    """
    selection = {"checkpoint": checkpoint, "layer": layer, "head": head}
    if cell is not None:
        selection |= {"q": cell[0], "k": cell[1]}
    if exact is not None:
        exact = {**exact, "example": 0}
        if "values" in exact:
            values = np.ascontiguousarray(exact["values"], dtype="<f4").tobytes()
            exact["values"] = base64.b64encode(values).decode("ascii")
    send = st.components.v2.component(GUIDE, js=_decoder() + GUIDE_SCRIPT + GUIDE_MOUNT)
    send(key=f"{grid}.guide", data={"grid": grid, "selection": selection, "exact": exact}, height=1)


def _decoder() -> str:
    """The part of the grid's script that reads base64."""
    return grid_script().partition("/* AttnDraw")[0]


def _nothing() -> None:
    """Makes Streamlit return the trigger with the element."""
