"""The whole transformer: pre-norm decoder blocks with canonical hook names, readable from top to bottom.

Shapes at the end of lines name the axes: batch pos head d_model d_head d_mlp d_vocab q_pos k_pos. Hook names are those
of TransformerLens. Attention and norms take the fused form until someone hooks what only the explicit form has
(`hook_attn_scores`, `hook_pattern`; `hook_scale`, `hook_normalized`); the two agree to rounding.
"""

import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from interp.config import ModelConfig
from interp.errors import ConfigError, UnknownName, UsageError
from interp.hooks import Hook, HookedRootModule, HookPoint
from interp.rng import generator


class Embed(nn.Module):
    """Token embedding: row `token` of W_E."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.W_E = nn.Parameter(torch.zeros(cfg.d_vocab, cfg.d_model))

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        try:
            return F.embedding(tokens, self.W_E)  # [batch pos d_model]
        except IndexError:  # raised on the CPU only; looking for bad tokens elsewhere would wait for the device
            low, high = int(tokens.min()), int(tokens.max())
            last = self.W_E.shape[0] - 1
            raise UsageError(f"tokens run from {low} to {high}, but this model knows 0 to {last}") from None


class PosEmbed(nn.Module):
    """Learned positions; with pos_dim they live in the first pos_dim coordinates and the others are 0."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.d_model = cfg.d_model
        self.W_pos = nn.Parameter(torch.zeros(cfg.n_ctx, cfg.pos_dim or cfg.d_model))

    def forward(self, n_pos: int) -> Float[Tensor, "pos d_model"]:
        rows = self.W_pos[:n_pos]  # [pos pos_dim]
        missing = self.d_model - rows.shape[-1]
        return F.pad(rows, (0, missing)) if missing else rows  # [pos d_model]


