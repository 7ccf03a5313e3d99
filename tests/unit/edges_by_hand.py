"""An edge patch by its definition, in plain tensor formulas that share nothing with the product but the weights.

The stream that the receiver reads is built up again from the outputs of the base run, the sender's taken from the
source run; then the model runs on the base tokens, with that stream as the receiver's input and all else its own.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp.decoder import Attention, Decoder, Layer, Norm

ACTIVATIONS = {
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: x * (x > 0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
}


def normalised(norm: Norm | None, x: Tensor) -> Tensor:
    if norm is None:
        return x
    x = x - x.mean(-1, keepdim=True) if norm.centred else x
    x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + norm.eps)
    x = x if norm.w is None else x * norm.w
    return x if norm.b is None else x + norm.b


def turned(attn: Attention, x: Tensor) -> Tensor:
    """Rotary positions of one head's rows [batch pos d_head], pair by pair."""
    if attn.rotary is None:
        return x
    out, pairs = x.clone(), len(attn.rotary.speed)
    for i, speed in enumerate(attn.rotary.speed.tolist()):
        a, b = (2 * i, 2 * i + 1) if attn.rotary.interleaved else (i, i + pairs)
        angle = torch.arange(x.shape[1], dtype=x.dtype) * speed
        cos, sin = angle.cos() * attn.rotary.scale, angle.sin() * attn.rotary.scale
        out[..., a], out[..., b] = x[..., a] * cos - x[..., b] * sin, x[..., a] * sin + x[..., b] * cos
    return out


def attended(attn: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """z of one head, query by query."""
    q, k, rows = turned(attn, q), turned(attn, k), []
    for i in range(q.shape[1]):
        score = (k[:, : i + 1] @ q[:, i, :, None])[..., 0] * attn.scale  # [batch key]
        weight = torch.exp(score - score.max(1, keepdim=True).values)
        rows.append(((weight / weight.sum(1, keepdim=True))[..., None] * v[:, : i + 1]).sum(1))
    return torch.stack(rows, 1)


def head_output(layer: Layer, head: int, q_reads: Tensor, k_reads: Tensor, v_reads: Tensor) -> Tensor:
    """z of one head whose query, key and value read a stream each."""
    attn = layer.attn
    shared, found = head // (len(attn.W_Q) // len(attn.W_K)), []
    for x, W, b, i in (
        (q_reads, attn.W_Q, attn.b_Q, head),
        (k_reads, attn.W_K, attn.b_K, shared),
        (v_reads, attn.W_V, attn.b_V, shared),
    ):
        found.append(normalised(layer.ln1, x) @ W[i] + (0 if b is None else b[i]))
    return attended(attn, *found)


@dataclass
class Run:
    """What every sender wrote, by name, [batch pos d_model]; and the logits."""

    written: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None


def forward(decoder: Decoder, tokens: Tensor, inputs: dict[str, Tensor], query: int | None = None) -> Run:
    """A forward in which some receivers read another stream: all their rows, or one query alone does so."""
    x = decoder.W_E[tokens]
    x = x if decoder.W_pos is None else x + decoder.W_pos[: tokens.shape[1]]
    x, run = normalised(decoder.ln_embed, x), Run()
    run.written["embed"] = x
    for number, layer in enumerate(decoder.layers):
        attn, heads = layer.attn, len(layer.attn.W_Q)
        shared, group = ("H", 1) if heads == len(attn.W_K) else ("KV", heads // len(attn.W_K))
        mid = normalised(layer.ln1, x) if layer.adds_to_normed else x
        mid = mid if attn.b_O is None else mid + attn.b_O
        for head in range(heads):
            names = [f"L{number}.H{head}.q"] + [f"L{number}.{shared}{head // group}.{kind}" for kind in "kv"]
            z = head_output(layer, head, *(inputs.get(name, x) for name in names))
            if query is not None:
                own = head_output(layer, head, x, x, x)
                own[:, query] = z[:, query]
                z = own
            run.written[f"L{number}.H{head}"] = z @ attn.W_O[head]
            mid = mid + run.written[f"L{number}.H{head}"]
        if layer.mlp is not None:
            mlp, y = layer.mlp, normalised(layer.ln2, inputs.get(f"M{number}", x if layer.parallel else mid))
            inner = y @ mlp.W_in + (0 if mlp.b_in is None else mlp.b_in)
            act = ACTIVATIONS[mlp.activation]
            gate = None if mlp.W_gate is None else y @ mlp.W_gate + (0 if mlp.b_gate is None else mlp.b_gate)
            post = act(inner) if gate is None else act(gate) * inner
            run.written[f"M{number}"] = post @ mlp.W_out + (0 if mlp.b_out is None else mlp.b_out)
            mid = mid + run.written[f"M{number}"]
        x = mid
    y = normalised(decoder.ln_final, inputs.get("logits", x))
    run.logits = y @ decoder.W_U + (0 if decoder.b_U is None else decoder.b_U)
    return run


def stream_before(decoder: Decoder, written: dict[str, Tensor], receiver: str) -> Tensor:
    """The stream that a receiver reads, from what every sender before it wrote."""
    x = written["embed"]
    for number, layer in enumerate(decoder.layers):
        if receiver.startswith(f"L{number}.") or (receiver == f"M{number}" and layer.parallel):
            return x
        mid = normalised(layer.ln1, x) if layer.adds_to_normed else x
        mid = mid if layer.attn.b_O is None else mid + layer.attn.b_O
        for head in range(len(layer.attn.W_Q)):
            mid = mid + written[f"L{number}.H{head}"]
        if receiver == f"M{number}":
            return mid
        x = mid + written.get(f"M{number}", 0)
    return x


class ByHand:
    """Edges between two prompts."""

    def __init__(self, decoder: Decoder, base: Tensor, source: Tensor):
        self.decoder, self.tokens = decoder, base
        self.base, self.source = (forward(decoder, tokens, {}) for tokens in (base, source))

    def logits(self, sender: str, receiver: str, pos: int | slice, query: int | None = None) -> Tensor:
        """Logits with the sender's output at a position (or a slice of them) from the source run, for one receiver."""
        written = dict(self.base.written)
        written[sender] = written[sender].clone()
        written[sender][:, pos] = self.source.written[sender][:, pos]
        stream = stream_before(self.decoder, written, receiver)
        return forward(self.decoder, self.tokens, {receiver: stream}, query).logits
