"""Attention when one key and one value change: exact, and O(1) per (query, patch)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.engine import packed
from circuits.engine.products import Products
from circuits.engine.record import LayerRecord, Record
from circuits.engine.rows import Chosen, Rows, Span, narrow, repeated
from interp.decoder import Attention, Layer
from kernels.one_column import State, moved, recorded


def attended(attn: Attention, base: LayerRecord, rows: Rows, stop: int, mul: Products) -> State:
    """Softmax state of the base run's rows against keys 0..stop-1; its row axis is that of `rows`."""
    q = rows.take(base.q)[:, 0].transpose(1, 2)  # [batch head row d_head]
    k = repeated(base.k[:, :stop], attn.group).transpose(1, 2)
    position = rows.positions(len(q), q.device)  # [batch row]
    later = torch.arange(stop, device=q.device) > position[:, None, :, None]  # [batch 1 row key]
    score = (q @ k.mT).mul_(attn.scale).masked_fill_(later, -torch.inf)  # [batch head row key]
    mul.count(4 * q.numel() * stop)
    return recorded(score, base.v[:, :stop])


class Queries:
    """Softmax states of a base run by layer, kept for all rows once several chunks or a kernel ask for them."""

    def __init__(self, layers: Sequence[Layer], base: Record, several: bool, mul: Products):
        self.layers, self.base, self.several, self.mul = layers, base, several, mul
        self.kept: dict[int, State] = {}

    def whole(self, number: int) -> State:
        """The state of every row of every prompt."""
        if number not in self.kept:
            span, run = Span(0, self.base.final.shape[1]), self.base.layers[number]
            self.kept[number] = attended(self.layers[number].attn, run, span, span.stop, self.mul)
        return self.kept[number]

    def at(self, number: int, prompts: Int[Tensor, "prompt"] | None, kept: LayerRecord, rows: Rows, stop: int) -> State:
        """The state of some rows of some prompts (None for all) in a layer; `kept` is that layer for these prompts.

        Where a kernel will read it, the state is that of every row, as the kernel wants it.
        """
        for_kernel = self.mul.kernel_for("one_column", self.base.final)
        if not for_kernel and (not self.several or isinstance(rows, Chosen)):
            return attended(self.layers[number].attn, kept, rows, stop, self.mul)
        span = Span(0, self.base.final.shape[1]) if for_kernel else rows

        def some(x: Tensor) -> Tensor:
            return (x if prompts is None else x[prompts])[:, span.start : span.stop]

        return State(**{name: some(getattr(self.whole(number), name)) for name in FIELDS})


FIELDS = ("lse", "o", "top", "lse_rest", "o_rest")


def column_update(
    attn: Attention,
    state: State,
    base: LayerRecord,
    rows: Rows,
    p: Int[Tensor, "branch"],
    dk: Float[Tensor, "batch branch kv_head d_head"] | None,
    dv: Float[Tensor, "batch branch kv_head d_head"] | None,
    mul: Products,
) -> Float[Tensor, "batch branch row head d_head"]:
    """z' - z when key p[n] changes by dk and value p[n] by dv; zero for rows before p."""
    if mul.kernel_for("one_column", base.z):
        span = rows if isinstance(rows, Span) else mul.fixed(lambda: around(rows))
        dz = packed.column_update(attn, state, base, span, p, dk, dv, mul)
        return dz if isinstance(rows, Span) else narrow(dz, span, rows)
    q = rows.take(base.q)[:, 0].transpose(1, 2)  # [batch head row d_head]
    k, v = base.k.index_select(1, p), base.v.index_select(1, p)  # [batch branch kv_head d_head]
    keys = torch.cat((k,) if dk is None else (k, k + dk, dk), 1)  # three products by one
    keys = repeated(keys, attn.group).permute(0, 2, 3, 1)  # [batch head d_head 3*branch]
    found = (q @ keys).mul_(attn.scale)
    mul.count(2 * q.numel() * keys.shape[-1])
    score, new, change = (found, found, torch.zeros_like(found)) if dk is None else found.chunk(3, -1)
    unseen = rows.positions(len(q), q.device)[:, None, :, None] < p  # [batch 1 row branch]
    score, new = score.masked_fill(unseen, -torch.inf), new.masked_fill(unseen, -torch.inf)

    def by_head(x: Tensor) -> Tensor:
        return x.transpose(1, 2).unsqueeze(3)  # [batch head row 1 ...]

    def by_branch(x: Tensor) -> Tensor:
        return repeated(x, attn.group).transpose(1, 2).unsqueeze(2)  # [batch head 1 branch d_head]

    dz = moved(
        score,
        new,
        change,
        by_head(state.top) == p,
        by_head(state.lse),
        by_head(state.lse_rest),
        by_head(state.o),
        by_head(state.o_rest),
        by_branch(v),
        q.new_zeros(q.shape[-1]) if dv is None else by_branch(dv),
    )
    return dz.permute(0, 3, 2, 1, 4)  # [batch branch row head d_head]


def around(rows: Chosen) -> Span:
    """The smallest span that has all of these rows."""
    return Span(int(rows.index.min()), int(rows.index.max()) + 1)


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
    stop = mul.fixed(lambda: int(p.max()) + 1)
    q = (dq + base.q.index_select(1, p)).transpose(1, 2)  # [batch head branch d_head]
    k, v = (repeated(x[:, :stop], attn.group).transpose(1, 2) for x in (base.k, base.v))
    score = (q @ k.mT).mul_(attn.scale)  # [batch head branch key]
    mul.count(4 * q.numel() * stop)
    here = p[:, None]
    score = score.masked_fill_(torch.arange(stop, device=p.device) > here, -torch.inf)
    if dk is not None:
        moved_key = repeated(dk, attn.group).transpose(1, 2)  # [batch head branch d_head]
        own = here.expand(*score.shape[:3], 1)
        score = score.scatter_add_(-1, own, (q * moved_key).sum(-1, keepdim=True) * attn.scale)
    weight = score.softmax(-1)
    z = weight @ v  # [batch head branch d_head]
    if dv is not None:
        own_weight = weight.gather(-1, here.expand(*weight.shape[:3], 1))
        z = z + own_weight * repeated(dv, attn.group).transpose(1, 2)
    return z.transpose(1, 2) - base.z.index_select(1, p)
