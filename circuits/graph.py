"""Names of what writes into and what reads from the residual stream, with the edges between them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor

from circuits.naming import node_of
from interp.config import Frozen
from interp.decoder import Decoder
from interp.errors import UnknownName


@dataclass(frozen=True)
class EdgeGraph:
    """Every sender and receiver of a decoder in order of computation, and which pairs are edges."""

    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    exists: Bool[Tensor, "sender receiver"]

    @property
    def edges(self) -> list[tuple[int, int]]:
        """(sender, receiver) indices of every edge, by receiver and then sender."""
        return [(sender, receiver) for receiver, sender in self.exists.T.nonzero().tolist()]

    def name(self, sender: int, receiver: int) -> str:
        """Name of an edge, such as `L0.H1->L1.H3.q`."""
        return f"{self.senders[sender]}->{self.receivers[receiver]}"

    def index(self, edge: str) -> tuple[int, int]:
        """(sender, receiver) of an edge by its name.

        Raises:
            UnknownName: if there is no such edge; a sender reaches only what comes after it.
        """
        sender, _, receiver = edge.partition("->")
        if sender not in self.senders:
            raise UnknownName("sender", sender, self.senders)
        if receiver not in self.receivers:
            raise UnknownName("receiver", receiver, self.receivers)
        pair = self.senders.index(sender), self.receivers.index(receiver)
        if not self.exists[pair]:
            raise UnknownName("edge", edge, [self.name(*known) for known in self.edges])
        return pair


class ModelShape(Frozen):
    """What fixes the graph of a model; lists have one entry per layer."""

    d_model: int
    d_vocab: int
    heads: list[int]
    kv_heads: list[int]
    mlp: list[bool] = Field(description="whether the layer has an MLP")
    parallel: list[bool] = Field(description="whether attention and MLP read the same stream")

    @property
    def n_layers(self) -> int:
        """Layers."""
        return len(self.heads)


def shape_of(decoder: Decoder) -> ModelShape:
    """The shape of a decoder."""
    return ModelShape(
        d_model=decoder.d_model,
        d_vocab=decoder.W_U.shape[1],
        heads=[len(layer.attn.W_Q) for layer in decoder.layers],
        kv_heads=[len(layer.attn.W_K) for layer in decoder.layers],
        mlp=[layer.mlp is not None for layer in decoder.layers],
        parallel=[layer.parallel for layer in decoder.layers],
    )


def edge_graph(decoder: Decoder) -> EdgeGraph:
    """The graph of a decoder."""
    return graph_of(shape_of(decoder))


def graph_of(shape: ModelShape) -> EdgeGraph:
    """The graph of every model of a shape.

    Senders are `embed`, each head `L0.H1` and each MLP `M0`. Receivers are the query, key and value of each head
    `L1.H3.q`, `L1.H3.k`, `L1.H3.v` (where heads share keys and values, `L1.KV0.k` and `L1.KV0.v` of each group), the
    input of each MLP `M1`, and `logits`. In a parallel block the MLP does not read that block's heads.
    """
    senders, receivers, reach = ["embed"], [], []
    for layer in range(shape.n_layers):
        slots = slot_names(shape, layer)
        receivers += slots
        reach += [len(senders)] * len(slots)
        before = len(senders)
        senders += [f"L{layer}.H{head}" for head in range(shape.heads[layer])]
        if shape.mlp[layer]:
            receivers.append(f"M{layer}")
            reach.append(before if shape.parallel[layer] else len(senders))
            senders.append(f"M{layer}")
    receivers.append("logits")
    reach.append(len(senders))
    exists = torch.arange(len(senders))[:, None] < torch.tensor(reach)
    return EdgeGraph(tuple(senders), tuple(receivers), exists)


def slot_names(shape: ModelShape, layer: int) -> list[str]:
    """Queries, keys and values of one layer, in this order."""
    shared = "KV" if shape.kv_heads[layer] < shape.heads[layer] else "H"
    queries = [f"L{layer}.H{head}.q" for head in range(shape.heads[layer])]
    return queries + [f"L{layer}.{shared}{head}.{kind}" for kind in "kv" for head in range(shape.kv_heads[layer])]


def fed_by(graph: EdgeGraph) -> tuple[tuple[int, ...], ...]:
    """Senders that read each receiver: its head, all query heads that share its keys or values, its MLP; none: logits.

    Query head h shares keys and values with the others of group h // (heads / groups).
    """
    found = []
    for receiver in graph.receivers:
        node = node_of(receiver)
        layer, _, group = node.partition(".KV")
        if group:
            heads = [i for i, name in enumerate(graph.senders) if name.startswith(f"{layer}.H")]
            size = len(heads) // sum(name.startswith(f"{layer}.KV") and name.endswith(".k") for name in graph.receivers)
            found.append(tuple(heads[int(group) * size : (int(group) + 1) * size]))
        else:
            found.append((graph.senders.index(node),) if node in graph.senders else ())
    return tuple(found)


def node_names(decoder: Decoder) -> dict[str, tuple[str, ...]]:
    """Names of the nodes of each site, by layer and head; empty for the MLP of a layer that has none."""
    names: dict[str, list[str]] = {"embed": ["embed"], "z": [], "q": [], "k": [], "v": [], "mlp_out": []}
    shape = shape_of(decoder)
    for layer in range(shape.n_layers):
        names["z"] += [f"L{layer}.H{head}" for head in range(shape.heads[layer])]
        for slot in slot_names(shape, layer):
            names[slot[-1]].append(slot)
        names["mlp_out"].append(f"M{layer}" if shape.mlp[layer] else "")
    return {site: tuple(nodes) for site, nodes in names.items()}
