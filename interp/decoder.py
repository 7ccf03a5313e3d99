"""A decoder as plain weights and formulas, whatever model they came from: what the patching engine computes with."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp.model import MLP as ModelMLP
from interp.model import Attention as ModelAttention
from interp.model import Norm as ModelNorm
from interp.model import Transformer

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


class Weights:
    """Mixin of the frozen dataclasses below: the same formulas with every tensor in another dtype or place."""

    def to(self, *args, **kwargs):
        """Like `torch.Tensor.to`, for every tensor inside; integer tensors keep their dtype."""

        def moved(value):
            if isinstance(value, Tensor):
                return value.to(*args, **kwargs)
            if isinstance(value, Weights):
                return value.to(*args, **kwargs)
            if isinstance(value, tuple):
                return tuple(moved(item) for item in value)
            return value

        fields = {field.name: moved(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **fields)


@dataclass(frozen=True)
class Norm(Weights):
    """LayerNorm (`centred`) or RMSNorm over the last axis: x / sqrt(mean(x^2) + eps) * w + b."""

    w: Float[Tensor, "d_model"] | None
    b: Float[Tensor, "d_model"] | None
    eps: float
    centred: bool

    def __call__(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        if self.centred:
            return F.layer_norm(x, x.shape[-1:], self.w, self.b, self.eps)
        y = F.rms_norm(x, x.shape[-1:], self.w, self.eps)
        return y if self.b is None else y + self.b


@dataclass(frozen=True)
class Rotary(Weights):
    """Rotary positions on the first 2 * len(speed) coordinates of a head; linear in its argument.

    Coordinate pairs are (2i, 2i+1) where `interleaved`, else (i, i + len(speed)); the angle is position * speed[i].
    """

    speed: Float[Tensor, "pair"]
    interleaved: bool
    scale: float = 1.0

    def __call__(
        self, x: Float[Tensor, "*row head d_head"], position: Int[Tensor, "*#row"]
    ) -> Float[Tensor, "*row head d_head"]:
        pairs = len(self.speed)
        angle = (position[..., None].to(self.speed) * self.speed).unsqueeze(-2)  # [*row 1 pair]
        cos, sin = (angle.cos() * self.scale).to(x), (angle.sin() * self.scale).to(x)
        turned, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
        if self.interleaved:
            even, odd = turned[..., 0::2], turned[..., 1::2]
            turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
        else:
            low, high = turned.split(pairs, -1)
            turned = torch.cat((low * cos - high * sin, high * cos + low * sin), -1)
        return torch.cat((turned, rest), -1) if rest.shape[-1] else turned


@dataclass(frozen=True)
class Attention(Weights):
    """Causal attention; query head h reads key and value head h // (heads / kv_heads) (grouped-query attention)."""

    W_Q: Float[Tensor, "head d_model d_head"]
    W_K: Float[Tensor, "kv_head d_model d_head"]
    W_V: Float[Tensor, "kv_head d_model d_head"]
    W_O: Float[Tensor, "head d_head d_model"]
    b_Q: Float[Tensor, "head d_head"] | None
    b_K: Float[Tensor, "kv_head d_head"] | None
    b_V: Float[Tensor, "kv_head d_head"] | None
    b_O: Float[Tensor, "d_model"] | None
    scale: float
    rotary: Rotary | None = None

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.W_Q.shape[0] // self.W_K.shape[0]


