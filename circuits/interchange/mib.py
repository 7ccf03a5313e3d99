"""A circuit as EAP-IG and MIB know it: names, order and matrices of its graph, from ours and back."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.circuit import Circuit, Provenance
from circuits.circuit_effects import RANKS
from circuits.graph import EdgeGraph, ModelShape, graph_of
from circuits.interchange.own import KEY, circuit_of_record
from interp.errors import NotExpressible, StoreError

UNKNOWN = "unknown"  # method of a circuit whose scores are another program's
SHARED = "n_key_value_heads"  # our addition to cfg, which EAP-IG keeps and does not read
POOLED = "positions were pooled: an edge is kept where it is at any position, and its scores add up"
UNSUMMED = "effects of single places do not add up and are left out"
BESIDE = "live edges, frequencies, intervals and provenance stand under the key interp, which others do not read"
MAX_PAIRS = 6_000_000  # of a source and a destination; 32 layers of 32 heads have 3.3 million
RANKED = (
    f"scores are rank scores without a unit: {RANKS}; from the last kept edge to the next one they drop by about 1, "
    "which says nothing of effects"
)
MEASURED = "exact effects of kept edges in units of the metric, with intervals, stand under the key interp"
SPLIT = "keys and values that heads share are written once for each head, with an equal part of the score"


@dataclass(frozen=True)
class MibGraph:
    """The matrices of EAP-IG's `Graph`.

    Attributes:
        cfg: n_layers, n_heads (query heads), parallel_attn_mlp, d_model.
        scores: [n_src, n_dst]; sources are `input`, then per layer its heads and its MLP; destinations per layer the
            queries, keys and values of all heads and the MLP, then `logits`.
        real: pairs that are edges.
    """

    cfg: dict[str, Any]
    scores: Float[Tensor, "src dst"]
    in_graph: Bool[Tensor, "src dst"]
    real: Bool[Tensor, "src dst"]

    @property
    def nodes_in_graph(self) -> Bool[Tensor, "src"]:
        """Sources with a kept edge out and, but for the input, one in: what EAP-IG's own pruning leaves."""
        layers, heads = self.cfg["n_layers"], self.cfg["n_heads"]
        incoming = self.in_graph.any(0)[:-1].view(layers, 3 * heads + 1)
        read = torch.cat((incoming[:, : 3 * heads].view(layers, 3, heads).any(1), incoming[:, -1:]), 1)
        return self.in_graph.any(1) & torch.cat((torch.ones(1, dtype=torch.bool), read.flatten()))

    @property
    def sources(self) -> list[str]:
        """Names of the rows."""
        found = ["input"]
        for layer in range(self.cfg["n_layers"]):
            found += [*(f"a{layer}.h{head}" for head in range(self.cfg["n_heads"])), f"m{layer}"]
        return found

    @property
    def destinations(self) -> list[str]:
        """Names of the columns."""
        found = []
        for layer in range(self.cfg["n_layers"]):
            found += [f"a{layer}.h{head}<{slot}>" for slot in "qkv" for head in range(self.cfg["n_heads"])]
            found.append(f"m{layer}")
        return [*found, "logits"]

    def edges(self) -> list[tuple[str, int, int]]:
        """(name, row, column) of every edge, in the order in which EAP-IG makes them."""
        names, targets, found = self.sources, self.destinations, []
        heads, width = self.cfg["n_heads"], 3 * self.cfg["n_heads"] + 1
        for layer in range(self.cfg["n_layers"]):
            before, after = layer * (heads + 1) + 1, layer * (heads + 1) + 1 + heads
            reach = before if self.cfg["parallel_attn_mlp"] else after
            columns = [layer * width + slot * heads + head for head in range(heads) for slot in range(3)]
            mlp = layer * width + 3 * heads
            if self.cfg["parallel_attn_mlp"]:
                found += [(row, column) for row in range(before) for column in (*columns, mlp)]
            else:
                found += [(row, column) for row in range(before) for column in columns]
                found += [(row, mlp) for row in range(reach)]
        found += [(row, len(targets) - 1) for row in range(len(names))]
        return [(f"{names[row]}->{targets[column]}", row, column) for row, column in found]

    def same(self, other: "MibGraph") -> bool:
        """Whether edges, scores and configuration are equal."""
        same_cfg = {key: self.cfg.get(key) for key in NEEDED} == {key: other.cfg.get(key) for key in NEEDED}
        return same_cfg and torch.equal(self.in_graph, other.in_graph) and torch.equal(self.scores, other.scores)


