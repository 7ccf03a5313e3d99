"""Attention when one key and one value change: exact, and O(1) per (query, patch)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.engine.products import Products
from circuits.engine.record import LayerRecord, Record
from circuits.engine.rows import Rows, Span
from interp.decoder import Attention, Layer


@dataclass(frozen=True)
class Attended:
    """Scores of some queries of the base run, and their softmax with the largest key left out.

    A softmax row has at most one weight above 1/2. Where the changed column is that one, 1 - a and the output without
    it cannot be had by subtraction without losing every digit; they are kept from a second softmax instead.
    """

    score: Float[Tensor, "batch head row key"]
    lse: Float[Tensor, "batch head row 1"]
    top: Int[Tensor, "batch head row 1"]
    lse_rest: Float[Tensor, "batch head row 1"]
    z: Float[Tensor, "batch head row d_head"]
    z_rest: Float[Tensor, "batch head row d_head"]


def attended(attn: Attention, base: LayerRecord, rows: Rows, stop: int, mul: Products) -> Attended:
    """The state of the rows against keys 0..stop-1."""
    q = rows.take(base.q)[:, 0].transpose(1, 2)  # [batch head row d_head]
    k, v = (x[:, :stop].repeat_interleave(attn.group, 2).transpose(1, 2) for x in (base.k, base.v))
    position = rows.positions(len(q)).to(q.device)  # [batch row]
    later = torch.arange(stop, device=q.device) > position[:, None, :, None]  # [batch 1 row key]
    score = (q @ k.mT).mul_(attn.scale).masked_fill_(later, -torch.inf)  # [batch head row key]
    mul.count(4 * q.numel() * stop)
    top = score.argmax(-1, keepdim=True)
    rest = score.scatter(-1, top, -torch.inf)
    lse_rest = rest.logsumexp(-1, keepdim=True)
    z_rest = (rest - lse_rest.clamp(min=torch.finfo(score.dtype).min)).exp() @ v
    z = rows.take(base.z)[:, 0].transpose(1, 2)
    return Attended(score, score.logsumexp(-1, keepdim=True), top, lse_rest, z, z_rest)


class Queries:
    """Attended states of a base run, computed once per layer where several chunks will ask for them.

    Args:
        keep_bytes: how much may be kept; a run whose scores are larger computes them again for every chunk.
    """

    def __init__(self, layers: Sequence[Layer], base: Record, keep_bytes: int, mul: Products):
        self.layers, self.base, self.mul = layers, base, mul
        n_prompts, n_pos, heads = base.layers[0].q.shape[:3]
        self.keeps = len(layers) * n_prompts * heads * n_pos * n_pos * base.final.element_size() <= keep_bytes
        self.kept: dict[int, Attended] = {}

    def at(
        self, number: int, prompts: Int[Tensor, "prompt"] | None, kept: LayerRecord, rows: Rows, stop: int
    ) -> Attended:
        """The state of some rows of some prompts (None for all) in a layer; `kept` is that layer for these prompts."""
        if not self.keeps or not isinstance(rows, Span):
            return attended(self.layers[number].attn, kept, rows, stop, self.mul)
        if number not in self.kept:
            whole, run = Span(0, self.base.final.shape[1]), self.base.layers[number]
            self.kept[number] = attended(self.layers[number].attn, run, whole, whole.stop, self.mul)
        state = self.kept[number]

        def some(x: Tensor) -> Tensor:
            return (x if prompts is None else x[prompts])[:, :, rows.start : rows.stop]

        cut = {name: some(value) for name, value in vars(state).items()}
        return Attended(**{**cut, "score": cut["score"][..., :stop]})


def column_update(
    attn: Attention,
    state: Attended,
    base: LayerRecord,
    rows: Rows,
    p: Int[Tensor, "branch"],
    dk: Float[Tensor, "batch branch kv_head d_head"] | None,
    dv: Float[Tensor, "batch branch kv_head d_head"] | None,
    mul: Products,
) -> Float[Tensor, "batch branch row head d_head"]:
    """z' - z when key p[n] changes by dk and value p[n] by dv; zero for rows before p.

    With a the old weight, b = 1 - a and s the old score, e = s' - s, and t the new weight:
    z' - z = (t - a) (v - z_rest) + t dv, where t - a is a (1 - t) expm1(e), or t b (1 - exp(-e)) for e > 0.
    """
    q = rows.take(base.q)[:, 0].transpose(1, 2)  # [batch head row d_head]
    score = state.score.index_select(-1, p)  # [batch head row branch]
    is_top = state.top == p
    log_a = score - state.lse
    a = log_a.exp()
    log_b = torch.where(is_top, state.lse_rest - state.lse, torch.log1p(-torch.where(is_top, 0, a)))
    v = base.v.index_select(1, p).repeat_interleave(attn.group, 2).permute(0, 2, 1, 3)  # [batch head branch d_head]
    if dk is None:
        t, gain = a, None
    else:
        dk = dk.repeat_interleave(attn.group, 2).permute(0, 2, 3, 1)  # [batch head d_head branch]
        e = (q @ dk).mul_(attn.scale)
        mul.count(2 * q.numel() * dk.shape[-1])
        odds = log_a + e - log_b  # inf for a key that is alone in its row: it keeps all the weight
        t = odds.sigmoid()
        up = -t * log_b.exp() * torch.expm1(-e.clamp(min=0))
        down = a * (-odds).sigmoid() * torch.expm1(e.clamp(max=0))
        gain = torch.where(e > 0, up, down)  # t - a
        gain = gain.masked_fill(score == -torch.inf, 0)
    t = t.masked_fill(score == -torch.inf, 0)
    return _combine(state, t, gain, v, dv, log_b, is_top, attn.group)


def _combine(
    state: Attended,
    t: Float[Tensor, "batch head row branch"],
    gain: Float[Tensor, "batch head row branch"] | None,
    v: Float[Tensor, "batch head branch d_head"],
    dv: Float[Tensor, "batch branch kv_head d_head"] | None,
    log_b: Tensor,
    is_top: Bool[Tensor, "batch head row branch"],
    group: int,
) -> Float[Tensor, "batch branch row head d_head"]:
    """(t - a) (v - z_rest) + t dv; away from the largest key v - z_rest is (v - z) / b with b >= 1/2."""
    dz: Tensor | None = None
    if gain is not None:
        rest = gain * torch.where(is_top, 1, torch.exp(-log_b))  # [batch head row branch]
        dz = v[:, :, None] - state.z[:, :, :, None]  # [batch head row branch d_head]
        at = is_top.nonzero(as_tuple=True)
        if len(at[0]):
            dz[at] = v[at[0], at[1], at[3]] - state.z_rest[at[:3]]
        dz = dz.mul_(rest[..., None])
    if dv is not None:
        moved = dv.repeat_interleave(group, 2).permute(0, 2, 1, 3)[:, :, None]  # [batch head 1 branch d_head]
        dz = t[..., None] * moved if dz is None else dz.addcmul_(t[..., None], moved)
    return dz.permute(0, 3, 2, 1, 4)  # [batch branch row head d_head]


def own_row(
    attn: Attention,
    base: LayerRecord,
    p: Int[Tensor, "branch"],
    dq: Float[Tensor, "batch branch head d_head"],
    dk: Float[Tensor, "batch branch kv_head d_head"] | None,
    dv: Float[Tensor, "batch branch kv_head d_head"] | None,
    mul: Products,
) -> Float[Tensor, "batch branch head d_head"]:
    """z' - z at row p[n] itself, whose query changes by dq (and whose own key and value by dk and dv)."""
    stop = int(p.max()) + 1
    q = (dq + base.q.index_select(1, p)).transpose(1, 2)  # [batch head branch d_head]
    k, v = (x[:, :stop].repeat_interleave(attn.group, 2).transpose(1, 2) for x in (base.k, base.v))
    score = (q @ k.mT).mul_(attn.scale)  # [batch head branch key]
    mul.count(4 * q.numel() * stop)
    here = p[:, None]
    score = score.masked_fill_(torch.arange(stop, device=p.device) > here, -torch.inf)
    if dk is not None:
        moved = dk.repeat_interleave(attn.group, 2).transpose(1, 2)  # [batch head branch d_head]
        own = here.expand(*score.shape[:3], 1)
        score = score.scatter_add_(-1, own, (q * moved).sum(-1, keepdim=True) * attn.scale)
    weight = score.softmax(-1)
    z = weight @ v  # [batch head branch d_head]
    if dv is not None:
        own_weight = weight.gather(-1, here.expand(*weight.shape[:3], 1))
        z = z + own_weight * dv.repeat_interleave(attn.group, 2).transpose(1, 2)
    return z.transpose(1, 2) - base.z.index_select(1, p)
