"""The .pt circuit of EAP-IG and the MIB circuit track: tensors and names alone, read back as data."""

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuits.circuit import Circuit
from circuits.interchange.files import of_type, write_bytes
from circuits.interchange.mib import MibGraph, empty_graph, from_mib, to_mib
from circuits.interchange.own import KEY, record_of
from interp.adapters.torch_files import read_torch_file
from interp.adapters.weight_files import Stored
from interp.errors import StoreError

MATRICES = {"edges_scores": torch.float32, "edges_in_graph": torch.bool}


def mib_pt(circuit: Circuit, notes: list[str]) -> dict[str, Any]:
    """The dictionary that EAP-IG's `to_pt` saves, with our own record as JSON text beside it.

    Raises:
        NotExpressible: for a circuit by position, or a model whose layers differ.
    """
    graph, more = to_mib(circuit)
    notes += more
    return {
        "cfg": graph.cfg,
        "src_nodes": graph.sources,
        "dst_nodes": graph.destinations,
        "edges_scores": graph.scores,
        "edges_in_graph": graph.in_graph,
        "nodes_in_graph": graph.nodes_in_graph,
        KEY: json.dumps(record_of(circuit, list(notes)), ensure_ascii=False, allow_nan=False),
    }


def write_mib_pt(path: Path, circuit: Circuit, notes: list[str]) -> None:
    """Write the file; it holds tensors, text, numbers, lists and dictionaries only, so no code is needed to load it."""
    memory = io.BytesIO()
    torch.save(mib_pt(circuit, notes), memory)
    write_bytes(path, memory.getvalue())


def read_mib_pt(path: Path) -> tuple[Circuit, list[str]]:
    """The circuit of a file, with what it did not say; nothing in the file is run.

    Raises:
        StoreError: for a file that lacks a key, or whose names and sizes do not fit its cfg.
    """
    body, where = read_torch_file(path, path.parent), path.name
    if not isinstance(body, dict):
        raise StoreError(f"{where}: expected a dictionary, found {type(body).__name__}")
    if "neurons_in_graph" in body:
        raise StoreError(f"{where}: neurons_in_graph: keeps single neurons; only circuits of edges are read")
    graph = empty_graph(of_type(body, "cfg", dict, where), where)
    for key, names in (("src_nodes", graph.sources), ("dst_nodes", graph.destinations)):
        if of_type(body, key, list, where) != names:
            raise StoreError(f"{where}: {key}: not the nodes of its cfg, in the order of EAP-IG")
    scores, inside = (_matrix(body, key, graph, where) for key in MATRICES)
    unscored = int(scores.isnan().sum())
    filled = MibGraph(graph.cfg, scores.nan_to_num(0.0), inside, graph.real)
    circuit, notes = from_mib(filled, _record(body, where), where)
    return circuit, notes + ([f"{unscored} edges have no score and are given 0"] if unscored else [])


def _matrix(body: dict[str, Any], key: str, graph: MibGraph, where: str) -> Tensor:
    """One matrix over all pairs; pairs that are no edge mean nothing, and EAP-IG's circuits of nodes fill them too."""
    stored = body.get(key)
    if not isinstance(stored, Stored) or stored.dtype != MATRICES[key] or stored.shape != tuple(graph.real.shape):
        raise StoreError(f"{where}: {key}: expected a {MATRICES[key]} matrix of {list(graph.real.shape)}")
    value = stored.read()
    if value.is_floating_point() and bool(value.isinf().any()):
        raise StoreError(f"{where}: {key}: holds an infinite score")
    return value.masked_fill(~graph.real, 0)


def _record(body: dict[str, Any], where: str) -> Any:
    text = body.get(KEY)
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreError(f"{where}: {KEY}: not valid JSON ({str(error)[:80]})") from None
