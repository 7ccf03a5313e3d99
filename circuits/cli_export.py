"""The command `interp export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from circuits.circuit import Circuit
    from circuits.interchange.export import Exported
    from interp.run import Run

To = Annotated[
    str,
    typer.Option(
        help="mib or mib-pt (EAP-IG and the MIB circuit track), neuronpedia (attribution graph), hf (the model as a "
        "Hugging Face folder) or circuit (our own circuit.json)."
    ),
]
Checkpoint = Annotated[
    str, typer.Option(help="last, or a step; of a circuit the newest step that has one stored if not given.")
]
Pool = Annotated[
    bool, typer.Option("--pool", help="Pool the positions of a circuit by position, where the format has none.")
]
Positions = Annotated[
    bool | None,
    typer.Option("--positions/--no-positions", help="Only a circuit with, or without, positions; else the newest."),
]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="Folder; RUN/export, or that of the file, if not given.")
]


def export(
    source: Annotated[
        str,
        typer.Argument(
            help="Run, the folder of `interp circuit -o`, or a file that holds a circuit in one of the formats."
        ),
    ],
    to: To,
    checkpoint: Checkpoint = "last",
    pool: Pool = False,
    positions: Positions = None,
    output: Output = None,
    store: Annotated[Path, typer.Option(help="Folder in which the name of a run is looked up.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a circuit, or a run's model, in the format of another program; read theirs with --to circuit."""
    from interp.errors import UnknownName, UsageError

    known = ("circuit", "hf", "mib", "mib-pt", "neuronpedia")
    if to not in known:
        raise UnknownName("format", to, known)
    if checkpoint != "last" and not checkpoint.isdecimal():
        raise UsageError(f"--checkpoint {checkpoint!r}: expected last or a step such as 5080")
    if to == "hf" and (pool or positions is not None):
        raise UsageError("--pool, --positions and --no-positions are for circuits; --to hf writes the model")
    step = int(checkpoint) if checkpoint != "last" else None
    path = Path(source)
    if path.is_file():
        if positions is not None:
            raise UsageError(f"--positions and --no-positions are for a run; {path} holds one circuit")
        found = _of_file(path, to, step, pool, output)
    elif _holds_circuits(path):
        found = _of_folder(path, to, step, pool, output, positions)
    else:
        found = _of_run(_run(source, store), to, step, pool, output, positions)
    _show(found, to, as_json)


def _of_file(path: Path, to: str, step: int | None, pool: bool, output: Path | None) -> "Exported":
    """A circuit from a file."""
    from interp.errors import UsageError

    if to == "hf":
        raise UsageError(f"{path}: --to hf writes the model of a run; this file has no weights")
    if step is not None:
        raise UsageError(f"--checkpoint is for a run; {path} holds one circuit")
    from circuits.interchange.export import circuit_of_path, export_circuit, stem_of

    circuit, notes = circuit_of_path(path)
    folder = output or path.parent
    return export_circuit(circuit, to, folder, stem_of(circuit), pool, [*_beside(path, circuit), *notes])


def _beside(path: Path, circuit: "Circuit") -> list[str]:
    """A note where the discovery made last in the folder of a circuit.json is not the one that the file holds."""
    from circuits.interchange.own import FILE
    from circuits.report.circuit_stored import holds_circuits, shelf_of_folder
    from interp.errors import StoreError

    if path.name != FILE or not holds_circuits(path.parent):
        return []
    try:
        shelf = shelf_of_folder(path.parent)
    except StoreError as error:
        return [f"what lies beside it cannot be read: {error}"]
    model, newest = circuit.provenance.model, max(shelf.stored, key=lambda one: (one.saved, one.key))
    if newest.data.get("circuit") is None:
        return [f"this is a circuit of {model}; the discovery made last in its folder, {shelf.name}, has none"]
    return [] if shelf.name == model else [f"this is a circuit of {model}; its folder also holds one of {shelf.name}"]


def _holds_circuits(path: Path) -> bool:
    if not path.is_dir():
        return False
    from circuits.report.circuit_stored import holds_circuits

    return holds_circuits(path)


def _of_folder(
    folder: Path, to: str, step: int | None, pool: bool, output: Path | None, positions: bool | None
) -> "Exported":
    """A circuit from the folder of `interp circuit -o`: the one that `interp report circuit` takes, without positions
    where the format has no place for them.

    Raises:
        UsageError: for a folder without a circuit, or for --to hf.
    """
    from circuits.interchange.export import export_circuit, stem_of
    from circuits.report.circuit_stored import shelf_of_folder, stored_circuit
    from circuits.stored import choose
    from interp.errors import UsageError

    if to == "hf":
        raise UsageError(f"{folder}: --to hf writes the model of a run; this folder has circuits and no weights")
    shelf = shelf_of_folder(folder)
    flat = to in ("mib", "mib-pt") and positions is None and choose(shelf.stored, step, False) is not None
    main = stored_circuit(shelf, step, False if flat else positions)
    if main.data.get("circuit") is None:
        raise UsageError(f"{folder}: no circuit to export. {main.data.get('headline', '')}")
    circuit = main.discovery.circuit.circuit()
    return export_circuit(circuit, to, output or folder, stem_of(circuit), pool, [])


def _run(source: str, store: Path) -> "Run":
    """The run of that name or at that path; what is neither is told from a name that is misspelt.

    Raises:
        UsageError: for another folder, and for a path that is not there.
    """
    from interp.errors import UsageError
    from interp.run import Store

    path = Path(source)
    if (path / "checkpoints").is_dir():
        return Store(path.parent).run(path.name)
    a_path = len(path.parts) > 1 or path.suffix == ".json"
    if path.is_dir() and (a_path or not (store / source).is_dir()):
        inside = path / "circuit.json"
        more = f"; give {inside}" if inside.is_file() else ""
        raise UsageError(
            f"{source}: a folder that is no run; export takes a run, the folder of interp circuit -o or a circuit "
            f"file{more}"
        )
    if a_path and not path.exists():
        raise UsageError(f"{source}: no such file; export takes a run or a circuit file")
    return Store(store).run(source)


def _of_run(
    run: "Run", to: str, step: int | None, pool: bool, output: Path | None, positions: bool | None
) -> "Exported":
    """A stored circuit of a run, or its model."""
    if to == "hf":
        from circuits.interchange.hf_run import export_model

        reached = run.checkpoint(step, optim=False).step
        return export_model(run, reached, output or run.path / "export" / f"hf-step-{reached}")
    from circuits.interchange.export import EXPORT, circuit_of_run, export_circuit, stem_of

    stored, notes = circuit_of_run(run, step, to, pool, positions)
    circuit = stored.discovery.circuit.circuit()
    return export_circuit(circuit, to, output or run.path / EXPORT, stem_of(circuit), pool, notes)


def _show(found: "Exported", to: str, as_json: bool) -> None:
    from circuits.outputs import ExportOutput
    from interp.console import print_json, say

    circuit = found.circuit
    output = ExportOutput(
        model=found.model,
        step=found.step,
        to=to,
        n_kept=None if circuit is None else circuit.n_kept,
        n_live=None if circuit is None else circuit.n_live,
        files={kind: str(path) for kind, path in found.files.items()},
        notes=found.notes,
    )
    if as_json:
        print_json(output)
        return
    step = "" if found.step is None else f", step {found.step:,}"
    edges = "" if circuit is None else f": {circuit.n_kept} of {circuit.n_live} live edges"
    say(f"{found.model}{step}{edges}")
    for text in found.notes:
        say(f"note: {text}")
    for path in output.files.values():
        say(path)
