"""Circuit: which edges carry the behaviour, how sure that is, and how they came about through training."""

import altair as alt
import streamlit as st

from circuits.stored import StoredCircuit
from dashboards import what_if
from dashboards.charts import OKABE_ITO
from dashboards.circuit_data import (
    VERDICTS,
    Frame,
    Series,
    control_words,
    default_length,
    facts,
    frames_of,
    has_columns,
    life_rows,
    lives,
    series_of,
)
from dashboards.circuit_download import drawing_file, page_file
from dashboards.components.circuit_frames import circuit_frames
from dashboards.data import Stamp, stamp
from dashboards.page import Page, plain
from dashboards.patching_data import run_at, what_if_targets
from dashboards.starting import offer
from interp.console import json_text
from interp.run import Run

TITLE = "Circuit"
ORDER = 50
ICON = ":material/hub:"

FRAMES = "circuit.frames"
DRAWN = {"columns": "a column each", "pooled": "as one"}


def render(page: Page) -> None:
    """The drawings of all stored checkpoints, the verdict of the chosen one, lives of edges, and the what-if."""
    if page.run is None:
        page.header()
        page.empty("No run to look into.", "A run of a few minutes is enough.", page.command("demo", run=False))
        return
    known: dict[str, Series] = {}
    with page.guarded("The discoveries are left out.", page.command("circuit", "--fresh")):
        known = _series(str(page.run.path), stamp(page.run.path / "analysis"))
    if not known:
        page.header()
        nothing_stored(page)
        return
    kind = page.choice("edges", list(known))
    series = known[kind]
    near = page.step_among(series.steps, "stored circuit")
    header = st.container()
    bar = st.container(horizontal=True, vertical_alignment="bottom")
    with bar:
        if len(known) > 1:
            series = known[page.pick("edges", "Edges", list(known), kind, widget="segments")]
            near = page.step_among(series.steps, "stored circuit")
        columns = in_columns(page, page.run, series)
    step = drawing(page, page.run, series, near, columns)
    one = series.at(step)
    with bar:
        send(page, page.run, one, columns)
    with header:
        about(page, one)
        verdict(one)
    evidence(one)
    through_training(page, page.run, series, step)
    length = one.request.get("prompts", {}).get("length")
    what_if.panel(page, page.run, step, length if isinstance(length, int) else None)


def about(page: Page, one: StoredCircuit) -> None:
    """How the numbers were made, in the words of the discovery itself."""
    circuit, prompts = one.data.get("circuit") or {}, one.request.get("prompts", {})
    made = circuit.get("provenance", {})
    page.header(
        direction=made.get("direction", "circuit kept in the clean run, all other edges ablated"),
        ablation=one.request.get("ablation", "not stored"),
        family=f"{prompts.get('family', '?')}, length {prompts.get('length') or default_length(page.run)}",
        n=made.get("n_prompts", {}).get("evaluate", one.data["gate"]["accuracy"]["n"]),
    )


def verdict(one: StoredCircuit) -> None:
    """The verdict, what it means, and the numbers it rests on."""
    colour, meaning = VERDICTS.get(one.data["verdict"], ("gray", ""))
    st.badge(plain(one.data["verdict"]), color=colour)
    st.markdown(f"**{plain(one.data['headline'])}**")
    st.caption(f"Step {one.step:,}. {meaning}")


def in_columns(page: Page, run: Run, series: Series) -> bool:
    """Whether each position has a column of its own; asked where there is room for that."""
    by_position = series.found[0].by_position
    if not by_position or not _has_columns(str(run.path), stamp(run.path / "analysis")):
        return False
    return page.pick("drawn", "Positions", list(DRAWN), widget="segments", show=DRAWN.get) == "columns"


def drawing(page: Page, run: Run, series: Series, near: int, columns: bool) -> int:
    """The drawings, led by the address; returns the step that is shown."""
    by_position = series.found[0].by_position
    frames = _frames(str(run.path), stamp(run.path / "analysis"), series.steps, by_position, columns)
    if not frames:
        return near
    names = what_if_targets(run.config.model)
    target = page.choice("target", [what_if.NOTHING, *names])
    marked = "|".join([str(columns), *(one.key for one in series.found)])
    picked = None if target == what_if.NOTHING else target
    done = circuit_frames(frames, key=FRAMES, stamp=marked, step=near, picked=picked, names=names, file=run.name)
    if done.name is not None:
        page.put(target=done.name)
    if done.step is not None:
        page.put(step=done.step)
    dotted = " Dotted: kept at another checkpoint." if len(frames) > 1 and not columns else ""
    everywhere = ", at all positions at once," if by_position else ""
    st.caption(
        f"Click an edge or a head to ablate it{everywhere} below; point at one for its exact numbers.{dotted} "
        "A drawing that is wider than this page scrolls sideways."
    )
    return done.step if done.step is not None else near


def evidence(one: StoredCircuit) -> None:
    """The numbers that decide, and what the controls keep."""
    left, right = st.columns([2, 3])
    with left:
        st.markdown("**Faithfulness**")
        for name, value in facts(one):
            st.markdown(f"- {plain(name)}: **{plain(value)}**")
    with right:
        st.markdown("**Controls**")
        for control in one.data["controls"]:
            st.markdown(f"- {plain(control_words(control))}")
        if not one.data["controls"]:
            st.caption("None were run: there is no circuit to compare them with.")
    limits = [*one.data.get("notes", ()), *one.data.get("limits", ())]
    if limits:
        with st.expander("Notes and limits"):
            for said in limits:
                st.markdown(f"- {plain(said)}")


