"""A decoder as Llama: rotary positions, RMSNorm, gated MLP, keys and values that heads may share."""

from typing import Any

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
    mlp_width,
    norms,
    rotary_base,
    rows,
    unembedding,
)
from interp.decoder import Decoder, Layer


def limits(decoder: Decoder) -> list[str]:
    """What Llama has no formula for."""
    found = list(common_limits(decoder, centred=False))
    found += ["a norm right after the embedding"] if decoder.ln_embed is not None else []
    found += ["learned positions"] if decoder.W_pos is not None else []
    found += ["norms with a bias"] if any(one is not None and one.b is not None for one in norms(decoder)) else []
    if any(
        a.rotary is None or rotary_base(a.rotary) is None or 2 * len(a.rotary.speed) != a.W_Q.shape[-1]
        for a in attentions(decoder)
    ):
        found.append("rotary positions of all coordinates, with powers of one base, are asked for")
    if any(layer.mlp is None or layer.mlp.W_gate is None for layer in decoder.layers):
        found.append("a gated MLP in every layer is asked for")
    return found + (["parallel blocks"] if any(layer.parallel for layer in decoder.layers) else [])


def config(decoder: Decoder) -> dict[str, Any]:
    """Of config.json; rotary positions are written in the words of transformers before and since version 5."""
    attn, base = decoder.layers[0].attn, rotary_base(decoder.layers[0].attn.rotary)
    return {
        "vocab_size": decoder.W_U.shape[1],
        "max_position_embeddings": decoder.n_ctx,
        "hidden_size": decoder.d_model,
        "num_hidden_layers": len(decoder.layers),
        "num_attention_heads": attn.W_Q.shape[0],
        "num_key_value_heads": attn.W_K.shape[0],
        "head_dim": attn.W_Q.shape[2],
        "intermediate_size": mlp_width(decoder),
        "hidden_act": activation(decoder),
        "rms_norm_eps": eps(decoder),
        "attention_bias": _biased(decoder),
        "mlp_bias": _biased(decoder),
        "rope_theta": base,
        "rope_parameters": {"rope_type": "default", "rope_theta": base},
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": is_tied(decoder),
    }


def _biased(decoder: Decoder) -> bool:
    """Whether any part has a bias; where one has, all are written."""
    found = [(a.b_Q, a.b_K, a.b_V, a.b_O) for a in attentions(decoder)]
    found += [(layer.mlp.b_in, layer.mlp.b_gate, layer.mlp.b_out) for layer in decoder.layers]
    return any(bias is not None for some in found for bias in some)


def tensors(decoder: Decoder) -> Tensors:
    """Weights by key; matrices are [out, in]."""
    found = {"model.embed_tokens.weight": decoder.W_E}
    for index, layer in enumerate(decoder.layers):
        found |= {f"model.layers.{index}.{key}": value for key, value in _layer(decoder, layer).items()}
    return found | {"model.norm.weight": decoder.ln_final.w} | unembedding(decoder, "lm_head.weight")


def _layer(decoder: Decoder, layer: Layer) -> Tensors:
    attn, mlp, like = layer.attn, layer.mlp, decoder.W_E
    queries, keys = (halved(attn.rotary, weight) for weight in (attn.W_Q, attn.W_K))
    found = {
        "input_layernorm.weight": layer.ln1.w,
        "post_attention_layernorm.weight": layer.ln2.w,
        "self_attn.q_proj.weight": rows(queries),
        "self_attn.k_proj.weight": rows(keys),
        "self_attn.v_proj.weight": rows(attn.W_V),
        "self_attn.o_proj.weight": attn.W_O.flatten(0, 1).mT,
        "mlp.gate_proj.weight": mlp.W_gate.mT,
        "mlp.up_proj.weight": mlp.W_in.mT,
        "mlp.down_proj.weight": mlp.W_out.mT,
    }
    if not _biased(decoder):
        return found
    turned = [None if bias is None else halved(attn.rotary, bias) for bias in (attn.b_Q, attn.b_K)]
    return found | {
        "self_attn.q_proj.bias": bias_of(turned[0], attn.W_Q),
        "self_attn.k_proj.bias": bias_of(turned[1], attn.W_K),
        "self_attn.v_proj.bias": bias_of(attn.b_V, attn.W_V),
        "self_attn.o_proj.bias": bias_of(attn.b_O, like),
        "mlp.gate_proj.bias": bias_of(mlp.b_gate, mlp.W_gate),
        "mlp.up_proj.bias": bias_of(mlp.b_in, mlp.W_in),
        "mlp.down_proj.bias": bias_of(mlp.b_out, mlp.W_out),
    }


def notes(decoder: Decoder) -> list[str]:
    """What is added or moved without any effect."""
    if decoder.layers[0].attn.rotary.interleaved:
        return ["coordinates of queries and keys are in another order, as Llama pairs them differently"]
    return []


LLAMA = Architecture("LlamaForCausalLM", "llama", limits, config, tensors, notes)
