"""The command `interp train`: one run, or one per seed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp.console import note, out, print_json, say
from interp.errors import UsageError

if TYPE_CHECKING:
    from interp.config import RunConfig
    from interp.run import Store
    from interp.schemas import TrainedItem
    from interp.sweep import Request


def train(
    task: Annotated[str, typer.Argument(help="Task, as listed by `interp tasks ls`.")],
    file: Annotated[Path | None, typer.Option("-c", "--config", help="TOML file laid over the preset.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting, such as train.lr=3e-4.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of data, weights and batches.")] = None,
    seeds: Annotated[str | None, typer.Option(help="One run per seed: 0-9, or 1,3,8-11.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; TASK-sSEED if not given.")] = None,
    store: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    init: Annotated[
        str | None, typer.Option(metavar="RUN", help="Start from the weights of this run, in its shape.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="With --seeds: processes at a time.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Train a task with its preset; -c, --set and --seed lay changes over it."""
    from interp.run import Store
    from interp.run_config import assemble, parse_seeds

    if seeds is not None and seed is not None:
        raise UsageError("give --seed or --seeds, not both")
    if seeds is None and jobs > 1:
        raise UsageError("--jobs is for several runs; give --seeds too")
    opened, changes = Store(store), assignments or []
    wanted = parse_seeds(seeds) if seeds is not None else [seed]
    requests = []
    for one in wanted:
        run_name = _run_name(task, name, one, several=seeds is not None)
        going_on = resume and (seeds is None or run_name in opened.names())
        base = _base(task, opened, run_name, going_on, init)
        config = assemble(base, file=file, assignments=changes, seed=one, init=init)
        if name is None and seeds is None:  # the seed may have come from the file or from --set
            run_name = _run_name(task, None, config.seed, several=False)
        requests.append(_request(config, opened, store, run_name, going_on))
    if seeds is None:
        _single(task, requests[0], quiet, as_json)
    else:
        _several(task, requests, jobs, quiet, as_json)


def _run_name(task: str, name: str | None, seed: int | None, *, several: bool) -> str:
    if name is not None and not several:
        return name
    return f"{name or task.replace('_', '-')}-s{seed or 0}"


def _base(task: str, store: "Store", name: str, going_on: bool, init: str | None) -> "RunConfig":
    """The preset of the task, in the shape of the starting run if any, or the configuration to continue with."""
    from interp.registry import load
    from interp.run_config import warm_base
    from interp.tasks.base import preset_of

    if not going_on:
        preset = preset_of(load("task", task))
        return warm_base(preset, store.run(init).config) if init else preset
    stored = store.run(name).config
    if stored.task != task:
        raise UsageError(f"run {name!r} trains the task {stored.task!r}, not {task!r}")
    return stored


def _request(config: "RunConfig", store: "Store", folder: Path, name: str, going_on: bool) -> "Request":
    """A checked request: every name and parameter is looked at before the first training starts."""
    from interp.sweep import Request
    from interp.train import resolve

    resolve(config)
    if config.init is not None:
        store.run(config.init)
    return Request(config.model_dump(mode="json"), str(folder), name, going_on)


def _single(task: str, request: "Request", quiet: bool, as_json: bool) -> None:
    from interp.progress import training_display
    from interp.schemas import TrainOutput
    from interp.sweep import run_one

    if quiet:
        result = run_one(request)
    else:
        with training_display(request.name) as show:
            result = run_one(request, show)
    if request.config["init"] and not quiet:
        _tell_warm_start(request)
    if as_json:
        print_json(TrainOutput(task=task, store=request.store, run=result))
        return
    accuracy = "not evaluated" if result.accuracy is None else f"{result.accuracy:.3f}"
    verdict = "solved" if result.solved else "not solved"
    ended = f"{result.name}: {result.state} at step {result.step:,}"
    say(f"{ended}, lowest held-out sequence accuracy {accuracy} ({verdict})")
    say(f"next: interp detect {result.name}" + ("" if request.store == "runs" else f" --store {request.store}"))


def _tell_warm_start(request: "Request") -> None:
    """Say which token rows came from the starting run and which were initialised afresh."""
    from interp.run import Store

    for event in Store(Path(request.store)).run(request.name).events():
        if event.get("event") == "warm start":
            fresh = ", ".join(event["reinitialised"]) or "none"
            note(f"started from {event['from']}: {len(event['copied'])} token rows copied, re-initialised: {fresh}")


def _several(task: str, requests: "list[Request]", jobs: int, quiet: bool, as_json: bool) -> None:
    from interp.progress import counting_display
    from interp.schemas import SweepOutput
    from interp.sweep import share, sweep

    results = []
    with counting_display("trained", len(requests)) as show:
        for result in sweep(requests, jobs):
            results.append(result)
            if not quiet:
                accuracy = "none" if result.accuracy is None else f"{result.accuracy:.3f}"
                show(f"{result.name}  {result.state} at step {result.step:,}  accuracy {accuracy}")
    if requests[0].config["init"] and not quiet:
        _tell_warm_start(requests[0])  # the same rows in every run: they depend on the two vocabularies only
    results.sort(key=lambda result: result.seed)
    solved = share(sum(result.solved for result in results), len(results))
    if as_json:
        print_json(SweepOutput(task=task, store=requests[0].store, runs=results, solved=solved))
    else:
        out().print(_table(results))
        say(f"solved {solved.k} of {solved.n} (95 % Wilson interval {solved.low:.2f} to {solved.high:.2f})")
    if any(result.state != "done" for result in results):
        raise typer.Exit(1)


def _table(results: "list[TrainedItem]") -> object:
    from rich.table import Table
    from rich.text import Text

    table = Table("run", "seed", "state", "step", "accuracy", "solved", "CPU s", "message", box=None, pad_edge=False)
    for one in results:
        accuracy = "" if one.accuracy is None else f"{one.accuracy:.3f}"
        solved = "yes" if one.solved else "no"
        cells = (one.name, one.seed, one.state, one.step, accuracy, solved, f"{one.cpu_seconds:.1f}", one.message)
        table.add_row(*(Text(str(cell)) for cell in cells))
    return table
