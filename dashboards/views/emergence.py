"""How a circuit came about: loss, accuracy by length, detector scores and verdicts, linked to one checkpoint."""

from typing import Any

import streamlit as st

from circuits.detectors.base import Interval
from dashboards import cached, charts, data
from dashboards.page import Page, plain
from dashboards.starting import offer

TITLE = "Emergence"
ORDER = 30
ICON = ":material/timeline:"


def render(page: Page) -> None:
    """Curves of one run over training, with the checkpoint of the address marked in each."""
    if page.run is None:
        page.header()
        page.empty("No run to look at.", "A run brings its loss and accuracy with it.", page.command("demo", run=False))
        return
    found = None
    problems = st.container()
    with problems, page.guarded("The detections are left out.", page.command("detect", "--checkpoints", "all")):
        found = cached.followed(page.run)
    _header(page, found)
    step = page.pick_step()
    rows = cached.metrics(page.run)
    last = max([row["step"] for row in rows] + list(page.steps), default=1)
    bracket = found.emergence.bracket if found and found.emergence else None
    _training(rows, step, bracket, last)
    if found is None:
        _no_detection(page)
    else:
        _detector(page, found, step, bracket, last)
    page.share(
        page.command("detect", "--checkpoints", "all"),
        "from circuits.detect import detect_run\n\nfound = detect_run(run, every_checkpoint=True)\n"
        "print(found.emergence.emerged, found.emergence.bracket)\nprint(found.detection.headline)",
    )


def _header(page: Page, found: data.Followed | None) -> None:
    """How the numbers were made: the detector's interchange, from its own words."""
    checks = [check for one in found.detections for check in one.causal if check.tested] if found else []
    swaps = [check for check in checks if check.name == "interchange"]
    if not swaps:
        page.header(n=found.detections[-1].options.get("per_length", "?") if found else "held-out sequences of the log")
        return
    families, counts = sorted({one.family for one in swaps}), [check.effect.n for check in checks]
    n = f"{min(counts):,} to {max(counts):,}, by check and checkpoint" if len(set(counts)) > 1 else counts[0]
    page.header(direction=swaps[-1].direction, ablation="interchange", family=", ".join(families), n=n)


def _training(rows: list[dict[str, Any]], step: int | None, bracket: tuple[int, int] | None, last: int) -> None:
    """Loss and accuracy side by side."""
    left, right = st.columns(2)
    with left:
        st.markdown("**Loss**")
        charts.loss(data.loss_rows(rows), [step], last, bracket, key="emergence.loss")
    with right:
        st.markdown("**Accuracy by length** (whole held-out sequences)")
        charts.accuracy(data.accuracy_rows(rows), [step], last, bracket, key="emergence.accuracy")
    tracked = data.tracked_rows(rows)
    if tracked:
        with st.expander("Scores followed while training (no null, no intervals)"):
            charts.tracked(tracked, [step], last, bracket, key="emergence.tracked")


def _no_detection(page: Page) -> None:
    page.empty(
        "No detection of this run yet.",
        "A detection scans every checkpoint for a circuit, compares what it finds with untrained models, and checks it "
        "by intervention. It takes about a minute for a small model.",
        page.command("detect", "--checkpoints", "all"),
    )
    offer(page, "Detect at every checkpoint", ["detect", page.run.name, "--checkpoints", "all"])


def _detector(page: Page, found: data.Followed, step: int | None, bracket: tuple[int, int] | None, last: int) -> None:
    """Verdicts, scores at one length, and what was found at the chosen checkpoint."""
    st.markdown(f"**Verdict at each checkpoint** ({plain(found.detector)})")
    if found.emergence is None:
        st.caption("One checkpoint was looked at. To follow them all:")
        st.code(page.command("detect", "--checkpoints", "all"), language="sh")
    elif found.emergence.emerged is None:
        st.caption(f"No emergence step: no three consecutive checkpoints pass. {plain(found.emergence.note)}")
    else:
        before, at = found.emergence.bracket
        st.caption(
            f"Emerged at step {at:,}, the first of three passes in a row; the change fell between the checkpoints "
            f"{before:,} and {at:,} (shaded; the resolution of the checkpoints, no interval). "
            f"{plain(found.emergence.note)}"
        )
    charts.verdicts(data.verdict_rows(found), [step], last, bracket, key="emergence.verdicts")
    lengths = data.lengths_of(found)
    if lengths:
        length = page.pick("length", "Length of the sequences", lengths, lengths[-1])
        st.markdown(f"**Attention on the target at length {length}**, with 95 % intervals over sequences")
        charts.scores(data.score_rows(found, length), [step], last, bracket, key="emergence.scores")
    _at(found, step)


def _at(found: data.Followed, step: int | None) -> None:
    """The detection of the chosen checkpoint in words and numbers."""
    one = next((detection for detection in found.detections if detection.step == step), None)
    if one is None:
        looked = ", ".join(str(detection.step) for detection in found.detections)
        st.caption(f"Step {step} was not looked at; these were: {looked}.")
        return
    st.markdown(f"**Step {step}: {plain(one.headline)}**")
    st.dataframe(
        [
            {
                "role": row.role,
                "head": row.component,
                "observed": row.observed,
                **_spread(row.observed_interval),
                "null, 95 % quantile": row.quantile_95,
                "p (family-wise)": row.p_value,
                "smallest p possible": row.smallest_p,
                "null models": row.n,
            }
            for row in one.null
        ],
        hide_index=True,
    )
    over = next((row.over for row in one.null if row.over), "")
    if over:
        st.caption(f"Observed: attention on the target, mean over {over}; low and high: 95 % interval over sequences.")
    if one.causal:
        st.dataframe([_check_row(check) for check in one.causal], hide_index=True)
    else:
        st.caption("No causal check was run at this checkpoint: nothing attended like the circuit.")


def _spread(interval: Interval | None) -> dict[str, Any]:
    """Columns of an interval and its n; empty cells where none is stored."""
    if interval is None:
        return {"low": None, "high": None, "n": None}
    return {"low": interval.low, "high": interval.high, "n": interval.n}


def _check_row(check: Any) -> dict[str, Any]:
    """One intervention; what was not tested says so."""
    outcome = "not tested by this pair" if not check.tested else {True: "passed", False: "failed"}.get(check.passed, "")
    return {
        "check": check.name,
        "head": check.component,
        "pair family or ablation": check.family,
        "effect": check.effect.value,
        "low": check.effect.low,
        "high": check.effect.high,
        "n": check.effect.n,
        "control": check.control.value if check.control else None,
        "outcome": outcome,
        "direction": check.direction,
    }
