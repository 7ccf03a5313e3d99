"""A page in a frame that may run its own scripts and nothing else: no origin, no forms, no way to the app around it."""

import streamlit as st

NAME = "interp_sandboxed_frame"
# Streamlit's own frames share the app's origin, so a script in one could read and steer the app.
SCRIPT = """
export default function ({ data, parentElement }) {
  let frame = parentElement.querySelector("iframe");
  if (!frame) {
    frame = document.createElement("iframe");
    frame.setAttribute("sandbox", "allow-scripts");
    frame.style.cssText = "display: block; width: 100%; border: 0; border-radius: 6px; color-scheme: light;";
    parentElement.append(frame);
  }
  frame.title = data.title;
  frame.style.height = `${data.height}px`;
  if (frame.srcdoc !== data.page) frame.srcdoc = data.page;
}
"""


def sandboxed_frame(page: str, title: str, *, height: int, key: str) -> None:
    """Show a whole HTML page, whatever it holds; `title` is read by screen readers."""
    draw = st.components.v2.component(NAME, js=SCRIPT)
    draw(key=key, data={"page": page, "title": title, "height": height})