@dataclass(frozen=True)
class MLP(Weights):
    """act(x W_in + b_in) W_out + b_out; with a gate (act(x W_gate + b_gate) * (x W_in + b_in)) W_out + b_out."""

    W_in: Float[Tensor, "d_model d_mlp"]
    W_out: Float[Tensor, "d_mlp d_model"]
    b_in: Float[Tensor, "d_mlp"] | None
    b_out: Float[Tensor, "d_model"] | None
    W_gate: Float[Tensor, "d_model d_mlp"] | None
    b_gate: Float[Tensor, "d_mlp"] | None
    activation: Activation

    def post(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_mlp"]:
        """Activations of the neurons for a normalised input (TransformerLens' hook_post)."""
        inner, act = affine(x, self.W_in, self.b_in), ACTIVATIONS[self.activation]
        return act(inner) if self.W_gate is None else act(affine(x, self.W_gate, self.b_gate)) * inner

    def __call__(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        return affine(self.post(x), self.W_out, self.b_out)


@dataclass(frozen=True)
class Layer(Weights):
    """One block.

    mid = base + attn(ln1(x)), where base is x, or ln1(x) if `adds_to_normed`; post = mid + mlp(ln2(mid)). In a
    `parallel` block post = x + attn(ln1(x)) + mlp(ln2(x)), and there is no mid.
    """

    ln1: Norm | None
    attn: Attention
    ln2: Norm | None
    mlp: MLP | None
    parallel: bool = False
    adds_to_normed: bool = False


@dataclass(frozen=True)
class Decoder(Weights):
    """Embedding, blocks, final norm, unembedding.

    `W_pos` is None for models without learned positions.
    """

    W_E: Float[Tensor, "d_vocab d_model"]
    W_pos: Float[Tensor, "n_ctx d_model"] | None
    ln_embed: Norm | None
    layers: tuple[Layer, ...]
    ln_final: Norm | None
    W_U: Float[Tensor, "d_model d_vocab"]
    b_U: Float[Tensor, "d_vocab"] | None
    n_ctx: int
    name: str

    @property
    def n_heads(self) -> int:
        """Query heads per layer."""
        return self.layers[0].attn.W_Q.shape[0]

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.W_E.shape[1]

    def embed(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream before the first block; position 0 is the first column."""
        x = F.embedding(tokens, self.W_E)  # [batch pos d_model]
        if self.W_pos is not None:
            x = x + self.W_pos[: tokens.shape[1]]
        return x if self.ln_embed is None else self.ln_embed(x)

    def logits(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_vocab"]:
        """Final norm and unembedding of residual rows."""
        return affine(normed(self.ln_final, x), self.W_U, self.b_U)


def normed(norm: Norm | None, x: Tensor) -> Tensor:
    """norm(x), or x itself where there is none."""
    return x if norm is None else norm(x)


def affine(x: Float[Tensor, "*row n_in"], weight: Float[Tensor, "n_in n_out"], bias: Tensor | None) -> Tensor:
    """x W + b."""
    return x @ weight if bias is None else x @ weight + bias


def project(
    x: Float[Tensor, "*row d_model"], weight: Float[Tensor, "head d_model d_head"], bias: Tensor | None
) -> Float[Tensor, "*row head d_head"]:
    """Queries, keys or values of every head by one matrix product."""
    heads, d_model, d_head = weight.shape
    y = (x @ weight.transpose(0, 1).reshape(d_model, heads * d_head)).unflatten(-1, (heads, d_head))
    return y if bias is None else y + bias


def attend(
    attn: Attention, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Float[Tensor, "batch pos head d_head"], Float[Tensor, "batch head q_pos k_pos"]]:
    """z and the attention weights of whole sequences, for q, k and v [batch pos head d_head] after rotary."""
    k, v = (x.repeat_interleave(attn.group, 2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * attn.scale  # [batch head q_pos k_pos]
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    pattern = scores.masked_fill(later, -torch.inf).softmax(-1)
    return torch.einsum("bhij,bjhd->bihd", pattern, v), pattern


def qkv(layer: Layer, y: Float[Tensor, "batch pos d_model"]) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [batch pos head d_head] of a normalised stream, after rotary positions."""
    attn = layer.attn
    q, k, v = (project(y, w, b) for w, b in ((attn.W_Q, attn.b_Q), (attn.W_K, attn.b_K), (attn.W_V, attn.b_V)))
    if attn.rotary is not None:
        position = torch.arange(y.shape[1], device=y.device)[None]
        q, k = attn.rotary(q, position), attn.rotary(k, position)
    return q, k, v


def forward(decoder: Decoder, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits by the formulas above, step by step: the reference of everything faster."""
    x = decoder.embed(tokens)
    for layer in decoder.layers:
        y = normed(layer.ln1, x)
        z, _ = attend(layer.attn, *qkv(layer, y))
        attn_out = affine(z.flatten(-2), layer.attn.W_O.flatten(0, 1), layer.attn.b_O)
        mid = (y if layer.adds_to_normed else x) + attn_out
        reads = x if layer.parallel else mid
        x = mid if layer.mlp is None else mid + layer.mlp(normed(layer.ln2, reads))
    return decoder.logits(x)


def decoder_of(model: Transformer) -> Decoder:
    """The decoder that a `Transformer` computes in eval mode; tensors are shared with the model, not copied."""
    cfg = model.cfg
    layers = tuple(
        Layer(
            ln1=_norm(block.ln1),
            attn=_attention(block.attn),
            ln2=None if block.mlp is None else _norm(block.ln2),
            mlp=None if block.mlp is None else _mlp(block.mlp, cfg.activation),
            adds_to_normed=block.attention_adds_to_normed,
        )
        for block in model.blocks
    )
    w_pos = None if model.pos_embed is None else model.pos_embed(cfg.n_ctx).detach()
    return Decoder(
        W_E=model.embed.W_E.detach(),
        W_pos=w_pos,
        ln_embed=_norm(model.ln_embed),
        layers=layers,
        ln_final=_norm(model.ln_final),
        W_U=(model.embed.W_E.mT if model.unembed.W_U is None else model.unembed.W_U).detach(),
        b_U=_plain(model.unembed.b_U),
        n_ctx=cfg.n_ctx,
        name="Transformer",
    )


def _plain(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach()


def _norm(norm: ModelNorm | None) -> Norm | None:
    return None if norm is None else Norm(norm.w.detach(), _plain(norm.b), norm.eps, norm.centred)


def _attention(attn: ModelAttention) -> Attention:
    rotary = None
    if attn.rotary_base is not None:
        d_head = attn.W_Q.shape[-1]
        dtype = torch.float64 if attn.W_Q.dtype == torch.float64 else torch.float32
        speed = attn.rotary_base ** -(torch.arange(0, d_head, 2, device=attn.W_Q.device, dtype=dtype) / d_head)
        rotary = Rotary(speed, interleaved=True)
    matrices = {name: getattr(attn, name).detach() for name in ("W_Q", "W_K", "W_V", "W_O")}
    biases = {name: _plain(getattr(attn, name)) for name in ("b_Q", "b_K", "b_V", "b_O")}
    return Attention(**matrices, **biases, scale=attn.scale, rotary=rotary)


def _mlp(mlp: ModelMLP, activation: str) -> MLP:
    names = ("W_in", "W_out", "b_in", "b_out", "W_gate", "b_gate")
    act: Activation = "silu" if activation == "swiglu" else activation
    return MLP(**{name: _plain(getattr(mlp, name)) for name in names}, activation=act)
