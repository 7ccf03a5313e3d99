"""Llama, Mistral and Qwen2: RMSNorm, rotary positions, grouped queries, gated MLP."""

from typing import Any

from torch import Tensor

from interp.adapters.families.parts import (
    ACTS,
    Family,
    Shapes,
    Take,
    activations,
    angles,
    context,
    heads_of,
    rotary,
    scalings,
)
from interp.decoder import MLP, Attention, Decoder, Layer, Norm, Rotary

OTHER_LAYERS = "attention layers of another kind"


def _width(config: Any) -> int:
    """d_head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _biased(config: Any) -> tuple[str, ...]:
    """Matrices that have a bias, which only Llama's configuration can choose."""
    if config.model_type == "qwen2":
        return ("q_proj", "k_proj", "v_proj")
    attention = ("q_proj", "k_proj", "v_proj", "o_proj") if getattr(config, "attention_bias", False) else ()
    return attention + (("gate_proj", "up_proj", "down_proj") if getattr(config, "mlp_bias", False) else ())


def _limits(config: Any) -> list[str]:
    found = [*angles(config), *scalings(config), *activations(config.hidden_act)]
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    found += [f"{OTHER_LAYERS} ({', '.join(sorted(kinds))})"] if kinds else []
    if (part := config.rope_parameters.get("partial_rotary_factor", 1.0)) != 1.0:
        found.append(f"rotary positions on {part} of each head")
    if _width(config) % 2:
        found.append(f"rotary positions on heads of {_width(config)} coordinates, an odd number")
    return found


def _shapes(config: Any) -> Shapes:
    d, inner, width = config.hidden_size, config.intermediate_size, _width(config)
    wide, narrow = config.num_attention_heads * width, config.num_key_value_heads * width
    attention = {"q_proj": (wide, d), "k_proj": (narrow, d), "v_proj": (narrow, d), "o_proj": (d, wide)}
    mlp = {"gate_proj": (inner, d), "up_proj": (inner, d), "down_proj": (d, inner)}
    found: Shapes = {"embed_tokens.weight": (config.vocab_size, d), "norm.weight": (d,)}
    for layer in range(config.num_hidden_layers):
        at = f"layers.{layer}"
        found |= {f"{at}.input_layernorm.weight": (d,), f"{at}.post_attention_layernorm.weight": (d,)}
        for part, matrices in (("self_attn", attention), ("mlp", mlp)):
            for name, shape in matrices.items():
                found[f"{at}.{part}.{name}.weight"] = shape
                if name in _biased(config):
                    found[f"{at}.{part}.{name}.bias"] = shape[:1]
    return found


def _norm(config: Any, take: Take, key: str) -> Norm:
    return Norm(take(f"{key}.weight"), None, config.rms_norm_eps, centred=False)


def _bias(config: Any, take: Take, part: str, name: str) -> Tensor | None:
    return take(f"{part}.{name}.bias") if name in _biased(config) else None


def _attention(config: Any, take: Take, at: str, turn: Rotary) -> Attention:
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    parts: dict[str, Tensor | None] = {}
    for letter, count in (("Q", heads), ("K", groups), ("V", groups)):
        name = f"{letter.lower()}_proj"
        bias = _bias(config, take, at, name)
        parts[f"W_{letter}"] = heads_of(take(f"{at}.{name}.weight"), count)
        parts[f"b_{letter}"] = None if bias is None else bias.unflatten(0, (count, -1))
    return Attention(
        **parts,
        W_O=take(f"{at}.o_proj.weight").mT.unflatten(0, (heads, -1)),  # [head d_head d_model]
        b_O=_bias(config, take, at, "o_proj"),
        scale=_width(config) ** -0.5,
        rotary=turn,
    )


def _layer(config: Any, take: Take, index: int, turn: Rotary) -> Layer:
    at = f"layers.{index}"
    mlp = MLP(
        W_in=take(f"{at}.mlp.up_proj.weight").mT,
        W_out=take(f"{at}.mlp.down_proj.weight").mT,
        b_in=_bias(config, take, f"{at}.mlp", "up_proj"),
        b_out=_bias(config, take, f"{at}.mlp", "down_proj"),
        W_gate=take(f"{at}.mlp.gate_proj.weight").mT,
        b_gate=_bias(config, take, f"{at}.mlp", "gate_proj"),
        activation=ACTS[config.hidden_act],
    )
    return Layer(
        ln1=_norm(config, take, f"{at}.input_layernorm"),
        attn=_attention(config, take, f"{at}.self_attn", turn),
        ln2=_norm(config, take, f"{at}.post_attention_layernorm"),
        mlp=mlp,
    )


def _build(config: Any, take: Take, unembedding: Tensor, name: str) -> Decoder:
    turn = rotary(config, _width(config) // 2)
    return Decoder(
        W_E=take("embed_tokens.weight"),
        W_pos=None,
        ln_embed=None,
        layers=tuple(_layer(config, take, index, turn) for index in range(config.num_hidden_layers)),
        ln_final=_norm(config, take, "norm"),
        W_U=unembedding.mT,
        b_U=None,
        n_ctx=context(config),
        name=name,
    )


LLAMA = Family("model.", ("lm_head.weight",), "embed_tokens.weight", _limits, _shapes, _build)
