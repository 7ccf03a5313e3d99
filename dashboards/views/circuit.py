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
    facts,
    frames_of,
    life_rows,
    lives,
    series_of,
)
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
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if len(known) > 1:
            series = known[page.pick("edges", "Edges", list(known), kind, widget="segments")]
            near = page.step_among(series.steps, "stored circuit")
        send(page, page.run, series.at(near))
    step = drawing(page, page.run, series, near)
    one = series.at(step)
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
        family=f"{prompts.get('family', '?')}, length {prompts.get('length') or 'by default'}",
        n=made.get("n_prompts", {}).get("evaluate", one.data["gate"]["accuracy"]["n"]),
    )


def verdict(one: StoredCircuit) -> None:
    """The verdict, what it means, and the numbers it rests on."""
    colour, meaning = VERDICTS.get(one.data["verdict"], ("gray", ""))
    st.badge(plain(one.data["verdict"]), color=colour)
    st.markdown(f"**{plain(one.data['headline'])}**")
    st.caption(f"Step {one.step:,}. {meaning}")


def drawing(page: Page, run: Run, series: Series, near: int) -> int:
    """The drawings, led by the address; returns the step that is shown."""
    frames = _frames(str(run.path), stamp(run.path / "analysis"), series.steps, series.found[0].by_position)
    if not frames:
        return near
    names = what_if_targets(run.config.model)
    target = page.choice("target", [what_if.NOTHING, *names])
    marked = "|".join(one.key for one in series.found)
    done = circuit_frames(
        frames, key=FRAMES, stamp=marked, step=near, picked=None if target == what_if.NOTHING else target, names=names
    )
    if done.name is not None:
        page.put(target=done.name)
    if done.step is not None:
        page.put(step=done.step)
    dotted = " Dotted: kept at another checkpoint." if len(frames) > 1 else ""
    st.caption(f"Click an edge or a head to ablate it below; point at one for its exact score.{dotted}")
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
    st.markdown("**Edges through training**")
    with page.guarded("The lives of edges are left out.", page.command("circuit", "--checkpoints", "all")):
        found, told, whole = lives(run, series)
        if whole:
            st.caption(
                f"{plain(told)} Born: the first of three circuits in a row with the edge. Died: the first of three "
                "without it."
            )
        else:
            st.caption(
                f"Circuits of {len(series.steps)} checkpoint{'s' * (len(series.steps) > 1)} are stored. Births and "
                "deaths need all of them, three in a row each:"
            )
            st.code(page.command("circuit", "--checkpoints", "all"), language="sh", wrap_lines=True)
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


def send(page: Page, run: Run, one: StoredCircuit) -> None:
    """Link, command, Python, and the circuit as a file."""
    page.share(
        page.command("circuit", "--checkpoints", str(one.step), *(["--positions"] if one.by_position else [])),
        "from circuits.stored import newest_circuit\n\n"
        f"found = newest_circuit(run, step={one.step}, by_position={one.by_position})\n"
        "print(found.discovery.headline)\ncircuit = found.discovery.circuit.circuit()",
    )
    if one.data.get("circuit") is not None:
        st.download_button(
            "circuit.json",
            data=lambda: json_text(one.data["circuit"]),
            file_name=f"{run.name}-step-{one.step}.circuit.json",
            mime="application/json",
            icon=":material/download:",
            key="circuit.download",
            help=f"For other programs: {page.command('export', '--to', 'mib', '--checkpoint', str(one.step))}",
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
def _frames(path: str, analyses: Stamp, steps: list[int], by_position: bool) -> list[Frame]:
    run = run_at(path)
    return frames_of(run, series_of(run)["by position" if by_position else "whole"])