def through_training(page: Page, run: Run, series: Series, step: int) -> None:
    """Births and deaths of edges, or how to get them."""
    by_position = series.found[0].by_position
    st.markdown(f"**Edges through training**, of the search {'by position' if by_position else 'without positions'}")
    again = page.command("circuit", "--checkpoints", "all", *(["--positions"] if by_position else []))
    with page.guarded("The lives of edges are left out.", again):
        found, told, whole = lives(run, series)
        if whole:
            st.caption(
                f"{plain(told)} Born: the first of three circuits in a row with the edge. Died: the first of three "
                "without it."
            )
        else:
            st.caption(
                f"Circuits {'by position ' * by_position}of {len(series.steps)} "
                f"checkpoint{'s' * (len(series.steps) > 1)} are stored. Births and deaths need all of them, three in a "
                "row each:"
            )
            st.code(again, language="sh", wrap_lines=True)
            if told:
                st.caption(plain(told))
        rows = life_rows(found, sorted({at for one in found for at in one.present}))
        if rows and len({row["step"] for row in rows}) > 1:
            height = 20 * len({row["edge"] for row in rows}) + 60
            at = sorted({row["step"] for row in rows} | {step})
            chart = presence(rows, [one.edge for one in found], at, step, whole)
            st.altair_chart(
                chart.properties(height=height), width="stretch", key="circuit.lives", alt="Edges at each checkpoint"
            )


def presence(rows: list[dict], order: list[str], steps: list[int], step: int, whole: bool) -> alt.LayerChart:
    """A mark for each edge and checkpoint at which the circuit holds it; checkpoints stand side by side."""
    shown = ["present", "born", "died"] if whole else ["present"]
    rows = rows if whole else [row | {"what": "present"} for row in rows]
    colour = alt.Scale(domain=shown, range=[OKABE_ITO[0], OKABE_ITO[2], OKABE_ITO[5]][: len(shown)])
    shape = alt.Scale(domain=shown, range=["square", "circle", "cross"][: len(shown)])
    legend = alt.Legend(orient="top", direction="horizontal") if whole else None
    x = alt.X(
        "step:O",
        title="checkpoint (training step)",
        scale=alt.Scale(domain=steps),
        axis=alt.Axis(format=",d", labelAngle=-45, grid=False),
    )
    base = alt.Chart(alt.Data(values=rows))
    marks = base.mark_point(filled=True, size=80, opacity=1).encode(
        x=x,
        y=alt.Y("edge:N", sort=order, title=None, axis=alt.Axis(labelLimit=240, grid=True, labelOverlap=False)),
        color=alt.Color("what:N", title=None, scale=colour, legend=legend),
        shape=alt.Shape("what:N", title=None, scale=shape, legend=legend),
        tooltip=["edge:N", "step:O", "what:N"],
    )
    rule = alt.Chart(alt.Data(values=[{"step": step}])).mark_rule(strokeDash=[4, 3], color="#888888")
    return alt.layer(rule.encode(x=x), marks)


def send(page: Page, run: Run, one: StoredCircuit, columns: bool) -> None:
    """Link, command, Python; the circuit, its drawing and its page as files."""
    page.share(
        page.command("circuit", "--checkpoints", str(one.step), *(["--positions"] if one.by_position else [])),
        "from circuits.stored import choose, stored_circuits\n\n"
        f"found = choose(stored_circuits(run), step={one.step}, by_position={one.by_position})\n"
        "print(found.discovery.headline)\ncircuit = found.discovery.circuit.circuit()",
    )
    name = f"{run.name}-step-{one.step}"
    if one.data.get("circuit") is not None:
        st.download_button(
            "Drawing (SVG)",
            data=lambda: drawing_file(run, one, columns),
            file_name=f"{name}.circuit.svg",
            mime="image/svg+xml",
            icon=":material/download:",
            key="circuit.svg",
            help="The drawing below at this checkpoint, as a file of its own.",
        )
        st.download_button(
            "circuit.json",
            data=lambda: json_text(one.data["circuit"]),
            file_name=f"{name}.circuit.json",
            mime="application/json",
            icon=":material/download:",
            key="circuit.download",
            help=f"For other programs: {page.command('export', '--to', 'mib', '--checkpoint', str(one.step))}",
        )
    st.download_button(
        "Report (HTML)",
        data=lambda: page_file(run, one),
        file_name=f"{name}.circuit.html",
        mime="text/html",
        icon=":material/download:",
        key="circuit.html",
        help="The page of `interp report circuit` for this checkpoint. It is written when asked for: some seconds.",
    )


def nothing_stored(page: Page) -> None:
    """Nothing to draw yet."""
    if not page.steps:
        page.empty("No checkpoint yet.", "The first one is written before training starts; wait a moment.")
        return
    page.empty(
        "No circuit search stored yet.",
        "A search looks for the fewest edges that keep the behaviour, and holds them against random circuits of the "
        "same kind on held-out prompts. A small model takes under a minute; all checkpoints tell how it came about.",
        page.command("circuit", "--checkpoints", "all"),
    )
    offer(page, "Search the newest checkpoint", ["circuit", page.run.name])


@st.cache_data(max_entries=16, show_spinner=False)
def _series(path: str, analyses: Stamp) -> dict[str, Series]:
    return series_of(run_at(path))


@st.cache_data(max_entries=8, show_spinner="Drawing the circuits")
def _frames(path: str, analyses: Stamp, steps: list[int], by_position: bool, columns: bool) -> list[Frame]:
    run = run_at(path)
    return frames_of(run, series_of(run)["by position" if by_position else "whole"], columns)


@st.cache_data(max_entries=16, show_spinner=False)
def _has_columns(path: str, analyses: Stamp) -> bool:
    run = run_at(path)
    return has_columns(run, series_of(run)["by position"])
