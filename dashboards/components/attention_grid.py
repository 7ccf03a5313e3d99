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
    const leave = () => {
      clearTimeout(timer);
      if (grid) grid.destroy();
      if (data) guides.delete(data.id);
    };
    const update = () => {
      const next = AttnData.unpacked(host.data);
      if (data && next.stamp === data.stamp) return grid.refresh();
      const kept = grid ? grid.state() : {};
      leave();
      data = next;
      grid = AttnGrid.mount(host.parentElement, data, { onChange, exact: true });
      grid.set({ layer: kept.layer, head: kept.head, mode: kept.mode });
      guides.set(data.id, { grid, stamp: data.stamp, place: "", sent: [] });
      return guide(early.get(data.id));
    };
    update();
    return { update, destroy: leave };
  };
  return CanvasHost.host(component, create, (handle) => handle.update());
}
"""
# Leads the grid of one id to a selection when that changes, and hands it exact values; a message about data that the
# grid does not show yet waits for them. What the grid itself has sent comes back too, perhaps after the next move: it
# must not lead the grid back.
GUIDE_SCRIPT = """
const guides = (window.interpGuides ??= new Map());
const early = (window.interpEarly ??= new Map());
const placeOf = ({ checkpoint, layer, head, q, k, mode }) => [checkpoint, layer, head, q, k, mode].join();
function guide(message) {
  const entry = message && guides.get(message.grid);
  if (!entry || entry.stamp !== message.stamp) return message && early.set(message.grid, message);
  early.delete(message.grid);
  const { selection, exact } = message;
  const place = placeOf(selection);
  const echo = entry.sent.indexOf(place);
  entry.sent.splice(0, echo + 1);
  const change = echo >= 0 || entry.place === place ? {} : selection;
  entry.place = place;
  if (!exact.values) return entry.grid.set({ ...change, exact: "value" in exact ? exact : null });
  const values = new Float32Array(AttnData.decode(exact.values).buffer);
  return entry.grid.set({ ...change, exact: { ...exact, values } });
}
"""
GUIDE_MOUNT = """
export default function ({ data }) {
  guide(data);
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
    mode: str
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
    mode = "lines" if picked.get("mode") == "lines" else "matrix"
    return AttentionPick(**numbers, mode=mode, reason=str(picked.get("reason"))[:20])


def guide_attention(
    grid: str,
    stamp: str,
    *,
    checkpoint: int,
    layer: int,
    head: int,
    cell: tuple[int, int] | None,
    mode: str,
    exact: dict[str, Any],
) -> None:
    """Lead a grid to a selection, by a message of its own, so that its frames are not sent again.

    Args:
        grid, stamp: key of the grid, and the stamp of the frames that this speaks of.
        checkpoint: place of the step in the grid's `steps`.
        cell: (query, key); chosen by the grid if None.
        mode: matrix or lines.
        exact: `step`, `layer` and `head`, with the [query key] array `values` of that head as it is stored, or with
            one cell `q`, `k` and its `value`, or with neither.
    """
    selection = {"checkpoint": checkpoint, "layer": layer, "head": head, "mode": mode}
    if cell is not None:
        selection |= {"q": cell[0], "k": cell[1]}
    exact = {**exact, "example": 0}
    if "values" in exact:
        values = np.ascontiguousarray(exact["values"], dtype="<f4").tobytes()
        exact["values"] = base64.b64encode(values).decode("ascii")
    send = st.components.v2.component(GUIDE, js=_decoder() + GUIDE_SCRIPT + GUIDE_MOUNT)
    data = {"grid": grid, "stamp": stamp, "selection": selection, "exact": exact}
    send(key=f"{grid}.guide", data=data, height=1)


def _decoder() -> str:
    """The part of the grid's script that reads base64."""
    return grid_script().partition("/* AttnDraw")[0]


def _nothing() -> None:
    """Makes Streamlit return the trigger with the element."""
