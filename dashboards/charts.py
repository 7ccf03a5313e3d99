"""Curves over training steps in Streamlit's theme: loss, accuracy by length, scores, verdicts.

Each drawing is described once by Altair, with its data left out, and kept; a rerun sends only the rows that changed. So
moving the checkpoint moves one line in the browser instead of drawing every chart again.
"""

from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

# Okabe and Ito's colours, which stay apart for every kind of colour vision and on both grounds.
OKABE_ITO = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442"]
THEME_INK = "luminance(background) > 0.5 ? '#000000' : '#ffffff'"  # Vega's, of the ground that the theme sets
VERDICTS = {
    "iteration head": ("#009E73", "circle"),
    "candidate": ("#E69F00", "diamond"),
    "solved without the textbook head": ("#0072B2", "square"),
    "not solved": ("#999999", "triangle-up"),
    "none": ("#999999", "cross"),
}
HEIGHT, STRIP = 280, 28
LETTER, SIGN, LONGEST = 6.3, 30, 260  # of a legend, in px: a letter, the sign before a label, a label at most
THREE = {"format": ".3f"}

Rows = Sequence[dict[str, Any]]
Bracket = tuple[int, int] | None


def loss(rows: Rows, steps: Sequence[int | None], last: int, bracket: Bracket = None, *, key: str) -> None:
    """Loss of the training batch and of held-out sequences."""
    values = [row["loss"] for row in rows] or [0.0, 1.0]
    drawing = _loss(last, min(values), max(values), _longest(rows, "kind"), bracket)
    _draw(drawing, rows, steps, key, "Loss over training steps")


def accuracy(
    rows: Rows,
    steps: Sequence[int | None],
    last: int,
    bracket: Bracket = None,
    *,
    end: int | None = None,
    key: str,
) -> None:
    """Accuracy on whole held-out sequences as a table: a column for each evaluation, a row for each length.

    Args:
        end: step at which the run ended, where the axis goes on to `last`; nothing is drawn after it.
    """
    cells = accuracy_cells(rows, max(last, 1) if end is None else end)
    lengths = tuple(sorted({row["length"] for row in rows}, reverse=True))
    _draw(_accuracy(last, lengths, bracket), cells, steps, key, "Accuracy by length over training steps")


def accuracy_cells(rows: Rows, end: int) -> list[dict[str, Any]]:
    """The rows with `until`: the next evaluation, or the end of the run."""
    evaluated = sorted({row["step"] for row in rows})
    until = dict(zip(evaluated, [*evaluated[1:], end], strict=False))
    return [{**row, "until": max(row["step"], until[row["step"]])} for row in rows]


def tracked(rows: Rows, steps: Sequence[int | None], last: int, bracket: Bracket = None, *, key: str) -> None:
    """Scores that were followed while training."""
    _draw(_tracked(last, _longest(rows, "score"), bracket), rows, steps, key, "Tracked scores over training steps")


def scores(rows: Rows, steps: Sequence[int | None], last: int, bracket: Bracket = None, *, key: str) -> None:
    """Attention mass on the target by head and role, with its interval; the shape of a mark is the verdict there."""
    _draw(_scores(last, bracket), rows, steps, key, "Detector scores over training steps")


def verdicts(rows: Rows, steps: Sequence[int | None], last: int, bracket: Bracket = None, *, key: str) -> None:
    """One mark for each checkpoint: the verdict there."""
    shown = tuple(name for name in VERDICTS if any(row["verdict"] == name for row in rows))
    _draw(_verdicts(last, shown, bracket), rows, steps, key, "Verdict at each checkpoint")


def _draw(spec: dict[str, Any], rows: Rows, steps: Sequence[int | None], key: str, words: str) -> None:
    """Rows and marked steps go beside the drawing, as named tables."""
    tables = {"rows": pd.DataFrame(rows), "mark": pd.DataFrame({"step": [one for one in steps if one is not None]})}
    st.vega_lite_chart({**deepcopy(spec), "datasets": tables}, width="stretch", key=key, alt=words)


def _described(chart: alt.Chart | alt.LayerChart, last: int, bracket: Bracket, height: int = HEIGHT) -> dict[str, Any]:
    """The chart with the marked steps as lines and the emergence bracket as a band behind it."""
    layers: list[Any] = [chart]
    if bracket is not None:
        band = alt.Chart(alt.Data(values=[{"step": bracket[0], "to": bracket[1]}]))
        layers.insert(0, band.mark_rect(opacity=0.18, color=OKABE_ITO[5]).encode(x=steps_axis(last), x2="to:Q"))
    rule = alt.Chart(alt.NamedData("mark")).mark_rule(strokeDash=[4, 3], opacity=0.8, color="#888888")
    return alt.layer(*layers, rule.encode(x=steps_axis(last))).properties(height=height).to_dict(validate=False)


