"""Lens: what each layer would answer at each position, through training, and on single prompts."""

import altair as alt
import streamlit as st

from dashboards.charts import OKABE_ITO, THEME_INK
from dashboards.components.heat_grid import heat_grid
from dashboards.data import Stamp, stamp
from dashboards.lens_data import (
    NOT_ASKED,
    LensFrames,
    cell_words,
    example_names,
    example_rows,
    lens_frames,
    lens_panel,
)
from dashboards.page import Page, plain
from dashboards.patching_data import run_at
from dashboards.starting import offer

TITLE = "Lens"
ORDER = 60
ICON = ":material/center_focus_strong:"

GRID = "lens.grid"


def render(page: Page) -> None:
    """The heatmap over depths and positions, the cell that was clicked, and one prompt in full."""
    if page.run is None:
        page.header()
        page.empty("No run to look into.", "A run of a few minutes is enough.", page.command("demo", run=False))
        return
    frames = None
    with page.guarded("The lens is left out.", page.command("probe", "--what", "lens", "--fresh")):
        frames = _frames(str(page.run.path), stamp(page.run.path / "analysis"))
    if frames is None:
        page.header()
        nothing_stored(page)
        return
    page.header(n=frames.about.get("prompts", frames.about["n"]))
    step = grid(page, frames)
    example(page, frames, step)


def grid(page: Page, frames: LensFrames) -> int:
    """The heatmap led by the address; returns the checkpoint that is shown."""
    panel = lens_panel(frames)
    step = page.step_among(frames.steps, "stored lens")
    row = page.number("depth", -1, len(panel.rows) - 1, -1)
    column = page.number("place", -1, len(panel.columns) - 1, -1)
    known = row >= 0 and column >= 0
    with st.container(horizontal=True, horizontal_alignment="right"):
        page.share(
            page.command("probe", "--what", "lens", "--length", str(frames.about["length"])),
            "from probes.stored import stored_lens\n\nlast = stored_lens(run)[-1]\n"
            "probability = last.arrays(run)['probability']  # [depth, position]",
        )
    picked = heat_grid(
        [panel],
        key=GRID,
        metric=f"probability of the right next token, minus that of a uniform guess ({frames.chance:.3f})",
        raises="better than a guess",
        lowers="worse",
        hatched=NOT_ASKED,
        note="Final norm and unembedding after each depth.",
        steps=frames.steps,
        step=step,
        selected=(0, row, column) if known else None,
    )
    state = st.session_state.get(GRID)
    moved = state.get("step") if state is not None else None
    if picked is not None:
        row, column, known = picked.row, picked.column, True
        step = step if picked.step is None else picked.step
        page.put(depth=row, place=column, step=step)
    elif moved in frames.steps:
        step = moved
        page.put(step=step)
    if known:
        st.markdown(plain(cell_words(frames, frames.steps.index(step), row, column)))
    else:
        st.caption("Click a cell for its probability, interval and rank.")
    return step


def example(page: Page, frames: LensFrames, step: int) -> None:
    """The most probable token at each depth and position of one prompt."""
    names = example_names(frames)
    if not names:
        return
    st.subheader("One prompt", anchor=False)
    number = page.pick(
        "example", "Prompt", range(len(names)), page.number("example", 0, len(names) - 1), show=lambda at: names[at]
    )
    rows = example_rows(frames, frames.steps.index(step), number)
    st.altair_chart(
        tokens(rows, [str(name) for name in frames.about["depths"]]),
        width="stretch",
        key="lens.example",
        alt=f"Most probable token at each depth and position of the prompt {names[number]}",
    )
    st.caption(
        f"Checkpoint {step:,}. Each cell holds the most probable next token there: blue where it is the right one, "
        "orange where it is not, grey where the task does not ask; the stronger, the more probable. A low probability "
        "is no proof that the answer is not there yet: a later layer may read what the unembedding does not."
    )


def tokens(rows: list[dict], depths: list[str]) -> alt.LayerChart:
    """A cell with a token for each depth (the last on top) and position."""
    numbered = [row | {"position": f"{row['place']}|{row['position']}"} for row in rows]  # names need not be unique
    order = list(dict.fromkeys(row["position"] for row in numbered))
    label = alt.Axis(labelExpr="split(datum.label, '|')[1]", labelAngle=-45, ticks=False, domain=False)
    base = alt.Chart(alt.Data(values=numbered)).encode(
        x=alt.X("position:N", sort=order, title="position: token read there", axis=label),
        y=alt.Y("depth:N", sort=depths[::-1], title=None, axis=alt.Axis(ticks=False, domain=False)),
    )
    colour = alt.Color(
        "said:N",
        scale=alt.Scale(domain=["right", "wrong", "not asked"], range=[OKABE_ITO[0], OKABE_ITO[5], "#777777"]),
        legend=None,
    )
    fmt = {"format": ".3f"}
    tip = ["depth:N", "top:N", alt.Tooltip("probability:Q", **fmt), "right:N"]
    tip += [alt.Tooltip("of the right one:Q", **fmt), "rank:Q", "said:N"]
    opacity = alt.Opacity("probability:Q", scale=alt.Scale(domain=[0, 1], range=[0.06, 0.9]), legend=None)
    cells = base.mark_rect(cornerRadius=3).encode(color=colour, opacity=opacity, tooltip=tip)
    ink = alt.value({"expr": THEME_INK})
    words = base.mark_text(fontSize=12, fontWeight=600).encode(text="top:N", tooltip=tip, color=ink)
    return alt.layer(cells, words).properties(height=34 * len(depths) + 70)


def nothing_stored(page: Page) -> None:
    """Nothing to draw yet."""
    if not page.steps:
        page.empty("No checkpoint yet.", "The first one is written before training starts; wait a moment.")
        return
    page.empty(
        "The lens is not stored yet.",
        f"It takes a few seconds for the {len(page.steps)} checkpoints of this run, once.",
        page.command("probe", "--what", "lens"),
    )
    offer(page, "Look through the lens", ["probe", page.run.name, "--what", "lens"])


@st.cache_data(max_entries=8, show_spinner=False)
def _frames(path: str, analyses: Stamp) -> LensFrames | None:
    return lens_frames(run_at(path))
