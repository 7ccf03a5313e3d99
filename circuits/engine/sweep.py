"""The wave front: branches join at their layer, and one product per weight matrix carries all of them onwards."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.engine.one_column import column_update, own_row
from circuits.engine.products import Products
from circuits.engine.record import LayerRecord, Record
from circuits.engine.rows import Chosen, OneRow, OwnRows, Rows, Span, narrow
from circuits.engine.wave import even, mlp_delta, norm_delta, suffix_attention, turned
from interp.decoder import Decoder, Layer
from kernels.one_column import State


@dataclass(frozen=True)
class Branches:
    """Patches at one stage: differences of one row each [batch branch d_model], or of many [batch branch row d_model].

    `p` is each branch's first changed position, and `slot` where its result belongs.
    """

    delta: Tensor
    p: Int[Tensor, "branch"]
    slot: Int[Tensor, "branch"]


@dataclass(frozen=True)
class Joining:
    """Branches that begin in one layer; all of them may be given.

    Attributes:
        mid: differences of one row of the stream between attention and MLP; written over.
        spread: the same for all rows that the layer carries on, as a patched key or value causes.
        post: differences of one row of the stream after the block.
        spread_post: the same for all rows.
    """

    mid: Branches | None = None
    spread: Branches | None = None
    post: Branches | None = None
    spread_post: Branches | None = None


BLOCK = 1 << 19  # numbers of the stream that go through one block of the model together on a CPU
Finish = Callable[[Branches, OneRow | Rows], None]
QueriesAt = Callable[[int, Rows], State]


def sweep(
    decoder: Decoder,
    base: Record,
    joining: Callable[[int, Rows], Joining],
    span: Span,
    out: Rows,
    finish: Finish,
    queries: QueriesAt,
    mul: Products,
) -> None:
    """Carry all branches to the final residual stream and hand them to `finish`.

    Args:
        joining: the branches that begin in a layer, given the rows that it carries on; -1 stands for the embedding,
            where only `post` and `spread_post` are read.
        span: positions that branches may change, up to the last one that the metric needs.
        out: rows that the metric reads, within the span.
        queries: attended state of the base run in a layer, at some rows.
    """
    embedded, last = joining(-1, span), len(decoder.layers) - 1
    one, full = embedded.post, embedded.spread_post
    for number, layer in enumerate(decoder.layers):
        kept = base.layers[number]
        rows = out if number == last else span
        joins = joining(number, rows)
        mid, spread = joins.mid, joins.spread
        if number == last and mid is not None and rows.count == 1 and not layer.parallel:
            spread, mid = merged([spread, _at_rows(mid, rows)]), None  # no dearer there than alone
        stack = Stack.of(base.final, rows.count, [spread, full, one, joins.spread_post])
        if spread is not None:
            stack.take(spread)
        for some in () if full is None else blocks(full, span.count):
            room = stack.room(len(some.p))
            before = _attention_of_full(layer, kept, span, rows, some, room, mul)
            _add_parallel_mlp(layer, kept, rows, room, before, mul)
        if one is not None:
            state = queries(number, rows)
            for some in blocks(one, rows.count):
                room = stack.room(len(some.p))
                before = _attention_of_one(layer, kept, rows, some, state, room, mul)
                _add_parallel_mlp(layer, kept, rows, room, before, mul)
        if stack.done and layer.mlp is not None and not layer.parallel:
            mid_of_all = stack.branches.delta[:, : stack.done]
            mlp_delta(layer, kept, rows, mid_of_all, mul, onto=mid_of_all)
        if joins.spread_post is not None:
            stack.take(joins.spread_post)
        full = stack.branches
        if mid is not None and layer.mlp is not None and not layer.parallel:
            changed = mlp_delta(layer, kept, OneRow(mid.p), mid.delta, mul, onto=mid.delta)
            mid = Branches(changed, mid.p, mid.slot)
        one = merged([mid, joins.post])
    if full is not None:
        finish(full, out)
    if one is not None:
        finish(one, OneRow(one.p))


def merged(several: Iterable[Branches | None]) -> Branches | None:
    """Several sets of branches as one; None for no branches at all."""
    parts = [part for part in several if part is not None and len(part.p)]
    if len(parts) < 2:
        return parts[0] if parts else None
    return Branches(*(torch.cat([getattr(part, name) for part in parts], axis) for name, axis in FIELDS))


FIELDS = (("delta", 1), ("p", 0), ("slot", 0))


@dataclass
class Stack:
    """Branches of many rows that leave a block, written into one tensor part by part; `done` of them are."""

    branches: Branches | None
    done: int = 0

    @classmethod
    def of(cls, like: Float[Tensor, "batch pos d_model"], n_rows: int, parts: Sequence[Branches | None]) -> "Stack":
        """Room for the parts given, in this order; their own differences may be of one row or of many."""
        there = [part for part in parts if part is not None and len(part.p)]
        if not there:
            return cls(None)
        one = len(there) == 1
        p, slot = (
            getattr(there[0], name) if one else torch.cat([getattr(part, name) for part in there])
            for name in ("p", "slot")
        )
        return cls(Branches(like.new_empty(len(like), len(p), n_rows, like.shape[-1]), p, slot))

    def room(self, count: int) -> Float[Tensor, "batch branch row d_model"]:
        """Where the next branches go."""
        self.done += count
        return self.branches.delta[:, self.done - count : self.done]

    def take(self, part: Branches) -> Float[Tensor, "batch branch row d_model"]:
        """The next branches, copied to their place."""
        return self.room(len(part.p)).copy_(part.delta) if len(part.p) else part.delta


def _at_rows(one: Branches, rows: Rows) -> Branches:
    """Branches of one row as differences of the rows given, zero but at their own."""
    own = rows.positions(len(one.delta), one.p.device)[:, None] == one.p[:, None]  # [batch branch row]
    return Branches(one.delta[:, :, None] * own[..., None], one.p, one.slot)


def _attention_of_full(
    layer: Layer, base: LayerRecord, span: Span, rows: Rows, full: Branches, room: Tensor, mul: Products
) -> Tensor | None:
    """Write the stream after attention into `room`; its difference before, for the MLP of a parallel block."""
    dy = norm_delta(layer.ln1, base.pre, span, full.delta, mul)
    dz = suffix_attention(layer, base, span, dy, rows, full.p, mul)
    before = narrow(full.delta, span, rows)
    carried = narrow(dy, span, rows) if layer.adds_to_normed else before
    mul.into(room, dz.flatten(-2), layer.attn.W_O.flatten(0, 1)).add_(carried)
    return before


def _attention_of_one(
    layer: Layer, base: LayerRecord, rows: Rows, one: Branches, state: State, mid: Tensor, mul: Products
) -> Tensor | None:
    """One changed row: later queries see one changed column, and the row itself has a new query; writes `mid`."""
    attn, here = layer.attn, OneRow(one.p)
    dy = norm_delta(layer.ln1, base.pre, here, one.delta, mul)
    position = here.positions(len(dy))
    dk, dv = mul.keys_values(dy, attn)
    dk = turned(attn.rotary, dk, position)
    dz = column_update(attn, state, base, rows, one.p, dk, dv, mul)  # [batch branch row head d_head]
    own = mul.fixed(lambda: OwnRows.of(rows, one.p, len(dy)))
    if len(own.branch):  # branches whose own row is needed
        some = own.branch
        dq = turned(attn.rotary, mul.heads(dy[:, some], attn.W_Q), position[:, some])
        own.put(dz, own_row(attn, base, one.p[some], dq, dk[:, some], dv[:, some], mul))
    mul.into(mid, dz.flatten(-2), attn.W_O.flatten(0, 1))
    own.add(mid, (dy if layer.adds_to_normed else one.delta)[:, own.branch])
    before = None
    if layer.parallel:
        before = torch.zeros_like(mid)
        own.add(before, one.delta[:, own.branch])
    return before


def _add_parallel_mlp(
    layer: Layer, base: LayerRecord, rows: Rows, mid: Tensor, before: Tensor | None, mul: Products
) -> None:
    """Add what the MLP of a parallel block changes to differences `mid`; it reads `before`, None for nothing."""
    if layer.parallel and layer.mlp is not None and before is not None:
        mlp_delta(layer, base, rows, before, mul, onto=mid)


def blocks(branches: Branches, n_rows: int) -> Iterable[Branches]:
    """Branches in groups whose rows stay in a CPU's cache through a block; on a GPU all at once."""
    n_batch, width = len(branches.delta), branches.delta.shape[-1]
    size = even(len(branches.p), max(1, BLOCK // (n_batch * n_rows * width)))
    if branches.delta.is_cuda or len(branches.p) <= size:
        return (branches,)
    parts = zip(branches.delta.split(size, 1), branches.p.split(size), branches.slot.split(size), strict=True)
    return (Branches(*part) for part in parts)


def rows_to_read(read: Bool[Tensor, "batch pos"], span: Span) -> Rows:
    """The rows of the span that the metric reads: the span itself where that is every row, else a list per prompt.

    A prompt without any such row gets the span's first one, which does not count.
    """
    within = read[:, span.start : span.stop]
    if bool(within.all()):
        return span
    most = max(1, int(within.sum(1).max()))
    order = within.int().argsort(dim=1, descending=True, stable=True)[:, :most]  # read rows first, in order
    return Chosen(order + span.start, within.gather(1, order))
