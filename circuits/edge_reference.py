"""One edge by whole forwards: the receiver's changed input is written down by hand and put in where the model reads it.

The specification of `circuits.patch_edges`, as `circuits.patching_reference` is that of single patches. Nothing here
comes from the engine.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.patching_reference import decoder_logits_patched
from interp.decoder import Decoder, attend, normed, project

Place = int | slice
Sites = Mapping[tuple[str, int], Tensor]  # what each (site, layer) holds, [batch pos *component width]


@dataclass(frozen=True)
class Edit:
    """One activation rewritten: `change` gives what the site of the layer holds instead of what it is given."""

    site: str
    layer: int
    change: Callable[[Tensor], Tensor]


def plain_run(decoder: Decoder, tokens: Int[Tensor, "batch pos"]) -> Sites:
    """What every site holds in one plain forward."""
    found: dict[tuple[str, int], Tensor] = {}

    def keep(site: str, layer: int, activation: Tensor) -> Tensor:
        found[site, layer] = activation
        return activation

    decoder_logits_patched(decoder, tokens, keep)
    return found


@dataclass(frozen=True)
class EdgeReference:
    """Edges of a decoder between two plain runs.

    Attributes:
        base: sites of the run that is patched into; of `source`, those that senders are read from are needed.
    """

    decoder: Decoder
    base: Sites
    source: Sites

    def edit(self, sender: str, receiver: str, pos: Place, query: int | None = None) -> Edit:
        """What to rewrite in the base run so that one receiver alone sees the sender's output of the source run.

        Args:
            sender, receiver: names as in `circuits.graph.edge_graph`.
            pos: the sender's position; a slice for several at once.
            query: for a key or value, the one query that sees the change; None for all later ones.
        """
        n_layers = len(self.decoder.layers)
        if receiver == "logits":
            delta = only_at(self.carried(sender, n_layers, False), pos)
            return Edit("resid_post", n_layers - 1, lambda x: x + delta.to(x))
        layer = int(receiver[1:].partition(".")[0])
        block = self.decoder.layers[layer]
        if receiver[0] == "M":
            reads = self.base["resid_pre" if block.parallel else "resid_mid", layer]
            delta = only_at(self.carried(sender, layer, not block.parallel), pos)
            return replacing("mlp_post", layer, block.mlp.post(normed(block.ln2, reads + delta)), pos)
        kind, head = receiver[-1], int(receiver.split(".")[1].strip("HKV"))
        stream = self.base["resid_pre", layer] + only_at(self.carried(sender, layer, False), pos)
        weight, bias = getattr(block.attn, f"W_{kind.upper()}"), getattr(block.attn, f"b_{kind.upper()}")
        value = project(normed(block.ln1, stream), weight, bias)
        if kind == "q" or query is None:
            return replacing(kind, layer, value, pos, head)
        heads = slice(head * block.attn.group, (head + 1) * block.attn.group)
        return replacing("z", layer, self.one_query(layer, kind, head, value, pos), query, heads)

    def written(self, sender: str) -> tuple[int, bool, Float[Tensor, "batch pos d_model"]]:
        """First layer that reads the sender's difference, whether its MLP alone does so, and the difference."""
        site, layer, head = "resid_pre", 0, None
        if sender[0] == "M":
            site, layer = "mlp_out", int(sender[1:])
        elif sender != "embed":
            site, (layer, head) = "z", (int(part) for part in sender[1:].split(".H"))
        change = self.source[site, layer] - self.base[site, layer]
        if head is not None:
            return layer, True, change[:, :, head] @ self.decoder.layers[layer].attn.W_O[head]
        return layer + (site == "mlp_out"), False, change

    def carried(self, sender: str, to: int, before_mlp: bool) -> Float[Tensor, "batch pos d_model"]:
        """The sender's difference where layer `to` reads it, attention and MLP outputs on the way frozen."""
        layer, at_mid, delta = self.written(sender)
        for number in range(layer, to + before_mlp):
            block = self.decoder.layers[number]
            if block.adds_to_normed and not (at_mid and number == layer):
                stream = self.base["resid_pre", number]
                delta = normed(block.ln1, stream + delta) - normed(block.ln1, stream)
        return delta

    def one_query(
        self, layer: int, kind: str, head: int, value: Float[Tensor, "batch pos kv_head d_head"], pos: Place
    ) -> Float[Tensor, "batch pos head d_head"]:
        """z of a layer whose queries all see the changed key or value of one position."""
        attn, now = self.decoder.layers[layer].attn, {site: self.base[site, layer] for site in "qkv"}
        changed = now[kind].clone()
        changed[:, pos, head] = value[:, pos, head]
        now[kind] = changed
        if attn.rotary is not None:
            position = torch.arange(changed.shape[1], device=changed.device)[None]
            now |= {site: attn.rotary(now[site], position) for site in "qk"}
        return attend(attn, now["q"], now["k"], now["v"])[0]


def only_at(delta: Float[Tensor, "batch pos d_model"], pos: Place) -> Float[Tensor, "batch pos d_model"]:
    """The difference at some positions, 0 at all others."""
    kept = torch.zeros_like(delta)
    kept[:, pos] = delta[:, pos]
    return kept


def replacing(site: str, layer: int, value: Tensor, pos: Place, component: Place | None = None) -> Edit:
    """The edit that puts `value` in at some positions and, where named, components."""
    at = (slice(None), pos) if component is None else (slice(None), pos, component)

    def change(activation: Tensor) -> Tensor:
        changed = activation.clone()
        changed[at] = value[at].to(activation)
        return changed

    return Edit(site, layer, change)
