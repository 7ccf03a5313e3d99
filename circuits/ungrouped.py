"""Runs in which each query head has its own copy of the keys and values that its group shares."""

import copy
import dataclasses

import torch
from jaxtyping import Bool
from torch import Tensor

from circuits.graph import EdgeGraph, edge_graph, fed_by
from circuits.masked import MaskedRuns
from interp.decoder import Decoder


def ungrouped(decoder: Decoder) -> Decoder:
    """The same function with a key and value head for every query head; a decoder without groups stays as it is."""

    def whole(layer):
        attn, names = layer.attn, ("W_K", "W_V", "b_K", "b_V")
        if attn.group == 1:
            return layer
        own = {n: getattr(attn, n) for n in names if getattr(attn, n) is not None}
        own = {n: value.repeat_interleave(attn.group, 0) for n, value in own.items()}
        return dataclasses.replace(layer, attn=dataclasses.replace(attn, **own))

    return dataclasses.replace(decoder, layers=tuple(whole(layer) for layer in decoder.layers))


def ungrouped_runs(runs: MaskedRuns) -> MaskedRuns:
    """Runs of the ungrouped decoder on the same prompts; what senders write is taken over, since it is the same."""
    found = copy.copy(runs)
    found.decoder = ungrouped(runs.decoder)
    found.graph = edge_graph(found.decoder)
    return found


def ungrouped_mask(
    kept: Bool[Tensor, "sender receiver *place"], graph: EdgeGraph, own: EdgeGraph
) -> Bool[Tensor, "sender own_receiver *place"]:
    """A circuit in the graph of the ungrouped decoder: edges into shared keys and values become those of every head.

    Args:
        graph: the graph of the mask.
        own: the graph of the ungrouped decoder; its senders are the same.
    """
    shared = {}  # (slot, sender that reads it) -> receiver of the former graph
    for index, (name, senders) in enumerate(zip(graph.receivers, fed_by(graph), strict=True)):
        shared |= {(_slot(name), sender): index for sender in senders or (-1,)}
    readers = [senders[0] if senders else -1 for senders in fed_by(own)]
    index = [shared[_slot(name), reader] for name, reader in zip(own.receivers, readers, strict=True)]
    return kept[:, torch.tensor(index, device=kept.device)]


def _slot(receiver: str) -> str:
    """q, k or v of a head; empty for an MLP and for the logits."""
    return receiver[-1] if receiver.endswith((".q", ".k", ".v")) else ""
