"""The command `interp circuit`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from circuits.foreign_series import PathRequest
    from circuits.through_training import Request
    from interp.run import Run

PAIRS = "--pairs FILE.jsonl (or a MIB .csv)"
Pairs = Annotated[
    Path | None,
    typer.Option(help="JSON lines, or a MIB .csv, of prompt pairs; for a run its own task's if not given."),
]
Length = Annotated[int | None, typer.Option(min=1, help="Inputs of a task's prompts; 8 or the longest if not given.")]
Family = Annotated[str, typer.Option(help="Pairs of a task: mixed, input, state or clock.")]
Number = Annotated[int, typer.Option("--n", min=16, help="Prompt pairs of a task: half of them score.")]
Positions = Annotated[
    bool, typer.Option("--positions/--no-positions", help="Edges by position, keys and values by (key, query).")
]
Ablation = Annotated[str, typer.Option(help="What is written outside the circuit: resample, mean or zero.")]
Method = Annotated[str, typer.Option(help="auto, or one method alone: exact, eap, eap_ig, acdc or masks.")]
Target = Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of the metric that the circuit has to keep.")]
Seconds = Annotated[float, typer.Option(min=1.0, help="Processor seconds that one stage may be predicted to take.")]
Controls = Annotated[int, typer.Option(min=0, help="Matched random circuits.")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="Folder for circuit.json and all results; not for a run's own.")
]
Reruns = Annotated[int, typer.Option(min=0, help="Whole searches on resampled prompts.")]


def circuit(
    model: Annotated[str, typer.Argument(help="Run, checkpoint file or Hugging Face folder.")],
    pairs: Pairs = None,
    checkpoints: Annotated[str, typer.Option(help="last, all, or one step.")] = "last",
    length: Length = None,
    family: Family = "mixed",
    n: Number = 128,
    positions: Positions = False,
    ablation: Ablation = "resample",
    method: Method = "auto",
    target: Target = 0.95,
    seconds: Seconds = 60.0,
    controls: Controls = 100,
    reruns: Reruns = 5,
    bos: Annotated[bool, typer.Option("--bos", help="Put a BOS token first; for prompt pairs given as text.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes for several checkpoints.")] = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute again, even what is stored.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of prompts, masks, controls and intervals.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    store: Annotated[Path, typer.Option(help="Folder in which the name of a run is looked up.")] = Path("runs"),
    output: Output = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find the circuit behind a behaviour: which edges, how faithful, how sure, and how it came about."""
    from interp.errors import UsageError

    if ablation not in ("resample", "mean", "zero"):
        raise UsageError(f"--ablation {ablation!r}: expected resample, mean or zero")
    from circuits.cli import counter
    from circuits.find import Settings
    from interp.registry import names

    if method not in ("auto", *names("search")):
        raise UsageError(f"--method {method!r}: expected auto, {', '.join(names('search'))}")
    import torch

    torch.set_num_threads(threads)
    settings = Settings(method=method, target=target, seconds=seconds, controls=controls, reruns=reruns, seed=seed)
    run = _run_named(model, store)
    with counter() as tell:
        if run is not None and pairs is None:
            from circuits.subject import Prompts
            from circuits.through_training import Request

            where, prompts = (str(run.path.parent), run.name, 0), Prompts(length, n, family, seed)
            request = Request(*where, prompts, ablation, positions, settings.model_dump(), fresh)
            _of_run(run, request, checkpoints, workers, tell, as_json)
            return
        from circuits.foreign_series import PathRequest

        path, kept = Path(model) if run is None else run.path, None if output is None else str(output)
        if pairs is None:
            raise UsageError(f"{path}: a model that is no run of ours needs prompt pairs: {PAIRS}")
        given = (str(path), str(pairs), None, bos, ablation, positions, settings.model_dump(), kept, fresh)
        _of_path(path, PathRequest(*given), checkpoints, workers, tell, as_json)


def _run_named(model: str, store: Path) -> "Run | None":
    """The run of that name or at that path; None for anything else, such as a place on disk or a name of a hub."""
    from interp.run import Store

    path = Path(model)
    if (path / "config.json").is_file() and (path / "checkpoints").is_dir():
        return Store(path.parent).run(path.name)
    return None if path.exists() or len(path.parts) > 1 else Store(store).run(model)


def _of_run(run: "Run", request: "Request", checkpoints: str, workers: int, tell, as_json: bool) -> None:
    """One checkpoint, or all of them with what changed."""
    from circuits.circuit_text import show_discovery, show_trajectory
    from circuits.outputs import CircuitOutput
    from circuits.through_training import discover_at, follow, request_for
    from interp.console import print_json, say
    from interp.errors import UnknownName

    stored = "" if request.store == "runs" else f" --store {request.store}"
    known = [ref.step for ref in run.checkpoints()]
    steps = {"last": [run.checkpoint(None, optim=False).step], "all": known}.get(checkpoints)
    if steps is None:
        every = [ref.step for ref in run.checkpoints(rolling=True)]
        if not checkpoints.isdecimal() or int(checkpoints) not in every:
            raise UnknownName(f"checkpoint of run {run.name!r}:", checkpoints, ["last", "all", *map(str, known)])
        steps = [int(checkpoints)]
    if checkpoints != "all":
        found = discover_at(request_for(run, steps[0], request), tell)
        output = CircuitOutput(model=run.name, step=steps[0], discovery=found, trajectory=None)
        if as_json:
            print_json(output)
            return
        show_discovery(output)
        if found.circuit is not None:
            say(f"next: interp report circuit {run.name}{stored}, or interp export {run.name} --to mib{stored}")
        return
    found, story = follow(run, steps, request, workers, lambda done, of: tell("checkpoints", done, of))
    output = CircuitOutput(model=run.name, step=steps[-1], discovery=found[-1], trajectory=story)
    print_json(output) if as_json else show_trajectory(output)


def _of_path(path: Path, request: "PathRequest", checkpoints: str, workers: int, tell, as_json: bool) -> None:
    """A checkpoint that is no run of ours, or a run with prompt pairs from a file; or a series of either."""
    from circuits.circuit_text import show_discovery, show_trajectory
    from circuits.foreign_series import discover_path, follow_path
    from circuits.outputs import CircuitOutput
    from interp.adapters.opening import steps_of
    from interp.console import note, print_json
    from interp.errors import UsageError

    if checkpoints not in ("last", "all") and not checkpoints.isdecimal():
        raise UsageError(f"--checkpoints {checkpoints!r}: expected last, all, or one step")
    story, steps = None, steps_of(path)
    if checkpoints == "all":
        if not steps:
            raise UsageError(f"--checkpoints all: {path} holds a single model, not a series of steps")
        found, story = follow_path(steps, request, workers, lambda done, of: tell("checkpoints", done, of))
        last, step = found[-1], steps[-1]
    else:
        step = int(checkpoints) if checkpoints.isdecimal() else None
        last = discover_path(replace(request, step=step), tell)
        step = last.circuit.provenance.step if last.circuit is not None else step
    output = CircuitOutput(model=path.name, step=step, discovery=last, trajectory=story)
    if as_json:
        print_json(output)
    else:
        show_discovery(output) if story is None else show_trajectory(output)
    if last.circuit is not None and request.folder is not None:
        from circuits.interchange.own import write_circuit

        place = Path(request.folder) / "circuit.json"
        write_circuit(place, last.circuit)
        note(f"wrote {place}")
    if request.folder is None:
        note("nothing was kept: -o FOLDER keeps the result, for interp report circuit FOLDER")
    else:
        note(f"next: interp report circuit {request.folder}")
