"""The decoder of mBART by itself, as MBartForCausalLM: learned positions, LayerNorm, one right after the embedding."""

from typing import Any

from torch import Tensor

from interp.adapters.families.parts import ACTS, Family, Shapes, Take, activations, heads_of
from interp.decoder import MLP, Attention, Decoder, Layer, Norm

OFFSET = 2  # rows of the position table before that of position 0
EPS = 1e-5  # of every norm; the configuration has none


def _limits(config: Any) -> list[str]:
    if config.d_model % config.decoder_attention_heads:
        raise ValueError(f"{config.decoder_attention_heads} heads do not divide the width {config.d_model}")
    found = activations(config.activation_function)
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        found.append("an encoder, to whose output the decoder attends")
    if config.scale_embedding and config.d_model != 1:
        found.append("embedding scaling by the root of the width")
    return found


def _shapes(config: Any) -> Shapes:
    d, inner = config.d_model, config.decoder_ffn_dim
    found: Shapes = {"embed_tokens.weight": (config.vocab_size, d)}
    found["embed_positions.weight"] = (config.max_position_embeddings + OFFSET, d)
    norms = ["layernorm_embedding", "layer_norm"]
    matrices: Shapes = {}
    for layer in range(config.decoder_layers):
        at = f"layers.{layer}"
        norms += [f"{at}.{name}" for name in ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")]
        for part in ("self_attn", "encoder_attn"):  # the second is never run without an encoder
            matrices |= {f"{at}.{part}.{name}": (d, d) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        matrices |= {f"{at}.fc1": (inner, d), f"{at}.fc2": (d, inner)}
    for name in norms:
        found |= {f"{name}.weight": (d,), f"{name}.bias": (d,)}
    for name, shape in matrices.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found


def _norm(take: Take, key: str) -> Norm:
    return Norm(take(f"{key}.weight"), take(f"{key}.bias"), EPS, centred=True)


def _layer(config: Any, take: Take, index: int) -> Layer:
    at, heads = f"layers.{index}", config.decoder_attention_heads
    width = config.d_model // heads
    parts: dict[str, Tensor] = {}
    for letter in "QKV":
        key = f"{at}.self_attn.{letter.lower()}_proj"
        parts[f"W_{letter}"] = heads_of(take(f"{key}.weight"), heads)
        parts[f"b_{letter}"] = take(f"{key}.bias").unflatten(0, (heads, -1))  # [head d_head]
    attn = Attention(
        **parts,
        W_O=take(f"{at}.self_attn.out_proj.weight").mT.unflatten(0, (heads, width)),  # [head d_head d_model]
        b_O=take(f"{at}.self_attn.out_proj.bias"),
        scale=width**-0.5,
    )
    mlp = MLP(
        W_in=take(f"{at}.fc1.weight").mT,
        W_out=take(f"{at}.fc2.weight").mT,
        b_in=take(f"{at}.fc1.bias"),
        b_out=take(f"{at}.fc2.bias"),
        W_gate=None,
        b_gate=None,
        activation=ACTS[config.activation_function],
    )
    return Layer(_norm(take, f"{at}.self_attn_layer_norm"), attn, _norm(take, f"{at}.final_layer_norm"), mlp)


def _build(config: Any, take: Take, unembedding: Tensor, name: str) -> Decoder:
    return Decoder(
        W_E=take("embed_tokens.weight"),
        W_pos=take("embed_positions.weight")[OFFSET:],
        ln_embed=_norm(take, "layernorm_embedding"),
        layers=tuple(_layer(config, take, index) for index in range(config.decoder_layers)),
        ln_final=_norm(take, "layer_norm"),
        W_U=unembedding.mT,
        b_U=None,
        n_ctx=config.max_position_embeddings,
        name=name,
    )


MBART = Family("model.decoder.", ("lm_head.weight",), "embed_tokens.weight", _limits, _shapes, _build)
