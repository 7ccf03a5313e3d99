"""The command `interp export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from circuits.interchange.export import Exported

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
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="Folder; RUN/export, or that of the file, if not given.")
]


def export(
    source: Annotated[str, typer.Argument(help="Run, or a file that holds a circuit in one of the formats.")],
    to: To,
    checkpoint: Checkpoint = "last",
    pool: Pool = False,
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
    step = int(checkpoint) if checkpoint != "last" else None
    path = Path(source)
    of_file = path.is_file()
    found = _of_file(path, to, step, pool, output) if of_file else _of_run(source, store, to, step, pool, output)
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
    return export_circuit(circuit, to, folder, stem_of(circuit), pool, notes)


def _of_run(name: str, store: Path, to: str, step: int | None, pool: bool, output: Path | None) -> "Exported":
    """A stored circuit of a run, or its model."""
    from interp.run import Store

    path = Path(name)
    run = Store(path.parent).run(path.name) if (path / "checkpoints").is_dir() else Store(store).run(name)
    if to == "hf":
        from circuits.interchange.hf_run import export_model

        reached = run.checkpoint(step, optim=False).step
        return export_model(run, reached, output or run.path / "export" / f"hf-step-{reached}")
    from circuits.interchange.export import EXPORT, circuit_of_run, export_circuit, stem_of

    circuit = circuit_of_run(run, step, to, pool).discovery.circuit.circuit()
    return export_circuit(circuit, to, output or run.path / EXPORT, stem_of(circuit), pool, [])


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
