"""The page of a run's circuit from what the run has stored: which discovery, its fellows, and the commands."""

import inspect
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from circuits.cli_circuit import circuit
from circuits.interchange.own import write_circuit
from circuits.report.circuit_page import Background, render_circuit_page
from circuits.stored import StoredCircuit, newest_circuit, stored_circuits
from circuits.trajectory import trajectory
from interp.errors import UsageError
from interp.files import disk_errors, replace
from interp.run import Run

PAGE, CIRCUIT = "circuit.html", "circuit.json"


def stored_circuit(run: Run, step: int | None, by_position: bool | None = None) -> StoredCircuit:
    """The newest stored discovery, of one step or of the latest that has one.

    Where the same was also searched with whole searches on resampled prompts, that one is taken: it says how stable the
    circuit is.

    Args:
        by_position: only those with, or without, positions; None takes both.

    Raises:
        UsageError: if there is none; the message names the command that makes one.
    """
    found = newest_circuit(run, step, by_position)
    if found is not None:
        alike = [
            one
            for one in stored_circuits(run)
            if one.step == found.step and _asked(one.request) == _asked(found.request)
        ]
        return next((one for one in reversed(alike) if one.complete), found)
    where, more = ("", "") if step is None else (f" at step {step}", f" --checkpoints {step}")
    if by_position is not None:
        where, more = f"{where} {'with' if by_position else 'without'} positions", more + " --positions" * by_position
    raise UsageError(f"{run.name}{where}: no circuit is stored; run `interp circuit {run.name}{more}` first")


def write_circuit_page(run: Run, main: StoredCircuit, folder: Path) -> dict[str, Path]:
    """Write circuit.html, and circuit.json where there is a circuit; equal discoveries give equal bytes."""
    found = main.discovery
    series = [(one.step, one.discovery) for one in fellows(stored_circuits(run), main)]
    story = trajectory([step for step, _ in series], [one for _, one in series]) if len(series) > 1 else None
    origin = [("Checkpoint", main.checkpoint), ("Analysis", main.key)]
    around = Background(series, story, commands(run, main), origin)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    replace(folder / PAGE, render_circuit_page(found, run.name, main.step, around).encode("utf-8"))
    files = {"html": folder / PAGE}
    if found.circuit is not None:
        write_circuit(folder / CIRCUIT, found.circuit.circuit())
        files["json"] = folder / CIRCUIT
    return files


def fellows(stored: Sequence[StoredCircuit], main: StoredCircuit) -> list[StoredCircuit]:
    """One discovery for each step that was asked in the same way: same prompts, ablation and kind of edges.

    At a step that has several, the newest with two halves of the prompts is taken: only it says what chance changes.
    """
    asked = _asked(main.request)
    by_step: dict[int, StoredCircuit] = {}
    for one in stored:
        if _asked(one.request) != asked:
            continue
        before = by_step.get(one.step)
        if before is None or _halves(one) >= _halves(before):
            by_step[one.step] = one
    return [by_step[step] for step in sorted(by_step)]


def _asked(request: dict[str, Any]) -> tuple[Any, ...]:
    settings = request.get("settings", {})
    chosen = tuple(settings.get(name) for name in ("method", "target", "seed"))
    prompts = tuple(sorted((request.get("prompts") or {}).items()))
    return (prompts, request.get("ablation"), request.get("by_position"), *chosen)


def _halves(one: StoredCircuit) -> bool:
    return one.data.get("split_half") is not None


def commands(run: Run, main: StoredCircuit) -> list[tuple[str, str]]:
    """(purpose, line) of the commands that search the circuit again and write this page."""
    request, words = main.request, ["interp", "circuit", run.name]
    words += ["--checkpoints", str(main.step) if main.complete else "all"]
    usual = {name: one.default for name, one in inspect.signature(circuit).parameters.items()}
    prompts, settings = request.get("prompts") or {}, request.get("settings") or {}
    words += _options(prompts, usual, ("length", "n", "family"))
    if request.get("by_position"):
        words.append("--positions")
    if request.get("ablation") not in (None, "resample"):
        words += ["--ablation", str(request["ablation"])]
    more = ("controls", "reruns") if main.complete else ()
    words += _options(settings, usual, ("method", "target", "seconds", "seed", *more))
    store = run.path.parent
    where = [] if store.name == "runs" else ["--store", store.name]
    which = "--positions" if main.by_position else "--no-positions"
    page = ["interp", "report", "circuit", run.name, "--checkpoint", str(main.step), which, *where]
    return [
        ("search the circuit again", shlex.join([*words, *where])),
        ("write this page", shlex.join(page)),
    ]


def _options(values: dict[str, Any], usual: dict[str, Any], names: Sequence[str]) -> list[str]:
    """Options of the command for values that are not what it takes by itself."""
    changed = [name for name in names if name in values and values[name] != usual[name]]
    return [word for name in changed for word in (f"--{name}", str(values[name]))]
