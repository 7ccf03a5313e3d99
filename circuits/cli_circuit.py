"""The command `interp circuit`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from circuits.discovery_result import DiscoveryFile
    from circuits.foreign_series import PathRequest
    from circuits.search.base import Tell
    from circuits.through_training import Request
    from circuits.trajectory import Trajectory
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
Controls = Annotated[int, typer.Option(min=0, help="Matched random circuits; with --checkpoints all 20 if not given.")]
Bos = Annotated[bool, typer.Option("--bos", help="Put a BOS token first, in each prompt of --pairs.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes for --checkpoints all, one thread each.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads of one process.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", help="With --pairs: folder for circuit.json and all results. Those of a run's task are in it."
    ),
]
Reruns = Annotated[
    int, typer.Option(min=0, help="Whole searches on resampled prompts; with --checkpoints all none if not given.")
]


def circuit(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Run, checkpoint file or Hugging Face folder.")],
    pairs: Pairs = None,
    checkpoints: Annotated[str, typer.Option("--checkpoints", "--checkpoint", help="last, all, or one step.")] = "last",
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
    bos: Bos = False,
    workers: Workers = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute again, even what is stored.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of prompts, masks, controls and intervals.")] = 0,
    threads: Threads = 1,
    store: Annotated[Path, typer.Option(help="Folder in which the name of a run is looked up.")] = Path("runs"),
    output: Output = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find the circuit behind a behaviour: which edges, how faithful, how sure, and how it came about."""
    from circuits.circuit_options import Given, require_used
    from interp.errors import UsageError

    if ablation not in ("resample", "mean", "zero"):
        raise UsageError(f"--ablation {ablation!r}: expected resample, mean or zero")
    given = Given.of(context)
    run = _run_named(model, store, "store" in given.names)
    require_used(given, model, None if run is None else run.name, pairs, checkpoints)
    from circuits.find import Settings
    from interp.progress import counter
    from interp.registry import names

    if method not in ("auto", *names("search")):
        raise UsageError(f"--method {method!r}: expected auto, {', '.join(names('search'))}")
    import torch

    torch.set_num_threads(threads)
    settings = Settings(method=method, target=target, seconds=seconds, controls=controls, reruns=reruns, seed=seed)
    with counter() as tell:
        course = _Course(checkpoints, workers, given.settings, tell, as_json)
        if run is not None and pairs is None:
            from circuits.subject import Prompts
            from circuits.through_training import Request

            where, prompts = (str(run.path.parent), run.name, 0), Prompts(length, n, family, seed)
            request = Request(*where, prompts, ablation, positions, settings.model_dump(), fresh)
            _of_run(run, request, course)
            return
        from circuits.foreign_series import PathRequest

        path, kept = Path(model) if run is None else run.path, None if output is None else str(output)
        if pairs is None:
            raise UsageError(f"{path}: a model that is no run of ours needs prompt pairs: {PAIRS}")
        asked = (str(path), str(pairs), None, bos, ablation, positions, settings.model_dump(), kept, fresh)
        _of_path(path, PathRequest(*asked), course)


@dataclass(frozen=True)
class _Course:
    """How the command goes on: which checkpoints, in how many processes, and what is shown.

    Attributes:
        keep: settings that stay as given, where many checkpoints would lighten them.
    """

    checkpoints: str
    workers: int
    keep: frozenset[str]
    tell: "Tell"
    as_json: bool

    def progress(self, done: int, of: int) -> None:
        """Tell how many checkpoints are done."""
        self.tell("checkpoints", done, of)


def _run_named(model: str, store: Path, in_store: bool) -> "Run | None":
    """The run of that name or at that path; None for anything else, such as a place on disk or a name of a hub.

    Args:
        in_store: the store was given, so that a name is that of a run in it, whatever else has that name here.
    """
    from interp.given_run import is_run, model_named
    from interp.run import Store

    path = Path(model)
    if in_store and len(path.parts) == 1 and (store / model).is_dir():
        return Store(store).run(model)
    if is_run(path):
        return Store(path.parent).run(path.name)
    return None if path.exists() or len(path.parts) > 1 else model_named(store, model)


