"""A decoder run again with one constant change: in what a head or MLP writes, or in what one reader reads."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from circuits.engine.record import Record
from circuits.engine.runs import replaced_values
from circuits.graph import EdgeGraph
from circuits.problem import Ablation
from interp.decoder import Decoder, Layer, affine, attend, normed, project
from interp.errors import NotExpressible, UnknownName

NORMED = "single edges need a residual stream that is a plain sum; the blocks of this model renormalise it"


@dataclass(frozen=True)
class Change:
    """A constant added at every prompt and position, with everything that follows recomputed.

    Attributes:
        place: "attn" or "mlp" for what a block adds to the stream; "q", "k", "v", "mlp_in" or "logits" for what one
            reader reads.
        layer: the first block that differs from the base run; the number of blocks for the logits.
        head: the head, or key-value group, that reads; None for the other places.
    """

    place: str
    layer: int
    head: int | None
    delta: Float[Tensor, "batch pos d_model"]


def write_of(decoder: Decoder, base: Record, sender: str) -> Float[Tensor, "batch pos d_model"]:
    """What a sender writes into the residual stream of a recorded run."""
    if sender == "embed":
        return base.layers[0].pre
    if sender[0] == "M":
        return base.layers[int(sender[1:])].mlp_out
    layer, head = (int(part) for part in sender[1:].split(".H"))
    return base.layers[layer].z[:, :, head] @ decoder.layers[layer].attn.W_O[head]


def ablation_of(decoder: Decoder, base: Record, graph: EdgeGraph, target: str, ablation: Ablation, seed: int) -> Change:
    """Replace what a node writes, or what one edge carries, by zero, its mean, or its value in another prompt.

    Raises:
        UnknownName: for a node or edge that the model does not have.
        NotExpressible: for an edge of a model whose blocks renormalise the stream.
    """
    sender, arrow, receiver = target.partition("->")
    if arrow:
        graph.index(target)
        if any(layer.adds_to_normed for layer in decoder.layers):
            raise NotExpressible(NORMED)
    elif target not in graph.senders[1:]:
        raise UnknownName("head or MLP", target, graph.senders[1:])
    old = write_of(decoder, base, sender)
    lengths = torch.full((len(old),), old.shape[1], device=old.device)
    delta = replaced_values(old, ablation, lengths, seed) - old
    place, layer, head = _reader(receiver, len(decoder.layers)) if arrow else _writer(target)
    return Change(place, layer, head, delta)


def turned(change: Change, generator: Generator) -> Change:
    """A change of the same size at every prompt and position, in random directions: the old ones turned at random."""
    width = change.delta.shape[-1]
    drawn = torch.randn(width, width, generator=generator, dtype=torch.float64)
    turn, triangle = torch.linalg.qr(drawn)
    turn = turn * triangle.diagonal().sign()  # every rotation or reflection equally likely
    return Change(change.place, change.layer, change.head, change.delta @ turn.to(change.delta))


@torch.no_grad()
def changed_logits(decoder: Decoder, base: Record, change: Change) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of the recorded run with the change in place."""
    if change.place == "logits":
        return decoder.logits(base.final + change.delta)
    x = base.layers[change.layer].pre
    for number in range(change.layer, len(decoder.layers)):
        x = _block(decoder.layers[number], x, change if number == change.layer else None)
    return decoder.logits(x)


def _block(layer: Layer, x: Float[Tensor, "batch pos d_model"], change: Change | None) -> Tensor:
    """One block, as `interp.decoder.forward` computes it, with the change."""
    place = "" if change is None else change.place
    delta = None if change is None else change.delta
    y = normed(layer.ln1, x)
    parts = {
        "q": project(y, layer.attn.W_Q, layer.attn.b_Q),
        "k": project(y, layer.attn.W_K, layer.attn.b_K),
        "v": project(y, layer.attn.W_V, layer.attn.b_V),
    }
    if place in parts:
        parts[place] = _read_anew(layer, parts[place], x + delta, change)
    if layer.attn.rotary is not None:
        position = torch.arange(x.shape[1], device=x.device)[None]
        parts |= {name: layer.attn.rotary(parts[name], position) for name in ("q", "k")}
    z, _ = attend(layer.attn, parts["q"], parts["k"], parts["v"])
    out = affine(z.flatten(-2), layer.attn.W_O.flatten(0, 1), layer.attn.b_O)
    mid = (y if layer.adds_to_normed else x) + (out + delta if place == "attn" else out)
    if layer.mlp is None:
        return mid
    reads = x if layer.parallel else mid
    written = layer.mlp(normed(layer.ln2, reads + delta if place == "mlp_in" else reads))
    return mid + (written + delta if place == "mlp" else written)


def _read_anew(layer: Layer, old: Tensor, x: Tensor, change: Change) -> Float[Tensor, "batch pos head d_head"]:
    """Queries, keys or values of a layer, where one head projects another stream."""
    attn, letter = layer.attn, change.place.upper()
    weight, bias = getattr(attn, f"W_{letter}"), getattr(attn, f"b_{letter}")
    own = slice(change.head, change.head + 1)
    new = project(normed(layer.ln1, x), weight[own], None if bias is None else bias[own])
    return torch.cat((old[:, :, : change.head], new, old[:, :, change.head + 1 :]), 2)


def _writer(node: str) -> tuple[str, int, None]:
    """Place and layer of a head or MLP."""
    return ("mlp", int(node[1:]), None) if node[0] == "M" else ("attn", int(node[1:].split(".")[0]), None)


def _reader(receiver: str, n_layers: int) -> tuple[str, int, int | None]:
    """Place, layer and head of what an edge leads to."""
    if receiver == "logits":
        return "logits", n_layers, None
    if receiver[0] == "M":
        return "mlp_in", int(receiver[1:]), None
    layer, head, slot = receiver.split(".")
    return slot, int(layer[1:]), int(head.lstrip("HKV"))
