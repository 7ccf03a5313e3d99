"""The commands `interp runs ls`, `show`, `rm` and `compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp.console import json_text, out, print_json, say
from interp.errors import UsageError

if TYPE_CHECKING:
    from interp.schemas import RunItem

APP = typer.Typer(help="List, show, compare or remove runs.", no_args_is_help=True)
StoreOption = Annotated[Path, typer.Option("--store", help="Folder that holds the runs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
RunArgument = Annotated[str, typer.Argument(help="Run, as listed by `interp runs ls`.")]


@APP.command("ls")
def ls(store: StoreOption = Path("runs"), as_json: JsonOption = False) -> None:
    """List every run with its state and its accuracy at the worst length."""
    from interp.run import Store
    from interp.run_summary import item
    from interp.schemas import RunsOutput

    opened = Store(store)
    items = [item(opened, name) for name in opened.names()]
    if as_json:
        print_json(RunsOutput(store=str(store), runs=items))
    elif not items:
        say(f"no runs in {store}; make one: interp train polynomial")
    else:
        out().print(run_table(items))


@APP.command("show")
def show(name: RunArgument, store: StoreOption = Path("runs"), as_json: JsonOption = False) -> None:
    """Show one run: state, accuracy by length, checkpoints, configuration."""
    from interp.run import Store
    from interp.run_summary import details

    result = details(Store(store), name)
    if as_json:
        print_json(result)
        return
    out().print(run_table([result.run]))
    say(f"path         {result.path}")
    say(f"config hash  {result.config_hash}")
    say(f"checkpoints  {' '.join(f'{one.step:,}' + ('*' if one.rolling else '') for one in result.checkpoints)}")
    accuracy = " ".join(f"{length}:{value:.3f}" for length, value in result.accuracy_by_length.items())
    say(f"accuracy     {accuracy or 'not evaluated yet'}")
    out().print(json_text(result.config), soft_wrap=True)


@APP.command("rm")
def rm(
    names: Annotated[list[str], typer.Argument(help="Runs to delete, with everything in their folders.")],
    store: StoreOption = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete runs; nothing is deleted unless all of them exist."""
    from interp.run import Store
    from interp.schemas import RemovedOutput

    opened = Store(store)
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        opened.run(name)
    if not yes:
        if as_json:
            raise UsageError("runs rm --json asks nothing; add --yes")
        typer.confirm(f"delete {', '.join(wanted)} from {store}?", abort=True, err=True)
    for name in wanted:
        opened.remove(name)
    if as_json:
        print_json(RemovedOutput(store=str(store), removed=wanted))
    else:
        say(f"deleted {', '.join(wanted)}")


@APP.command("compare")
def compare(
    names: Annotated[list[str], typer.Argument(help="Two runs or more.")],
    store: StoreOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Show what differs between runs: configuration, environment, accuracy by length."""
    from interp.run import Store
    from interp.run_summary import compare as compare_runs

    if len(names) < 2:
        raise UsageError("runs compare needs at least two runs")
    result = compare_runs(Store(store), names)
    if as_json:
        print_json(result)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("", box=None, pad_edge=False)
    for name in names:
        table.add_column(Text(name))
    for title, rows in (("config", result.config), ("environment", result.environment)):
        for row in rows:
            table.add_row(Text(f"{title} {row.key}"), *(Text(str(value)) for value in row.values))
    for length, values in result.accuracy_by_length.items():
        shown = (Text("none" if value is None else f"{value:.3f}") for value in values)
        table.add_row(Text(f"accuracy at length {length}"), *shown)
    out().print(table)


def run_table(items: "list[RunItem]") -> object:
    """The table of `interp runs ls`."""
    from rich.table import Table
    from rich.text import Text

    table = Table("run", "state", "task", "seed", "step", "accuracy", "updated", "message", box=None, pad_edge=False)
    for one in items:
        accuracy = "" if one.accuracy is None else f"{one.accuracy:.3f}"
        step = None if one.step is None else f"{one.step:,}"
        cells = (one.name, one.state, one.task, one.seed, step, accuracy, (one.updated or "")[:19], one.message)
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in cells))
    return table
