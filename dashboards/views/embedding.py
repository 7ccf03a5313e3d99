"""Embedding: where token and position embeddings move through training, in one plane that does not move."""

from typing import Any

import altair as alt
import streamlit as st

from dashboards.data import Stamp, stamp
from dashboards.page import COUNT, Page, plain
from dashboards.patching_data import run_at
from dashboards.starting import offer
from probes.stored import StoredEmbedding, stored_embedding

TITLE = "Embedding"
ORDER = 70
ICON = ":material/scatter_plot:"

SPECIALS = ("BoS", "EoI", "EoS")
VALUE, SPECIAL, QUIET = "#3a8fd0", "#d9722e", "#888888"  # strong enough on both grounds
MOST_TRAILS = 64  # points up to which each has a trail and a label
NOTE = (
    "Axes are the principal plane of the last checkpoint, the same at every step, with their signs fixed: what moves "
    "here moves in the model. A small share of the variance is a reason not to read much into distances."
)


def render(page: Page) -> None:
    """Points at the chosen checkpoint, with the way they came."""
    if page.run is None:
        page.header()
        page.empty("No run to look into.", "A run of a few minutes is enough.", page.command("demo", run=False))
        return
    found = None
    with page.guarded("The embeddings are left out.", page.command("probe", "--what", "embedding", "--fresh")):
        found = _embedding(str(page.run.path), stamp(page.run.path / "analysis"))
    if found is None:
        page.header()
        nothing_stored(page)
        return
    kinds = [what for what in ("tokens", "positions") if what in found.places]
    what = page.choice("what", kinds)
    page.header(n=f"{len(found.labels(what))} {what}")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        what = page.pick("what", "Embeddings of", kinds, what, widget="segments")
        trail = page.pick("trail", "Way they came", ["show", "hide"], widget="segments")
        page.share(
            page.command("probe", "--what", "embedding"),
            "from probes.stored import stored_embedding\n\npath = stored_embedding(run)\n"
            f"places = path.places[{what!r}]  # [step, point, axis]",
        )
    step = page.pick(
        "step",
        "Checkpoint (training step)",
        list(found.steps),
        page.step_among(found.steps, "stored embedding"),
        widget="slider",
        show=COUNT,
    )
    frame = found.steps.index(step)
    st.altair_chart(
        plane(found, what, frame, trail == "show"),
        width="stretch",
        key="embedding.plane",
        alt=f"Embeddings of {what} in two dimensions at step {step}",
    )
    st.markdown(plain(explained(found, what, frame)))
    st.caption(NOTE)


def explained(found: StoredEmbedding, what: str, frame: int) -> str:
    """How much of the variance the picture shows."""
    shares = (found.shares[what][frame], found.explained[what])
    here, last = (" + ".join(f"{share:.1%}" for share in axes) for axes in shares)
    said = f"The plane shows {here} of the variance of the {what} at step {found.steps[frame]:,}"
    if found.steps[frame] != found.steps[-1]:
        said += f", and {last} at step {found.steps[-1]:,}"
    return f"{said}, to which it was fitted."


def plane(found: StoredEmbedding, what: str, frame: int, trail: bool) -> alt.LayerChart:
    """Points with their names, on axes that fit every checkpoint."""
    rows = point_rows(found, what, frame)
    x, y = (axis(found, what, index, name) for index, name in enumerate(("x", "y")))
    colour = colours(what, rows)
    layers: list[Any] = []
    few = len(rows) <= MOST_TRAILS
    if what == "positions":
        line = alt.Chart(alt.Data(values=rows)).mark_line(strokeWidth=1, opacity=0.5, color=QUIET)
        layers.append(line.encode(x=x, y=y, order="number:Q"))
    if trail and few and frame > 0:
        way = [row for at in range(frame + 1) for row in point_rows(found, what, at)]
        lines = alt.Chart(alt.Data(values=way)).mark_line(strokeWidth=1.4, opacity=0.5)
        layers.append(lines.encode(x=x, y=y, color=colour, detail="name:N", order="step:Q"))
    base = alt.Chart(alt.Data(values=rows))
    tip = ["name:N", alt.Tooltip("x:Q", format=".3f"), alt.Tooltip("y:Q", format=".3f"), "step:Q"]
    layers.append(base.mark_circle(size=90, opacity=1).encode(x=x, y=y, color=colour, tooltip=tip))
    if few:
        words = base.mark_text(dx=9, align="left", fontSize=12.5, fontWeight=600, color=QUIET)
        layers.append(words.encode(x=x, y=y, text="name:N", tooltip=tip))
    return alt.layer(*layers).properties(height=520)


def point_rows(found: StoredEmbedding, what: str, frame: int) -> list[dict[str, Any]]:
    """One row per point at one checkpoint."""
    places = found.places[what][frame]
    return [
        {
            "name": name,
            "number": number,
            "kind": "special" if name in SPECIALS else "value",
            "x": float(places[number, 0]),
            "y": float(places[number, 1]),
            "step": found.steps[frame],
        }
        for number, name in enumerate(found.labels(what))
    ]


def axis(found: StoredEmbedding, what: str, index: int, name: str) -> alt.X | alt.Y:
    """One axis, wide enough for every checkpoint, so that nothing jumps."""
    values = found.places[what][:, :, index]
    low, high = float(values.min()), float(values.max())
    room = 0.08 * (high - low) or 1.0
    share = found.explained[what][index]
    kind = alt.X if name == "x" else alt.Y
    return kind(
        f"{name}:Q",
        title=f"axis {index + 1} ({share:.1%} of the variance at the last step)",
        scale=alt.Scale(domain=[low - room, high + room], nice=False),
    )


def colours(what: str, rows: list[dict[str, Any]]) -> alt.Color:
    """Positions by their number; special tokens apart from values."""
    if what == "positions":
        last = max(1, len(rows) - 1)
        scale = alt.Scale(scheme="viridis", domain=[0, last])
        return alt.Color("number:Q", title="position", scale=scale, legend=alt.Legend(orient="right"))
    scale = alt.Scale(domain=["value", "special"], range=[VALUE, SPECIAL])
    return alt.Color("kind:N", title=None, scale=scale, legend=alt.Legend(orient="top", direction="horizontal"))


def nothing_stored(page: Page) -> None:
    """Nothing to draw yet."""
    if not page.steps:
        page.empty("No checkpoint yet.", "The first one is written before training starts; wait a moment.")
        return
    page.empty(
        "The embeddings are not stored yet.",
        f"It takes a few seconds for the {len(page.steps)} checkpoints of this run, once.",
        page.command("probe", "--what", "embedding"),
    )
    offer(page, "Follow the embeddings", ["probe", page.run.name, "--what", "embedding"])


@st.cache_data(max_entries=8, show_spinner=False)
def _embedding(path: str, analyses: Stamp) -> StoredEmbedding | None:
    return stored_embedding(run_at(path))
