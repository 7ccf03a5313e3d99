"""Runs with a circuit in place: readers get current writes over the kept edges and ablated ones over all others."""

from collections.abc import Callable
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
from circuits.masked_patterns import MOST_SENDERS, attention, codes, patterns
from circuits.metrics import Metric, metric_rows
from interp.decoder import Layer, normed
from interp.errors import NotExpressible, UsageError

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
        **options: Unpack[Options],
    ):
        """Record the clean and the ablated outputs.

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
        self.writes = self._outputs(runs.base)
        other = runs.other
        self.ablations = self._outputs(other) if other is not None else [replaced(runs, x) for x in self.writes]
        self.base_logits = decoder_logits(self.decoder, runs.base)[self.rows.prompt, self.rows.pos]
        self.clean = metric_value(self.decoder, runs.base, runs.base, runs.metric, runs.rows)
        self._sum_ablations()
        n_pos = runs.base.final.shape[1]
        key, query = torch.triu_indices(n_pos, n_pos, device=runs.base.final.device)
        self.key_pos, self.query_pos, self.n_pos = key, query, n_pos
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

    def at_once(self, kept: Tensor) -> int:
        """Circuits that fit the memory budget together."""
        return max(1, min(len(kept), 64, self.max_bytes // self.bytes_each(kept.dim() == 5)))

    def bytes_each(self, by_position: bool) -> int:
        """Memory of one circuit's run at its peak: what senders write, and the inputs of one layer's heads."""
        n_prompts, n_pos, d_model = self.writes[0].shape
        inputs = max(len(layer.attn.W_Q) + 2 * len(layer.attn.W_K) for layer in self.decoder.layers)
        per_row = 2 * len(self.graph.senders) + 3 * inputs * ((n_pos + 1) // 2 if by_position else 1)
        return n_prompts * n_pos * d_model * per_row * self.writes[0].element_size()

    def run(
        self, kept: Tensor, at: tuple[Int[Tensor, "row"], Int[Tensor, "row"]] | None = None
    ) -> Float[Tensor, "circuit row d_vocab"]:
        """Logits of all circuits at (prompt, position) rows; at the metric's rows if none are given."""
        at = (self.rows.prompt, self.rows.pos) if at is None else at
        stream = Stream(kept, len(self.graph.senders), self)
        stream.add((self.writes[0] - self.ablations[0])[None].expand(len(kept), -1, -1, -1))
        receiver, sender = 0, 1
        for number, layer in enumerate(self.decoder.layers):
            n_heads, n_kv = len(layer.attn.W_Q), len(layer.attn.W_K)
            outs = self._heads(number, layer, stream, receiver)  # [circuit head batch pos d_model]
            receiver += n_heads + 2 * n_kv
            before = stream.count
            for head in range(n_heads):
                stream.add(outs[:, head] - self.ablations[sender + head])
            sender += n_heads
            if layer.mlp is not None:
                reads = before if layer.parallel else stream.count
                x = stream.mixed([receiver], self.before_mlp[number], reads)[:, 0]
                stream.add(layer.mlp(normed(layer.ln2, x)) - self.ablations[sender])
                receiver, sender = receiver + 1, sender + 1
        return self.decoder.logits(stream.final(receiver, self.before_logits, at))

    def _heads(self, number: int, layer: Layer, stream: "Stream", first: int) -> Tensor:
        """What every head of a layer writes, [circuit head batch pos d_model]."""
        attn, before = layer.attn, self.before[number]
        n_heads, n_kv = len(attn.W_Q), len(attn.W_K)
        keys = first + n_heads
        slots = [range(first, keys), range(keys, keys + n_kv), range(keys + n_kv, keys + 2 * n_kv)]
        q = self._read(layer, stream.mixed(slots[0], before), attn.W_Q, attn.b_Q, None)
        if stream.patterned:
            delta = stream.senders(stream.count)[: 1 if number == 0 else None]  # all circuits share the embedding
            seen = [codes(stream.kept[:, : stream.count, list(some)]) for some in slots[1:]]
            z = attention(layer, self._turned(layer, q, None), patterns(delta, before), *seen)
        elif stream.by_position:
            k, v = (
                self._read(layer, stream.mixed_pairs(some, before), w, b, place)
                for some, w, b, place in (
                    (slots[1], attn.W_K, attn.b_K, self.key_pos),
                    (slots[2], attn.W_V, attn.b_V, None),
                )
            )
            q = self._turned(layer, q, None)
            z = self._attend_pairs(layer, q, k, v)
        else:
            k = self._read(layer, stream.mixed(slots[1], before), attn.W_K, attn.b_K, None)
            v = self._read(layer, stream.mixed(slots[2], before), attn.W_V, attn.b_V, None)
            q, k = self._turned(layer, q, None), self._turned(layer, k, None)
            k, v = (x.repeat_interleave(attn.group, 1) for x in (k, v))
            z = F.scaled_dot_product_attention(
                *(x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)), is_causal=True, scale=attn.scale
            )  # [circuit*batch head pos d_head]
            z = z.unflatten(0, (len(q), -1)).transpose(1, 2)
        return z @ attn.W_O[:, None]

    @staticmethod
    def _turned(layer: Layer, x: Tensor, place: Tensor | None) -> Tensor:
        """Rotary positions of [circuit head batch row d_head], where the model has them."""
        if layer.attn.rotary is None:
            return x
        place = torch.arange(x.shape[3], device=x.device) if place is None else place
        return layer.attn.rotary(x.movedim(1, 3), place[None, None]).movedim(3, 1)

    def _read(self, layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, place: Tensor | None) -> Tensor:
        """Projection of each head's own input, [circuit head batch row d_head]; turned where given places."""
        out = normed(layer.ln1, x) @ weight[:, None]
        out = out if bias is None else out + bias[:, None, None]
        return out if place is None else self._turned(layer, out, place)

    def _attend_pairs(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """z where every query has its own keys and values: k and v are [circuit head batch pair d_head]."""
        group, n_pos = layer.attn.group, self.n_pos
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        scores = (q[..., self.query_pos, :] * k).sum(-1) * layer.attn.scale  # [circuit head batch pair]
        square = scores.new_full((*scores.shape[:-1], n_pos, n_pos), -torch.inf)
        square[..., self.query_pos, self.key_pos] = scores
        weight = square.softmax(-1)[..., self.query_pos, self.key_pos]
        return q.new_zeros(*q.shape[:-1], v.shape[-1]).index_add(3, self.query_pos, weight[..., None] * v)

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
        self.whole = self.by_position and not kept.requires_grad and bool(((kept == 0) | (kept == 1)).all())
        shape = (len(kept), n_senders, *runs.writes[0].shape)
        self.buffer = None if kept.requires_grad else runs.writes[0].new_empty(shape)
        self.parts: list[Tensor] = []

    @property
    def patterned(self) -> bool:
        """Whether so few senders write before this place that readers see few different inputs."""
        return self.whole and self.count <= MOST_SENDERS

    def add(self, delta: Float[Tensor, "circuit batch pos d_model"]) -> None:
        """Book the next sender's difference."""
        if self.buffer is None:
            self.parts.append(delta)
        else:
            self.buffer[:, self.count] = delta
        self.count += 1

    def senders(self, count: int) -> Float[Tensor, "circuit sender batch pos d_model"]:
        """The first differences."""
        return torch.stack(self.parts[:count], 1) if self.buffer is None else self.buffer[:, :count]

    def mixed(self, receivers, before: Tensor, count: int | None = None) -> Tensor:
        """Input of each receiver, [circuit receiver batch pos d_model]."""
        count = self.count if count is None else count
        kept, some = self.kept[:, :count, list(receivers)], self.senders(count)
        if self.by_position:
            own = kept.diagonal(dim1=-2, dim2=-1)  # [circuit sender receiver pos]
            return torch.einsum("csrp,csbpd->crbpd", own, some) + before
        mix = kept.transpose(1, 2) @ some.flatten(2)  # [circuit receiver batch*pos*d_model]
        return mix.unflatten(2, before.shape) + before

    def mixed_pairs(self, receivers, before: Tensor) -> Tensor:
        """Input of each receiver as each query sees it, [circuit receiver batch pair d_model]."""
        key, query = self.runs.key_pos, self.runs.query_pos
        own = self.kept[:, : self.count, list(receivers)][..., key, query]  # [circuit sender receiver pair]
        some = self.senders(self.count)[..., key, :]  # [circuit sender batch pair d_model]
        return torch.einsum("csrt,csbtd->crbtd", own, some) + before[:, key]

    def final(self, receiver: int, before: Tensor, at: tuple[Tensor, Tensor]) -> Float[Tensor, "circuit row d_model"]:
        """The stream that the logits read, at some (prompt, position) rows."""
        prompt, pos = at
        some = self.senders(self.count)[:, :, prompt, pos]  # [circuit sender row d_model]
        own = self.kept[:, : self.count, receiver]
        own = own[..., pos, pos] if self.by_position else own[..., None].expand(-1, -1, len(pos))
        return torch.einsum("csr,csrd->crd", own, some) + before[prompt, pos]
