"""Our own circuit.json: read from every file that holds one, and written."""

import json
from pathlib import Path
from typing import Any

from circuits.circuit import Circuit, CircuitFile
from circuits.circuit_packed import MOST_ENTRIES
from circuits.interchange.files import write_bytes
from interp.config import validated
from interp.errors import StoreError
from interp.jsonfile import digest_of

FORMAT = 1
FILE, EARLIER = "circuit.json", "earlier-circuit.json"  # in a folder of one model; what a later discovery replaced
MAX_NODES = 20_000  # heads and MLPs
KEY = "interp"  # under which our own record travels in files of other formats


def record_of(circuit: Circuit, notes: list[str]) -> dict[str, Any]:
    """All that we know of a circuit, for a file whose format has no place for it."""
    return {"format": FORMAT, "notes": notes, "circuit": circuit.to_file().model_dump(mode="json")}


def circuit_of_record(record: Any, where: str) -> Circuit:
    """The circuit of a record.

    Raises:
        StoreError: for a record that is damaged or newer than this program.
    """
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else record
        raise StoreError(f"{where}: {KEY}: format {found!r:.20}, this program reads {FORMAT}; update it")
    return _circuit(record.get("circuit"), f"{where}: {KEY}.circuit")


def circuit_of_json(body: dict[str, Any], where: str) -> Circuit | None:
    """The circuit of our own JSON: circuit.json, a discovery, or what `interp circuit --json` prints; None for others.

    Raises:
        StoreError: for a file that does not match its own check sum, or a discovery without a circuit.
        ConfigError: for one that does not fit this version.
    """
    if "sha256" in body:
        stated, body = body["sha256"], {key: value for key, value in body.items() if key != "sha256"}
        if stated != digest_of(body):
            raise StoreError(f"{where}: does not match its own check sum; the file is damaged or was edited")
    if isinstance(body.get("discovery"), dict):
        body = body["discovery"]
    if "verdict" in body and "circuit" in body:
        if body["circuit"] is None:
            raise StoreError(f"{where}: holds no circuit: {body.get('headline', '')}")
        body = body["circuit"]
    if not {"shape", "edges", "provenance"} <= set(body):
        return None
    return _circuit(body, where)


def _circuit(body: Any, where: str) -> Circuit:
    """The circuit of a file's body, as long as its masks fit into memory.

    Raises:
        ConfigError, UnknownName, UsageError: for one that does not fit this version, or itself.
        StoreError: for a shape of impossible size.
    """
    file = validated(CircuitFile, body, where)
    shape, n_pos = file.shape, file.n_pos or 1
    lists = (shape.heads, shape.kv_heads, shape.mlp, shape.parallel)
    nodes = sum(max(0, heads) for heads in shape.heads) + shape.n_layers
    if len({len(one) for one in lists}) != 1 or nodes > MAX_NODES or 3 * nodes * nodes * n_pos * n_pos > MOST_ENTRIES:
        raise StoreError(f"{where}: shape: no model that can be read: {nodes:,} heads and layers, {n_pos} positions")
    return file.circuit()


def write_circuit(path: Path, circuit: Circuit | CircuitFile) -> None:
    """Write circuit.json with its own check sum, however many edges it has."""
    file = circuit if isinstance(circuit, CircuitFile) else circuit.to_file()
    body = file.model_dump(mode="json")
    text = json.dumps(
        {**body, "sha256": digest_of(body)}, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False
    )
    write_bytes(path, (text + "\n").encode("utf-8"))
