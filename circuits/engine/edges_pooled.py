"""Single edges at all positions at once: a sender's whole output into one receiver's input at every position."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.engine.products import Products
from circuits.engine.record import LayerRecord, Record
from circuits.engine.rows import Rows, Span, narrow
from circuits.engine.sites import through_output
from circuits.engine.sweep import Branches, Joining, merged
from circuits.engine.wave import attention_change, mlp_delta, norm_delta, turned
from interp.decoder import Decoder, Layer


@dataclass(frozen=True)
class WantedPooled:
    """The edges of one chunk: result rows by name, and [sender, receiver] -> where a result goes or -1."""

    senders: dict[str, int]
    receivers: dict[str, int]
    slots: Int[Tensor, "sender receiver"]


class PooledWave:
    """Gives `sweep` the branches of every receiver, layer by layer; each branch changes every row of the span."""

    def __init__(
        self, decoder: Decoder, base: Record, source: Record, wanted: WantedPooled, span: Span, out: Rows, mul: Products
    ):
        self.decoder, self.base, self.source, self.wanted = decoder, base, source, wanted
        self.span, self.out, self.mul = span, out, mul
        self.senders: list[int] = []
        self.stream: Float[Tensor, "batch sender row d_model"] = base.final.new_zeros(
            len(base.final), 0, span.count, base.final.shape[-1]
        )
        if "embed" in wanted.senders:
            change = span.take(source.layers[0].pre) - span.take(base.layers[0].pre)
            self._append(wanted.senders["embed"], change)

    def joining(self, number: int, rows: Rows) -> Joining:
        """The branches of the receivers of one layer."""
        if number < 0:
            return Joining()
        layer, run, mul = self.decoder.layers[number], self.base.layers[number], self.mul
        spread = self._slots(number, layer, run, rows) if self.senders else None
        before, reading = self.stream, list(self.senders)
        self._attention(number, layer, run)
        post = None
        if layer.mlp is not None:
            reads, senders = (before, reading) if layer.parallel else (self.stream, list(self.senders))
            if f"M{number}" in self.wanted.receivers and senders:
                change = mlp_delta(layer, run, rows, narrow(reads, self.span, rows), mul)
                post = self._kept(change, senders, f"M{number}")
            if f"M{number}" in self.wanted.senders:
                change = self.span.take(self.source.layers[number].mlp_out) - self.span.take(run.mlp_out)
                self._append(self.wanted.senders[f"M{number}"], change)
        return Joining(spread=spread, spread_post=post)

    def logits(self) -> Branches | None:
        """The branches whose receiver are the logits, at the rows that the metric reads."""
        if "logits" not in self.wanted.receivers or not self.senders:
            return None
        return self._kept(narrow(self.stream, self.span, self.out), self.senders, "logits")

    def _append(self, sender: int, change: Float[Tensor, "batch 1 row d_model"]) -> None:
        self.stream = torch.cat((self.stream, change), 1)
        self.senders.append(sender)

    def _attention(self, number: int, layer: Layer, run: LayerRecord) -> None:
        """The stream after attention: renormalised where the block does so, with this layer's heads."""
        if layer.adds_to_normed and self.senders:
            self.stream = norm_delta(layer.ln1, run.pre, self.span, self.stream, self.mul)
        rows = slice(self.span.start, self.span.stop)
        change = (self.source.layers[number].z - run.z)[:, rows]  # [batch row head d_head]
        for head in range(len(layer.attn.W_Q)):
            if f"L{number}.H{head}" in self.wanted.senders:
                written = through_output(change[:, :, [head]], layer.attn.W_O[[head]], self.mul)
                self._append(self.wanted.senders[f"L{number}.H{head}"], written.transpose(1, 2))

    def _kept(self, delta: Tensor, senders: list[int], receiver: str) -> Branches | None:
        slot = self.wanted.slots[senders, self.wanted.receivers[receiver]]
        keep = (slot >= 0).nonzero()[:, 0]
        if not len(keep):
            return None
        return Branches(delta.index_select(1, keep), torch.full_like(keep, self.span.start), slot[keep])

    def _slots(self, number: int, layer: Layer, run: LayerRecord, rows: Rows) -> Branches | None:
        attn, span, mul = layer.attn, self.span, self.mul
        dy = norm_delta(layer.ln1, run.pre, span, self.stream, mul)
        at = {"q": rows.positions(len(dy), dy.device)[:, None]}
        at["k"] = span.positions(len(dy), dy.device)[:, None]
        shared = "KV" if attn.group > 1 else "H"
        found: list[Branches | None] = []
        for kind, weight in (("q", attn.W_Q), ("k", attn.W_K), ("v", attn.W_V)):
            names = [f"L{number}.{'H' if kind == 'q' else shared}{h}.{kind}" for h in range(len(weight))]
            if not any(name in self.wanted.receivers for name in names):
                continue
            change = mul.heads(narrow(dy, span, rows) if kind == "q" else dy, weight)
            change = change if kind == "v" else turned(attn.rotary, change, at[kind])
            dz = self._changed(attn, run, kind, change, rows)
            size = 1 if kind == "q" else attn.group
            for head, name in enumerate(names):
                if name in self.wanted.receivers:
                    group = slice(head * size, (head + 1) * size)
                    part = mul(dz[..., group, :].flatten(-2), attn.W_O[group].flatten(0, 1))
                    found.append(self._kept(part, self.senders, name))
        return merged(found)

    def _changed(
        self, attn, run: LayerRecord, kind: str, change: Tensor, rows: Rows
    ) -> Float[Tensor, "batch sender kept head d_head"]:
        """z' - z when one of queries, keys and values changes at every position."""
        batch, senders, d_head = len(change), change.shape[1], change.shape[-1]
        none_q = change.new_zeros(batch, senders, rows.count, len(attn.W_Q), d_head)
        none_k = change.new_zeros(batch, senders, self.span.count, len(attn.W_K), d_head)
        given = {"q": none_q, "k": none_k, "v": none_k} | {kind: change}
        return attention_change(attn, run, self.span, given["q"], given["k"], given["v"], rows, self.mul)
