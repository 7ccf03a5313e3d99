"""The commands `interp jobs start`, `ls`, `log` and `cancel`."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp.console import out, print_json, say

if TYPE_CHECKING:
    from interp.jobs import Job
    from interp.schemas import JobItem

APP = typer.Typer(help="Start commands in the background, follow and cancel them.", no_args_is_help=True)
StoreOption = Annotated[Path, typer.Option("--store", help="Folder that holds the runs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
JobArgument = Annotated[str, typer.Argument(help="Job, as listed by `interp jobs ls`.")]


@APP.command("start", context_settings={"allow_interspersed_args": False})
def start(
    words: Annotated[list[str], typer.Argument(help="The command to run, without `interp` and without --store.")],
    store: StoreOption = Path("runs"),
    run: Annotated[
        str | None, typer.Option(help="Run it writes into; a second job on the same run is refused.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run one command in a process of its own, which goes on when the terminal is closed."""
    from interp.jobs import start as start_job
    from interp.run import Store
    from interp.schemas import JobOutput

    job = start_job(Store(store), words, run=run)
    if as_json:
        print_json(JobOutput(store=str(store), job=item(job)))
        return
    more = "" if str(store) == "runs" else f" --store {store}"
    say(f"{job.id}: started")
    say(f"follow it: interp jobs log {job.id}{more}")
    say(f"stop it: interp jobs cancel {job.id}{more}")


@APP.command("ls")
def ls(store: StoreOption = Path("runs"), as_json: JsonOption = False) -> None:
    """List the jobs of a store, newest first."""
    from interp.jobs import jobs
    from interp.run import Store
    from interp.schemas import JobsOutput

    opened = Store(store)
    names = opened.names()
    items = [item(job, names) for job in jobs(opened)]
    if as_json:
        print_json(JobsOutput(store=str(store), jobs=items))
        return
    if not items:
        say(f"no jobs in {store}; start one: interp jobs start train polynomial")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("job", "state", "run", "started", "message", box=None, pad_edge=False)
    for one in items:
        cells = (one.id, one.state, one.run or "", (one.started or "")[:19], one.message)
        table.add_row(*(Text(cell) for cell in cells))
    out().print(table)


@APP.command("log")
def log(name: JobArgument, store: StoreOption = Path("runs")) -> None:
    """Print the last 64 kB of what a job has printed."""
    from interp.jobs import job
    from interp.run import Store

    for line in job(Store(store), name).log().splitlines():
        say(line)


@APP.command("cancel")
def cancel(
    name: JobArgument,
    store: StoreOption = Path("runs"),
    grace: Annotated[float, typer.Option(min=0.0, help="Seconds until it is killed.")] = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Ask a job to stop, kill it if it does not, and say how it ended; a training can be resumed."""
    from interp.jobs import job
    from interp.run import Store
    from interp.schemas import JobOutput

    found = job(Store(store), name)
    status = found.cancel(grace)
    if as_json:
        print_json(JobOutput(store=str(store), job=item(found)))
    else:
        say(f"{found.id}: {status.state}")


def run_of(words: tuple[str, ...], names: Collection[str]) -> str | None:
    """The run that a command line is about: what --name says, or the first word that is one of the names.

    A training's other words name a task, or the run that it starts from.
    """
    if "--name" in words[:-1]:
        return words[words.index("--name") + 1]
    return None if words[:1] == ("train",) else next((word for word in words[1:] if word in names), None)


def item(job: "Job", names: Collection[str] = ()) -> "JobItem":
    """One job in short; a damaged one is shown with its error instead of hiding the others.

    Args:
        names: of the runs in the store, one of which the command may be about.
    """
    from interp.errors import InterpError
    from interp.schemas import JobItem

    try:
        spec, status = job.spec, job.status()
    except InterpError as error:
        return JobItem(id=job.id, state="damaged", command="", run=None, message=str(error))
    return JobItem(
        id=job.id,
        state=status.state,
        command=" ".join(spec.arguments),
        run=spec.run or run_of(spec.arguments, names),
        pid=status.pid,
        exit_code=status.exit_code,
        started=str(status.started) if status.started else None,
        ended=str(status.ended) if status.ended else None,
        cancelling=status.cancelling,
        message=status.message,
    )
