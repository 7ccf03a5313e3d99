"""Drawings of a circuit at several checkpoints as a Streamlit element: play, scrub, and the edge or node clicked."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import streamlit as st

from circuits.report.canvas.sources import host_script
from circuits.report.circuit_file import plain_style
from circuits.report.circuit_svg import circuit_style
from dashboards.circuit_data import Frame

NAME = "interp_circuit_frames"
MOUNT = """
export default function (component) {
  const create = (host) => {
    const options = {
      onPick: (name) => host.setTriggerValue("pick", name),
      onStep: (step) => host.setTriggerValue("step", step),
    };
    const mount = () => CircuitFrames.mount(host.parentElement, host.data, options);
    let [stamp, frames] = [host.data.stamp, mount()];
    const update = () => {
      if (host.data.stamp === stamp) return frames.set(host.data);
      stamp = host.data.stamp;
      frames.destroy();
      frames = mount();
      return undefined;
    };
    return { update, destroy: () => frames.destroy() };
  };
  return CanvasHost.host(component, create, (handle) => handle.update());
}
"""


@dataclass(frozen=True)
class CircuitPick:
    """What was done since the last run of the script: an edge or node picked, or the slider let go at a step."""

    name: str | None
    step: int | None


def circuit_frames(
    frames: Sequence[Frame],
    *,
    key: str,
    stamp: str,
    step: int,
    picked: str | None,
    names: Sequence[str],
    file: str = "circuit",
) -> CircuitPick:
    """Draw one of the frames; the others are shown in the browser without asking the server.

    Args:
        stamp: changes with the drawings; equal ones are not drawn anew.
        step, picked: checkpoint and edge or node that the address names.
        names: of the edges and nodes that can be picked; what else a browser sends is dropped.
        file: first part of the name of a picture that is saved.
    """
    steps = [frame.step for frame in frames]
    data = {
        "stamp": stamp,
        "index": steps.index(step),
        "picked": picked,
        "style": str(plain_style()),
        "file": file,
        "frames": [{"step": frame.step, "svg": frame.svg, "words": frame.words} for frame in frames],
    }
    files = resources.files("dashboards.components")
    script = files.joinpath("circuit_frames.js").read_text(encoding="utf-8") + host_script() + MOUNT
    style = circuit_style() + files.joinpath("circuit_frames.css").read_text(encoding="utf-8")
    draw = st.components.v2.component(NAME, js=script, css=str(style))
    result = draw(key=key, data=data, on_pick_change=_nothing, on_step_change=_nothing)
    name, at = result.get("pick"), result.get("step")
    return CircuitPick(name if name in names else None, at if at in steps else None)


def _nothing() -> None:
    """Makes Streamlit return the trigger with the element."""
