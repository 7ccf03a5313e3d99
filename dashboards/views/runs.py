"""The list of runs and jobs: what there is, how far it is, start a training, cancel one, compare two."""

from collections.abc import Sequence

import streamlit as st

from dashboards import data, starting
from dashboards.page import Page, plain
from interp import jobs
from interp.errors import InterpError
from interp.names import check_name
from interp.registry import names as registered
from interp.registry import summary

TITLE = "Runs"
ORDER = 10
ICON = ":material/list:"

POLL_SECONDS = 2.0
RECENT_JOBS = 5
RESUMABLE = ("interrupted", "died", "failed", "created")
COLUMNS = {
    "run": st.column_config.TextColumn("run", pinned=True),
    "accuracy": st.column_config.ProgressColumn(
        "accuracy", min_value=0.0, max_value=1.0, format="%.3f", help="worst length, newest evaluation"
    ),
    "progress": st.column_config.ProgressColumn(
        "of steps", min_value=0.0, max_value=1.0, format="percent", help="of the steps at most; a run may stop sooner"
    ),
}


def render(page: Page) -> None:
    """Runs, jobs, and the form that starts a training."""
    page.header(n="all held-out sequences once a run is done, train.eval_sequences of each length before")
    working = bool(jobs.active_jobs(page.store))
    rows = data.run_rows(page.store, page.names)
    live = working or any(row.state == data.ACTIVE for row in rows)
    st.fragment(run_every=POLL_SECONDS if live else None)(_jobs)(page, live)
    if page.names:
        _table(page, rows)
    else:
        page.empty(
            "No runs yet.",
            "`interp demo` trains a small model, finds its iteration heads, proves them and writes a report, in about "
            "two minutes. Or start a training below.",
            page.command("demo", run=False),
        )
    _form(page)
    page.share(page.command("runs", "ls", run=False), "print(store.names())")


def _jobs(page: Page, live: bool) -> None:
    """Jobs at work and those that ended last; the whole page is shown anew once the last one has ended."""
    listed = jobs.jobs(page.store)
    if live and not jobs.active_jobs(page.store) and not _running(page):
        st.rerun(scope="app")
    for row in _running(page):
        done = (row.step or 0) / (row.steps or 1)
        accuracy = "" if row.accuracy is None else f", lowest accuracy {row.accuracy:.3f}"
        st.progress(min(1.0, done), text=f"{plain(row.run)}: step {row.step} of at most {row.steps}{accuracy}")
    if not listed:
        return
    with st.expander("Jobs", expanded=live or _news(listed[0])):
        for job in listed[:RECENT_JOBS]:
            with page.guarded("This job's folder is damaged; it can be deleted."):
                starting.show(page, job, job.status())
        if len(listed) > RECENT_JOBS:
            st.caption(f"and {len(listed) - RECENT_JOBS} older ones; `interp jobs ls` lists them all")


def _news(job: jobs.Job) -> bool:
    try:
        return starting.just_ended(job.status())
    except InterpError:
        return False


def _running(page: Page) -> list[data.RunRow]:
    return [row for row in data.run_rows(page.store, page.names) if row.state == data.ACTIVE]


def _table(page: Page, rows: Sequence[data.RunRow]) -> None:
    """Every run; the rows chosen in it can be opened or compared."""
    count = "1 run" if len(rows) == 1 else f"{len(rows)} runs"
    st.caption(f"{count} in {plain(page.store.root)}. Choose rows to open or to compare.")
    shown = [
        {**row._asdict(), "progress": None if row.step is None or not row.steps else row.step / row.steps}
        for row in rows
    ]
    order = ["run", "state", "task", "seed", "accuracy", "step", "progress", "updated", "message"]
    chosen = st.dataframe(
        shown,
        hide_index=True,
        key="runs.table",
        on_select="rerun",
        selection_mode="multi-row",
        column_config=COLUMNS,
        column_order=order,
        alt="Runs with state, task, seed, accuracy and step",
    )
    _open(page, [rows[index] for index in chosen["selection"]["rows"] if index < len(rows)])


def _open(page: Page, picked: Sequence[data.RunRow]) -> None:
    """What can be done with the chosen rows: open one or continue it, compare two."""
    left, right = st.columns(2)
    if len(picked) == 1:
        row = picked[0]
        with left:
            page.open("emergence", f"Open {plain(row.run)}", run=row.run)
        if row.state in RESUMABLE and row.task is not None:
            resume = ["train", row.task, f"--name={row.run}", "--resume"]
            if right.button(f"Continue {row.run}", key="runs.resume", icon=":material/resume:"):
                starting.begin(page, resume, row.run)
    elif len(picked) == 2:
        with left:
            page.open("compare", "Compare the two", run=picked[0].run, other=picked[1].run)
    elif picked:
        left.caption("Choose one run to open it, two to compare them.")


def _form(page: Page) -> None:
    """Start a training: the same as `interp train`."""
    with st.expander("Start a training", expanded=not page.names):
        tasks = registered("task")
        task = st.selectbox("Task", tasks, key="runs.task", format_func=lambda name: f"{name}: {summary('task', name)}")
        left, middle = st.columns(2)
        name = left.text_input("Name", key="runs.name", placeholder="TASK-sSEED", max_chars=64)
        seed = middle.number_input("Seed", min_value=0, value=0, step=1, key="runs.seed")
        settings = st.text_area("Settings, one KEY=VALUE a line", key="runs.settings", placeholder="train.lr=3e-4")
        arguments = _arguments(task, name.strip() or f"{task.replace('_', '-')}-s{seed}", int(seed), settings)
        st.code(page.command(*arguments, run=False), language="sh", wrap_lines=True)
        if st.button("Start", key="runs.start", icon=":material/play_arrow:", type="primary"):
            _start(page, arguments)


def _arguments(task: str, name: str, seed: int, settings: str) -> list[str]:
    """The command line without store; a setting is one argument, so nothing in it can become an option."""
    lines = [line.strip() for line in settings.splitlines() if line.strip()]
    return ["train", task, f"--name={name}", f"--seed={seed}", *(f"--set={line}" for line in lines)]


def _start(page: Page, arguments: list[str]) -> None:
    """Refuse a name that is taken or not allowed at once; everything else the command itself says."""
    name = arguments[2].removeprefix("--name=")
    try:
        check_name(name)
    except InterpError as error:
        page.problem(error)
        return
    if name in page.names:
        page.problem(f"A run called {name} exists.", "Choose another name, or continue it:")
        st.code(page.command("train", arguments[1], "--name", name, "--resume", run=False), language="sh")
        return
    starting.begin(page, arguments, name)
