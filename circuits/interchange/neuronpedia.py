"""The attribution graph JSON of Neuronpedia and circuit-tracer, with heads and MLPs as nodes on one example prompt."""

import re
from pathlib import Path
from typing import Any

from circuits.circuit import Circuit
from circuits.circuit_effects import RANKS, by_place
from circuits.interchange.files import of_type, read_object, write_object
from circuits.interchange.own import KEY, circuit_of_record, record_of
from interp.errors import NotExpressible, StoreError

SUMMED = "queries, keys and values of one head are one node, so the weights of its three kinds of edges add up"
SHARED = "edges into keys and values that heads share are divided equally among these heads"
POOLED = "edges have no positions; their nodes stand at the last token"
TARGET = "edges into the logits end at the most probable answer, though the metric also has other ones"


def neuronpedia_json(circuit: Circuit, notes: list[str]) -> dict[str, Any]:
    """The JSON object, valid for Neuronpedia's schema 1.0.0 and for circuit-tracer; notes say what the form cannot.

    Raises:
        NotExpressible: for a circuit without an example prompt, which the form needs.
    """
    if circuit.example is None:
        raise NotExpressible("the circuit has no example prompt, and an attribution graph is one of a prompt")
    notes += [_weights(circuit), SUMMED, TARGET, *([] if circuit.by_position else [POOLED])]
    if any(kv < heads for kv, heads in zip(circuit.shape.kv_heads, circuit.shape.heads, strict=True)):
        notes.append(SHARED)
    placed, known = _Placed(circuit), by_place(None if circuit.effects is None else circuit.effects.model_dump())
    links: dict[tuple[str, str], float] = {}
    for place in circuit.kept.nonzero().tolist():
        name, at = circuit.graph.name(*place[:2]), tuple(place[2:]) or None
        weight = known.get((name, at), (0.0,))[0] if known else float(circuit.scores[tuple(place)])
        sender, receiver = circuit.graph.senders[place[0]], circuit.graph.receivers[place[1]]
        start, end = place[2:] if circuit.by_position else (placed.last, placed.last)
        targets = placed.owners(receiver)
        for target in targets:
            link = placed.node(sender, start), placed.node(target, end)
            links[link] = links.get(link, 0.0) + weight / len(targets)
    return {
        "metadata": _metadata(circuit, placed, notes),
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [placed.nodes[key] for key in sorted(placed.nodes)],
        "links": [{"source": one, "target": two, "weight": weight} for (one, two), weight in sorted(links.items())],
    }


def _weights(circuit: Circuit) -> str:
    """What the weights of the links are."""
    effects = circuit.effects
    if effects is None or not effects.edges:
        return f"weights are rank scores without a unit: {RANKS}"
    said = f"weights are exact effects: {effects.kind}, in units of the metric ({effects.unit}), on {effects.n} "
    said += "held-out sequences; their intervals stand under the key interp"
    if effects.measured < effects.of:
        said += f"; only {effects.measured:,} of {effects.of:,} edges are measured, the others have the weight 0"
    return said


def write_neuronpedia(path: Path, circuit: Circuit, notes: list[str]) -> None:
    """Write the file."""
    write_object(path, neuronpedia_json(circuit, notes), indent=1)


def read_neuronpedia(path: Path) -> tuple[Circuit, list[str]]:
    """The circuit of a graph that we wrote.

    Raises:
        StoreError: for a graph of another program: its nodes are features, and a circuit here is one of heads.
    """
    return circuit_of_graph(read_object(path), path.name)


def circuit_of_graph(body: dict[str, Any], where: str) -> tuple[Circuit, list[str]]:
    """The circuit of a graph that we wrote, as long as nobody changed its links."""
    record = of_type(body, "metadata", dict, where).get(KEY)
    if record is None:
        raise StoreError(f"{where}: an attribution graph of another program; its features are no heads and MLPs")
    circuit = circuit_of_record(record, where)
    if neuronpedia_json(circuit, [])["links"] != body.get("links"):
        raise StoreError(f"{where}: links were changed after the export, and no longer are those of the circuit")
    return circuit, []


