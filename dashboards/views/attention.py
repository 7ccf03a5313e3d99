"""Attention patterns through training: every head on one sequence, scrubbed and played in the browser."""

import streamlit as st

from circuits.report.canvas.grid import attention_grid as offline_grid
from dashboards import cached
from dashboards.address import nearest
from dashboards.attention_data import (
    EXACT_CELLS,
    Findings,
    exact_head,
    findings,
    first_head,
    grid_message,
    shown_steps,
    stamp_of,
)
from dashboards.circuitsvis_view import draw_circuitsvis
from dashboards.components.attention_grid import attention_grid, guide_attention
from dashboards.page import Page, plain
from dashboards.starting import offer
from interp.errors import InterpError
from interp.run import Run
from probes.patterns_store import PatternIndex, pattern_index

TITLE = "Attention"
ORDER = 20
ICON = ":material/grid_on:"

GRID = "attention-grid"


def render(page: Page) -> None:
    """The grid of the chosen sequence, with what leads to it and what can be done with it."""
    if page.run is None:
        page.header()
        page.empty("No run to look into.", "`interp demo` makes one in about two minutes.", page.command("demo"))
        return
    index = pattern_index(page.run)
    if index is None:
        page.header()
        missing(page, page.run)
        return
    prompts = index.record.prompts
    page.header(n="1 held-out sequence")
    found = roles(page.run)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        example = page.pick(
            "example", "Sequence", range(len(prompts)), page.number("example", 0, len(prompts) - 1),
            show=lambda place: f"{prompts[place].label}: {' '.join(prompts[place].tokens)}"[:90],
        )  # fmt: skip
        second = page.pick("beside", "Second view", ["none", "circuitsvis"], widget="segments")
        download(page.run, example, found)
    if index.missing:
        late(page, page.run, index)
    draw(page, page.run, index, example, found)
    if second == "circuitsvis":
        beside(page, page.run, index, example, found)
    page.share(
        page.command("patterns"),
        "from circuits.report.canvas.grid import attention_grid\n\n"
        f"attention_grid(run, sequence={example})  # in a notebook; .save('attention.html') writes a page",
    )


def draw(page: Page, run: Run, index: PatternIndex, example: int, found: Findings) -> None:
    """The grid, led by the address; what is chosen in it goes into the address."""
    stamp = stamp_of(index, example, found)
    frames = _frames(str(run.path), stamp, run, index, example, found)
    picked = attention_grid(frames, key=GRID)
    if picked is not None:
        place = {"step": picked.step, "layer": picked.layer, "head": picked.head, "q": picked.q, "k": picked.k}
        page.put(**place, draw=picked.mode)
    steps, (layer, head) = shown_steps(index), chosen_head(page, run, index, example, found)
    step = nearest(str(page.get("step")), steps)
    tokens = index.record.prompts[example].tokens
    q, k = (page.number(name, -1, len(tokens) - 1, -1) for name in ("q", "k"))
    cell = (q, k) if q >= 0 and k >= 0 else None
    values = exact_head(run, index, example, step, layer, head)
    exact = {"step": step, "layer": layer, "head": head}
    if len(tokens) ** 2 <= EXACT_CELLS:
        exact["values"] = values
    elif cell is not None:
        exact |= {"q": q, "k": k, "value": float(values[cell])}
    place, mode = steps.index(step), page.choice("draw", ["matrix", "lines"])
    guide_attention(GRID, stamp, checkpoint=place, layer=layer, head=head, cell=cell, mode=mode, exact=exact)
    st.caption(f"Sequences: {plain(index.record.rule)}.")


def chosen_head(page: Page, run: Run, index: PatternIndex, example: int, found: Findings) -> tuple[int, int]:
    """Layer and head of the address; the head that tells most where it names none."""
    layer, head = first_head(run, index, example, found)
    return (
        page.number("layer", 0, index.record.n_layers - 1, layer),
        page.number("head", 0, index.record.n_heads - 1, head),
    )


def beside(page: Page, run: Run, index: PatternIndex, example: int, found: Findings) -> None:
    """The selected head in circuitsvis."""
    step = nearest(str(page.get("step")), index.steps)
    layer, head = chosen_head(page, run, index, example, found)
    st.subheader(f"L{layer}.H{head} at step {step:,} in circuitsvis", anchor=False)
    with page.guarded():
        pattern = exact_head(run, index, example, step, layer, head)
        draw_circuitsvis(list(index.record.prompts[example].tokens), pattern, f"L{layer}.H{head}")


def download(run: Run, example: int, found: Findings) -> None:
    """The grid as one offline file."""
    st.download_button(
        "Download",
        data=lambda: offline_grid(run, sequence=example, roles=found.roles, emerged=found.emerged).html(),
        file_name=f"{run.name}-attention.html",
        mime="text/html",
        icon=":material/download:",
        key="attention.download",
        help="One HTML file with every checkpoint of this sequence; opens offline.",
    )


def late(page: Page, run: Run, index: PatternIndex) -> None:
    """Some checkpoints have no patterns yet."""
    st.info(f"{len(index.missing)} of {len(index.missing) + len(index.steps)} checkpoints have no stored patterns yet.")
    offer(page, "Store the rest", ["patterns", run.name])


def missing(page: Page, run: Run) -> None:
    """Nothing is stored: say what it takes, and start it on request."""
    if not page.steps:
        page.empty("No checkpoint yet.", "The first one is written before training starts; wait a moment.")
        return
    page.empty(
        "Attention patterns are not stored yet.",
        f"Storing them for the {len(page.steps)} checkpoints of this run takes a few seconds, once.",
        page.command("patterns"),
    )
    offer(page, "Store attention patterns", ["patterns", run.name])


@st.cache_data(max_entries=8, show_spinner=False)
def _frames(path: str, made_of: str, _run: Run, _index: PatternIndex, prompt: int, _found: Findings) -> bytes:
    return grid_message(_run, _index, prompt, _found, GRID)


def roles(run: Run) -> Findings:
    """What detections said; a damaged one costs the roles, not the patterns."""
    try:
        return findings(cached.followed(run))
    except InterpError as error:
        st.warning("Stored detections cannot be read, so heads carry no role.")
        st.text(str(error))
        return Findings()
