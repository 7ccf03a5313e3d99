"""Attention of circuits by position: each query reads its own mixture of senders in every key and value."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.decoder import Layer, Norm

FEW_PARTS = 8  # up to which all products of two shares are written out


def attention(
    layer: Layer,
    q: Float[Tensor, "circuit head batch query d_head"],
    query: Int[Tensor, "query"],
    parts: Float[Tensor, "one part batch pos d_model"],
    k_share: Float[Tensor, "circuit kv_head part pos query"],
    v_share: Float[Tensor, "circuit kv_head part pos query"],
) -> Float[Tensor, "circuit head batch query d_head"]:
    """z of every head at some query places.

    What query i reads at position p is x = sum over parts t of share[t, p, i] parts[t, p]. Apart from its scale 1 / s a
    norm is linear, so the parts are centred and projected once, and

        score[i, p] = sum_t share[t, p, i] q_i . K_t[p] / s[p, i] + q_i . b_K,
        s[p, i]^2 = share[:, p, i]' G[p] share[:, p, i] + eps,  G[p] = centred parts' inner products / d_model:

    no (key, query) pair ever has a stream of its own. Values likewise. Shares may be fractions; gradients flow.

    Args:
        parts: the ablated stream, whose share is 1, and what each sender adds; may be one circuit's that all share.
    """
    attn, norm, n_pos = layer.attn, layer.ln1, parts.shape[3]
    parts = centred(norm, parts)
    k, v = (projected(norm, parts, weight) for weight in (attn.W_K, attn.W_V))  # [one kv_head batch part pos d_head]
    k_bias, v_bias = constant(norm, attn.W_K, attn.b_K), constant(norm, attn.W_V, attn.b_V)  # [kv_head d_head] or None
    gram = None if norm is None else inner_products(parts)
    k_scale, v_scale = (scale(norm, gram, share) for share in (k_share, v_share))  # [circuit kv_head batch query pos]
    place = torch.arange(n_pos, device=q.device)
    if attn.rotary is not None:
        k = attn.rotary(k.movedim(1, 4), place[None, None, None]).movedim(4, 1)
    k, v, k_scale, v_scale, k_share, v_share = (
        for_each_query_head(x, attn.group) for x in (k, v, k_scale, v_scale, k_share, v_share)
    )
    shape = (*q.shape[:4], parts.shape[1], n_pos)  # [circuit head batch query part pos]
    scores = (q @ k.flatten(3, 4).transpose(-1, -2)).view(shape)
    scores = (scores * by_query(k_share)).sum(4) * k_scale
    if k_bias is not None:
        k_bias = k_bias[:, None].expand(-1, n_pos, -1)  # [kv_head pos d_head]
        if attn.rotary is not None:
            k_bias = attn.rotary(k_bias.transpose(0, 1), place).transpose(0, 1)
        scores = scores + q @ for_each_query_head(k_bias[None], attn.group)[0][:, None].transpose(-1, -2)
    weight = (scores * attn.scale).masked_fill(place > query[:, None], -torch.inf).softmax(-1)
    spread = (weight * v_scale)[..., None, :] * by_query(v_share)  # [circuit head batch query part pos]
    z = spread.flatten(4) @ v.flatten(3, 4)
    return z if v_bias is None else z + for_each_query_head(v_bias[None], attn.group)[0][:, None, None]


def by_query(share: Float[Tensor, "circuit head part pos query"]) -> Float[Tensor, "circuit head 1 query part pos"]:
    """Shares in the order of scores."""
    return share.permute(0, 1, 4, 2, 3)[:, :, None]


def centred(norm: Norm | None, parts: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
    """The parts without their means where the norm takes these off."""
    return parts - parts.mean(-1, keepdim=True) if norm is not None and norm.centred else parts


def projected(
    norm: Norm | None,
    parts: Float[Tensor, "one part batch pos d_model"],
    weight: Float[Tensor, "kv_head d_model d_head"],
) -> Float[Tensor, "one kv_head batch part pos d_head"]:
    """Every part times the norm's weight and every head's matrix, in one product."""
    matrix = weight if norm is None or norm.w is None else norm.w[:, None] * weight
    out = (parts @ matrix.transpose(0, 1).flatten(1)).unflatten(-1, (len(weight), -1))
    return out.permute(0, 4, 2, 1, 3, 5)  # from [one part batch pos kv_head d_head]


def constant(norm: Norm | None, weight: Tensor, bias: Tensor | None) -> Float[Tensor, "kv_head d_head"] | None:
    """What the biases of norm and projection add to every key or value; None without biases."""
    moved = None if norm is None or norm.b is None else norm.b @ weight
    return bias if moved is None else moved if bias is None else moved + bias


def inner_products(
    parts: Float[Tensor, "one part batch pos d_model"],
) -> Float[Tensor, "one pos batch part part"]:
    """Mean over d_model of the product of every two parts, at each position of each prompt."""
    rows = parts.permute(0, 3, 2, 1, 4).contiguous()  # products of strided rows take twice as long as the copy
    return rows @ rows.transpose(-1, -2) / parts.shape[-1]


def scale(
    norm: Norm | None,
    gram: Float[Tensor, "one pos batch part part"] | None,
    share: Float[Tensor, "circuit kv_head part pos query"],
) -> Float[Tensor, "circuit kv_head batch query pos"]:
    """1 / sqrt(mean square + eps) of what each query reads at each position; 1 without a norm."""
    if norm is None or gram is None:
        return share.new_ones(1, share.shape[1], 1, 1, 1)
    mine = share.permute(0, 1, 3, 4, 2)  # [circuit kv_head pos query part]
    if gram.shape[-1] <= FEW_PARTS:
        both = (mine[..., :, None] * mine[..., None, :]).flatten(4)  # [circuit kv_head pos query part*part]
        square = both @ gram.flatten(3).transpose(-1, -2)[:, None]  # [circuit kv_head pos query batch]
        square = square.permute(0, 1, 4, 3, 2)
    else:
        half = mine[:, :, :, None] @ gram[:, None]  # [circuit kv_head pos batch query part]
        square = (half * mine[:, :, :, None]).sum(-1).permute(0, 1, 3, 4, 2)
    return torch.rsqrt(square.clamp(min=0) + norm.eps)


def for_each_query_head(x: Tensor, group: int) -> Tensor:
    """Keys or values [circuit kv_head ...] repeated for the query heads that share them; no copy where none do."""
    return x if group == 1 else x.repeat_interleave(group, 1)


def by_head(
    x: Float[Tensor, "circuit head *row d_in"], weight: Float[Tensor, "head d_in d_out"]
) -> Float[Tensor, "circuit head *row d_out"]:
    """Each head's rows times its own matrix, as one product per head."""
    rows = x.transpose(0, 1).flatten(1, -2)  # [head circuit*row d_in]
    return (rows @ weight).unflatten(1, (len(x), *x.shape[2:-1])).transpose(0, 1)
