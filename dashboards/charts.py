"""Curves over training steps, drawn by Altair in Streamlit's theme: loss, accuracy by length, scores, verdicts."""

from collections.abc import Sequence
from typing import Any

import altair as alt

# Okabe and Ito's colours, which stay apart for every kind of colour vision and on both grounds.
OKABE_ITO = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442"]
VERDICTS = {
    "iteration head": ("#009E73", "circle"),
    "candidate": ("#E69F00", "diamond"),
    "solved without the textbook head": ("#0072B2", "square"),
    "not solved": ("#999999", "triangle-up"),
    "none": ("#999999", "cross"),
}
BLUE, ORANGE = OKABE_ITO[0], OKABE_ITO[5]
HEIGHT = 280
LEGEND = {"orient": "top", "direction": "horizontal", "labelLimit": 260}

Rows = Sequence[dict[str, Any]]


def steps_axis(last: int, first: int = 64) -> alt.X:
    """Training steps, logarithmic above the first checkpoint and linear below it, so that step 0 has a place."""
    bend = max(1, min(first, last // 16))
    scale = alt.Scale(type="symlog", constant=bend, domain=[0, max(last, 1)], nice=False)
    ticks = [0, *(bend * 4**power for power in range(12) if bend * 4**power <= last)]
    return alt.X("step:Q", title="training step", scale=scale, axis=alt.Axis(format=",d", values=ticks, grid=False))


def marked(
    chart: alt.Chart | alt.LayerChart,
    steps: Sequence[int | None],
    bracket: tuple[int, int] | None = None,
    *,
    last: int,
    height: int = HEIGHT,
) -> alt.LayerChart:
    """The chart with the chosen steps as lines and the emergence bracket as a band behind it."""
    layers: list[Any] = []
    x = steps_axis(last)
    if bracket is not None:
        band = alt.Chart(alt.Data(values=[{"step": bracket[0], "to": bracket[1]}]))
        layers.append(band.mark_rect(opacity=0.18, color=ORANGE).encode(x=x, x2="to:Q"))
    # The lines have data of their own even where there are none: a single set of data would reach the chart late.
    rule = alt.Chart(alt.Data(values=[{"step": step} for step in steps if step is not None]))
    lines = rule.mark_rule(strokeDash=[4, 3], opacity=0.8, color="#888888").encode(x=x)
    return alt.layer(*layers, chart, lines).properties(height=height)


def loss(rows: Rows, last: int) -> alt.Chart:
    """Loss of the training batch and of held-out sequences."""
    colour = alt.Color(
        "kind:N", title=None, scale=alt.Scale(range=[OKABE_ITO[0], OKABE_ITO[1]]), legend=alt.Legend(**LEGEND)
    )
    tip = ["step:Q", alt.Tooltip("loss:Q", format=".4f"), "kind:N"]
    y = alt.Y("loss:Q", title="loss", scale=alt.Scale(zero=False))
    return _chart(rows).mark_line(strokeWidth=1.6).encode(x=steps_axis(last), y=y, color=colour, tooltip=tip)


def accuracy(rows: Rows, last: int) -> alt.Chart:
    """Accuracy on whole held-out sequences as a table: a column for each evaluation, a row for each length."""
    steps = sorted({row["step"] for row in rows})
    until = dict(zip(steps, [*steps[1:], max(last, 1)], strict=False))
    colour = alt.Color("accuracy:Q", title="accuracy", scale=alt.Scale(scheme="viridis", domain=[0, 1]))
    tip = ["step:Q", "length:O", alt.Tooltip("accuracy:Q", format=".3f")]
    cells = _chart([{**row, "until": until[row["step"]]} for row in rows]).mark_rect(strokeWidth=1)
    return cells.encode(
        x=steps_axis(last),
        x2="until:Q",
        y=alt.Y("length:O", title="length", sort="descending"),
        color=colour,
        stroke=colour,
        tooltip=tip,
    )


def tracked(rows: Rows, last: int) -> alt.Chart:
    """Scores that were followed while training."""
    colour = alt.Color("score:N", title=None, scale=alt.Scale(range=OKABE_ITO), legend=alt.Legend(**LEGEND))
    tip = ["step:Q", "score:N", alt.Tooltip("value:Q", format=".3f")]
    y = alt.Y("value:Q", title="score", scale=alt.Scale(domain=[0, 1]))
    return _chart(rows).mark_line(point={"size": 14}).encode(x=steps_axis(last), y=y, color=colour, tooltip=tip)


def scores(rows: Rows, last: int) -> alt.LayerChart:
    """Attention mass on the target by head and role, with its interval; the shape of a mark is the verdict there."""
    base = _chart(rows)
    colour = alt.Color("head:N", title="head", scale=alt.Scale(range=OKABE_ITO), legend=alt.Legend(**LEGEND))
    dash = alt.StrokeDash("role:N", title="role", legend=alt.Legend(**LEGEND))
    x, y = steps_axis(last), alt.Y("mass:Q", title="attention on target", scale=alt.Scale(domain=[0, 1]))
    band = base.mark_errorbar(ticks=True, opacity=0.7).encode(
        x=x, y=alt.Y("low:Q", title=""), y2="high:Q", color=colour
    )
    line = base.mark_line().encode(x=x, y=y, color=colour, strokeDash=dash)
    fmt = {"format": ".3f"}
    tip = ["step:Q", "head:N", "role:N", alt.Tooltip("mass:Q", **fmt), alt.Tooltip("low:Q", **fmt)]
    tip += [alt.Tooltip("high:Q", **fmt), "n:Q", "verdict:N"]
    shapes = alt.Scale(domain=list(VERDICTS), range=[shape for _, shape in VERDICTS.values()])
    marks = base.mark_point(filled=True, size=55, opacity=1)
    marks = marks.encode(x=x, y=y, color=colour, shape=alt.Shape("verdict:N", scale=shapes, legend=None), tooltip=tip)
    return alt.layer(band, line, marks)


def verdicts(rows: Rows, last: int) -> alt.Chart:
    """One mark for each checkpoint: the verdict there."""
    shown = [name for name in VERDICTS if any(row["verdict"] == name for row in rows)]
    colour = alt.Scale(domain=shown, range=[VERDICTS[name][0] for name in shown])
    shape = alt.Scale(domain=shown, range=[VERDICTS[name][1] for name in shown])
    tip = ["step:Q", "verdict:N", alt.Tooltip("p_value:Q", format=".3g"), "clock:N", "reading:N", "interchange:Q"]
    return (
        _chart(rows)
        .mark_point(filled=True, size=110, opacity=1)
        .encode(
            x=steps_axis(last),
            color=alt.Color("verdict:N", title="verdict", scale=colour, legend=alt.Legend(**LEGEND)),
            shape=alt.Shape("verdict:N", title="verdict", scale=shape, legend=alt.Legend(**LEGEND)),
            tooltip=tip,
        )
    )


def _chart(rows: Rows) -> alt.Chart:
    """Rows as they are, without pandas."""
    return alt.Chart(alt.Data(values=list(rows)))
