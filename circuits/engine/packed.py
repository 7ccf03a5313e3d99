"""The engine's dense differences in the packed rows that kernels read, for the operations that have one."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.engine.products import Products
from circuits.engine.record import LayerRecord
from circuits.engine.rows import OneRow, Rows, Span
from interp.decoder import Attention, Norm
from kernels import one_column, suffix_attention


def row_index(rows: OneRow | Rows, shape: torch.Size, n_pos: int, device: torch.device) -> Int[Tensor, "row"]:
    """Row of a [batch * pos, ...] base table for every row of differences [batch, branch, *row, ...]."""
    batch, branches = shape[:2]
    at = rows.positions(batch, device) + torch.arange(batch, device=device)[:, None] * n_pos  # [batch branch or row]
    if isinstance(rows, OneRow):
        return at.flatten()
    return at[:, None].expand(batch, branches, rows.count).flatten()


def norm_delta(
    norm: Norm, base: Float[Tensor, "batch pos d_model"], rows: OneRow | Rows, delta: Tensor, mul: Products
) -> Tensor:
    """norm(base + delta) - norm(base) by the delta-norm kernel, which gathers the base rows itself."""
    n_pos, width = base.shape[1:]
    index = row_index(rows, delta.shape, n_pos, delta.device)
    arguments = (base.flatten(0, 1), index, delta.reshape(-1, width), norm.w, norm.eps, norm.centred)
    return mul.run("delta_norm", *arguments)[0].view_as(delta)


def norm_logit(
    norm: Norm,
    base: Float[Tensor, "batch pos d_model"],
    where: OneRow | Rows,
    delta: Float[Tensor, "batch branch *row d_model"],
    rows: Int[Tensor, "batch branch *row"],
    directions: Float[Tensor, "metric_row d_model"],
    mul: Products,
) -> Float[Tensor, "batch branch *row"]:
    """Change of a metric that is linear after the final norm, by one kernel; 0 where `rows` is -1."""
    n_pos, width = base.shape[1:]
    index = row_index(where, delta.shape, n_pos, delta.device)
    table = base.new_zeros(base.shape[0] * n_pos, 1, width)
    read = (rows >= 0).flatten()
    some = mul.fixed(lambda: read.nonzero()[:, 0])
    table[index[some], 0] = directions[rows.flatten()[some]]
    arguments = (base.flatten(0, 1), index, delta.reshape(-1, width), norm.w, norm.eps, norm.centred, table)
    return mul.run("norm_logit", *arguments).view(rows.shape) * (rows >= 0)


def column_update(
    attn: Attention,
    state: one_column.State,
    base: LayerRecord,
    span: Span,
    p: Int[Tensor, "branch"],
    dk: Float[Tensor, "batch branch kv_head d_head"] | None,
    dv: Float[Tensor, "batch branch kv_head d_head"] | None,
    mul: Products,
) -> Float[Tensor, "batch branch row head d_head"]:
    """z' - z at the rows of a span by the one-column kernel; `state` is that of every row."""
    batch, branches = len(base.z), len(p)
    none = base.k.new_zeros(batch, branches, *base.k.shape[2:])
    dk, dv = (none if x is None else x for x in (dk, dv))
    patches, (patch, pos) = mul.fixed(lambda: _columns(batch, p, span))
    state = one_column.State(*(x.contiguous() for x in (state.lse, state.o, state.top, state.lse_rest, state.o_rest)))
    arguments = (base.q.contiguous(), base.k.contiguous(), base.v.contiguous(), state, patches)
    found = mul.run(
        "one_column", *arguments, dk.flatten(0, 1).contiguous(), dv.flatten(0, 1).contiguous(), attn.scale
    )  # [row head d_head]
    dz = base.z.new_zeros(batch * branches, span.count, *base.z.shape[2:])
    dz[patch, pos - span.start] = found
    return dz.view(batch, branches, span.count, *base.z.shape[2:])


def _columns(
    batch: int, p: Int[Tensor, "branch"], span: Span
) -> tuple[one_column.Patches, tuple[Int[Tensor, "row"], Int[Tensor, "row"]]]:
    """Every branch of every prompt as a patch of its column, and patch and position of each output row."""
    column = p.repeat(batch)
    start = column.clamp(min=span.start, max=span.stop)
    prompt = torch.arange(batch, device=p.device).repeat_interleave(len(p), output_size=batch * len(p))
    patches = one_column.Patches(prompt, column, start, torch.full_like(start, span.stop))
    return patches, patches.rows()


def _groups(batch: int, branches: int, span: Span, at: Int[Tensor, "batch kept"]) -> suffix_attention.Groups:
    """One group of branches per prompt."""
    return suffix_attention.Groups(
        prompt=torch.arange(batch),
        first=torch.full((batch,), span.start),
        stop=torch.full((batch,), span.stop),
        branches=torch.full((batch,), branches),
        query_pos=at.flatten().cpu(),
        query_begin=torch.arange(batch + 1) * at.shape[1],
    )


def attention_change(
    attn: Attention,
    base: LayerRecord,
    span: Span,
    dq: Float[Tensor, "batch branch kept head d_head"],
    dk: Float[Tensor, "batch branch row kv_head d_head"],
    dv: Float[Tensor, "batch branch row kv_head d_head"],
    at: Int[Tensor, "batch kept"],
    mul: Products,
) -> Float[Tensor, "batch branch kept head d_head"]:
    """z' - z by the suffix-attention kernel: one group of branches per prompt."""
    groups = mul.fixed(lambda: _groups(*dq.shape[:2], span, at))
    tables = (x.contiguous() for x in (base.q, base.k, base.v, base.z))
    changes = (x.flatten(0, 2).contiguous() for x in (dq, dk, dv))
    return mul.run("suffix_attention", *tables, groups, *changes, attn.scale).view_as(dq)
