"""Logits of a HookedTransformer's state dict in float64, written from its own tensors and formulas alone.

This is an evaluation that shares nothing with `Decoder`: one sequence and one head at a time, in the order of
TransformerLens' components. A decoder made of the same tensors is checked against it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from interp.adapters.lens_config import LensConfig

Values = Callable[[str], Tensor | None]  # a tensor in float64 by its key, None where there is none
ACT: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.clamp(min=0),
    "silu": lambda x: x * torch.sigmoid(x),
    "swish": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_python": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_pytorch_tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def lens_logits(cfg: LensConfig, values: Values, tokens: Tensor) -> Tensor:
    """Logits [batch pos d_vocab_out] of tokens [batch pos]."""
    return torch.stack([_sequence(cfg, values, row) for row in tokens])


def _sequence(cfg: LensConfig, values: Values, tokens: Tensor) -> Tensor:
    stream = values("embed.W_E")[tokens]  # [pos d_model]
    if cfg.positional_embedding_type == "standard":
        stream = stream + values("pos_embed.W_pos")[: len(tokens)]
    for layer in range(cfg.n_layers):
        at = f"blocks.{layer}"
        attended = stream + _attention(cfg, values, layer, _norm(cfg, values, f"{at}.ln1", stream))
        if cfg.attn_only:
            stream = attended
            continue
        reads = _norm(cfg, values, f"{at}.ln2", stream if cfg.parallel_attn_mlp else attended)
        stream = attended + _mlp(cfg, values, f"{at}.mlp", reads)
    logits = _norm(cfg, values, "ln_final", stream) @ values("unembed.W_U")
    bias = values("unembed.b_U")
    return logits if bias is None else logits + bias


def _norm(cfg: LensConfig, values: Values, key: str, x: Tensor) -> Tensor:
    kind = cfg.norm_of(key)
    if kind is None:
        return x
    if kind[0]:
        x = x - x.sum(-1, keepdim=True) / x.shape[-1]
    x = x / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + cfg.eps)
    w, b = values(f"{key}.w"), values(f"{key}.b")
    x = x if w is None else x * w
    return x if b is None else x + b


def _attention(cfg: LensConfig, values: Values, layer: int, x: Tensor) -> Tensor:
    at = f"blocks.{layer}.attn"
    small = "_" if values(f"{at}._W_K") is not None else ""
    scale = cfg.scale / (layer + 1) if cfg.scale_by_layer else cfg.scale
    n = len(x)
    out = torch.zeros_like(x)
    for head in range(cfg.n_heads):
        of = head * cfg.n_key_value_heads // cfg.n_heads if small else head
        q = x @ values(f"{at}.W_Q")[head] + values(f"{at}.b_Q")[head]  # [pos d_head]
        k = x @ values(f"{at}.{small}W_K")[of] + values(f"{at}.{small}b_K")[of]
        v = x @ values(f"{at}.{small}W_V")[of] + values(f"{at}.{small}b_V")[of]
        if cfg.positional_embedding_type == "rotary":
            q, k = _turned(cfg, q), _turned(cfg, k)
        scores = (q @ k.T) * scale
        hidden = torch.arange(n)[:, None] < torch.arange(n)[None]
        weights = torch.exp(scores - scores.masked_fill(hidden, -torch.inf).amax(-1, keepdim=True)) * ~hidden
        out = out + (weights / weights.sum(-1, keepdim=True)) @ v @ values(f"{at}.W_O")[head]
    return out + values(f"{at}.b_O")


def _turned(cfg: LensConfig, x: Tensor) -> Tensor:
    """Coordinate pairs as complex numbers, multiplied by exp(i angle)."""
    pairs = cfg.rotary_dim // 2
    first, second = (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
    if not cfg.rotary_adjacent_pairs:
        first, second = slice(0, pairs), slice(pairs, 2 * pairs)
    speed = torch.tensor([cfg.rotary_base ** (-2 * pair / cfg.rotary_dim) for pair in range(pairs)], dtype=x.dtype)
    angle = torch.arange(len(x), dtype=x.dtype)[:, None] * speed
    turned = torch.complex(x[:, first], x[:, second]) * torch.polar(torch.ones_like(angle), angle)
    y = x.clone()
    y[:, first], y[:, second] = turned.real, turned.imag
    return y


def _mlp(cfg: LensConfig, values: Values, at: str, x: Tensor) -> Tensor:
    act, b_in = ACT[cfg.act_fn], values(f"{at}.b_in")
    if cfg.gated_mlp:
        inner = act(x @ values(f"{at}.W_gate")) * (x @ values(f"{at}.W_in"))
        inner = inner if b_in is None else inner + b_in  # TransformerLens adds it after the product
    else:
        inner = act(x @ values(f"{at}.W_in") + b_in)
    out, b_out = inner @ values(f"{at}.W_out"), values(f"{at}.b_out")
    return out if b_out is None else out + b_out