class Norm(nn.Module):
    """LayerNorm (x - mean) / sqrt(var + eps) * w + b, or RMSNorm x / sqrt(mean(x^2) + eps) * w + b.

    `hook_scale` is the divisor and `hook_normalized` the quotient, before w and b.
    """

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.centred, self.eps = cfg.norm == "layer", cfg.norm_eps
        self.w = nn.Parameter(torch.ones(cfg.d_model))
        self.b = nn.Parameter(torch.zeros(cfg.d_model)) if cfg.norm_bias else None
        self.hook_scale = HookPoint()  # [batch pos 1]
        self.hook_normalized = HookPoint()  # [batch pos d_model]

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        if self.hook_scale.hooked or self.hook_normalized.hooked:
            return self.explicit(x)
        if self.centred:
            return F.layer_norm(x, self.w.shape, self.w, self.b, self.eps)
        y = F.rms_norm(x, self.w.shape, self.w, self.eps)
        return y if self.b is None else y + self.b

    def explicit(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The same values step by step, through the hook points."""
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        scale = self.hook_scale((x.square().mean(-1, keepdim=True) + self.eps).sqrt())  # [batch pos 1]
        y = self.hook_normalized(x / scale) * self.w
        return y if self.b is None else y + self.b


class Attention(nn.Module):
    """Causal multi-head attention: z = softmax(q k^T / sqrt(d_head)) v, out = sum over heads of z W_O."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        heads, d_model, d_head = cfg.n_heads, cfg.d_model, cfg.head_width
        self.scale = 1 / math.sqrt(d_head)
        self.rotary_base = cfg.rotary_base if cfg.positions == "rotary" else None
        self.W_Q = nn.Parameter(torch.zeros(heads, d_model, d_head))
        self.W_K = nn.Parameter(torch.zeros(heads, d_model, d_head))
        self.W_V = nn.Parameter(torch.zeros(heads, d_model, d_head))
        self.W_O = nn.Parameter(torch.zeros(heads, d_head, d_model))
        self.b_Q = nn.Parameter(torch.zeros(heads, d_head)) if cfg.bias else None
        self.b_K = nn.Parameter(torch.zeros(heads, d_head)) if cfg.bias else None
        self.b_V = nn.Parameter(torch.zeros(heads, d_head)) if cfg.bias else None
        self.b_O = nn.Parameter(torch.zeros(d_model)) if cfg.bias else None
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()  # [batch pos head d_head]
        if self.rotary_base is not None:
            self.hook_rot_q, self.hook_rot_k = HookPoint(), HookPoint()  # [batch pos head d_head]
        self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint()  # [batch head q_pos k_pos]
        self.hook_z = HookPoint()  # [batch pos head d_head]

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        q, k, v = self.project(x)  # [batch pos head d_head] each
        q, k, v = self.hook_q(q), self.hook_k(k), self.hook_v(v)
        if self.rotary_base is not None:
            q, k = self.hook_rot_q(rotate(q, self.rotary_base)), self.hook_rot_k(rotate(k, self.rotary_base))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [batch head pos d_head]
        if self.hook_attn_scores.hooked or self.hook_pattern.hooked or in_functional_transform():
            z = self.explicit(q, k, v)
        else:
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        z = self.hook_z(z.transpose(1, 2))  # [batch pos head d_head]
        return affine(z.flatten(2), self.W_O.flatten(0, 1), self.b_O)  # [batch pos d_model]

    def project(self, x: Float[Tensor, "batch pos d_model"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every head by one matrix product."""
        heads, d_model, d_head = self.W_Q.shape
        weight = torch.cat((self.W_Q, self.W_K, self.W_V), -1)  # [head d_model 3*d_head]
        weight = weight.transpose(0, 1).reshape(d_model, -1)  # [d_model head*3*d_head]
        bias = None if self.b_Q is None else torch.cat((self.b_Q, self.b_K, self.b_V), -1).flatten()
        return affine(x, weight, bias).unflatten(-1, (heads, 3 * d_head)).split(d_head, -1)

    def explicit(self, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "batch head pos d_head"]:
        """The same attention step by step, through the hook points of scores and pattern."""
        n_pos = q.shape[-2]
        later = torch.ones(n_pos, n_pos, dtype=torch.bool, device=q.device).triu(1)  # [q_pos k_pos]
        scores = (q @ k.mT * self.scale).masked_fill(later, -torch.inf)  # [batch head q_pos k_pos]
        pattern = self.hook_pattern(self.hook_attn_scores(scores).softmax(-1))  # [batch head q_pos k_pos]
        return pattern @ v


class MLP(nn.Module):
    """act(x W_in) W_out; for swiglu (silu(x W_gate) * (x W_in)) W_out, with `hook_pre` on the gate."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        d_model, d_mlp, gated = cfg.d_model, cfg.mlp_width, cfg.activation == "swiglu"
        self.act = {"gelu": F.gelu, "relu": F.relu, "swiglu": F.silu}[cfg.activation]
        self.W_in = nn.Parameter(torch.zeros(d_model, d_mlp))
        self.W_gate = nn.Parameter(torch.zeros(d_model, d_mlp)) if gated else None
        self.W_out = nn.Parameter(torch.zeros(d_mlp, d_model))
        self.b_in = nn.Parameter(torch.zeros(d_mlp)) if cfg.bias else None
        self.b_gate = nn.Parameter(torch.zeros(d_mlp)) if cfg.bias and gated else None
        self.b_out = nn.Parameter(torch.zeros(d_model)) if cfg.bias else None
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()  # [batch pos d_mlp]
        if gated:
            self.hook_pre_linear = HookPoint()  # [batch pos d_mlp]

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        inner = affine(x, self.W_in, self.b_in)  # [batch pos d_mlp]
        if self.W_gate is None:
            post = self.act(self.hook_pre(inner))
        else:
            gate = self.hook_pre(affine(x, self.W_gate, self.b_gate))
            post = self.act(gate) * self.hook_pre_linear(inner)
        return affine(self.hook_post(post), self.W_out, self.b_out)  # [batch pos d_model]


class Block(nn.Module):
    """x += attn(ln1(x)), then x += mlp(ln2(x)); with residual='normed' the attention adds to ln1(x) instead of x."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        normed = cfg.norm != "none"
        self.attention_adds_to_normed = cfg.residual == "normed"
        self.hook_resid_pre = HookPoint()  # [batch pos d_model], as all of the block's own
        self.ln1 = Norm(cfg) if normed else None
        self.attn = Attention(cfg)
        self.hook_attn_out = HookPoint()
        if cfg.attn_only:
            self.mlp = None
        else:
            self.hook_resid_mid = HookPoint()
            self.ln2 = Norm(cfg) if normed else None
            self.mlp = MLP(cfg)
            self.hook_mlp_out = HookPoint()
        self.hook_resid_post = HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        x = self.hook_resid_pre(x)
        y = x if self.ln1 is None else self.ln1(x)
        x = (y if self.attention_adds_to_normed else x) + self.hook_attn_out(self.attn(y))
        if self.mlp is not None:
            x = self.hook_resid_mid(x)
            y = x if self.ln2 is None else self.ln2(x)
            x = x + self.hook_mlp_out(self.mlp(y))
        return self.hook_resid_post(x)


class Unembed(nn.Module):
    """Logits x W_U + b_U; a tied model has no W_U of its own and passes the transposed token embedding."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.W_U = None if cfg.tied else nn.Parameter(torch.zeros(cfg.d_model, cfg.d_vocab))
        self.b_U = nn.Parameter(torch.zeros(cfg.d_vocab)) if cfg.bias else None

    def forward(self, x: Float[Tensor, "batch pos d_model"], tied: Tensor) -> Float[Tensor, "batch pos d_vocab"]:
        return affine(x, tied if self.W_U is None else self.W_U, self.b_U)


class Transformer(HookedRootModule):
    """Decoder-only transformer of a `ModelConfig`.

    Args:
        cfg: shape; `d_vocab` and `n_ctx` must be filled in.
        seed: initial weights as a pure function of it and of each parameter's name and shape, whatever torch's global
            generator has done. None draws from torch's default generator.

    Raises:
        ConfigError: for sizes of 0 or a frozen pattern that matches no parameter.
    """

    def __init__(self, cfg: ModelConfig, seed: int | None = None):
        super().__init__()
        if not cfg.d_vocab or not cfg.n_ctx:
            raise ConfigError(f"model: d_vocab={cfg.d_vocab} and n_ctx={cfg.n_ctx} must be filled in from the task")
        self.cfg = cfg
        self.embed = Embed(cfg)
        self.hook_embed = HookPoint()  # [batch pos d_model]
        self.pos_embed = PosEmbed(cfg) if cfg.positions == "learned" else None
        if self.pos_embed is not None:
            self.hook_pos_embed = HookPoint()  # [batch pos d_model]
        self.ln_embed = Norm(cfg) if cfg.embed_norm else None
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.ln_final = Norm(cfg) if cfg.final_norm and cfg.norm != "none" else None
        self.unembed = Unembed(cfg)
        self.setup()
        initialise(self, cfg, seed)
        freeze(self, cfg.frozen)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits; position p predicts token p + 1.

        Raises:
            UsageError: for more positions than n_ctx, another number of axes, or (on the CPU) an unknown token.
        """
        x = self.embedded(tokens)  # [batch pos d_model]
        for block in self.blocks:
            x = block(x)
        if self.ln_final is not None:
            x = self.ln_final(x)
        return self.unembed(x, self.embed.W_E.mT)  # [batch pos d_vocab]

    def hooks(self, fwd_hooks: Sequence[Hook] = (), bwd_hooks: Sequence[Hook] = (), *options: Any, **named: Any) -> Any:
        """Context in which these hooks act, as in HookedRootModule; `run_with_hooks` and `run_with_cache` come here.

        Raises:
            UnknownName: for a hook name that this model does not have.
        """
        for name, _ in (*fwd_hooks, *bwd_hooks):
            if isinstance(name, str) and name not in self.hook_dict:
                raise UnknownName("hook", name, self.hook_dict)
        return super().hooks(list(fwd_hooks), list(bwd_hooks), *options, **named)

    def embedded(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """Tokens plus positions, normalised and dropped out as configured: the input of the first block."""
        if tokens.dim() != 2 or tokens.shape[1] > self.cfg.n_ctx:
            shape = tuple(tokens.shape)
            raise UsageError(f"tokens of shape {shape}: expected [batch, pos] with at most n_ctx={self.cfg.n_ctx} pos")
        x = self.hook_embed(self.embed(tokens))  # [batch pos d_model]
        if self.pos_embed is not None:
            positions = self.pos_embed(tokens.shape[1])  # [pos d_model]
            if self.hook_pos_embed.hooked:
                positions = self.hook_pos_embed(positions.expand_as(x))  # [batch pos d_model]
            x = x + positions
        if self.ln_embed is not None:
            x = self.ln_embed(x)
        return F.dropout(x, self.cfg.dropout, self.training) if self.cfg.dropout else x


def in_functional_transform() -> bool:
    """Whether torch.func (vmap, grad, jvp) is at work: the fused attention of the CPU has no rule for it."""
    return torch._C._are_functorch_transforms_active()


def affine(x: Float[Tensor, "*batch n_in"], weight: Tensor, bias: Tensor | None) -> Float[Tensor, "*batch n_out"]:
    """x W + b with W stored as [n_in n_out]."""
    return x @ weight if bias is None else F.linear(x, weight.mT, bias)


def rotate(x: Float[Tensor, "batch pos head d_head"], base: float) -> Float[Tensor, "batch pos head d_head"]:
    """Rotary positions: coordinates (2i, 2i+1) at position p turn by the angle p * base^(-2i/d_head)."""
    n_pos, d_head = x.shape[1], x.shape[-1]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    speed = base ** -(torch.arange(0, d_head, 2, device=x.device, dtype=dtype) / d_head)  # [d_head/2]
    angle = torch.arange(n_pos, device=x.device, dtype=dtype)[:, None, None] * speed  # [pos 1 d_head/2]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]  # [batch pos head d_head/2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


@torch.no_grad()
def initialise(model: Transformer, cfg: ModelConfig, seed: int | None) -> None:
    """Draw each matrix from its own stream; biases stay 0 and norm weights 1."""
    for name, parameter in model.named_parameters():
        if name.rsplit(".", 1)[1].startswith("W_"):
            own: Generator = torch.default_generator if seed is None else generator(seed, "weights", name)
            parameter.normal_(0.0, initial_std(name, parameter, cfg), generator=own)


def initial_std(name: str, parameter: Tensor, cfg: ModelConfig) -> float:
    """Standard deviation of a matrix at the start: 1/sqrt(inputs), or 1 for the rows of an embedding."""
    if name in ("embed.W_E", "pos_embed.W_pos"):
        return 1.0
    inputs = parameter.shape[:-1].numel() if name.endswith("W_O") else parameter.shape[-2]
    return 1 / math.sqrt(inputs)


def freeze(model: nn.Module, patterns: Iterable[str]) -> None:
    """Stop training every parameter whose name matches one of the fnmatch patterns.

    Raises:
        ConfigError: for a pattern that matches no parameter.
    """
    named = dict(model.named_parameters())
    for pattern in patterns:
        matched = [name for name in named if fnmatchcase(name, pattern)]
        if not matched:
            raise ConfigError(f"model.frozen: {pattern!r} matches no parameter; names are {', '.join(named)}")
        for name in matched:
            named[name].requires_grad_(False)
