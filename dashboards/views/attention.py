"""Attention patterns through training: every head on one sequence, scrubbed and played in the browser."""

from typing import Any

import streamlit as st

from dashboards import cached
from dashboards.attention_data import (
    EXACT_CELLS,
    Findings,
    Shown,
    exact_head,
    findings,
    first_head,
    grid_message,
    offline_page,
    own_sequence,
    shown_steps,
    stamp_of,
    stored_sequence,
)
from dashboards.circuitsvis_view import draw_circuitsvis
from dashboards.components.attention_grid import attention_grid, guide_attention
from dashboards.page import Page, plain
from dashboards.starting import offer
from interp.errors import InterpError
from interp.jobs import ask
from interp.run import Run, Store
from probes.patterns_store import PatternIndex, pattern_index

TITLE = "Attention"
ORDER = 20
ICON = ":material/grid_on:"

GRID = "attention-grid"
PYTHON = """\
from circuits.report.canvas.grid import attention_grid

attention_grid(run, sequence={example})  # in a notebook; .save("attention.html") writes a page"""
SCORE = (
    "The number on a small head is its mean attention on the targets of its role; of a head without a role, on those "
    "that it fits best. It is of this one sequence: detections and reports have means over many. "
)
PYTHON_OWN = """\
from circuits.report.canvas.grid import grid_of_patterns
from probes.patterns_own import patterns_of_inputs

own = patterns_of_inputs(run, {inputs})
grid_of_patterns(own.patterns, own.tokens, steps=own.steps, targets=own.targets)"""


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
    inputs = page.text("own").split()
    page.header(n="1 sequence of one's own" if inputs else "1 held-out sequence")
    found = roles(page.run)
    row = st.container(horizontal=True, vertical_alignment="bottom")
    with row:
        example = choose(page, index)
        second = page.pick("beside", "Second view", ["none", "circuitsvis"], widget="segments")
    if index.missing:
        late(page, page.run, index)
    with page.guarded("Write the inputs alone, separated by spaces; the task's rule writes the rest."):
        shown = own(page.run, page.store, index, inputs) if inputs else stored_sequence(page.run, index, example)
        with row:
            download(page.run, shown, found)
        step = draw(page, shown, found)
        st.caption(SCORE * bool(shown.targets) + said_of(index, inputs))
        if second == "circuitsvis":
            beside(page, shown, found, step)
    python = PYTHON_OWN.format(inputs=inputs) if inputs else PYTHON.format(example=example)
    page.share(page.command("patterns"), python)


def said_of(index: PatternIndex, inputs: list[str]) -> str:
    """Where the sequences come from."""
    return "Your own inputs; nothing is stored." if inputs else f"Sequences: {plain(index.record.rule)}."


def choose(page: Page, index: PatternIndex) -> int:
    """Pick a stored sequence, or write inputs of one's own, which come first while they are there."""
    prompts = index.record.prompts
    key = "attention.own"
    example = page.pick(
        "example", "Sequence", range(len(prompts)), page.number("example", 0, len(prompts) - 1),
        show=lambda place: f"{prompts[place].label}: {' '.join(prompts[place].tokens)}"[:90],
    )  # fmt: skip
    st.session_state[key] = page.text("own")
    st.text_input(
        "Or your own inputs",
        key=key,
        on_change=lambda: page.put(own=st.session_state[key].strip() or None, q=None, k=None),
        placeholder="such as 7 3 9 1",
        help="Names of input tokens, separated by spaces. The task's rule writes the whole sequence.",
        width=220,
    )
    return example


def own(run: Run, store: Store, index: PatternIndex, inputs: list[str]) -> Shown:
    """The sequence of one's own inputs, from the worker; asked once for the same inputs and checkpoints."""
    checkpoints = " ".join([str(run.path), *sorted(index.keys.values())])
    answer = _asked(str(store.root), run.name, tuple(inputs), checkpoints)
    return own_sequence(answer, inputs, checkpoints)


def draw(page: Page, shown: Shown, found: Findings) -> int:
    """The grid, led by the address; what is chosen in it goes into the address. Returns the step that is shown."""
    stamp = stamp_of(shown, found)
    picked = attention_grid(_frames(stamp, shown, found), key=GRID)
    if picked is not None:
        place = {"step": picked.step, "layer": picked.layer, "head": picked.head, "q": picked.q, "k": picked.k}
        page.put(**place, draw=picked.mode)
    steps, (layer, head) = shown_steps(shown), chosen_head(page, shown, found)
    step, n_pos = page.step_among(steps, "frame in this grid"), len(shown.tokens)
    q, k = (page.number(name, -1, n_pos - 1, -1) for name in ("q", "k"))
    cell = (q, k) if q >= 0 and k >= 0 else None
    exact: dict[str, Any] = {"step": step, "layer": layer, "head": head}
    if n_pos**2 <= EXACT_CELLS:
        exact["values"] = exact_head(shown, step, layer, head)
    elif cell is not None:
        exact |= {"q": q, "k": k, "value": float(exact_head(shown, step, layer, head)[cell])}
    place, mode = steps.index(step), page.choice("draw", ["matrix", "lines"])
    guide_attention(GRID, stamp, checkpoint=place, layer=layer, head=head, cell=cell, mode=mode, exact=exact)
    return step


def chosen_head(page: Page, shown: Shown, found: Findings) -> tuple[int, int]:
    """Layer and head of the address; the head that tells most where it names none."""
    layer, head = _first_head(stamp_of(shown, found), shown, found)
    return page.number("layer", 0, shown.n_layers - 1, layer), page.number("head", 0, shown.n_heads - 1, head)


def beside(page: Page, shown: Shown, found: Findings, step: int) -> None:
    """The selected head in circuitsvis."""
    layer, head = chosen_head(page, shown, found)
    st.subheader(f"L{layer}.H{head} at step {step:,} in circuitsvis", anchor=False)
    draw_circuitsvis(list(shown.tokens), exact_head(shown, step, layer, head), f"L{layer}.H{head}")


def download(run: Run, shown: Shown, found: Findings) -> None:
    """The grid as one offline file."""
    title = f"{run.name}: attention through training, {shown.label}"
    st.download_button(
        "Download",
        data=lambda: offline_page(shown, found, title).html(),
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
def _frames(stamp: str, _shown: Shown, _found: Findings) -> bytes:
    return grid_message(_shown, _found, GRID)


@st.cache_data(max_entries=64, show_spinner=False)
def _first_head(stamp: str, _shown: Shown, _found: Findings) -> tuple[int, int]:
    return first_head(_shown, _found)


@st.cache_data(max_entries=8, show_spinner="Asking the worker; the first answer takes a few seconds.")
def _asked(root: str, run: str, inputs: tuple[str, ...], checkpoints: str) -> dict[str, Any]:
    return ask(Store(root), "own_patterns", {"run": run, "inputs": list(inputs)}, 120.0)


def roles(run: Run) -> Findings:
    """What detections said; a damaged one costs the roles, not the patterns."""
    try:
        return findings(cached.followed(run))
    except InterpError as error:
        st.warning("Stored detections cannot be read, so heads carry no role.")
        st.text(str(error))
        return Findings()