def steps_axis(last: int, first: int = 64) -> alt.X:
    """Training steps, logarithmic above the first checkpoint and linear below it, so that step 0 has a place."""
    bend = max(1, min(first, last // 16))
    scale = alt.Scale(type="symlog", constant=bend, domain=[0, max(last, 1)], nice=False)
    ticks = [0, *(bend * 4**power for power in range(12) if bend * 4**power <= last)]
    return alt.X("step:Q", title="training step", scale=scale, axis=alt.Axis(format=",d", values=ticks, grid=False))


def _longest(rows: Rows, name: str) -> int:
    """Letters of the longest label."""
    return max((len(str(row[name])) for row in rows), default=0)


def _legend(letters: int, beside: int = 0) -> alt.Legend:
    """A legend above the chart in as many columns as its width has room for, so that none is cut.

    Args:
        letters: of the longest label.
        beside: width that another legend takes, in px.
    """
    column = SIGN + min(LONGEST, LETTER * letters)
    columns = {"expr": f"max(1, floor((width - {beside}) / {column}))"}
    return alt.Legend(orient="top", direction="horizontal", labelLimit=LONGEST, columns=columns)


def _rows() -> alt.Chart:
    return alt.Chart(alt.NamedData("rows"))


def _share(name: str, title: str) -> alt.Y:
    """A number between 0 and 1 on the vertical axis."""
    return alt.Y(f"{name}:Q", title=title, scale=alt.Scale(domain=[0, 1]))


@lru_cache(maxsize=64)
def _loss(last: int, low: float, high: float, letters: int, bracket: Bracket) -> dict[str, Any]:
    colour = alt.Color("kind:N", title=None, scale=alt.Scale(range=OKABE_ITO[:2]), legend=_legend(letters))
    tip = ["step:Q", alt.Tooltip("loss:Q", format=".4f"), "kind:N"]
    y = alt.Y("loss:Q", title="loss", scale=alt.Scale(domain=[low, high], nice=True, zero=False))
    line = _rows().mark_line(strokeWidth=1.6).encode(x=steps_axis(last), y=y, color=colour, tooltip=tip)
    return _described(line, last, bracket)


@lru_cache(maxsize=64)
def _accuracy(last: int, lengths: tuple[int, ...], bracket: Bracket) -> dict[str, Any]:
    colour = alt.Color("accuracy:Q", title="accuracy", scale=alt.Scale(scheme="viridis", domain=[0, 1]))
    y = alt.Y("length:O", title="length", scale=alt.Scale(domain=list(lengths)))
    tip = ["step:Q", "length:O", alt.Tooltip("accuracy:Q", **THREE)]
    cells = _rows().mark_rect(strokeWidth=1)
    cells = cells.encode(x=steps_axis(last), x2="until:Q", y=y, color=colour, stroke=colour, tooltip=tip)
    return _described(cells, last, bracket)


@lru_cache(maxsize=64)
def _tracked(last: int, letters: int, bracket: Bracket) -> dict[str, Any]:
    colour = alt.Color("score:N", title=None, scale=alt.Scale(range=OKABE_ITO), legend=_legend(letters))
    tip = ["step:Q", "score:N", alt.Tooltip("value:Q", **THREE)]
    line = _rows().mark_line(strokeWidth=1.6)
    return _described(
        line.encode(x=steps_axis(last), y=_share("value", "score"), color=colour, tooltip=tip), last, bracket
    )


@lru_cache(maxsize=64)
def _scores(last: int, bracket: Bracket) -> dict[str, Any]:
    roles = SIGN + LETTER * len("reading")
    colour = alt.Color("head:N", title="head", scale=alt.Scale(range=OKABE_ITO), legend=_legend(5, 2 * roles))
    dash = alt.StrokeDash("role:N", title="role", legend=_legend(7))
    x, y = steps_axis(last), _share("mass", "attention on target")
    bars = _rows().mark_errorbar(ticks=True, opacity=0.7)
    bars = bars.encode(x=x, y=alt.Y("low:Q", title=""), y2="high:Q", color=colour)
    line = _rows().mark_line().encode(x=x, y=y, color=colour, strokeDash=dash)
    tip = ["step:Q", "head:N", "role:N", alt.Tooltip("mass:Q", **THREE), alt.Tooltip("low:Q", **THREE)]
    tip += [alt.Tooltip("high:Q", **THREE), "n:Q", "verdict:N"]
    shapes = alt.Scale(domain=list(VERDICTS), range=[shape for _, shape in VERDICTS.values()])
    shape = alt.Shape("verdict:N", scale=shapes, legend=None)
    marks = _rows().mark_point(filled=True, size=55, opacity=1)
    marks = marks.encode(x=x, y=y, color=colour, shape=shape, tooltip=tip)
    return _described(alt.layer(bars, line, marks), last, bracket)


@lru_cache(maxsize=64)
def _verdicts(last: int, shown: tuple[str, ...], bracket: Bracket) -> dict[str, Any]:
    colours = alt.Scale(domain=list(shown), range=[VERDICTS[name][0] for name in shown])
    shapes = alt.Scale(domain=list(shown), range=[VERDICTS[name][1] for name in shown])
    tip = ["step:Q", "verdict:N", alt.Tooltip("p_value:Q", format=".3g"), "clock:N", "reading:N", "interchange:Q"]
    legend = _legend(max(map(len, shown), default=0))
    marks = _rows().mark_point(filled=True, size=110, opacity=1)
    marks = marks.encode(
        x=steps_axis(last),
        color=alt.Color("verdict:N", title="verdict", scale=colours, legend=legend),
        shape=alt.Shape("verdict:N", title="verdict", scale=shapes, legend=legend),
        tooltip=tip,
    )
    # The strip keeps its height whatever the legend needs.
    return _described(marks, last, bracket, STRIP) | {"autosize": {"type": "fit-x", "contains": "padding"}}