class _Placed:
    """Nodes by (layer, feature, position), each made once, with tokens of the example."""

    def __init__(self, circuit: Circuit):
        example = circuit.example
        self.circuit, self.nodes = circuit, {}
        labels = list(circuit.columns) if circuit.by_position else []
        self.tokens = example.names + labels[len(example.names) :]
        self.ids = example.tokens + [0] * (len(self.tokens) - len(example.tokens))
        self.last = len(example.tokens) - 1

    def owners(self, receiver: str) -> list[str]:
        """Nodes that a receiver belongs to: all heads of a group that shares its keys and values."""
        node = receiver[:-2] if receiver[-2:-1] == "." else receiver
        layer, _, head = node.partition(".")
        if not head.startswith("KV"):
            return [node]
        index, shape = int(layer[1:]), self.circuit.shape
        size = shape.heads[index] // shape.kv_heads[index]
        return [f"{layer}.H{one}" for one in range(int(head[2:]) * size, (int(head[2:]) + 1) * size)]

    def node(self, name: str, pos: int) -> str:
        """Id of a node at a position; the node is made when it is first asked for."""
        if name == "embed":
            token = self.ids[pos]
            node = f"E_{token}_{pos}", pos, "E", "embedding", f"E_{token}-{pos}", ""
            key = (-1, pos, pos)
        elif name == "logits":
            layer, answer = str(self.circuit.shape.n_layers + 1), self.circuit.example.answers[0]
            clerp = f'Output "{answer.name}" (p={answer.probability:.3f})'
            node = f"{layer}_{answer.token}_{pos}", answer.token, layer, "logit", f"L_{answer.token}-{pos}", clerp
            key = (int(layer), answer.token, pos)
        else:
            layer, feature, kind = self._component(name)
            node = f"{layer}_{feature}_{pos}", feature, layer, kind, f"{layer}_{feature}-0", name
            key = (int(layer), feature, pos)
        names = ("node_id", "feature", "layer", "feature_type", "jsNodeId", "clerp")
        made = dict(zip(names, node, strict=True)) | {"ctx_idx": pos}
        if name == "logits":
            made |= {"is_target_logit": True, "token_prob": self.circuit.example.answers[0].probability}
        self.nodes[key] = made
        return made["node_id"]

    def _component(self, name: str) -> tuple[str, int, str]:
        """Layer, feature number and type of a head or an MLP; the MLP stands behind the heads."""
        layer, _, head = name.partition(".")
        if head:
            return layer[1:], int(head[1:]), "attention head"
        return layer[1:], self.circuit.shape.heads[int(layer[1:])], "mlp"


def _metadata(circuit: Circuit, placed: _Placed, notes: list[str]) -> dict[str, Any]:
    about, tokens = circuit.provenance, placed.tokens
    step = "" if about.step is None else f"-step-{about.step}"
    spaced = any(token[:1].isspace() for token in tokens)
    said = f"{circuit.n_kept} of {circuit.n_live} live edges of {about.model}{step}, {about.pairs}; metric "
    said += f"{about.metric}, {about.ablation} ablation, chosen along {about.method}. Note: {'; '.join(notes)}."
    return {
        "slug": re.sub(r"[^a-z0-9-]+", "-", f"{about.model}{step}".lower()).strip("-") or "circuit",
        "scan": about.model,
        "transcoder_list": [],
        "schema_version": 1,
        "prompt_tokens": tokens,
        "prompt": ("" if spaced else " ").join(tokens),
        "info": {"description": said, "generator": {"name": "interp", "version": about.code_version}},
        "generation_settings": {"metric": about.metric, "ablation": about.ablation, "method": about.method},
        KEY: record_of(circuit, list(notes)),
    }
