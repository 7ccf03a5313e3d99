"""Runs with a circuit in place: readers get current writes over the kept edges and ablated ones over all others."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from circuits.engine.finish import decoder_logits, metric_value
from circuits.engine.plan import free_memory
from circuits.engine.record import Record
from circuits.engine.runs import Given, Options, as_decoder, replaced, runs_for
from circuits.graph import edge_graph
from circuits.masked_attention import attention, by_head, for_each_query_head
from circuits.metrics import Metric, metric_rows
from interp.decoder import Layer, normed
from interp.errors import NotExpressible, UsageError

CHUNK_BYTES = 48 << 20  # beyond it freed memory goes back to the system, and a circuit takes half as long again
NORMED = "a block renormalises the residual stream itself, so that what a reader gets is no sum over edges"


class MaskedRuns:
    """Runs of the clean prompts in which only the edges of a circuit carry what the circuit computes.

    The input of receiver r is sum over senders s of kept[s, r] out_s + (1 - kept[s, r]) ablated_s, normalised anew;
    out_s is what s writes in this very run, ablated_s a constant: its output in the corrupted run ("resample"), zero,
    or the mean of its clean output over prompts and positions. With every edge kept this is the clean run; with none
    kept and corrupted prompts it is the corrupted one. Masks may be fractions, and gradients flow through them.

    A circuit's mask is [sender, receiver], or by position [sender, receiver, pos, query]: then keys and values are read
    anew by every query, so that an edge into a key or value has its own entry for each (key, query) position, and
    all other edges stand on the diagonal.

    Attributes:
        graph: names of senders and receivers.
        prompts: the prompts, right-padded.
        clean, ablated: [prompt], the metric with all edges kept and with none.
    """

    def __init__(
        self,
        model: Any,
        *,
        clean: Int[Tensor, "batch pos"],
        metric: Metric,
        corrupted: Int[Tensor, "batch pos"] | None = None,
        max_bytes: int | None = None,
        weight: Float[Tensor, "batch"] | None = None,
        **options: Unpack[Options],
    ):
        """Record the clean and the ablated outputs.

        Args:
            weight: how often each prompt counts in `mean`; None for once.

        Raises:
            UsageError: naming the argument that is wrong.
            NotExpressible: for a model whose blocks renormalise the residual stream, or that is no Decoder.
        """
        chosen = Given(**({"ablation": "none" if corrupted is not None else "zero", "direction": "noise"} | options))
        if chosen.into_corrupted:
            raise UsageError("direction: a circuit is run on the clean prompts; leave it at 'noise'")
        runs = runs_for(model, as_decoder(model), clean, corrupted, metric, chosen)
        if any(layer.adds_to_normed for layer in runs.decoder.layers):
            raise NotExpressible(NORMED)
        self.decoder, self.metric, self.rows = runs.decoder, runs.metric, runs.rows
        self.prompts, self.graph, self.given = runs.prompts, edge_graph(runs.decoder), chosen
        self.max_bytes = free_memory(runs.base.final.device) // 4 if max_bytes is None else max_bytes
        self.weight = None if weight is None else (weight / weight.sum()).to(runs.base.final)
        self.writes = self._outputs(runs.base)
        other = runs.other
        self.ablations = self._outputs(other) if other is not None else [replaced(runs, x) for x in self.writes]
        self.base_logits = decoder_logits(self.decoder, runs.base)[self.rows.prompt, self.rows.pos]
        self.clean = metric_value(self.decoder, runs.base, runs.base, runs.metric, runs.rows)
        pairs = zip(self.writes, self.ablations, strict=True)
        self.moved = torch.tensor([bool((one != other).any()) for one, other in pairs])
        self._sum_ablations()
        self.n_pos = runs.base.final.shape[1]
        self.ablated = self.values(runs.base.final.new_zeros(1, *self.graph.exists.shape))[0]

    def values(
        self, kept: Tensor, metric: Metric | None = None, progress: Callable[[int, int], None] | None = None
    ) -> Float[Tensor, "circuit prompt"]:
        """The metric of each circuit's run.

        Args:
            kept: [circuit, sender, receiver] or [circuit, sender, receiver, pos, query]; 1 kept, 0 ablated.
            metric: another metric than the one given at the start.
        """
        rows = self.rows if metric is None else metric_rows(metric, self.prompts.lengths)
        metric, at = metric or self.metric, (rows.prompt, rows.pos)
        base = self.base_logits
        if rows is not self.rows:
            base = self.run(self.graph.exists[None].to(self.writes[0]), at)[0]
        found, size = [], self.at_once(kept)
        for start in range(0, len(kept), size):
            logits = self.run(kept[start : start + size].to(self.writes[0]), at)
            found += [rows.mean(metric.of_logits(one, rows, base)) for one in logits]
            if progress is not None:
                progress(min(start + size, len(kept)), len(kept))
        return torch.stack(found)

    def mean(self, values: Tensor, dim: int = -1) -> Tensor:
        """Mean over prompts, which stand along one axis."""
        return values.mean(dim) if self.weight is None else (values.movedim(dim, -1) @ self.weight.to(values))

    @property
    def resamples(self) -> bool:
        """Whether ablated senders write what they do in the corrupted run: then only paths from the embedding act."""
        return self.given.ablation == "none"

    def at_once(self, kept: Tensor) -> int:
        """Circuits that are run together: few enough for the memory budget, and to use the same memory again."""
        return max(1, min(len(kept), 64, min(self.max_bytes, CHUNK_BYTES) // self.bytes_each(kept.dim() == 5)))

    def bytes_each(self, by_position: bool) -> int:
        """Memory of one circuit's run at its peak: what senders write, and one layer's inputs or scores by sender."""
        n_prompts, n_pos, d_model = self.writes[0].shape
        heads = max(len(layer.attn.W_Q) + 2 * len(layer.attn.W_K) for layer in self.decoder.layers)
        n_senders = len(self.graph.senders)
        width = 2 * n_senders * d_model + 3 * heads * (n_pos * (n_senders + 1) if by_position else d_model)
        return n_prompts * n_pos * width * self.writes[0].element_size()

    def run(
        self, kept: Tensor, at: tuple[Int[Tensor, "row"], Int[Tensor, "row"]] | None = None
    ) -> Float[Tensor, "circuit row d_vocab"]:
        """Logits of all circuits at (prompt, position) rows; at the metric's rows if none are given."""
        at = (self.rows.prompt, self.rows.pos) if at is None else at
        stream = Stream(kept, len(self.graph.senders), self)
        stream.add(self.writes[0][None].expand(len(kept), -1, -1, -1), self.ablations[0])
        every = torch.arange(self.n_pos, device=at[1].device)
        receiver, sender, first = 0, 1, self._first_changed(kept)
        for number, layer in enumerate(self.decoder.layers):
            n_heads, n_kv = len(layer.attn.W_Q), len(layer.attn.W_K)
            if number < first:  # what is written here is what the clean run writes
                new = n_heads + (layer.mlp is not None)
                for index in range(sender, sender + new):
                    stream.add(self.writes[index][None].expand(len(kept), -1, -1, -1), self.ablations[index])
                receiver, sender = receiver + n_heads + 2 * n_kv + (layer.mlp is not None), sender + new
                continue
            place = at[1].unique() if number == len(self.decoder.layers) - 1 else every  # nothing else reads the last
            outs = self._heads(number, layer, stream, receiver, place)  # [circuit head batch place d_model]
            receiver += n_heads + 2 * n_kv
            before = stream.count
            for head in range(n_heads):
                stream.add(outs[:, head], self.ablations[sender + head], place)
            sender += n_heads
            if layer.mlp is not None:
                reads = before if layer.parallel else stream.count
                x = stream.mixed([receiver], self.before_mlp[number], reads, place)[:, 0]
                stream.add(layer.mlp(normed(layer.ln2, x)), self.ablations[sender], place)
                receiver, sender = receiver + 1, sender + 1
        return self.decoder.logits(stream.final(receiver, self.before_logits, at))

    def _first_changed(self, kept: Tensor) -> int:
        """The first layer that one of the circuits does not keep whole; 0 by position or where gradients are wanted."""
        if kept.requires_grad or kept.dim() == 5:
            return 0
        lacking = (kept != 1) & (self.graph.exists & self.moved[:, None]).to(kept.device)
        changed, receiver = lacking.any(0).any(0), 0
        for number, layer in enumerate(self.decoder.layers):
            size = len(layer.attn.W_Q) + 2 * len(layer.attn.W_K) + (layer.mlp is not None)
            if bool(changed[receiver : receiver + size].any()):
                return number
            receiver += size
        return len(self.decoder.layers)

    def _heads(self, number: int, layer: Layer, stream: "Stream", first: int, place: Int[Tensor, "place"]) -> Tensor:
        """What every head of a layer writes at some places, [circuit head batch place d_model]."""
        attn, before = layer.attn, self.before[number]
        n_heads, n_kv = len(attn.W_Q), len(attn.W_K)
        keys = first + n_heads
        slots = [range(first, keys), range(keys, keys + n_kv), range(keys + n_kv, keys + 2 * n_kv)]
        q = self._read(layer, stream.mixed(slots[0], before, place=place), attn.W_Q, attn.b_Q)
        q = self._turned(layer, q, place)
        if stream.by_position:
            parts, shares = stream.parts_for(before, slots[1:], place, shared=number == 0)
            z = attention(layer, q, place, parts, *shares)
        else:
            k = self._read(layer, stream.mixed(slots[1], before), attn.W_K, attn.b_K)
            v = self._read(layer, stream.mixed(slots[2], before), attn.W_V, attn.b_V)
            k = self._turned(layer, k, torch.arange(self.n_pos, device=place.device))
            k, v = (for_each_query_head(x, attn.group) for x in (k, v))
            whole = len(place) == self.n_pos
            earlier = None if whole else torch.arange(self.n_pos, device=place.device) <= place[:, None]
            z = F.scaled_dot_product_attention(
                *(x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)),
                attn_mask=earlier,
                is_causal=whole,
                scale=attn.scale,
            )  # [circuit*batch head place d_head]
            z = z.unflatten(0, (len(q), -1)).transpose(1, 2)
        return by_head(z, attn.W_O)

    @staticmethod
    def _turned(layer: Layer, x: Tensor, place: Int[Tensor, "row"]) -> Tensor:
        """Rotary positions of [circuit head batch row d_head], where the model has them."""
        if layer.attn.rotary is None:
            return x
        return layer.attn.rotary(x.movedim(1, 3), place[None, None]).movedim(3, 1)

    @staticmethod
    def _read(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Projection of each head's own input, [circuit head batch row d_head]."""
        out = by_head(normed(layer.ln1, x), weight)
        return out if bias is None else out + bias[:, None, None]

    def _outputs(self, run: Record) -> list[Float[Tensor, "batch pos d_model"]]:
        """What every sender writes in a recorded run."""
        found = [run.layers[0].pre]
        for layer, kept in zip(self.decoder.layers, run.layers, strict=True):
            found += [kept.z[:, :, head] @ w for head, w in enumerate(layer.attn.W_O)]
            found += [] if layer.mlp is None else [kept.mlp_out]
        return found

    def _sum_ablations(self) -> None:
        """The ablated stream in front of each layer, each MLP and the logits; biases b_O belong to no sender."""
        total, sender = self.ablations[0], 1
        self.before, self.before_mlp = [], []
        for layer in self.decoder.layers:
            self.before.append(total)
            after = total + sum(self.ablations[sender : sender + len(layer.attn.W_O)])
            after = after if layer.attn.b_O is None else after + layer.attn.b_O
            sender += len(layer.attn.W_O)
            self.before_mlp.append(total if layer.parallel else after)
            total = after
            if layer.mlp is not None:
                total, sender = after + self.ablations[sender], sender + 1
        self.before_logits = total


class Stream:
    """What senders write in this run minus their ablated outputs, [circuit sender batch pos d_model]."""

    def __init__(self, kept: Tensor, n_senders: int, runs: MaskedRuns):
        self.kept, self.runs, self.count = kept, runs, 0
        self.by_position = kept.dim() == 5
        shape = (len(kept), n_senders, *runs.writes[0].shape)
        self.buffer = None if kept.requires_grad else runs.writes[0].new_empty(shape)
        self.parts: list[Tensor] = []

    def add(
        self,
        out: Float[Tensor, "circuit batch place d_model"],
        ablated: Float[Tensor, "batch pos d_model"],
        place: Int[Tensor, "place"] | None = None,
    ) -> None:
        """Book what the next sender writes; where it was not run its difference stays 0, which nothing reads."""
        every = place is None or len(place) == ablated.shape[1]
        delta = out - (ablated if every else ablated[:, place])
        if not every:
            delta = delta.new_zeros(len(delta), *ablated.shape).index_copy(2, place, delta)
        if self.buffer is None:
            self.parts.append(delta)
        else:
            self.buffer[:, self.count] = delta
        self.count += 1

    def senders(self, count: int) -> Float[Tensor, "circuit sender batch pos d_model"]:
        """The first differences."""
        return torch.stack(self.parts[:count], 1) if self.buffer is None else self.buffer[:, :count]

    def mixed(self, receivers, before: Tensor, count: int | None = None, place: Tensor | None = None) -> Tensor:
        """Input of each receiver, [circuit receiver batch pos d_model], or at some places of it."""
        count = self.count if count is None else count
        kept, some = self.kept[:, :count, list(receivers)], self.senders(count)
        if place is not None and len(place) < before.shape[1]:
            some, before = some[..., place, :], before[:, place]
        if self.by_position:
            own = kept.diagonal(dim1=-2, dim2=-1)  # [circuit sender receiver pos]
            own = own if place is None else own[..., place]
            return torch.einsum("csrp,csbpd->crbpd", own, some) + before
        mix = kept.transpose(1, 2) @ some.flatten(2)  # [circuit receiver batch*place*d_model]
        return mix.unflatten(2, before.shape) + before

    def parts_for(
        self, before: Tensor, slots: Sequence[range], place: Tensor, shared: bool
    ) -> tuple[Float[Tensor, "one part batch pos d_model"], list[Float[Tensor, "circuit slot part pos query"]]]:
        """The ablated stream and the senders' differences, and how much of each the queries at some places read.

        Args:
            shared: all circuits have the same differences: those of the embedding.
        """
        delta = self.senders(self.count)[: 1 if shared else None]
        parts = torch.cat((before[None, None].expand(len(delta), 1, *before.shape), delta), 1)
        shares = []
        for some in slots:
            own = self.kept[:, : self.count, list(some)][..., place].transpose(1, 2)  # [circuit slot sender pos query]
            shares.append(torch.cat((torch.ones_like(own[:, :, :1]), own), 2))
        return parts, shares

    def final(self, receiver: int, before: Tensor, at: tuple[Tensor, Tensor]) -> Float[Tensor, "circuit row d_model"]:
        """The stream that the logits read, at some (prompt, position) rows."""
        prompt, pos = at
        some = self.senders(self.count)[:, :, prompt, pos]  # [circuit sender row d_model]
        own = self.kept[:, : self.count, receiver]
        own = own[..., pos, pos] if self.by_position else own[..., None].expand(-1, -1, len(pos))
        return torch.einsum("csr,csrd->crd", own, some) + before[prompt, pos]
