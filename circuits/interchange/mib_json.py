"""The circuit JSON of EAP-IG and the MIB circuit track: written as its `Graph.to_json` does, and read."""

from pathlib import Path
from typing import Any

from circuits.circuit import Circuit
from circuits.interchange.files import of_type, read_object, write_object
from circuits.interchange.mib import MibGraph, empty_graph, from_mib, kept_record, to_mib
from circuits.interchange.own import KEY, record_of
from interp.errors import StoreError, UnknownName


def mib_json(circuit: Circuit, notes: list[str]) -> dict[str, Any]:
    """The JSON object; notes of what the form cannot say are added to those given.

    `cfg`, `nodes` and `edges` are EAP-IG's. Everything else we know stands under the key `interp`, which its
    `from_json` does not look at.

    Raises:
        NotExpressible: for a circuit by position, or a model whose layers differ.
    """
    graph, more = to_mib(circuit)
    notes += more
    inside = graph.nodes_in_graph.tolist()
    nodes = {name: {"in_graph": here} for name, here in zip(graph.sources, inside, strict=True)}
    scores, kept = graph.scores.tolist(), graph.in_graph.tolist()
    edges = {name: {"score": scores[i][j], "in_graph": kept[i][j]} for name, i, j in graph.edges()}
    return {
        "cfg": graph.cfg,
        "nodes": nodes | {"logits": {"in_graph": True}},
        "edges": edges,
        KEY: record_of(circuit, list(notes)),
    }


def write_mib_json(path: Path, circuit: Circuit, notes: list[str]) -> None:
    """Write the file."""
    write_object(path, mib_json(circuit, notes))


def read_mib_json(path: Path) -> tuple[Circuit, list[str]]:
    """The circuit of a file, with what it did not say.

    Raises:
        StoreError: for a file that lacks a key, has an edge of another graph, or keeps single neurons.
    """
    return circuit_of_mib(read_object(path), path.name)


def circuit_of_mib(body: dict[str, Any], where: str) -> tuple[Circuit, list[str]]:
    """The circuit of a JSON object as EAP-IG writes it."""
    cfg, nodes, edges = (of_type(body, key, dict, where) for key in ("cfg", "nodes", "edges"))
    _require_whole_nodes(nodes, where)
    graph = empty_graph(cfg, where)
    unscored = _fill(graph, edges, where)
    circuit, notes = from_mib(graph, kept_record(body), where)
    if unscored:
        notes.append(f"{unscored} edges have no score and are given 0")
    if any(isinstance(one, dict) and one.get("score") is not None for one in nodes.values()):
        notes.append("scores of nodes are left out: a circuit here is one of edges")
    return circuit, notes


def _fill(graph: MibGraph, edges: dict[str, Any], where: str) -> int:
    """Put scores and kept edges in place; how many had no score."""
    places, unscored = {name: (row, column) for name, row, column in graph.edges()}, 0
    for name, value in edges.items():
        if name not in places:
            raise StoreError(f"{where}: edges: {UnknownName('edge', name, places)}")
        if not isinstance(value, dict) or type(value.get("in_graph")) is not bool:
            raise StoreError(f"{where}: edges.{name}: expected an object with score and in_graph")
        score = value.get("score")
        if score is not None and type(score) not in (int, float):
            raise StoreError(f"{where}: edges.{name}.score: expected a number, found {type(score).__name__}")
        unscored += score is None
        graph.scores[places[name]] = float(score or 0.0)
        graph.in_graph[places[name]] = value["in_graph"]
    return unscored


def _require_whole_nodes(nodes: dict[str, Any], where: str) -> None:
    """Nodes are there or not; before 2024-10 they were plain booleans."""
    for name, node in nodes.items():
        neurons = node.get("neurons") if isinstance(node, dict) else None
        if neurons is not None and not (isinstance(neurons, list) and all(one in (True, 1) for one in neurons)):
            raise StoreError(f"{where}: nodes.{name}.neurons: keeps single neurons; only circuits of edges are read")
