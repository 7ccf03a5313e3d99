"""Attention of whole-or-nothing circuits by position: a key and value for each subset of senders it may come from."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.decoder import Layer, normed

MOST_SENDERS = 3  # 2^3 inputs of a position; with more senders every (key, query) pair has its own


def patterns(
    delta: Float[Tensor, "circuit sender batch pos d_model"], before: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "circuit pattern batch pos d_model"]:
    """The ablated stream plus the differences of every subset of senders; bit s of a pattern's number is sender s."""
    found = before[None, None]
    for sender in range(delta.shape[1]):
        found = torch.cat((found.expand(len(delta), *found.shape[1:]), found + delta[:, None, sender]), 1)
    return found


def codes(own: Float[Tensor, "circuit sender receiver pos query"]) -> Int[Tensor, "circuit receiver query pos"]:
    """Which subset of senders each reader sees."""
    bit = 2 ** torch.arange(own.shape[1], device=own.device)
    return (own > 0.5).long().mul(bit[:, None, None, None]).sum(1).transpose(-1, -2)


def attention(
    layer: Layer,
    q: Float[Tensor, "circuit head batch query d_head"],
    streams: Float[Tensor, "one pattern batch pos d_model"],
    k_code: Int[Tensor, "circuit kv_head query pos"],
    v_code: Int[Tensor, "circuit kv_head query pos"],
) -> Float[Tensor, "circuit head batch query d_head"]:
    """z of every head; `streams` may hold one circuit where all circuits share it.

    Scores against the keys of every pattern are one matrix product, of which each query takes the pattern that it sees;
    weights go to the values of their pattern by another.
    """
    attn, n_pos = layer.attn, streams.shape[3]
    x = normed(layer.ln1, streams)[:, None]  # [one 1 pattern batch pos d_model]
    k = _projected(x, attn.W_K, attn.b_K)  # [one kv_head pattern batch pos d_head]
    if attn.rotary is not None:
        place = torch.arange(n_pos, device=q.device)
        k = attn.rotary(k.movedim(1, 4), place[None, None, None]).movedim(4, 1)
    v = _projected(x, attn.W_V, attn.b_V)
    k, v = (y.transpose(2, 3).flatten(3, 4).repeat_interleave(attn.group, 1) for y in (k, v))
    k_code, v_code = (c.repeat_interleave(attn.group, 1) for c in (k_code, v_code))
    shape = (*q.shape[:4], streams.shape[1], n_pos)  # [circuit head batch query pattern pos]
    scores = (q @ k.transpose(-1, -2)).view(shape) * attn.scale
    seen = scores.gather(4, k_code[:, :, None, :, None].expand(-1, -1, shape[2], -1, -1, -1))[..., 0, :]
    later = torch.ones(n_pos, n_pos, dtype=torch.bool, device=q.device).triu(1)
    weight = seen.masked_fill(later, -torch.inf).softmax(-1)
    spread = torch.zeros_like(scores).scatter_(
        4, v_code[:, :, None, :, None].expand(-1, -1, shape[2], -1, -1, -1), weight[..., None, :]
    )
    return spread.flatten(4) @ v


def _projected(x: Tensor, weight: Float[Tensor, "head d_model d_head"], bias: Tensor | None) -> Tensor:
    """Projection for each head, [one head pattern batch pos d_head]."""
    out = x @ weight[:, None, None]
    return out if bias is None else out + bias[:, None, None, None]
