"""A decoder as the decoder of mBART: learned positions, LayerNorm, and a LayerNorm right after the embedding."""

from typing import Any

from circuits.interchange.hf_parts import (
    Architecture,
    Tensors,
    activation,
    bias_of,
    common_limits,
    eps,
    is_tied,
    mlp_free,
    mlp_width,
    norm,
    norms,
    plain_limits,
    rows,
    unembedding,
)
from interp.decoder import Decoder, Layer

OFFSET = 2  # of mBART's learned positions
EPS = 1e-5  # of its norms, which no configuration changes
CROSS = "mBART's attention to an encoder is written as 0; a model without an encoder never comes to it"


def limits(decoder: Decoder) -> list[str]:
    """What mBART's decoder has no formula for."""
    found = [*common_limits(decoder, centred=True), *plain_limits(decoder)]
    if decoder.ln_embed is None or not decoder.ln_embed.centred:
        found.append("a LayerNorm right after the embedding is asked for")
    if any(one is not None and one.eps != EPS for one in [*norms(decoder), decoder.ln_embed]):
        found.append(f"the eps of its norms is {EPS:g}, here it is {eps(decoder):g}")
    found += ["rotary positions"] if any(layer.attn.rotary is not None for layer in decoder.layers) else []
    return found + (["parallel blocks"] if any(layer.parallel for layer in decoder.layers) else [])


def config(decoder: Decoder) -> dict[str, Any]:
    """Of config.json; what it says of an encoder is never used."""
    layers, heads, width = len(decoder.layers), decoder.n_heads, mlp_width(decoder)
    return {
        "vocab_size": decoder.W_U.shape[1],
        "max_position_embeddings": decoder.n_ctx,
        "d_model": decoder.d_model,
        "decoder_layers": layers,
        "decoder_attention_heads": heads,
        "decoder_ffn_dim": width,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": width,
        "activation_function": activation(decoder),
        "scale_embedding": False,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "is_decoder": True,
        "is_encoder_decoder": False,
        "add_cross_attention": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "forced_eos_token_id": None,
        "tie_word_embeddings": is_tied(decoder),
    }


def tensors(decoder: Decoder) -> Tensors:
    """Weights by key; matrices are [out, in]."""
    like = decoder.W_E
    positions = like.new_zeros(decoder.n_ctx + OFFSET, decoder.d_model)
    if decoder.W_pos is not None:
        positions[OFFSET:] = decoder.W_pos
    found = {"embed_tokens.weight": like, "embed_positions.weight": positions}
    found |= norm(decoder.ln_embed, "layernorm_embedding", like) | norm(decoder.ln_final, "layer_norm", like)
    for index, layer in enumerate(decoder.layers):
        found |= {f"layers.{index}.{key}": value for key, value in _layer(decoder, layer).items()}
    found = {f"model.decoder.{key}": value for key, value in found.items()}
    return found | unembedding(decoder, "lm_head.weight")


def _layer(decoder: Decoder, layer: Layer) -> Tensors:
    attn, like, d_model = layer.attn, decoder.W_E, decoder.d_model
    found = norm(layer.ln1, "self_attn_layer_norm", like) | norm(layer.ln2, "final_layer_norm", like)
    found |= norm(None, "encoder_attn_layer_norm", like)
    for name, weight, bias in (
        ("q", attn.W_Q, attn.b_Q),
        ("k", attn.W_K, attn.b_K),
        ("v", attn.W_V, attn.b_V),
    ):
        found |= {f"self_attn.{name}_proj.weight": rows(weight), f"self_attn.{name}_proj.bias": bias_of(bias, weight)}
    found["self_attn.out_proj.weight"] = attn.W_O.flatten(0, 1).mT
    found["self_attn.out_proj.bias"] = bias_of(attn.b_O, like)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        found[f"encoder_attn.{name}.weight"] = like.new_zeros(d_model, d_model)
        found[f"encoder_attn.{name}.bias"] = like.new_zeros(d_model)
    mlp, width = layer.mlp, mlp_width(decoder)
    into = like.new_zeros(d_model, width) if mlp is None else mlp.W_in
    out = like.new_zeros(width, d_model) if mlp is None else mlp.W_out
    return found | {
        "fc1.weight": into.mT,
        "fc1.bias": bias_of(None if mlp is None else mlp.b_in, into),
        "fc2.weight": out.mT,
        "fc2.bias": bias_of(None if mlp is None else mlp.b_out, out),
    }


def notes(decoder: Decoder) -> list[str]:
    """What is added that does nothing."""
    return ["biases that the model does not have are written as 0", CROSS, *mlp_free(decoder)]


MBART = Architecture("MBartForCausalLM", "mbart", limits, config, tensors, notes)
