"""The page of a circuit from what is stored, in a run or in a folder of `interp circuit -o`, with its fellows."""

import inspect
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.cli_circuit import circuit
from circuits.interchange.own import EARLIER, FILE, write_circuit
from circuits.kept_folder import kept_in, model_of, read_kept, set_aside
from circuits.report.circuit_drawn import drawn
from circuits.report.circuit_file import circuit_file
from circuits.report.circuit_page import Background, render_circuit_page
from circuits.report.circuit_page import title as title_of_page
from circuits.report.circuit_positions import fits
from circuits.report.circuit_tables import tips
from circuits.stored import StoredCircuit, asked, choose, other_choice, stored_circuits
from circuits.trajectory import trajectory
from interp.console import note
from interp.errors import UsageError
from interp.files import disk_errors, replace
from interp.run import Run

if TYPE_CHECKING:
    from circuits.discovery_result import DiscoveryFile

PAGE, DRAWING = "circuit.html", "circuit.svg"
Commands = Callable[[StoredCircuit], list[tuple[str, str]]]


@dataclass(frozen=True)
class Shelf:
    """Stored discoveries about one model.

    Attributes:
        stored: by step and then by age.
        folder: where the page goes unless another is named.
        search: command line that makes the first one, for when there is none.
        commands: (purpose, line) of what makes a discovery and its page again.
        task: of the run; empty for a folder, whose discoveries name their file of prompt pairs.
        others: names of other models whose discoveries are in the same folder and left out here.
    """

    name: str
    stored: Sequence[StoredCircuit]
    folder: Path
    search: str
    commands: Commands
    task: str = ""
    others: Sequence[str] = ()


def shelf_of_run(run: Run) -> Shelf:
    """What a run has stored."""
    return Shelf(
        run.name,
        stored_circuits(run),
        run.path / "report",
        shlex.join(["interp", "circuit", run.name]),
        lambda main: _commands(run.name, main, [run.name], _store(run)),
        task=run.config.task,
    )


def holds_circuits(folder: Path) -> bool:
    """Whether a folder has discoveries in it, as `interp circuit MODEL -o FOLDER` leaves them."""
    return bool(kept_in(folder))


def shelf_of_folder(folder: Path) -> Shelf:
    """What `interp circuit MODEL --pairs FILE -o FOLDER` left there, of the model that was searched last.

    Raises:
        StoreError: for a file that is damaged, or newer than this program.
    """
    found = [read_kept(path) for path in kept_in(folder)]
    found = sorted(found, key=lambda one: (one.step, one.saved, one.key))
    newest = max(found, key=lambda one: (one.saved, one.key))
    model = model_of(newest)
    fit = [one for one in found if model_of(one) == model]
    others = sorted({_named(model_of(one), folder) for one in found if model_of(one) != model})

    def commands(main: StoredCircuit) -> list[tuple[str, str]]:
        pairs = f"path/to/{main.request.get('pairs', 'pairs.jsonl')}"
        more = ["--bos"] if main.request.get("bos") else []
        out = ["-o", folder.name]
        words = [f"path/to/{model or 'model'}", "--pairs", pairs, *more, *out]
        return _commands(folder.name, main, words, [])

    search = "interp circuit path/to/model --pairs pairs.jsonl"
    return Shelf(_named(model, folder), fit, folder, search, commands, others=others)


def _named(model: str | None, folder: Path) -> str:
    return model or f"model in {folder.name}"


def stored_circuit(shelf: Shelf, step: int | None, by_position: bool | None = None) -> StoredCircuit:
    """The stored discovery that `choose` takes; notes on stderr name what else is stored and was not taken.

    Args:
        by_position: only those with, or without, positions; None takes both.

    Raises:
        UsageError: if there is none; the message names the command that makes one.
    """
    if shelf.others:
        named = ", ".join(shelf.others)
        note(f"this is {shelf.name}, searched last; the folder holds also {named}: give each model a folder of its own")
    found = choose(shelf.stored, step, by_position)
    if found is not None:
        other = other_choice(shelf.stored, found, step) if by_position is None else ""
        if other:
            note(other)
        return found
    where, more = ("", "") if step is None else (f" at step {step:,}", f" --checkpoints {step}")
    if by_position is not None:
        where, more = f"{where} {'with' if by_position else 'without'} positions", more + " --positions" * by_position
    raise UsageError(f"{shelf.name}{where}: no circuit is stored; run `{shelf.search}{more}` first")