NEEDED = {"n_layers": int, "n_heads": int, "parallel_attn_mlp": bool, "d_model": int}


def empty_graph(cfg: dict[str, Any], where: str) -> MibGraph:
    """A graph without edges.

    Raises:
        StoreError: for a configuration that lacks a key, or describes no model.
    """
    for key, kind in NEEDED.items():
        if type(cfg.get(key)) is not kind:
            raise StoreError(f"{where}: cfg.{key}: expected {kind.__name__}, found {cfg.get(key)!r:.40}")
    layers, heads = cfg["n_layers"], cfg["n_heads"]
    size = (1 + layers * (heads + 1), layers * (3 * heads + 1) + 1)
    if min(layers, heads) < 1 or size[0] * size[1] > MAX_PAIRS:
        raise StoreError(f"{where}: cfg: {layers} layers of {heads} heads; at most {MAX_PAIRS:,} pairs are handled")
    graph = MibGraph(cfg, torch.zeros(size), *(torch.zeros(size, dtype=torch.bool) for _ in range(2)))
    _, rows, columns = zip(*graph.edges(), strict=True)
    graph.real[list(rows), list(columns)] = True
    return graph


def to_mib(circuit: Circuit) -> tuple[MibGraph, list[str]]:
    """The graph of a circuit, and what the format cannot say.

    Raises:
        NotExpressible: for a circuit by position, or a model whose layers differ.
    """
    if circuit.by_position:
        raise NotExpressible(
            "this circuit has positions, and the MIB form has none; pool them with --pool, or export a circuit that "
            "was searched without positions"
        )
    shape = circuit.shape
    if len(set(shape.heads)) > 1 or len(set(shape.kv_heads)) > 1 or len(set(shape.parallel)) > 1:
        raise NotExpressible("the MIB form needs the same number of heads and the same kind of block in every layer")
    cfg = {
        "n_layers": shape.n_layers,
        "n_heads": shape.heads[0],
        "parallel_attn_mlp": shape.parallel[0],
        "d_model": shape.d_model,
    }
    notes = [] if circuit.provenance.method == UNKNOWN else [RANKED]
    notes += [*([] if circuit.effects is None else [MEASURED]), BESIDE]
    if shape.kv_heads[0] < shape.heads[0]:
        cfg[SHARED] = shape.kv_heads[0]
        notes.append(SPLIT)
    if not all(shape.mlp):
        without = ", ".join(f"m{layer}" for layer, has in enumerate(shape.mlp) if not has)
        notes.append(f"the model has no {without}; the form has no place to say so, and they stand outside the graph")
    graph = empty_graph(cfg, "circuit")
    rows, columns = _places(circuit.graph, graph)
    for receiver, targets in enumerate(columns):
        for column in targets:
            graph.scores[rows, column] = circuit.scores[:, receiver].float() / len(targets)
            graph.in_graph[rows, column] = circuit.kept[:, receiver]
    return graph, notes


def _places(ours: EdgeGraph, graph: MibGraph) -> tuple[list[int], list[list[int]]]:
    """Row of each of our senders, and columns of each of our receivers (several for shared keys and values)."""
    sources = {name: row for row, name in enumerate(graph.sources)}
    targets = {name: column for column, name in enumerate(graph.destinations)}
    size = graph.cfg["n_heads"] // graph.cfg.get(SHARED, graph.cfg["n_heads"])
    rows = [sources[_theirs(name)] for name in ours.senders]
    columns = []
    for name in ours.receivers:
        node, slot = (name[:-2], f"<{name[-1]}>") if name[-2:-1] == "." else (name, "")
        layer, _, head = node.partition(".")
        if head.startswith("KV"):
            group = int(head[2:])
            heads = range(group * size, (group + 1) * size)
            columns.append([targets[f"a{layer[1:]}.h{one}{slot}"] for one in heads])
        else:
            columns.append([targets[_theirs(node) + slot]])
    return rows, columns


