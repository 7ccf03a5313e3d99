"""What `interp export` does with circuits: finds the one meant, writes it in a format, and says what that loses."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from circuits.circuit import Circuit
from circuits.interchange.files import name_of_files, read_object
from circuits.interchange.mib import POOLED, UNSUMMED
from circuits.interchange.mib_json import circuit_of_mib, write_mib_json
from circuits.interchange.mib_pt import read_mib_pt, write_mib_pt
from circuits.interchange.neuronpedia import circuit_of_graph, write_neuronpedia
from circuits.interchange.own import circuit_of_json, write_circuit
from circuits.stored import StoredCircuit, choose, other_choice, stored_circuits
from interp.errors import StoreError, UsageError
from interp.run import Run

ENDINGS = {"circuit": "circuit.json", "mib": "mib.json", "mib-pt": "mib.pt", "neuronpedia": "neuronpedia.json"}
EXPORT = "export"  # folder of a run


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        notes: what the format cannot say, what was added, and what the file that was read did not say.
    """

    model: str
    step: int | None
    circuit: Circuit | None
    files: dict[str, Path]
    notes: list[str]


def export_circuit(circuit: Circuit, to: str, folder: Path, stem: str, pool: bool, notes: list[str]) -> Exported:
    """Write a circuit in a format.

    Raises:
        NotExpressible: if the format has no place for this circuit.
    """
    write: dict[str, Callable[[Path, Circuit, list[str]], None]] = {
        "circuit": lambda path, one, _: write_circuit(path, one),
        "mib": write_mib_json,
        "mib-pt": write_mib_pt,
        "neuronpedia": write_neuronpedia,
    }
    if pool and circuit.by_position:
        unsummed = [] if circuit.effects is None else [UNSUMMED]
        circuit, notes = circuit.pooled, [*notes, POOLED, *unsummed]
    path = folder / f"{stem}.{ENDINGS[to]}"
    write[to](path, circuit, notes)
    about = circuit.provenance
    return Exported(about.model, about.step, circuit, {to: path}, notes)


def circuit_of_run(
    run: Run, step: int | None, to: str, pool: bool, by_position: bool | None = None
) -> tuple[StoredCircuit, list[str]]:
    """The stored discovery that `choose` takes, without positions where the format has no place for them; with notes.

    Args:
        by_position: only those with, or without, positions; None leaves it to the format.

    Raises:
        UsageError: if there is none; the message names the command that makes one.
    """
    flat, stored = to in ("mib", "mib-pt"), stored_circuits(run)
    found = choose(stored, step, False if flat and by_position is None else by_position)
    if found is None and flat and pool and by_position is None:
        found = choose(stored, step, None)
    if found is None:
        raise UsageError(_lacking(run.name, stored, step, to if flat else "", by_position))
    if found.data.get("circuit") is None:
        raise UsageError(f"{run.name} at step {found.step:,}: no circuit to export. {found.data.get('headline', '')}")
    other = other_choice(stored, found, step) if by_position is None else ""
    if other and flat:
        other = f"--to {to} has no positions: {other} --pool" if not found.by_position else other
    return found, [other] if other else []


def _lacking(name: str, stored: list[StoredCircuit], step: int | None, flat: str, by_position: bool | None) -> str:
    """What is missing and what would make it."""
    where, more = ("", "") if step is None else (f" at step {step:,}", f" --checkpoints {step}")
    if flat and not by_position and choose(stored, step, None) is not None:
        return (
            f"{name}{where}: its stored circuit has positions and --to {flat} has none; give --pool, or run "
            f"`interp circuit {name}{more}`"
        )
    if by_position is not None:
        where, more = f"{where} {'with' if by_position else 'without'} positions", more + " --positions" * by_position
    return f"{name}{where}: no circuit is stored; run `interp circuit {name}{more}` first"


def circuit_of_path(path: Path) -> tuple[Circuit, list[str]]:
    """The circuit of a file in any of the formats, told by what it holds.

    Raises:
        StoreError: for a file that is damaged or of no format known here.
    """
    if path.suffix.lower() in (".pt", ".pth", ".bin"):
        return read_mib_pt(path)
    body = read_object(path)
    own = circuit_of_json(body, path.name)
    if own is not None:
        return own, []
    if {"cfg", "nodes", "edges"} <= set(body):
        return circuit_of_mib(body, path.name)
    if {"metadata", "nodes", "links"} <= set(body):
        return circuit_of_graph(body, path.name)
    raise StoreError(
        f"{path}: no circuit of a format known here; expected circuit.json, what `interp circuit --json` prints, or a "
        "file of EAP-IG, MIB or Neuronpedia"
    )


def stem_of(circuit: Circuit) -> str:
    """Beginning of the name of a file: model and step."""
    about = circuit.provenance
    name = name_of_files(about.model)
    return name if about.step is None else f"{name}-step-{about.step}"
