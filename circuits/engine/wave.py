"""Carries differences through one block at a time: norms recomputed, nothing frozen, unchanged rows never touched.

A branch is one patch. It starts as the difference of one row and, from the next block on, is a difference of all rows
from its position to the last one that the metric needs. Formulas: patching note, sections 1.1 to 1.5; the exactness of
each step is that of its float arithmetic.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from circuits.engine import packed
from circuits.engine.neurons import changed_neurons
from circuits.engine.products import Products
from circuits.engine.record import LayerRecord
from circuits.engine.rows import OneRow, Rows, Span, narrow
from interp.decoder import Attention, Layer, Norm, Rotary
from kernels.delta_norm import changed

CACHED_ROWS = 768  # rows whose MLP is computed at once on a CPU: their neurons are still in the cache when read again


def norm_delta(
    norm: Norm | None,
    base: Float[Tensor, "batch pos d_model"],
    rows: OneRow | Rows,
    delta: Float[Tensor, "batch branch *row d_model"],
    mul: Products,
) -> Float[Tensor, "batch branch *row d_model"]:
    """norm(base + delta) - norm(base) at the rows, with the norm recomputed and not linearised."""
    if norm is None:
        return delta
    if mul.kernel_for("delta_norm", delta):
        return packed.norm_delta(norm, base, rows, delta, mul)
    x, scale = (rows.take(table) for table in mul.standardised(norm, base))
    both_forms = {} if mul.tape is None else {"both": True}  # which rows need which form is not known beforehand
    return changed(x, scale, delta, norm.w, norm.eps, norm.centred, **both_forms)


def mlp_delta(
    layer: Layer,
    base: LayerRecord,
    rows: OneRow | Rows,
    delta: Float[Tensor, "batch branch *row d_model"],
    mul: Products,
    onto: Float[Tensor, "batch branch *row d_model"] | None = None,
) -> Float[Tensor, "batch branch *row d_model"]:
    """What a change of the MLP's residual input changes in its output, in pieces that stay in a CPU's cache.

    Args:
        onto: what to add it to, in place; may be `delta` itself. None for nothing.
    """
    n_batch, n_branch = delta.shape[:2]
    per_branch = n_batch * (1 if isinstance(rows, OneRow) else rows.count)
    size = n_branch if delta.is_cuda else max(1, CACHED_ROWS // per_branch)
    if n_branch <= 2 * size:
        post = mlp_post_delta(layer, base, rows, delta, mul)
        return mul(post, layer.mlp.W_out) if onto is None else mul.onto(onto, post, layer.mlp.W_out)
    size = even(n_branch, size)
    out = torch.empty_like(delta, memory_format=torch.contiguous_format) if onto is None else onto
    for first in range(0, n_branch, size):
        part = slice(first, first + size)
        some = OneRow(rows.p[part]) if isinstance(rows, OneRow) else rows
        post = mlp_post_delta(layer, base, some, delta[:, part], mul)
        (mul.into if onto is None else mul.onto)(out[:, part], post, layer.mlp.W_out)
    return out


def even(count: int, most: int) -> int:
    """The size of the fewest equal parts of at most `most`: products of a few rows left over are slow."""
    return -(-count // -(-count // most)) if count else most


def mlp_post_delta(
    layer: Layer,
    base: LayerRecord,
    rows: OneRow | Rows,
    delta: Float[Tensor, "batch branch *row d_model"],
    mul: Products,
) -> Float[Tensor, "batch branch *row d_mlp"]:
    """What a change of the MLP's residual input changes in its neurons."""
    mlp, reads = layer.mlp, base.pre if layer.parallel else base.mid
    dy = norm_delta(layer.ln2, reads, rows, delta, mul)
    inner = _before_activation(rows, base.inner, dy, mlp.W_in, mul)
    gate = None if mlp.W_gate is None else _before_activation(rows, base.gate, dy, mlp.W_gate, mul)
    return changed_neurons(mlp.activation, inner, gate, rows.take(base.mlp_post))


def _before_activation(
    rows: OneRow | Rows, base: Tensor, dy: Tensor, weight: Tensor, mul: Products
) -> Float[Tensor, "batch branch *row d_mlp"]:
    """What neurons are before the activation in the patched runs: the product is added to the base run's rows."""
    if isinstance(rows, OneRow):  # taking the rows has made a copy to add to
        return mul.onto(rows.take(base), dy, weight)
    return mul(dy, weight).add_(rows.take(base))