def _theirs(node: str) -> str:
    """EAP-IG's name of a node of ours."""
    if node in ("embed", "logits"):
        return {"embed": "input", "logits": "logits"}[node]
    layer, _, head = node.partition(".")
    return f"a{layer[1:]}.h{head[1:]}" if head else f"m{node[1:]}"


def from_mib(graph: MibGraph, record: Any, where: str) -> tuple[Circuit, list[str]]:
    """The circuit of a graph, and what the file did not say.

    Our own record, where the file has one and it describes this very graph, gives the circuit back as it was. Else all
    edges count as live, since the form does not tell which are.

    Raises:
        StoreError: for heads that share keys and values and disagree about them, or a damaged record.
    """
    known = None if record is None else circuit_of_record(record, where)
    if known is not None:
        told, _ = to_mib(known)
        if told.same(graph):
            return known, []
    shape = _shape(graph, where) if known is None else known.shape
    ours = graph_of(shape)
    size = ours.exists.shape
    kept, scores = torch.zeros(size, dtype=torch.bool), torch.zeros(size)
    rows, columns = _places(ours, graph)
    for receiver, targets in enumerate(columns):
        inside = graph.in_graph[rows][:, targets]
        if bool((inside != inside[:, :1]).any()):
            raise StoreError(f"{where}: heads that share {ours.receivers[receiver]} do not keep the same edges into it")
        kept[:, receiver], scores[:, receiver] = inside[:, 0], graph.scores[rows][:, targets].sum(1)
    lost = _outside(graph, rows, columns)
    if lost:
        raise StoreError(f"{where}: keeps {lost}, which the model it names does not have")
    if known is not None:
        note = (
            "edges or scores were changed after the export; live edges, effects, intervals and frequencies are left out"
        )
        return Circuit(ours, shape, kept, ours.exists.clone(), scores, known.provenance), [note]
    notes = ["the file does not say which edges are live, so all count as live", "nor the ablation: MIB's is resample"]
    return Circuit(ours, shape, kept, ours.exists.clone(), scores, _provenance(where)), notes


def _outside(graph: MibGraph, rows: list[int], columns: list[list[int]]) -> str:
    """First kept edge that our graph has no place for; empty for none."""
    rest = graph.in_graph.clone()
    for targets in columns:
        for column in targets:
            rest[rows, column] = False
    return next((name for name, row, column in graph.edges() if rest[row, column]), "")


def _shape(graph: MibGraph, where: str) -> ModelShape:
    layers, heads = graph.cfg["n_layers"], graph.cfg["n_heads"]
    shared = graph.cfg.get(SHARED, heads)
    if type(shared) is not int or not 1 <= shared <= heads or heads % shared:
        raise StoreError(f"{where}: cfg.{SHARED}: {shared!r:.20} does not divide {heads} heads")
    return ModelShape(
        d_model=graph.cfg["d_model"],
        d_vocab=0,
        heads=[heads] * layers,
        kv_heads=[shared] * layers,
        mlp=[True] * layers,
        parallel=[graph.cfg["parallel_attn_mlp"]] * layers,
    )


def _provenance(where: str) -> Provenance:
    """What is known of a circuit made elsewhere."""
    return Provenance(
        model=where,
        step=None,
        fingerprint="unknown",
        processing={"imported": "from a file of EAP-IG or MIB, which names neither model nor prompts"},
        pairs="unknown",
        pairs_fingerprint="unknown",
        n_prompts={},
        n_units={},
        metric="unknown",
        ablation="resample",
        method=UNKNOWN,
        seed=0,
        code_version="unknown",
    )


def kept_record(body: dict[str, Any]) -> Any:
    """Our own record of a file, None where it has none."""
    return body.get(KEY)
