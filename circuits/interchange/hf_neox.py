"""A decoder as GPT-NeoX: rotary positions, LayerNorm, plain MLP, sequential or parallel blocks."""

from typing import Any

import torch

from circuits.interchange.hf_parts import (
    Architecture,
    Tensors,
    activation,
    attentions,
    bias_of,
    common_limits,
    eps,
    halved,
    is_tied,
    mlp_free,
    mlp_width,
    norm,
    plain_limits,
    rotary_base,
    unembedding,
)
from interp.decoder import Decoder, Layer


def limits(decoder: Decoder) -> list[str]:
    """What GPT-NeoX has no formula for."""
    found = [*common_limits(decoder, centred=True), *plain_limits(decoder)]
    found += ["a norm right after the embedding"] if decoder.ln_embed is not None else []
    found += ["learned positions"] if decoder.W_pos is not None else []
    if any(a.rotary is None or rotary_base(a.rotary) is None for a in attentions(decoder)):
        found.append("no rotary positions, or rotary positions whose speeds are no powers of one base")
    return found + (["sequential and parallel blocks"] if len({layer.parallel for layer in decoder.layers}) > 1 else [])


def config(decoder: Decoder) -> dict[str, Any]:
    """Of config.json; rotary positions are written in the words of transformers before and since version 5."""
    rotary, d_head = decoder.layers[0].attn.rotary, decoder.layers[0].attn.W_Q.shape[-1]
    share, base = 2 * len(rotary.speed) / d_head, rotary_base(rotary)
    return {
        "vocab_size": decoder.W_U.shape[1],
        "max_position_embeddings": decoder.n_ctx,
        "hidden_size": decoder.d_model,
        "num_hidden_layers": len(decoder.layers),
        "num_attention_heads": decoder.n_heads,
        "intermediate_size": mlp_width(decoder),
        "hidden_act": activation(decoder),
        "layer_norm_eps": eps(decoder),
        "use_parallel_residual": decoder.layers[0].parallel,
        "attention_bias": True,
        "rotary_pct": share,
        "rotary_emb_base": base,
        "rope_parameters": {"rope_type": "default", "rope_theta": base, "partial_rotary_factor": share},
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": is_tied(decoder),
    }


def tensors(decoder: Decoder) -> Tensors:
    """Weights by key; matrices are [out, in], and queries, keys and values of one head stand together."""
    found = {"gpt_neox.embed_in.weight": decoder.W_E}
    for index, layer in enumerate(decoder.layers):
        found |= {f"gpt_neox.layers.{index}.{key}": value for key, value in _layer(decoder, layer).items()}
    found |= norm(decoder.ln_final, "gpt_neox.final_layer_norm", decoder.W_E)
    return found | unembedding(decoder, "embed_out.weight")


def _layer(decoder: Decoder, layer: Layer) -> Tensors:
    attn, like = layer.attn, decoder.W_E
    turned = [halved(attn.rotary, weight) for weight in (attn.W_Q, attn.W_K)] + [attn.W_V]
    heads, d_model, d_head = attn.W_Q.shape
    biases = [like.new_zeros(heads, d_head) if b is None else b for b in (attn.b_Q, attn.b_K, attn.b_V)]
    biases = [halved(attn.rotary, bias) for bias in biases[:2]] + biases[2:]
    found = norm(layer.ln1, "input_layernorm", like) | norm(layer.ln2, "post_attention_layernorm", like)
    found |= {
        "attention.query_key_value.weight": torch.cat(turned, -1).transpose(1, 2).reshape(-1, d_model),
        "attention.query_key_value.bias": torch.cat(biases, -1).flatten(),
        "attention.dense.weight": attn.W_O.flatten(0, 1).mT,
        "attention.dense.bias": bias_of(attn.b_O, like),
    }
    mlp, width = layer.mlp, mlp_width(decoder)
    into = like.new_zeros(d_model, width) if mlp is None else mlp.W_in
    out = like.new_zeros(width, d_model) if mlp is None else mlp.W_out
    return found | {
        "mlp.dense_h_to_4h.weight": into.mT,
        "mlp.dense_h_to_4h.bias": bias_of(None if mlp is None else mlp.b_in, into),
        "mlp.dense_4h_to_h.weight": out.mT,
        "mlp.dense_4h_to_h.bias": bias_of(None if mlp is None else mlp.b_out, out),
    }


def notes(decoder: Decoder) -> list[str]:
    """What is added or moved without any effect."""
    found = ["biases that the model does not have are written as 0"]
    if decoder.layers[0].attn.rotary.interleaved:
        found.append("coordinates of queries and keys are in another order, as GPT-NeoX pairs them differently")
    return found + mlp_free(decoder)


GPT_NEOX = Architecture("GPTNeoXForCausalLM", "gpt_neox", limits, config, tensors, notes)
