"""Single edges: what one sender writes reaches one receiver only, and everything after that receiver is recomputed.

The way from sender to receiver is the residual stream with attention and MLP outputs frozen. Where a block renormalises
the stream itself, the norms on the way are recomputed; in an ordinary block nothing on the way changes the difference.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.engine.one_column import column_update, own_row
from circuits.engine.products import Products
from circuits.engine.record import LayerRecord, Record
from circuits.engine.rows import OneRow, Rows, Span
from circuits.engine.sites import through_output
from circuits.engine.sweep import Branches, Joining, merged
from circuits.engine.wave import mlp_delta, norm_delta, turned
from interp.decoder import Decoder, Layer
from kernels.one_column import State


@dataclass(frozen=True)
class Stream:
    """What the wanted senders before a place in the model wrote at one row each: [batch branch d_model].

    Branches are (sender, position) pairs, senders in order of computation; `sender` is each branch's index.
    """

    delta: Float[Tensor, "batch branch d_model"]
    p: Int[Tensor, "branch"]
    sender: Int[Tensor, "branch"]

    def __len__(self) -> int:
        return len(self.p)

    def where(self, keep: Tensor) -> "Stream":
        """Some of the branches."""
        some = keep.nonzero()[:, 0]
        return Stream(self.delta.index_select(1, some), self.p[some], self.sender[some])


@dataclass(frozen=True)
class Wanted:
    """The edges of one chunk.

    Attributes:
        senders: index of each sender's result row, by name.
        slots: [sender, receiver, pos, query] -> where the result goes, -1 for an edge that is not asked for. The last
            axis has one entry where key and value edges act on all queries at once, else one per query; the other
            receivers then stand on the diagonal.
        receivers: index of each receiver, by name.
        positions: where senders are patched.
        read: positions that the metric reads in some prompt.
    """

    senders: dict[str, int]
    receivers: dict[str, int]
    slots: Int[Tensor, "sender receiver place query"]
    positions: Int[Tensor, "pos"]
    read: Bool[Tensor, "row"]

    @property
    def by_query(self) -> bool:
        """Whether key and value edges are resolved by query."""
        return self.slots.shape[-1] > 1


class EdgeWave:
    """Gives `sweep` the branches of every receiver, layer by layer, and keeps what the senders wrote on the way."""

    def __init__(
        self,
        decoder: Decoder,
        base: Record,
        source: Record,
        wanted: Wanted,
        queries: Callable[[int, Rows], State],
        mul: Products,
    ):
        self.decoder, self.base, self.source, self.wanted = decoder, base, source, wanted
        self.queries, self.mul = queries, mul
        self.stream = self._from_embedding()

    def joining(self, number: int, rows: Rows) -> Joining:
        """The branches of the receivers of one layer."""
        if number < 0:
            return Joining()
        layer, run = self.decoder.layers[number], self.base.layers[number]
        before = self.stream
        queries, spread = self._slots(number, layer, run, before, rows) if len(before) else (None, None)
        between = self._to_mid(layer, run, before, number)
        reads = before if layer.parallel else between
        after = self._mlp(number, layer, run, reads) if layer.mlp is not None and len(reads) else None
        self.stream = self._with_mlp(between, number) if layer.mlp is not None else between
        if layer.parallel:
            return Joining(spread=spread, post=merged([after, queries]))
        return Joining(mid=queries, spread=spread, post=after)

    def logits(self) -> tuple[Branches, OneRow] | None:
        """The branches whose receiver are the logits, after the last layer."""
        if "logits" not in self.wanted.receivers or not len(self.stream):
            return None
        stream = self.stream.where(self.wanted.read[self.stream.p])
        branches = self._kept(stream.delta, stream, "logits")
        return None if branches is None else (branches, OneRow(branches.p))

    def _from_embedding(self) -> Stream:
        positions = self.wanted.positions
        if "embed" not in self.wanted.senders:
            empty = positions[:0]
            return Stream(self.base.final[:, :0], empty, empty)
        delta = self.source.layers[0].pre[:, positions] - self.base.layers[0].pre[:, positions]
        return Stream(delta, positions, torch.full_like(positions, self.wanted.senders["embed"]))

    def _to_mid(self, layer: Layer, run: LayerRecord, before: Stream, number: int) -> Stream:
        """The stream after attention: what was there, renormalised where the block does so, and this layer's heads."""
        delta, positions, other = before.delta, self.wanted.positions, self.source.layers[number]
        if layer.adds_to_normed and len(before):
            here = OneRow(before.p)
            delta = norm_delta(layer.ln1, run.pre, here, delta, self.mul)
        heads = [h for h in range(len(layer.attn.W_Q)) if f"L{number}.H{h}" in self.wanted.senders]
        if not heads:
            return Stream(delta, before.p, before.sender)
        change = (other.z[:, positions] - run.z[:, positions])[:, :, heads]
        written = through_output(change, layer.attn.W_O[heads], self.mul).transpose(1, 2)  # [batch head pos d_model]
        index = torch.tensor([self.wanted.senders[f"L{number}.H{h}"] for h in heads], device=positions.device)
        return Stream(
            torch.cat((delta, written.flatten(1, 2)), 1),
            torch.cat((before.p, positions.repeat(len(heads)))),
            torch.cat((before.sender, index.repeat_interleave(len(positions)))),
        )

    def _with_mlp(self, between: Stream, number: int) -> Stream:
        name, positions = f"M{number}", self.wanted.positions
        if name not in self.wanted.senders:
            return between
        written = self.source.layers[number].mlp_out[:, positions] - self.base.layers[number].mlp_out[:, positions]
        sender = torch.full_like(positions, self.wanted.senders[name])
        return Stream(
            torch.cat((between.delta, written), 1),
            torch.cat((between.p, positions)),
            torch.cat((between.sender, sender)),
        )

    def _kept(self, delta: Tensor, stream: Stream, receiver: str) -> Branches | None:
        """Branches of one receiver whose edge is asked for; delta is [batch branch ...]."""
        by_sender = self.wanted.slots[stream.sender, self.wanted.receivers[receiver], stream.p]  # [branch query]
        slot = by_sender.gather(1, stream.p[:, None])[:, 0] if self.wanted.by_query else by_sender[:, 0]
        keep = (slot >= 0).nonzero()[:, 0]
        if not len(keep):
            return None
        delta = delta if len(keep) == len(slot) else delta.index_select(1, keep)
        return Branches(delta, stream.p[keep], slot[keep])

    def _mlp(self, number: int, layer: Layer, run: LayerRecord, stream: Stream) -> Branches | None:
        name = f"M{number}"
        if name not in self.wanted.receivers:
            return None
        if number == len(self.decoder.layers) - 1:
            stream = stream.where(self.wanted.read[stream.p])
        return self._kept(mlp_delta(layer, run, OneRow(stream.p), stream.delta, self.mul), stream, name)

    def _slots(
        self, number: int, layer: Layer, run: LayerRecord, stream: Stream, rows: Rows
    ) -> tuple[Branches | None, Branches | None]:
        """Query branches (one row) and key and value branches (all later rows) of one layer."""
        attn, here = layer.attn, OneRow(stream.p)
        dy = norm_delta(layer.ln1, run.pre, here, stream.delta, self.mul)
        position = here.positions(len(dy))
        shared = "KV" if attn.group > 1 else "H"
        names = {"q": [f"L{number}.H{h}.q" for h in range(len(attn.W_Q))]}
        names |= {kind: [f"L{number}.{shared}{h}.{kind}" for h in range(len(attn.W_K))] for kind in "kv"}
        asked = {kind: [n for n in listed if n in self.wanted.receivers] for kind, listed in names.items()}
        queries = self._query_slots(number, layer, run, stream, dy, names["q"]) if asked["q"] else None
        spread: list[Branches | None] = []
        if self.wanted.by_query:  # every row that the layer may change becomes a branch of its own
            rows = Span(int(stream.p.min()), len(self.wanted.read))
        for kind, weight in (("k", attn.W_K), ("v", attn.W_V)):
            if not asked[kind]:
                continue
            change = self.mul.heads(dy, weight)
            change = turned(attn.rotary, change, position) if kind == "k" else change
            pair = (change, None) if kind == "k" else (None, change)
            dz = column_update(attn, self.queries(number, rows), run, rows, stream.p, *pair, self.mul)
            for head, name in enumerate(names[kind]):
                if name in self.wanted.receivers:
                    group = slice(head * attn.group, (head + 1) * attn.group)
                    part = self.mul(dz[..., group, :].flatten(-2), attn.W_O[group].flatten(0, 1))
                    if self.wanted.by_query:
                        queries = merged([queries, self._one_query_each(number, part, stream, name, rows)])
                    else:
                        spread.append(self._kept(part, stream, name))
        return queries, merged(spread)

    def _one_query_each(
        self, number: int, part: Float[Tensor, "batch branch row d_model"], stream: Stream, name: str, rows: Span
    ) -> Branches | None:
        """One branch per (sender, key position, query position)."""
        query = torch.arange(rows.start, rows.stop, device=stream.p.device)
        slot = self.wanted.slots[stream.sender, self.wanted.receivers[name], stream.p][:, rows.start : rows.stop]
        keep = (slot >= 0) & (query >= stream.p[:, None])  # [branch row]
        if number == len(self.decoder.layers) - 1:
            keep = keep & self.wanted.read[query]
        branch, row = keep.nonzero(as_tuple=True)
        return Branches(part[:, branch, row], query[row], slot[branch, row]) if len(branch) else None

    def _query_slots(
        self, number: int, layer: Layer, run: LayerRecord, stream: Stream, dy: Tensor, names: list[str]
    ) -> Branches | None:
        if number == len(self.decoder.layers) - 1:
            needed = self.wanted.read[stream.p]
            stream, dy = stream.where(needed), dy.index_select(1, needed.nonzero()[:, 0])
        if not len(stream):
            return None
        attn = layer.attn
        dq = turned(attn.rotary, self.mul.heads(dy, attn.W_Q), OneRow(stream.p).positions(len(dy)))
        dz = own_row(attn, run, stream.p, dq, None, None, self.mul)  # [batch branch head d_head]
        written = through_output(dz, attn.W_O, self.mul)  # [batch branch head d_model]
        wanted = [(h, name) for h, name in enumerate(names) if name in self.wanted.receivers]
        return merged([self._kept(written[:, :, h], stream, name) for h, name in wanted])
