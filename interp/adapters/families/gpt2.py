"""GPT-2: learned positions, LayerNorm, matrices stored as [n_in, n_out], queries, keys and values side by side."""

from typing import Any

from torch import Tensor

from interp.adapters.families.parts import ACTS, Family, Shapes, Take, activations
from interp.decoder import MLP, Attention, Decoder, Layer, Norm


def _limits(config: Any) -> list[str]:
    crossed = ["cross-attention"] if config.add_cross_attention else []
    return crossed + activations(config.activation_function)


def _d_mlp(config: Any) -> int:
    return config.n_inner if config.n_inner is not None else 4 * config.n_embd


def _shapes(config: Any) -> Shapes:
    d, inner = config.n_embd, _d_mlp(config)
    found = {"wte.weight": (config.vocab_size, d), "wpe.weight": (config.n_positions, d)}
    found |= {"ln_f.weight": (d,), "ln_f.bias": (d,)}
    block = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, inner), "mlp.c_proj": (inner, d)}
    for layer in range(config.n_layer):
        for name in ("ln_1", "ln_2"):
            found |= {f"h.{layer}.{name}.weight": (d,), f"h.{layer}.{name}.bias": (d,)}
        for name, shape in block.items():
            found |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[1:]}
    return found


def _norm(take: Take, key: str, eps: float) -> Norm:
    return Norm(take(f"{key}.weight"), take(f"{key}.bias"), eps, centred=True)


def _layer(config: Any, take: Take, index: int) -> Layer:
    at, heads, eps = f"h.{index}", config.n_head, config.layer_norm_epsilon
    weights = take(f"{at}.attn.c_attn.weight").split(config.n_embd, 1)  # three of [d_model head*d_head]
    biases = take(f"{at}.attn.c_attn.bias").split(config.n_embd)
    w_q, w_k, w_v = (one.unflatten(1, (heads, -1)).transpose(0, 1) for one in weights)  # [head d_model d_head]
    b_q, b_k, b_v = (one.unflatten(0, (heads, -1)) for one in biases)  # [head d_head]
    scale = (config.n_embd // heads) ** -0.5 if config.scale_attn_weights else 1.0
    attn = Attention(
        W_Q=w_q,
        W_K=w_k,
        W_V=w_v,
        W_O=take(f"{at}.attn.c_proj.weight").unflatten(0, (heads, -1)),  # [head d_head d_model]
        b_Q=b_q,
        b_K=b_k,
        b_V=b_v,
        b_O=take(f"{at}.attn.c_proj.bias"),
        scale=scale / (index + 1) if config.scale_attn_by_inverse_layer_idx else scale,
    )
    mlp = MLP(
        W_in=take(f"{at}.mlp.c_fc.weight"),
        W_out=take(f"{at}.mlp.c_proj.weight"),
        b_in=take(f"{at}.mlp.c_fc.bias"),
        b_out=take(f"{at}.mlp.c_proj.bias"),
        W_gate=None,
        b_gate=None,
        activation=ACTS[config.activation_function],
    )
    return Layer(_norm(take, f"{at}.ln_1", eps), attn, _norm(take, f"{at}.ln_2", eps), mlp)


def _build(config: Any, take: Take, unembedding: Tensor, name: str) -> Decoder:
    return Decoder(
        W_E=take("wte.weight"),
        W_pos=take("wpe.weight"),
        ln_embed=None,
        layers=tuple(_layer(config, take, index) for index in range(config.n_layer)),
        ln_final=_norm(take, "ln_f", config.layer_norm_epsilon),
        W_U=unembedding.mT,
        b_U=None,
        n_ctx=config.n_positions,
        name=name,
    )


GPT2 = Family("transformer.", ("lm_head.weight",), "wte.weight", _limits, _shapes, _build)
