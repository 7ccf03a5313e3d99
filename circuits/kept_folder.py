"""The folder of `interp circuit -o`: discoveries in one model that is no run of ours, found again by content."""

import re
from pathlib import Path

from circuits.interchange.files import name_of_files, of_type, read_object
from circuits.interchange.own import EARLIER, FILE
from circuits.stored import CIRCUIT, FORMAT, MAX_BYTES, StoredCircuit
from interp.errors import Taken, UsageError
from interp.files import disk_errors
from interp.jsonfile import read_sealed

KEY = re.compile(r"-[0-9a-f]{20}\.json$")
STEP = re.compile(r"-step-\d+$")


def kept_path(folder: Path, model: str, step: int | None, key: str) -> Path:
    """File of a discovery: model, step and a hash of all that gave it."""
    return folder / f"{_head(model, step)}-{key}.json"


def _head(model: str, step: int | None) -> str:
    return f"{CIRCUIT}{name_of_files(model)}" + ("" if step is None else f"-step-{step}")


def read_kept(path: Path) -> StoredCircuit:
    """One stored discovery.

    Raises:
        StoreError: for a file that is damaged, or newer than this program.
    """
    body = read_sealed(path, newest=FORMAT, limit=MAX_BYTES)
    kinds = {"step": int, "checkpoint": str, "saved": str, "request": dict, "discovery": dict}
    given = {name: of_type(body, name, kind, str(path)) for name, kind in kinds.items()}
    return StoredCircuit(key=path.stem, data=given.pop("discovery"), **given)


def kept_in(folder: Path) -> list[Path]:
    """Files of discoveries in a folder."""
    return sorted(folder.glob(f"{CIRCUIT}*.json")) if folder.is_dir() else []


def model_of(one: StoredCircuit) -> str | None:
    """Name of the model, from the circuit or from the request; None where an older version left it out."""
    circuit = one.data.get("circuit") or {}
    name = circuit.get("provenance", {}).get("model") or one.request.get("model")
    return None if name is None else str(name)


def require_own(folder: Path, model: str, step: int | None, fingerprint: str) -> None:
    """Refuse a folder that holds circuits of another model, or of other weights at the same step.

    Only files that may be of the same checkpoint are opened, and one of the other steps: a model's own name may end
    like that of a step. Of the others the name is enough.

    Raises:
        Taken: naming the file.
        UsageError: for a path that is no folder.
        StoreError: for a file that is damaged.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"-o {folder}: is a file; give a folder")
    head = _head(model, step)
    mine, series = (head if step is None else STEP.sub("", head)), False
    for path in kept_in(folder):
        named = KEY.sub("", path.name)
        plain = named == path.name or named == CIRCUIT[:-1]  # written before names had the model in them
        alike = (named if step is None else STEP.sub("", named)) == mine
        other = None if plain or alike else named.removeprefix(CIRCUIT)
        if other is None and (plain or named == head or not series):  # one of the steps besides ours tells of all
            series = series or not (plain or named == head)
            one = read_kept(path)
            other = model_of(one) if model_of(one) != model else None
            same_step = one.step == (-1 if step is None else step)
            if other is None and same_step and one.checkpoint != fingerprint:
                other = f"another {model}, with other weights at the same step"
        if other is not None:
            raise Taken(f"-o {folder}: holds a circuit of {other} ({path.name}); give {model} a folder of its own")
    if (folder / FILE).is_file():
        about = read_object(folder / FILE).get("provenance")
        other = about.get("model") if isinstance(about, dict) else None
        if other != model:
            raise Taken(f"-o {folder}: {FILE} in it is of {other}; give {model} a folder of its own")


def set_aside(folder: Path) -> Path | None:
    """Rename a circuit.json, so that it does not stand for a later discovery that has no circuit; its new path."""
    if not (folder / FILE).is_file():
        return None
    with disk_errors(folder):
        return (folder / FILE).replace(folder / EARLIER)
