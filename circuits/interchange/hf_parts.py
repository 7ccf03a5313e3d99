"""What the Hugging Face architectures share: which formulas a decoder has, and its weights as they store them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.decoder import Attention, Decoder, Norm, Rotary

Tensors = dict[str, Tensor]
ACTS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}


@dataclass(frozen=True)
class Architecture:
    """One Hugging Face architecture.

    Attributes:
        name: class that computes it, as `architectures` in config.json names it.
        limits: what of a decoder it has no formula for; empty where it computes the same.
        config: of config.json, without what all have.
        tensors: weights by key.
        notes: what is added that does nothing, to be said in the model card.
    """

    name: str
    model_type: str
    limits: Callable[[Decoder], list[str]]
    config: Callable[[Decoder], dict[str, Any]]
    tensors: Callable[[Decoder], Tensors]
    notes: Callable[[Decoder], list[str]]


def norms(decoder: Decoder) -> list[Norm | None]:
    """Every norm before attention, MLP and unembedding; None where there is none."""
    found = [layer.ln1 for layer in decoder.layers]
    found += [layer.ln2 for layer in decoder.layers if layer.mlp is not None]
    return [*found, decoder.ln_final]


def common_limits(decoder: Decoder, *, centred: bool) -> Iterator[str]:
    """What no architecture here has a formula for."""
    kind = "LayerNorm" if centred else "RMSNorm"
    if any(norm is None or norm.centred != centred for norm in norms(decoder)):
        yield f"{kind} before attention, MLP and unembedding is asked for"
    if len({norm.eps for norm in norms(decoder) if norm is not None}) > 1:
        yield "norms with different eps"
    if any(layer.adds_to_normed for layer in decoder.layers):
        yield "attention adds to the normed stream"
    if decoder.b_U is not None and bool(decoder.b_U.any()):
        yield "the unembedding has a bias"
    if any(abs(a.scale * math.sqrt(a.W_Q.shape[-1]) - 1) > 1e-6 for a in attentions(decoder)):
        yield "attention scores are scaled by something else than 1 / sqrt(d_head)"
    if len({tuple(a.W_Q.shape) + tuple(a.W_K.shape) for a in attentions(decoder)}) > 1:
        yield "layers with different numbers of heads"
    if len({layer.mlp.W_in.shape[1] for layer in decoder.layers if layer.mlp is not None}) > 1:
        yield "MLPs of different widths"
    if len({layer.mlp.activation for layer in decoder.layers if layer.mlp is not None}) > 1:
        yield "MLPs with different activation functions"


def plain_limits(decoder: Decoder) -> Iterator[str]:
    """Beyond these, what an architecture without gates and shared keys has no formula for."""
    heads, _, d_head = decoder.layers[0].attn.W_Q.shape
    if heads * d_head != decoder.d_model:
        yield f"{heads} heads of {d_head} in a stream of {decoder.d_model}"
    if any(a.group > 1 for a in attentions(decoder)):
        yield "heads share keys and values"
    if any(layer.mlp is not None and layer.mlp.W_gate is not None for layer in decoder.layers):
        yield "a gated MLP"


def attentions(decoder: Decoder) -> list[Attention]:
    """Attention of every layer."""
    return [layer.attn for layer in decoder.layers]


def activation(decoder: Decoder) -> str:
    """Hugging Face's name of the activation function."""
    found = [layer.mlp.activation for layer in decoder.layers if layer.mlp is not None]
    return ACTS[found[0]] if found else "gelu"


def mlp_width(decoder: Decoder) -> int:
    """Neurons of an MLP; 1 where no layer has any."""
    return max((layer.mlp.W_in.shape[1] for layer in decoder.layers if layer.mlp is not None), default=1)


def eps(decoder: Decoder) -> float:
    """Of the norms."""
    return next(norm.eps for norm in norms(decoder) if norm is not None)


def is_tied(decoder: Decoder) -> bool:
    """Whether the unembedding is the transposed embedding."""
    return decoder.W_U.shape == decoder.W_E.mT.shape and torch.equal(decoder.W_U, decoder.W_E.mT)


def unembedding(decoder: Decoder, key: str) -> Tensors:
    """[d_vocab, d_model], left out where it is tied."""
    return {} if is_tied(decoder) else {key: decoder.W_U.mT}


def norm(one: Norm | None, key: str, like: Tensor) -> Tensors:
    """Weight and bias of a LayerNorm, with the bias 0 where it has none; a LayerNorm that nothing reads is plain."""
    width = like.shape[-1]
    weight = one.w if one is not None and one.w is not None else like.new_ones(width)
    bias = one.b if one is not None and one.b is not None else like.new_zeros(width)
    return {f"{key}.weight": weight, f"{key}.bias": bias}


def rows(weight: Tensor) -> Tensor:
    """[head, d_model, d_head] as [head * d_head, d_model]."""
    return weight.transpose(1, 2).flatten(0, 1)


def bias_of(bias: Tensor | None, weight: Tensor, axis: int = -1) -> Tensor:
    """The bias as one row, 0 where there is none."""
    if bias is not None:
        return bias.flatten()
    return weight.new_zeros(weight.shape[0] * weight.shape[2] if weight.dim() == 3 else weight.shape[axis])


def halved(rotary: Rotary | None, weight: Tensor) -> Tensor:
    """Coordinates of queries or keys in the order of (i, i + n) pairs, whatever order they turn in now."""
    if rotary is None or not rotary.interleaved:
        return weight
    turned = 2 * len(rotary.speed)
    order = [*range(0, turned, 2), *range(1, turned, 2), *range(turned, weight.shape[-1])]
    return weight[..., order]


def rotary_base(rotary: Rotary) -> float | None:
    """The base whose powers are the speeds; None where they are no powers of one number."""
    pairs = len(rotary.speed)
    steps = torch.arange(pairs, dtype=torch.float64) / pairs
    speed = rotary.speed.double().cpu()
    base = 10000.0 if pairs == 1 else float(speed[1] ** -pairs)
    base = float(round(base)) if abs(base - round(base)) < 1e-3 * base else base
    fits = rotary.scale == 1.0 and bool(((base**-steps - speed).abs() <= 1e-6 * speed).all())
    return base if fits else None


def mlp_free(decoder: Decoder) -> list[str]:
    """What to say of layers without an MLP."""
    without = [str(index) for index, layer in enumerate(decoder.layers) if layer.mlp is None]
    return [f"layers {', '.join(without)} have no MLP; theirs is written with weights of 0"] if without else []
