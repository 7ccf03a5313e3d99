"""Names of what writes into and what reads from the residual stream, with the edges between them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.decoder import Decoder, Layer
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


def edge_graph(decoder: Decoder) -> EdgeGraph:
    """The graph of a decoder.

    Senders are `embed`, each head `L0.H1` and each MLP `M0`. Receivers are the query, key and value of each head
    `L1.H3.q`, `L1.H3.k`, `L1.H3.v` (where heads share keys and values, `L1.KV0.k` and `L1.KV0.v` of each group), the
    input of each MLP `M1`, and `logits`. In a parallel block the MLP does not read that block's heads.
    """
    senders, receivers, reach = ["embed"], [], []
    for index, layer in enumerate(decoder.layers):
        slots = slot_names(layer, index)
        receivers += slots
        reach += [len(senders)] * len(slots)
        before = len(senders)
        senders += [f"L{index}.H{head}" for head in range(len(layer.attn.W_Q))]
        if layer.mlp is not None:
            receivers.append(f"M{index}")
            reach.append(before if layer.parallel else len(senders))
            senders.append(f"M{index}")
    receivers.append("logits")
    reach.append(len(senders))
    exists = torch.arange(len(senders))[:, None] < torch.tensor(reach)
    return EdgeGraph(tuple(senders), tuple(receivers), exists)


def slot_names(layer: Layer, index: int) -> list[str]:
    """Queries, keys and values of one layer, in this order."""
    shared = "KV" if layer.attn.group > 1 else "H"
    queries = [f"L{index}.H{head}.q" for head in range(len(layer.attn.W_Q))]
    return queries + [f"L{index}.{shared}{head}.{kind}" for kind in "kv" for head in range(len(layer.attn.W_K))]


def node_names(decoder: Decoder) -> dict[str, tuple[str, ...]]:
    """Names of the nodes of each site, by layer and head; empty for the MLP of a layer that has none."""
    names: dict[str, list[str]] = {"embed": ["embed"], "z": [], "q": [], "k": [], "v": [], "mlp_out": []}
    for index, layer in enumerate(decoder.layers):
        names["z"] += [f"L{index}.H{head}" for head in range(len(layer.attn.W_Q))]
        for slot in slot_names(layer, index):
            names[slot[-1]].append(slot)
        names["mlp_out"].append("" if layer.mlp is None else f"M{index}")
    return {site: tuple(nodes) for site, nodes in names.items()}