def turned(rotary: Rotary | None, x: Float[Tensor, "*row head d_head"], position: Int[Tensor, "*#row"]) -> Tensor:
    """x after rotary positions, which are linear: they turn differences as they turn values."""
    return x if rotary is None else rotary(x, position)


def suffix_attention(
    layer: Layer,
    base: LayerRecord,
    span: Span,
    dy: Float[Tensor, "batch branch row d_model"],
    out: Rows,
    first: Int[Tensor, "branch"],
    mul: Products,
) -> Float[Tensor, "batch branch kept head d_head"]:
    """z' - z at rows `out` for branches whose whole suffix changed; keys before the span are the base run's."""
    attn, n_batch = layer.attn, len(dy)
    position = span.positions(n_batch, dy.device)[:, None]  # [batch 1 row]
    dk, dv = mul.keys_values(dy, attn)
    dk = turned(attn.rotary, dk, position)
    at = out.positions(n_batch, dy.device)  # [batch kept]
    dq = turned(attn.rotary, mul.heads(narrow(dy, span, out), attn.W_Q), at[:, None])
    dz = attention_change(attn, base, span, dq, dk, dv, out, mul)
    return dz.masked_fill_((at[:, None] < first[:, None])[..., None, None], 0)


def attention_change(
    attn: Attention,
    base: LayerRecord,
    span: Span,
    dq: Float[Tensor, "batch branch kept head d_head"],
    dk: Float[Tensor, "batch branch row kv_head d_head"],
    dv: Float[Tensor, "batch branch row kv_head d_head"],
    out: Rows,
    mul: Products,
) -> Float[Tensor, "batch branch kept head d_head"]:
    """z' - z at rows `out` when queries there, and keys and values of the span, change (after rotary positions)."""
    at = out.positions(len(dq), dq.device)  # [batch kept]
    counted = isinstance(out, Span) or mul.fixed(lambda: bool(out.counts.all()))
    if mul.kernel_for("suffix_attention", dq) and counted:
        return packed.attention_change(attn, base, span, dq, dk, dv, at, mul)
    q = dq + out.take(base.q)
    k, v = _with_suffix(base.k, dk, span), _with_suffix(base.v, dv, span)  # [batch*branch kv_head key d_head]
    if isinstance(out, Span) or mul.fixed(lambda: bool((at == at[:1]).all())):
        at = at[:1]  # the same for all prompts
    later = torch.arange(span.stop, device=dq.device) > at[..., None]  # [1 or batch, kept key]
    z = _grouped_attention(q, k, v, ~later, attn.group, attn.scale)
    mul.count(4 * q.numel() * span.stop)
    return z.sub_(out.take(base.z))


def _with_suffix(base: Tensor, delta: Tensor, span: Span) -> Float[Tensor, "case kv_head key d_head"]:
    """Base keys (or values) before the span, changed ones within it."""
    n_batch, n_branch, _, heads, d_head = delta.shape
    whole = delta.new_empty(n_batch, n_branch, span.stop, heads, d_head)  # [batch branch key head d_head]
    whole[:, :, : span.start] = base[:, None, : span.start]
    torch.add(delta, base[:, None, span.start : span.stop], out=whole[:, :, span.start :])
    return whole.view(n_batch * n_branch, span.stop, heads, d_head).transpose(1, 2)


def _grouped_attention(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, group: int, scale: float
) -> Float[Tensor, "batch branch kept head d_head"]:
    """Attention of the kept rows; the query heads of one key head are stacked as further rows."""
    n_batch, n_branch, n_rows, heads, d_head = q.shape
    q = q.view(n_batch * n_branch, n_rows, heads // group, group, d_head).permute(0, 2, 3, 1, 4).flatten(2, 3)
    visible = visible.repeat(1, group, 1)  # [batch group*kept key]
    mask = visible[0] if len(visible) == 1 else visible.repeat_interleave(n_branch, 0)[:, None]
    z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)  # [case kv_head group*kept d_head]
    z = z.unflatten(2, (group, n_rows)).permute(0, 3, 1, 2, 4)  # [case kept kv_head group d_head]
    return z.reshape(n_batch, n_branch, n_rows, heads, d_head)
