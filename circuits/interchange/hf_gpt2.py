"""A decoder as GPT-2: learned positions, LayerNorm, plain MLP."""

from typing import Any

import torch

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
    plain_limits,
    rows,
    unembedding,
)
from interp.decoder import Decoder, Layer


def limits(decoder: Decoder) -> list[str]:
    """What GPT-2 has no formula for."""
    found = [*common_limits(decoder, centred=True), *plain_limits(decoder)]
    found += ["a norm right after the embedding"] if decoder.ln_embed is not None else []
    found += ["rotary positions"] if any(layer.attn.rotary is not None for layer in decoder.layers) else []
    return found + (["parallel blocks"] if any(layer.parallel for layer in decoder.layers) else [])


def config(decoder: Decoder) -> dict[str, Any]:
    """Of config.json."""
    return {
        "vocab_size": decoder.W_U.shape[1],
        "n_positions": decoder.n_ctx,
        "n_embd": decoder.d_model,
        "n_layer": len(decoder.layers),
        "n_head": decoder.n_heads,
        "n_inner": mlp_width(decoder),
        "activation_function": activation(decoder),
        "layer_norm_epsilon": eps(decoder),
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": is_tied(decoder),
    }


def tensors(decoder: Decoder) -> Tensors:
    """Weights by key; matrices are [in, out]."""
    positions = decoder.W_pos if decoder.W_pos is not None else decoder.W_E.new_zeros(decoder.n_ctx, decoder.d_model)
    found = {"transformer.wte.weight": decoder.W_E, "transformer.wpe.weight": positions}
    for index, layer in enumerate(decoder.layers):
        found |= {f"transformer.h.{index}.{key}": value for key, value in _layer(decoder, layer).items()}
    found |= norm(decoder.ln_final, "transformer.ln_f", decoder.W_E)
    return found | unembedding(decoder, "lm_head.weight")


def _layer(decoder: Decoder, layer: Layer) -> Tensors:
    attn, like = layer.attn, decoder.W_E
    qkv = [rows(weight).mT for weight in (attn.W_Q, attn.W_K, attn.W_V)]
    pairs = ((attn.b_Q, attn.W_Q), (attn.b_K, attn.W_K), (attn.b_V, attn.W_V))
    found = norm(layer.ln1, "ln_1", like) | norm(layer.ln2, "ln_2", like)
    found |= {
        "attn.c_attn.weight": torch.cat(qkv, 1),
        "attn.c_attn.bias": torch.cat([bias_of(bias, weight) for bias, weight in pairs]),
        "attn.c_proj.weight": attn.W_O.flatten(0, 1),
        "attn.c_proj.bias": bias_of(attn.b_O, like),
    }
    mlp, width = layer.mlp, mlp_width(decoder)
    into = like.new_zeros(decoder.d_model, width) if mlp is None else mlp.W_in
    out = like.new_zeros(width, decoder.d_model) if mlp is None else mlp.W_out
    return found | {
        "mlp.c_fc.weight": into,
        "mlp.c_fc.bias": bias_of(None if mlp is None else mlp.b_in, into),
        "mlp.c_proj.weight": out,
        "mlp.c_proj.bias": bias_of(None if mlp is None else mlp.b_out, out),
    }


def notes(decoder: Decoder) -> list[str]:
    """What is added that does nothing."""
    found = ["biases that the model does not have are written as 0"]
    found += ["the model has no positions; its position embedding is written as 0"] if decoder.W_pos is None else []
    return found + mlp_free(decoder)


GPT2 = Architecture("GPT2LMHeadModel", "gpt2", limits, config, tensors, notes)