def write_circuit_page(shelf: Shelf, main: StoredCircuit, folder: Path | None = None) -> dict[str, Path]:
    """Write circuit.html, and circuit.json and circuit.svg where there is a circuit; equal discoveries, equal bytes.

    Where there is none, those from before are renamed, so that they do not stand for this discovery.

    Raises:
        UsageError: for a folder that holds discoveries in another model.
    """
    found, folder = main.discovery, folder or shelf.folder
    if folder.resolve() != shelf.folder.resolve() and holds_circuits(folder):
        raise UsageError(f"-o {folder}: holds discoveries of its own; give the page of {shelf.name} another folder")
    series = [(one.step, one.discovery) for one in fellows(shelf.stored, main)]
    story = trajectory([step for step, _ in series], [one for _, one in series]) if len(series) > 1 else None
    origin = [("Checkpoint", main.checkpoint), ("Analysis", main.key)]
    task = shelf.task or str(main.request.get("pairs", ""))
    around = Background(series, story, shelf.commands(main), origin, task)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    replace(folder / PAGE, render_circuit_page(found, shelf.name, step_of(main), around).encode("utf-8"))
    files = {"html": folder / PAGE}
    if found.circuit is not None:
        write_circuit(folder / FILE, found.circuit)
        files["json"] = folder / FILE
        replace(folder / DRAWING, drawing_of(found, shelf.name, step_of(main)).encode("utf-8"))
        files["svg"] = folder / DRAWING
        return files
    if set_aside(folder) is not None:
        note(f"{folder / FILE} held a circuit of another discovery; it is now {EARLIER}")
    with disk_errors(folder):
        if (folder / DRAWING).is_file():
            (folder / DRAWING).replace(folder / f"earlier-{DRAWING}")
    return files


def drawing_of(found: "DiscoveryFile", model: str, step: int | None) -> str:
    """The first drawing of the page as a file of its own: by position where there is room, else by layer and head."""
    columns = found.circuit.n_pos and fits(drawn(found.circuit))
    title = title_of_page(found, model, step, "")
    return circuit_file(found.circuit, positions="columns" if columns else "pooled", tips=tips(found), title=title)


def step_of(main: StoredCircuit) -> int | None:
    """The checkpoint; None for a model that has no steps."""
    return None if main.step < 0 else main.step


def fellows(stored: Sequence[StoredCircuit], main: StoredCircuit) -> list[StoredCircuit]:
    """One discovery for each step that was asked in the same way: same prompts, ablation and kind of edges.

    At a step that has several, the newest with two halves of the prompts is taken: only it says what chance changes.
    """
    same = asked(main.request)
    by_step: dict[int, StoredCircuit] = {}
    for one in stored:
        if asked(one.request) != same:
            continue
        before = by_step.get(one.step)
        if before is None or _halves(one) >= _halves(before):
            by_step[one.step] = one
    return [by_step[step] for step in sorted(by_step)]


def _halves(one: StoredCircuit) -> bool:
    return one.data.get("split_half") is not None


def _store(run: Run) -> list[str]:
    store = run.path.parent
    return [] if store.name == "runs" else ["--store", store.name]


def _commands(name: str, main: StoredCircuit, model: list[str], where: list[str]) -> list[tuple[str, str]]:
    """(purpose, line) of the commands that search the circuit again and write this page."""
    request, words = main.request, ["interp", "circuit", *model]
    if main.step >= 0:
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
    which = "--positions" if main.by_position else "--no-positions"
    page = ["interp", "report", "circuit", name, *(["--checkpoint", str(main.step)] if main.step >= 0 else []), which]
    return [
        ("search the circuit again", shlex.join([*words, *where])),
        ("write this page", shlex.join([*page, *where])),
    ]


def _options(values: dict[str, Any], usual: dict[str, Any], names: Sequence[str]) -> list[str]:
    """Options of the command for values that are not what it takes by itself."""
    changed = [name for name in names if name in values and values[name] != usual[name]]
    return [word for name in changed for word in (f"--{name}", str(values[name]))]
