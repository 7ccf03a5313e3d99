"""Two runs, or two checkpoints of one, side by side: what differs in settings, loss, accuracy and verdict."""

from typing import Any

import streamlit as st

from circuits.detectors.base import Detection
from dashboards import cached, charts, data
from dashboards.compare_data import accuracy_table, mass_row, sequences_of
from dashboards.page import COUNT, Page, plain
from interp.errors import InterpError
from interp.run import Run
from interp.run_summary import differences

TITLE = "Compare"
ORDER = 80
ICON = ":material/compare_arrows:"

SIDES = ("First", "Second")


def render(page: Page) -> None:
    """The run of the address first, on the left; the one chosen here second, on the right."""
    page.header(n="held-out sequences of each run's log; intervals are those of the stored detections")
    if page.run is None:
        page.empty("Nothing to compare.", "Two runs that differ in their seed:", page.command("demo", run=False))
        return
    other = page.store.run(page.pick("other", "Compare with", page.names, _another(page)))
    if len(page.names) < 2:
        st.caption("This store has no other run to choose, so two steps of this one are compared.")
    sides = _sides(page, page.run, other)
    _curves(page, sides)
    _accuracy(sides)
    _verdicts(page, sides)
    _settings(page.run, other)
    page.share(
        f"{page.command('runs', 'compare', run=False)} {page.run.name} {other.name}",
        "from interp.run_summary import compare\n\n"
        f"difference = compare(store, [run.name, {other.name!r}])\nprint(difference.accuracy_by_length)",
    )


def _sides(page: Page, run: Run, other: Run) -> list[tuple[Run, int]]:
    """Both with their chosen steps; of one run first the earliest and second the newest, so that learning is a gain."""
    alone, steps = run.name == other.name, page.steps or (0,)
    theirs = tuple(ref.step for ref in other.checkpoints()) or (0,)
    start = steps[0] if alone and "step" not in page.address.raw else page.get("step")
    left, right = st.columns(2)
    with left:
        step = page.pick("step", f"First: step of {plain(run.name)}", steps, start, widget="slider", show=COUNT)
    default = data.closest(theirs, step)
    if alone:
        default = theirs[-1] if step != theirs[-1] else theirs[0]
    start = page.step_among(theirs, f"checkpoint in {other.name}", "other_step", default)
    with right:
        other_step = page.pick(
            "other_step", f"Second: step of {plain(other.name)}", theirs, start, widget="slider", show=COUNT
        )
    return [(run, step), (other, other_step)]


def _another(page: Page) -> str:
    """The first run that is not the one of the address; that one itself where there is no other."""
    return next((name for name in page.names if page.run is not None and name != page.run.name), page.names[0])


def _curves(page: Page, sides: list[tuple[Run, int]]) -> None:
    """Held-out loss of both on one pair of axes, and accuracy by length of each."""
    rows: list[dict[str, Any]] = []
    last = max(1, *(row["step"] for run, _ in sides for row in [{"step": 1}, *cached.metrics(run)]))
    for run in {run.name: run for run, _ in sides}.values():
        held_out = [row for row in data.loss_rows(cached.metrics(run)) if row["kind"] != "training batch"]
        rows += [{**row, "kind": run.name} for row in held_out]
    st.markdown("**Loss on held-out sequences** (mean over lengths)")
    charts.loss(rows, [step for _, step in sides], last, key="compare.loss")
    for place, (column, (run, step)) in enumerate(zip(st.columns(2), sides, strict=True)):
        with column:
            measured = cached.metrics(run)
            end = max((row["step"] for row in measured), default=0)
            until = f" (until step {end:,}, its last)" if end < last else ""
            st.markdown(f"**{SIDES[place]}: accuracy by length of {plain(run.name)}**{until}")
            charts.accuracy(data.accuracy_rows(measured), [step], last, end=end, key=f"compare.accuracy.{place}")


def _accuracy(sides: list[tuple[Run, int]]) -> None:
    """Accuracy at each length at the evaluation nearest to each chosen step."""
    found = [data.accuracy_at(cached.metrics(run), step) for run, step in sides]
    if len({(run.name, at) for (run, _), (at, _) in zip(sides, found, strict=True)}) == 1:
        st.caption("Both sides are the same checkpoint; choose another run or step.")
        return
    titles = [
        f"{side}: {run.name}, step {'unknown' if at is None else COUNT(at)}"
        for side, (run, _), (at, _) in zip(SIDES, sides, found, strict=True)
    ]
    counts = [sequences_of(cached.metrics(run), run.config.train.eval_sequences) for run, _ in sides]
    st.markdown("**Accuracy at the evaluations nearest to the two steps** (held-out sequences with every state right)")
    rows = accuracy_table(titles, [accuracy for _, accuracy in found], counts)
    st.dataframe(rows, hide_index=True, alt="Accuracy by length of both sides and the difference")
    st.caption(
        "n counts sequences, which a run logs when it ends. 95 % intervals: Wilson; of the difference, Newcombe, as if "
        "the sides read different sequences, which is most often too wide where they read the same."
    )


def _verdicts(page: Page, sides: list[tuple[Run, int]]) -> None:
    """What the stored detections say about each side."""
    for column, side, (run, step) in zip(st.columns(2), SIDES, sides, strict=True):
        with column, page.guarded("Detect it again:", page.command("detect", "--checkpoints", "all")):
            found = cached.followed(run)
            one = _detection(found, step)
            st.markdown(f"**{side}: {plain(run.name)} at step {step:,}**")
            if one is None:
                st.caption("No stored detection of this checkpoint.")
                continue
            st.markdown(plain(one.headline))
            over = next((row.over for row in one.null if row.over), "sequences that an older detection does not name")
            st.caption(f"Mass: attention on the target with its 95 % interval, mean over {over}; n counts sequences.")
            st.dataframe(
                [mass_row(row) for row in one.null],
                hide_index=True,
                alt=f"Scores of {run.name} at step {step}",
            )


def _detection(found: data.Followed | None, step: int) -> Detection | None:
    return next((one for one in found.detections if one.step == step), None) if found else None


def _settings(run: Run, other: Run) -> None:
    """Settings and environment that are not the same."""
    with st.expander("Settings and environment that differ", expanded=True):
        try:
            changed = differences([one.config.model_dump(mode="json") for one in (run, other)])
            around = differences([one.environment() for one in (run, other)])
        except InterpError as error:
            st.text(str(error))
            return
        rows = [
            {"key": f"{kind} {row.key}", run.name: str(row.values[0]), f"{other.name} ": str(row.values[1])}
            for kind, found in (("config", changed), ("environment", around))
            for row in found
        ]
        if rows:
            st.dataframe(rows, hide_index=True, alt="Settings that differ")
        else:
            st.caption("None.")
