"""The what-if panel: ablate a head, MLP or edge through the warm worker, beside five matched controls."""

import json
from contextlib import suppress
from typing import Any

import altair as alt
import streamlit as st

from dashboards.charts import THEME_INK
from dashboards.data import Stamp, stamp
from dashboards.page import Page, plain
from dashboards.patching_data import NOTHING, outcome_rows, what_if_targets
from interp import jobs
from interp.errors import JobError
from interp.run import Run, Store

ABLATIONS = {"mean": "its mean", "zero": "zero", "resample": "another prompt's value"}
NOTE = (
    "**Exploratory**: one look at one place, on sequences of its own. `interp detect` or `interp circuit` confirms it "
    "on held-out prompts, before it is claimed."
)
TIMEOUT = 120.0
STARTED = "what-if worker started"
ROLES = ("unchanged", "ablated", "control", "not tested")
ROLE_COLOURS = ("#56B4E9", "#D55E00", "#999999", "#dddddd")
SEQUENCES = 128


def panel(page: Page, run: Run, step: int, length: int | None = None) -> None:
    """What is ablated, and the answer; `length` is the number of inputs of the sequences, the longest if None."""
    st.subheader("What if", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        target = page.pick(
            "target",
            "Ablate a head, an MLP or an edge",
            [NOTHING, *what_if_targets(run.config.model)],
            help="Click a head in the heatmap, or choose here; type to search.",
        )
        ablation = page.pick("ablate", "It becomes", list(ABLATIONS), widget="segments", show=ABLATIONS.get)
    if target == NOTHING:
        start_worker(page.store)
        st.caption(
            "Click a head above, or choose one here: the run answers new sequences without it, beside five matched "
            "controls. The first answer takes a few seconds, the next ones less than one."
        )
        return
    request = {"run": run.name, "step": step, "target": target, "ablation": ablation, "n": SEQUENCES}
    request |= {} if length is None else {"length": length}
    with page.guarded("Choose another head or edge, or ask again."):
        show(page, asked(page.store, run, step, "what_if", request))


def start_worker(store: Store) -> None:
    """Start the worker while its first question is still being chosen; once in a session, and only in a browser."""
    if st.context.url and STARTED not in st.session_state:
        st.session_state[STARTED] = True
        with suppress(JobError):  # the question itself says what is wrong
            jobs.warm(store)


def asked(store: Store, run: Run, step: int, name: str, request: dict[str, Any]) -> dict[str, Any]:
    """The worker's answer; the same question about the same checkpoint is asked once.

    Raises:
        InterpError: what the worker refused, or that it did not answer.
    """
    found = next((ref.path for ref in run.checkpoints(rolling=True) if ref.step == step), run.path)
    text = json.dumps(request, sort_keys=True)
    with st.spinner("Asking the worker; the first answer takes a few seconds."):
        return _asked(str(store.root), name, text, stamp(found / "MANIFEST.json"))


@st.cache_data(max_entries=256, show_spinner=False)
def _asked(root: str, name: str, request: str, checkpoint: Stamp) -> dict[str, Any]:
    return jobs.ask(Store(root), name, json.loads(request), TIMEOUT)


def show(page: Page, answer: dict[str, Any]) -> None:
    """The answer in a sentence, as bars with intervals, and what has to be done before it is claimed."""
    st.badge("exploratory", color="orange", icon=":material/science:")
    st.markdown(f"**{plain(answer['reading'])}**")
    rows = outcome_rows(answer)
    st.altair_chart(
        bars(rows), width="stretch", key=f"{page.view}.bars", alt=f"Share of single states right: {answer['reading']}"
    )
    st.caption(
        f"Ablation: {plain(answer['intervention'])}. Bars: share of single states right, mean over "
        f"n = {rows[0]['n']} sequences, with 95 % interval. Prompts: {plain(answer['prompts'])}. "
        f"Controls: {plain(answer['control_name'])}."
    )
    st.info(NOTE, icon=":material/science:")
    with st.expander("Every number, and how to confirm it"):
        st.dataframe(_table(answer), hide_index=True, width="stretch")
        st.code(f"{page.python_start()}\n{python_of(answer)}", language="python", wrap_lines=True)
        st.code(f"{page.command('circuit')}\n{page.command('detect')}", language="sh", wrap_lines=True)


def python_of(answer: dict[str, Any]) -> str:
    """The lines that give the same answer."""
    named = {name: answer[name] for name in ("run", "step", "target", "ablation", "length")}
    named["n"] = answer["base"]["accuracy"]["n"]
    asked = ", ".join(f"{name}={value!r}" for name, value in named.items())
    return (
        "from circuits.whatif import WhatIfRequest, subject_of, what_if\n\n"
        f"asked = WhatIfRequest({asked})\n"
        "print(what_if(subject_of(run, asked), asked).reading)"
    )


def bars(rows: list[dict[str, Any]]) -> alt.LayerChart:
    """A bar for the unchanged run, the ablated one and each control, in this order."""
    base = alt.Chart(alt.Data(values=rows))
    order = [row["name"] for row in rows]
    y = alt.Y("name:N", sort=order, title=None, axis=alt.Axis(labelLimit=240, ticks=False, domain=False))
    axis = alt.Axis(format=".0%", tickCount=5, domain=False)
    x = alt.X("value:Q", title="share of single states right", scale=alt.Scale(domain=[0, 1]), axis=axis)
    colour = alt.Color(
        "role:N",
        title=None,
        scale=alt.Scale(domain=list(ROLES), range=list(ROLE_COLOURS)),
        legend=None,
    )
    fmt = {"format": ".3f"}
    tip = ["name:N", alt.Tooltip("value:Q", **fmt), alt.Tooltip("low:Q", **fmt), alt.Tooltip("high:Q", **fmt), "n:Q"]
    tip += [alt.Tooltip("sequences:Q", title="whole sequences right", **fmt), alt.Tooltip("margin:Q", **fmt)]
    marks = base.mark_bar(height=14, cornerRadiusEnd=3).encode(x=x, y=y, color=colour, tooltip=tip)
    ends = base.mark_rule(strokeWidth=1.5).encode(x="low:Q", x2="high:Q", y=y, color=alt.value({"expr": THEME_INK}))
    words = base.mark_text(align="left", dx=6, fontSize=12, color="#888888").encode(
        x=alt.X("high:Q"), y=y, text=alt.Text("value:Q", format=".0%")
    )
    return alt.layer(marks, ends, words).properties(height=26 * len(rows) + 40)


def _table(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "": row["name"],
            "single states right": _spread(row["value"], row["low"], row["high"]),
            "whole sequences right": f"{row['sequences']:.1%}",
            "margin (logits)": f"{row['margin']:+.2f}",
            "states lost": "" if row["lost"] is None else f"{row['lost']:+.3f}",
            "n": row["n"],
            "tested": "yes" if row["role"] != "not tested" else "no: nothing moved",
        }
        for row in outcome_rows(answer)
    ]


def _spread(value: float, low: float, high: float) -> str:
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
