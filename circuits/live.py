"""Edges that can matter: on a path to the metric, from a sender that writes differently in the ablated run."""

import torch
from jaxtyping import Bool
from torch import Tensor

from circuits.graph import EdgeGraph
from circuits.masked import MaskedRuns
from interp.decoder import Decoder

SAME = 1e-6  # differences below this share of a sender's largest output are rounding


def live_edges(runs: MaskedRuns, by_position: bool) -> Bool[Tensor, "sender receiver *place"]:
    """Edges on a path to the metric whose sender writes differently in the ablated run, for some prompt.

    By position [sender, receiver, pos, query]: entry (p, q) of a key or value edge is what query q reads at p <= q; all
    other edges stand on the diagonal. A query with a single key attends to it whatever the scores, so queries at
    position 0 and its key edges are never live. Without positions an edge is live where it is at some position.
    """
    read = torch.zeros(runs.n_pos, dtype=torch.bool, device=runs.writes[0].device)
    read[runs.rows.pos] = True
    every = runs.graph.exists.to(read.device)[:, :, None, None].expand(-1, -1, runs.n_pos, runs.n_pos)
    found = reaching(runs.decoder, runs.graph, every, read) & differing(runs)[:, None, :, None]
    return found if by_position else found.any(-1).any(-1)


def differing(runs: MaskedRuns) -> Bool[Tensor, "sender pos"]:
    """Where each sender writes differently in the ablated run, for some prompt."""
    real = torch.arange(runs.n_pos, device=runs.writes[0].device) < runs.prompts.lengths[:, None]  # [prompt pos]
    found = []
    for out, ablated in zip(runs.writes, runs.ablations, strict=True):
        change = ((out - ablated).abs().amax(-1) * real).amax(0)  # [pos]
        found.append(change > SAME * max(float(out.abs().max()), float(ablated.abs().max())))
    return torch.stack(found)


def reaching(
    decoder: Decoder,
    graph: EdgeGraph,
    kept: Bool[Tensor, "sender receiver pos query"],
    read: Bool[Tensor, "pos"],
) -> Bool[Tensor, "sender receiver pos query"]:
    """The kept edges from which kept edges lead on to a position that the metric reads."""
    n_pos = len(read)
    causal = torch.ones(n_pos, n_pos, dtype=torch.bool, device=read.device).triu()  # [key query]
    several = causal & (torch.arange(n_pos, device=read.device) > 0)  # queries with more than one key
    found = torch.zeros_like(kept)

    def keep(receiver: int, places: Tensor) -> None:
        found[:, receiver] = kept[:, receiver] & places

    def used(sender: int) -> Bool[Tensor, "pos"]:
        return found[sender].any(0).any(-1)

    receiver, sender = len(graph.receivers) - 1, len(graph.senders)
    keep(receiver, read.diag())
    for layer in reversed(decoder.layers):
        n_heads, n_kv = len(layer.attn.W_Q), len(layer.attn.W_K)
        if layer.mlp is not None:
            receiver, sender = receiver - 1, sender - 1
            keep(receiver, used(sender).diag())
        heads = torch.stack([used(sender - n_heads + head) for head in range(n_heads)])  # [head query]
        groups = heads.view(n_kv, -1, n_pos).any(1)
        first, sender = receiver - n_heads - 2 * n_kv, sender - n_heads
        for head in range(n_heads):
            keep(first + head, (heads[head] & several.any(0)).diag())
        for group in range(n_kv):
            keep(first + n_heads + group, several & groups[group])
            keep(first + n_heads + n_kv + group, causal & groups[group])
        receiver = first
    return found


def carrying(
    decoder: Decoder, graph: EdgeGraph, kept: Bool[Tensor, "sender receiver pos query"]
) -> Bool[Tensor, "sender receiver pos query"]:
    """The kept edges that kept edges lead to from the embedding: their senders get something of the clean run."""
    found = torch.zeros_like(kept)
    n_pos = kept.shape[-1]
    live = torch.zeros(len(graph.senders), n_pos, dtype=torch.bool, device=kept.device)
    live[0] = True
    receiver, sender = 0, 1

    def arriving(which: int, senders: int) -> Bool[Tensor, "query"]:
        found[:senders, which] = kept[:senders, which] & live[:senders, :, None]
        return found[:, which].any(0).any(0)

    for layer in decoder.layers:
        n_heads, n_kv, group = len(layer.attn.W_Q), len(layer.attn.W_K), layer.attn.group
        before, keys = sender, receiver + n_heads
        shared = torch.stack([arriving(keys + i, before) for i in range(2 * n_kv)])
        for head in range(n_heads):
            own = arriving(receiver + head, before)
            live[sender + head] = own | shared[head // group] | shared[n_kv + head // group]
        receiver, sender = keys + 2 * n_kv, sender + n_heads
        if layer.mlp is not None:
            live[sender] = arriving(receiver, before if layer.parallel else sender)
            receiver, sender = receiver + 1, sender + 1
    arriving(receiver, sender)
    return found


def connected(
    decoder: Decoder,
    graph: EdgeGraph,
    kept: Bool[Tensor, "sender receiver *place"],
    read: Bool[Tensor, "pos"],
    from_embedding: bool = True,
) -> Bool[Tensor, "sender receiver *place"]:
    """The kept edges on a kept path from the embedding to the metric.

    Leaving the others out changes nothing under resampling: a sender without such a path writes what it does in the
    corrupted run. Under other ablations a sender that gets ablated inputs still writes something of its own.

    Args:
        from_embedding: False asks for a kept path to the metric alone, as ablations other than resampling need.
    """
    if kept.dim() == 2:  # one position stands for all: then every query has keys besides its own
        wide = torch.zeros(*kept.shape, 2, 2, dtype=torch.bool, device=kept.device)
        wide[..., 1, 1] = wide[..., 0, 1] = kept
        found = connected(decoder, graph, wide, torch.tensor([False, True], device=kept.device), from_embedding)
        return found[..., 1, 1]
    while True:
        found = reaching(decoder, graph, carrying(decoder, graph, kept) if from_embedding else kept, read)
        if bool((found == kept).all()):
            return found
        kept = found