def _of_run(run: "Run", request: "Request", course: _Course) -> None:
    """One checkpoint, or all of them with what changed."""
    from circuits.circuit_text import show_discovery
    from circuits.outputs import CircuitOutput
    from circuits.through_training import discover_at, follow, request_for
    from interp.console import print_json, say

    stored = "" if request.store == "runs" else f" --store {request.store}"
    steps = _steps(run, course.checkpoints)
    if course.checkpoints == "all":
        found, story = follow(run, steps, request, course.workers, course.progress, course.keep)
        _show_story(run.name, steps, found, story, course)
        return
    found = discover_at(request_for(run, steps[0], request), course.tell)
    output = CircuitOutput(model=run.name, step=steps[0], discovery=found, trajectory=None)
    if course.as_json:
        print_json(output)
        return
    show_discovery(output)
    if found.circuit is not None:
        say(f"next: interp report circuit {run.name}{stored}, or interp export {run.name} --to mib{stored}")


def _steps(run: "Run", checkpoints: str) -> list[int]:
    """Steps of the checkpoints that are meant.

    Raises:
        UnknownName: for one that the run does not have.
    """
    from interp.errors import UnknownName

    known = [ref.step for ref in run.checkpoints()]
    if checkpoints == "all":
        return known
    if checkpoints == "last":
        return [run.checkpoint(None, optim=False).step]
    every = [ref.step for ref in run.checkpoints(rolling=True)]
    if not checkpoints.isdecimal() or int(checkpoints) not in every:
        raise UnknownName(f"checkpoint of run {run.name!r}:", checkpoints, ["last", "all", *map(str, known)])
    return [int(checkpoints)]


def _of_path(path: Path, request: "PathRequest", course: _Course) -> None:
    """A checkpoint that is no run of ours, or a run with prompt pairs from a file; or a series of either."""
    from circuits.circuit_text import show_discovery
    from circuits.foreign_series import discover_path, follow_path
    from circuits.outputs import CircuitOutput
    from interp.adapters.opening import steps_of
    from interp.console import print_json
    from interp.errors import UsageError

    checkpoints = course.checkpoints
    if checkpoints not in ("last", "all") and not checkpoints.isdecimal():
        raise UsageError(f"--checkpoints {checkpoints!r}: expected last, all, or one step")
    steps, name = steps_of(path), path.resolve().name
    if checkpoints == "all":
        if not steps:
            raise UsageError(f"--checkpoints all: {path} holds a single model, not a series of steps")
        found, story = follow_path(steps, request, course.workers, course.progress, course.keep)
        _keep(request.folder, next(one for one in reversed(found) if one is not None))
        _show_story(name, steps, found, story, course)
        return
    step = int(checkpoints) if checkpoints.isdecimal() else None
    last = discover_path(replace(request, step=step), course.tell)
    step = last.circuit.provenance.step if last.circuit is not None else step
    output = CircuitOutput(model=name, step=step, discovery=last, trajectory=None)
    print_json(output) if course.as_json else show_discovery(output)
    _keep(request.folder, last)


def _keep(folder: str | None, last: "DiscoveryFile") -> None:
    """Write circuit.json, and say where the result is."""
    from circuits.interchange.own import EARLIER, FILE, write_circuit
    from circuits.kept_folder import set_aside
    from interp.console import note

    if folder is None:
        note("nothing was kept: -o FOLDER keeps the result, for interp report circuit FOLDER")
        return
    place = Path(folder) / FILE
    if last.circuit is not None:
        write_circuit(place, last.circuit)
        note(f"wrote {place}")
    elif set_aside(Path(folder)) is not None:
        note(f"{place} held a circuit of an earlier search; it is now {EARLIER}")
    note(f"next: interp report circuit {folder}")


def _show_story(
    name: str, steps: Sequence[int], found: Sequence["DiscoveryFile | None"], story: "Trajectory", course: _Course
) -> None:
    """What changed, with the newest checkpoint that could be looked at; exit code 1 where one could not."""
    from circuits.circuit_text import show_trajectory
    from circuits.outputs import CircuitOutput
    from interp.console import fail, print_json

    step, last = next(
        (step, one) for step, one in zip(reversed(steps), reversed(found), strict=True) if one is not None
    )
    output = CircuitOutput(model=name, step=step, discovery=last, trajectory=story)
    print_json(output) if course.as_json else show_trajectory(output)
    if story.failed:
        reasons = "; ".join(f"step {one.step}: {one.reason}" for one in story.failed[:3])
        reasons += "; ..." if len(story.failed) > 3 else ""
        fail(f"{len(story.failed)} of {len(steps)} checkpoints failed: {reasons}; the same command looks at them again")
        raise typer.Exit(1)
