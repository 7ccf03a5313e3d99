"""Jobs as a view shows them: offer one, start it once, follow it while it runs, cancel it."""

import threading
from collections.abc import Sequence
from datetime import UTC, datetime

import streamlit as st

from dashboards.page import Page, plain
from interp import jobs
from interp.errors import InterpError

POLL_SECONDS = 1.0
NEWS_SECONDS = 600.0
COLOURS = {
    "starting": "blue", "running": "blue", "done": "green", "cancelled": "gray", "failed": "red", "died": "red",
}  # fmt: skip


def offer(page: Page, label: str, arguments: Sequence[str], *, key: str = "offer") -> None:
    """A button that starts one `interp` command as a job on this run; while it runs, its progress is shown instead.

    A job that has just ended otherwise than well is shown beside the button, with its last words.
    """
    name = page.run.name if page.run is not None else None
    last = newest(page, name, arguments[0])
    status = last.status() if last is not None else None
    if last is not None and status is not None and status.active:
        follow(page, last)
        return
    if last is not None and status is not None and status.state != "done" and just_ended(status):
        show(page, last, status)
    if st.button(label, key=f"{page.view}.{key}", icon=":material/play_arrow:"):
        begin(page, arguments, name)


def newest(page: Page, run: str | None, kind: str) -> jobs.Job | None:
    """The job of this kind on this run that was started last; damaged ones are passed over."""
    for one in jobs.jobs(page.store):
        try:
            spec, _ = one.spec, one.status()
        except InterpError:
            continue
        if spec.run == run and spec.kind == kind:
            return one
    return None


def just_ended(status: jobs.JobStatus) -> bool:
    """It ended within the last ten minutes, so how it ended is still news."""
    return status.ended is not None and (datetime.now(UTC) - status.ended).total_seconds() < NEWS_SECONDS


def begin(page: Page, arguments: Sequence[str], run: str | None) -> None:
    """Start a job and show the page again; a refusal is said with what to do."""
    try:
        jobs.start(page.store, list(arguments), run=run)
    except InterpError as error:
        page.problem(error, "See the jobs in the view Runs.")
        return
    st.rerun()


def follow(page: Page, job: jobs.Job) -> None:
    """State, last line and cancel button of one job, looked at every second until it has ended."""
    st.fragment(run_every=POLL_SECONDS)(_follow)(page, job)


def _follow(page: Page, job: jobs.Job) -> None:
    status = job.status()
    if not status.active:
        st.rerun(scope="app")
    show(page, job, status)


def show(page: Page, job: jobs.Job, status: jobs.JobStatus) -> None:
    """One job on one line, with its last words and a cancel button while it is active."""
    spec = job.spec
    state = "cancelling" if status.cancelling and status.active else status.state
    left, right = st.columns([5, 1], vertical_alignment="center")
    with left:
        st.badge(state, color=COLOURS[status.state])
        words = " ".join(spec.arguments[: spec.arguments.index("--store")])
        st.markdown(f"interp {plain(words)}")
        st.caption(plain(status.message or last_line(job) or waiting(state)))
    if status.active:
        right.button(
            "Cancel", key=f"{page.view}.cancel.{job.id}", disabled=status.cancelling, on_click=_cancel, args=(job,)
        )


def waiting(state: str) -> str:
    """What a job without a word of its own is doing."""
    return {"starting": "loading torch, a few seconds", "running": "at work"}.get(state, "")


def last_line(job: jobs.Job) -> str:
    """The last line the job has printed."""
    lines = [line for line in job.log(4096).splitlines() if line.strip() and not line.startswith("$ ")]
    return lines[-1][:200] if lines else ""


def _cancel(job: jobs.Job) -> None:
    """Answer at once; a thread waits for the process, and kills it if it does not stop by itself."""
    if job.ask_to_stop():
        threading.Thread(target=job.cancel, name=f"cancel {job.id}").start()
