"""GPT-NeoX, as in Pythia: attention beside the MLP, part of each head rotated, queries, keys and values interleaved."""

from typing import Any

from torch import Tensor

from interp.adapters.families.parts import ACTS, Family, Shapes, Take, activations, angles, rotary
from interp.decoder import MLP, Attention, Decoder, Layer, Norm, Rotary


def _rotated(config: Any) -> int:
    """Coordinates of a head that are rotated."""
    width = config.hidden_size // config.num_attention_heads
    return int(width * config.rope_parameters.get("partial_rotary_factor", 1.0))


def _limits(config: Any) -> list[str]:
    odd = [] if _rotated(config) % 2 == 0 else [f"rotary positions on {_rotated(config)} coordinates, an odd number"]
    return [*angles(config), *odd, *activations(config.hidden_act)]


def _shapes(config: Any) -> Shapes:
    d, inner = config.hidden_size, config.intermediate_size
    found = {"embed_in.weight": (config.vocab_size, d)}
    found |= {"final_layer_norm.weight": (d,), "final_layer_norm.bias": (d,)}
    block = {"mlp.dense_h_to_4h": (inner, d), "mlp.dense_4h_to_h": (d, inner)}
    fused = {"attention.query_key_value": (3 * d, d), "attention.dense": (d, d)}
    for layer in range(config.num_hidden_layers):
        at = f"layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            found |= {f"{at}.{name}.weight": (d,), f"{at}.{name}.bias": (d,)}
        for name, shape in (block | fused).items():
            found[f"{at}.{name}.weight"] = shape
            if name in block or config.attention_bias:
                found[f"{at}.{name}.bias"] = shape[:1]
    return found


def _norm(config: Any, take: Take, key: str) -> Norm:
    return Norm(take(f"{key}.weight"), take(f"{key}.bias"), config.layer_norm_eps, centred=True)


def _attention(config: Any, take: Take, at: str, turn: Rotary | None) -> Attention:
    heads = config.num_attention_heads
    width = config.hidden_size // heads
    whole = take(f"{at}.query_key_value.weight").unflatten(0, (heads, 3 * width))  # [head 3*d_head d_model]
    biases: list[Tensor | None] = [None, None, None]
    if config.attention_bias:
        biases = list(take(f"{at}.query_key_value.bias").unflatten(0, (heads, 3 * width)).split(width, 1))
    w_q, w_k, w_v = (one.transpose(1, 2) for one in whole.split(width, 1))  # [head d_model d_head]
    return Attention(
        W_Q=w_q,
        W_K=w_k,
        W_V=w_v,
        W_O=take(f"{at}.dense.weight").mT.unflatten(0, (heads, width)),  # [head d_head d_model]
        b_Q=biases[0],
        b_K=biases[1],
        b_V=biases[2],
        b_O=take(f"{at}.dense.bias") if config.attention_bias else None,
        scale=width**-0.5,
        rotary=turn,
    )


def _layer(config: Any, take: Take, index: int, turn: Rotary | None) -> Layer:
    at = f"layers.{index}"
    mlp = MLP(
        W_in=take(f"{at}.mlp.dense_h_to_4h.weight").mT,
        W_out=take(f"{at}.mlp.dense_4h_to_h.weight").mT,
        b_in=take(f"{at}.mlp.dense_h_to_4h.bias"),
        b_out=take(f"{at}.mlp.dense_4h_to_h.bias"),
        W_gate=None,
        b_gate=None,
        activation=ACTS[config.hidden_act],
    )
    return Layer(
        ln1=_norm(config, take, f"{at}.input_layernorm"),
        attn=_attention(config, take, f"{at}.attention", turn),
        ln2=_norm(config, take, f"{at}.post_attention_layernorm"),
        mlp=mlp,
        parallel=config.use_parallel_residual,
    )


def _build(config: Any, take: Take, unembedding: Tensor, name: str) -> Decoder:
    pairs = _rotated(config) // 2
    turn = rotary(config, pairs) if pairs else None
    return Decoder(
        W_E=take("embed_in.weight"),
        W_pos=None,
        ln_embed=None,
        layers=tuple(_layer(config, take, index, turn) for index in range(config.num_hidden_layers)),
        ln_final=_norm(config, take, "final_layer_norm"),
        W_U=unembedding.mT,
        b_U=None,
        n_ctx=config.max_position_embeddings,
        name=name,
    )


GPT_NEOX = Family("gpt_neox.", ("embed_out.weight", "lm_head.weight"), "embed_in.weight", _limits, _shapes, _build)
