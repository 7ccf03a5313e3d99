"""One run of a decoder with everything kept that patches are differences from."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp.decoder import ACTIVATIONS, Decoder, Layer, affine, normed, project


@dataclass(frozen=True)
class LayerRecord:
    """Activations of one block; q and k are after rotary positions, q_raw and k_raw before."""

    pre: Float[Tensor, "batch pos d_model"]
    normed_pre: Float[Tensor, "batch pos d_model"]
    q_raw: Float[Tensor, "batch pos head d_head"]
    k_raw: Float[Tensor, "batch pos kv_head d_head"]
    q: Float[Tensor, "batch pos head d_head"]
    k: Float[Tensor, "batch pos kv_head d_head"]
    v: Float[Tensor, "batch pos kv_head d_head"]
    z: Float[Tensor, "batch pos head d_head"]
    attn_out: Float[Tensor, "batch pos d_model"]
    mid: Float[Tensor, "batch pos d_model"]
    normed_mid: Float[Tensor, "batch pos d_model"] | None
    inner: Float[Tensor, "batch pos d_mlp"] | None
    gate: Float[Tensor, "batch pos d_mlp"] | None
    mlp_post: Float[Tensor, "batch pos d_mlp"] | None
    mlp_out: Float[Tensor, "batch pos d_model"] | None
    post: Float[Tensor, "batch pos d_model"]


@dataclass(frozen=True)
class Record:
    """A run: its blocks, and the residual stream after the last one before and after the final norm."""

    layers: tuple[LayerRecord, ...]
    final: Float[Tensor, "batch pos d_model"]
    normed_final: Float[Tensor, "batch pos d_model"]

    def rows(self, prompts: Int[Tensor, "prompt"] | slice) -> "Record":
        """The same run for some of its prompts; a slice copies nothing."""

        def some(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[prompts]

        layers = tuple(LayerRecord(**{k: some(v) for k, v in vars(layer).items()}) for layer in self.layers)
        return Record(layers, self.final[prompts], self.normed_final[prompts])


def record(decoder: Decoder, tokens: Int[Tensor, "batch pos"]) -> Record:
    """Run the decoder and keep every activation; prompts are right-padded, so that padding changes nothing."""
    x, layers = decoder.embed(tokens), []
    for layer in decoder.layers:
        layers.append(_block(layer, x))
        x = layers[-1].post
    return Record(tuple(layers), x, normed(decoder.ln_final, x))


def _block(layer: Layer, x: Float[Tensor, "batch pos d_model"]) -> LayerRecord:
    attn, mlp = layer.attn, layer.mlp
    y = normed(layer.ln1, x)
    q_raw, k_raw, v = (project(y, w, b) for w, b in ((attn.W_Q, attn.b_Q), (attn.W_K, attn.b_K), (attn.W_V, attn.b_V)))
    q, k = q_raw, k_raw
    if attn.rotary is not None:
        position = torch.arange(x.shape[1], device=x.device)[None]
        q, k = attn.rotary(q_raw, position), attn.rotary(k_raw, position)
    z = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.repeat_interleave(attn.group, 2).transpose(1, 2),
        v.repeat_interleave(attn.group, 2).transpose(1, 2),
        is_causal=True,
        scale=attn.scale,
    ).transpose(1, 2)
    attn_out = affine(z.flatten(2), attn.W_O.flatten(0, 1), attn.b_O)
    mid = (y if layer.adds_to_normed else x) + attn_out
    kept = {
        "pre": x,
        "normed_pre": y,
        "q_raw": q_raw,
        "k_raw": k_raw,
        "q": q,
        "k": k,
        "v": v,
        "z": z,
        "attn_out": attn_out,
        "mid": mid,
    }
    if mlp is None:
        empty = dict.fromkeys(("normed_mid", "inner", "gate", "mlp_post", "mlp_out"))
        return LayerRecord(**kept, **empty, post=mid)
    normed_mid = normed(layer.ln2, x if layer.parallel else mid)
    inner, act = affine(normed_mid, mlp.W_in, mlp.b_in), ACTIVATIONS[mlp.activation]
    gate = None if mlp.W_gate is None else affine(normed_mid, mlp.W_gate, mlp.b_gate)
    mlp_post = act(inner) if gate is None else act(gate) * inner
    mlp_out = affine(mlp_post, mlp.W_out, mlp.b_out)
    return LayerRecord(
        **kept,
        normed_mid=normed_mid,
        inner=inner,
        gate=gate,
        mlp_post=mlp_post,
        mlp_out=mlp_out,
        post=mid + mlp_out,
    )
