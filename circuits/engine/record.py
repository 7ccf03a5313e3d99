"""One run of a decoder with everything kept that patches are differences from."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from circuits.engine.neurons import activated
from circuits.engine.products import Products
from circuits.engine.rows import repeated
from interp.decoder import Attention, Decoder, Layer, affine, normed


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


def record(
    decoder: Decoder,
    tokens: Int[Tensor, "batch pos"],
    read: Int[Tensor, "row"] | None = None,
    mul: Products | None = None,
) -> Record:
    """Run the decoder and keep every activation; prompts are right-padded, so that padding changes nothing.

    Args:
        read: places whose outputs are wanted, None for all. In the last block the other rows then have keys and values
            only: their queries, and what follows from these, are left at 0.
        mul: keeps the joined projections, which differences will be multiplied by, too.
    """
    x, layers, mul = decoder.embed(tokens), [], mul or Products()
    for number, layer in enumerate(decoder.layers):
        layers.append(_block(layer, x, read if number == len(decoder.layers) - 1 else None, mul.joined(layer.attn)))
        x = layers[-1].post
    return Record(tuple(layers), x, spread(normed(decoder.ln_final, only(x, read)), read, x.shape[1]))


def only(x: Shaped[Tensor, "batch pos *width"], rows: Int[Tensor, "row"] | None) -> Shaped[Tensor, "batch row *width"]:
    """Some rows; all for None."""
    return x if rows is None else x.index_select(1, rows)


def spread(
    x: Float[Tensor, "batch row *width"], rows: Int[Tensor, "row"] | None, n_pos: int
) -> Float[Tensor, "batch pos *width"]:
    """The inverse of `only`, with zeros in all other rows."""
    return x if rows is None else x.new_zeros(len(x), n_pos, *x.shape[2:]).index_copy_(1, rows, x)


def _block(
    layer: Layer,
    x: Float[Tensor, "batch pos d_model"],
    read: Int[Tensor, "row"] | None,
    joined: Float[Tensor, "d_model q_k_v"],
) -> LayerRecord:
    attn, n_pos = layer.attn, x.shape[1]
    y = normed(layer.ln1, x)
    own_x, own_y = only(x, read), only(y, read)
    q_raw, k_raw, v = _projected(attn, own_y, y, joined)
    q, k = q_raw, k_raw
    if attn.rotary is not None:
        position = torch.arange(n_pos, device=x.device)[None]
        q, k = attn.rotary(q_raw, only(position, read)), attn.rotary(k_raw, position)
    z = _attended(attn, q, k, v, read)
    attn_out = affine(z.flatten(2), attn.W_O.flatten(0, 1), attn.b_O)
    mid = (own_y if layer.adds_to_normed else own_x) + attn_out
    found = {"q_raw": q_raw, "z": z, "attn_out": attn_out, "mid": mid} | _mlp(layer, own_x, mid)
    found |= {} if q is q_raw else {"q": q}
    found = {name: None if value is None else spread(value, read, n_pos) for name, value in found.items()}
    return LayerRecord(pre=x, normed_pre=y, k_raw=k_raw, k=k, v=v, **{"q": found["q_raw"]} | found)


def _projected(
    attn: Attention,
    own_y: Float[Tensor, "batch row d_model"],
    y: Float[Tensor, "batch pos d_model"],
    joined: Float[Tensor, "d_model q_k_v"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of some rows, keys and values of all, by one product where these are the same rows."""
    heads, _, d_head = attn.W_Q.shape
    sizes = [heads * d_head] + [attn.W_K.shape[0] * d_head] * 2
    if own_y is y:
        parts = (y @ joined).split(sizes, -1)
    else:
        q, rest = joined.split((sizes[0], 2 * sizes[1]), 1)
        parts = (own_y @ q, *(y @ rest).split(sizes[1:], -1))
    biases = (attn.b_Q, attn.b_K, attn.b_V)
    split = [part.unflatten(-1, (-1, d_head)) for part in parts]
    return tuple(x.contiguous() if b is None else x + b for x, b in zip(split, biases, strict=True))


def _attended(
    attn: Attention, q: Tensor, k: Tensor, v: Tensor, read: Int[Tensor, "row"] | None
) -> Float[Tensor, "batch row head d_head"]:
    """Causal attention of all queries, or of those at some places."""
    mask = None if read is None else torch.arange(k.shape[1], device=k.device) <= read[:, None]  # [row pos]
    z = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        repeated(k, attn.group).transpose(1, 2),
        repeated(v, attn.group).transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        scale=attn.scale,
    )
    return z.transpose(1, 2)


def _mlp(
    layer: Layer, layer_input: Float[Tensor, "batch row d_model"], mid: Float[Tensor, "batch row d_model"]
) -> dict[str, Tensor | None]:
    """The rest of a block after attention."""
    mlp = layer.mlp
    if mlp is None:
        return dict.fromkeys(("inner", "gate", "mlp_post", "mlp_out")) | {"post": mid}
    normed_mid = normed(layer.ln2, layer_input if layer.parallel else mid)
    inner = affine(normed_mid, mlp.W_in, mlp.b_in)
    gate = None if mlp.W_gate is None else affine(normed_mid, mlp.W_gate, mlp.b_gate)
    mlp_post = activated(mlp.activation, inner if gate is None else gate)
    mlp_post = mlp_post if gate is None else mlp_post * inner
    mlp_out = affine(mlp_post, mlp.W_out, mlp.b_out)
    return {
        "inner": inner,
        "gate": gate,
        "mlp_post": mlp_post,
        "mlp_out": mlp_out,
        "post": mid + mlp_out,
    }
