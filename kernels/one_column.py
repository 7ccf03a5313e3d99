"""One-column softmax update: what one changed key and value does to base attention rows.

For a row with weights a_j over the columns, a = a_p = exp(s_p - lse) the weight of the changed column, r = 1 - a that
of the rest, lse_rest = lse + log r, scores s_p before and s' = s_p + ds after,

    t = sigmoid(s' - lse_rest)
    t - a = t r (-expm1(-ds))  where ds > 0,   a (1 - t) expm1(ds)  elsewhere
    o' - o = (t - a) (v_p - o_rest) + t dv,    v_p - o_rest = (v_p - o) / r

which subtracts no weight or output from another that is close to it: ds is the product of q with dk, taken beside the
one with k + dk. One exception is left: r and v_p - o lose all digits as a -> 1 (attention sinks). Weights sum to 1, so
at most one column of a row can have a > 1/2; for the column with the largest weight (`top`) the base run therefore
stores log-sum-exp and output without it (`lse_rest`, `o_rest`). Source: softmax algebra; "argmax-out" form of the
patching note.

Memory traffic per (row, head), in units of 4 d_head bytes: base tile q, o, o_rest read once per PER_PROGRAM patches
(3), then one output written per patch (1). dk, dv, k_p, v_p of a patch are read once per tile of rows, from cache. Some
15 d_head operations per output row: bound by the output.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.lazy import Config, Launch, architecture, constexpr, jit, power_of_2

if TYPE_CHECKING:
    import triton.language as tl

PER_PROGRAM = 64  # patches that one program writes from the base tile it holds


@dataclass(frozen=True)
class State:
    """Attention of a base run, row by row, with and without each row's largest weight."""

    lse: Float[Tensor, "batch q_pos head"]
    o: Float[Tensor, "batch q_pos head d_head"]
    top: Int[Tensor, "batch q_pos head"]  # the column with the largest weight
    lse_rest: Float[Tensor, "batch q_pos head"]  # -inf where there is no other column
    o_rest: Float[Tensor, "batch q_pos head d_head"]


@dataclass(frozen=True)
class Patches:
    """Patch j changes column `column[j]` of prompt `prompt[j]`, and rows start[j] .. stop[j] - 1 are wanted.

    Output rows are packed: those of patch 0, then those of patch 1, and so on.
    """

    prompt: Int[Tensor, "patch"]
    column: Int[Tensor, "patch"]
    start: Int[Tensor, "patch"]  # not before the column, which earlier rows do not see
    stop: Int[Tensor, "patch"]

    @cached_property
    def n_rows(self) -> int:
        """Output rows of all patches."""
        return int((self.stop - self.start).sum())

    @cached_property
    def per_prompt(self) -> int:
        """Patches of the prompt that has most."""
        return int(torch.bincount(self.prompt).max()) if len(self.prompt) else 0

    def rows(self) -> tuple[Int[Tensor, "row"], Int[Tensor, "row"]]:
        """Patch and query position of every output row."""
        counts = self.stop - self.start
        patch = torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=self.n_rows)
        first = counts.cumsum(0) - counts  # [patch]
        return patch, torch.arange(self.n_rows, device=counts.device) - first[patch] + self.start[patch]


def recorded(scores: Float[Tensor, "batch head q_pos k_pos"], v: Float[Tensor, "batch k_pos kv_head d_head"]) -> State:
    """The state of a base run from its scaled scores, -inf where a key is hidden; every row sees at least one key.

    One exponential per score and one product with v: the full output is combined from the one without `top`.
    """
    heads, kv_heads = scores.shape[1], v.shape[2]
    largest, top = scores.max(-1)  # [batch head q_pos]
    rest = scores.scatter(-1, top[..., None], -torch.inf)
    second = rest.amax(-1, keepdim=True)
    alone = second[..., 0] == -torch.inf
    rest.sub_(second.masked_fill(alone[..., None], 0)).exp_()
    total = rest.sum(-1)  # [batch head q_pos], at least 1 unless alone
    lse_rest = second[..., 0] + total.log()
    rest.div_(total.masked_fill(alone, 1)[..., None])
    values = v.transpose(1, 2)  # [batch kv_head k_pos d_head]
    o_rest = (rest.unflatten(1, (kv_heads, heads // kv_heads)) @ values[:, :, None]).flatten(1, 2)
    index = top.unflatten(1, (kv_heads, heads // kv_heads)).flatten(2)[..., None].expand(-1, -1, -1, v.shape[-1])
    v_top = values.gather(2, index).view_as(o_rest)
    o = torch.lerp(o_rest, v_top, torch.sigmoid(largest - lse_rest)[..., None])  # [batch head q_pos d_head]
    lse = torch.logaddexp(largest, lse_rest)
    return State(*(x.transpose(1, 2).contiguous() for x in (lse, o, top, lse_rest, o_rest)))


def moved(
    score: Float[Tensor, "*#row"],
    new_score: Float[Tensor, "*#row"],
    d_score: Float[Tensor, "*#row"],
    is_top: Bool[Tensor, "*#row"],
    lse: Float[Tensor, "*#row"],
    lse_rest: Float[Tensor, "*#row"],
    o: Float[Tensor, "*#row d_head"],
    o_rest: Float[Tensor, "*#row d_head"],
    v: Float[Tensor, "*#row d_head"],
    d_v: Float[Tensor, "*#row d_head"],
) -> Float[Tensor, "*#row d_head"]:
    """o' - o by the formulas above; every argument broadcasts, so that patches of one column share its base rows.

    Args:
        score: s_p, -inf with new_score -inf where the row does not see the column (the result is 0 there).
        d_score: their difference, from the difference of the keys.
        is_top: whether the column is the row's `top`; lse_rest and o_rest are read only there.
        v: base value of the column.
    """
    rest = (lse_rest - lse).exp()
    a = torch.where(is_top & (rest < 0.5), 1 - rest, (score - lse).exp())  # 1 - rest is free of the score's rounding
    rest = torch.where(is_top, rest, 1 - a)
    x = new_score - torch.where(is_top, lse_rest, lse + torch.log1p(-a))
    t = x.sigmoid()
    change = torch.where(d_score > 0, -t * rest * torch.expm1(-d_score), a * (-x).sigmoid() * torch.expm1(d_score))
    change = torch.where(is_top, change, change / rest)
    toward = v - torch.where(is_top[..., None], o_rest, o)
    return torch.addcmul(change[..., None] * toward, t[..., None], d_v)


def reference(
    q: Float[Tensor, "batch q_pos head d_head"],
    k: Float[Tensor, "batch k_pos kv_head d_head"],
    v: Float[Tensor, "batch k_pos kv_head d_head"],
    state: State,
    patches: Patches,
    d_k: Float[Tensor, "patch kv_head d_head"],
    d_v: Float[Tensor, "patch kv_head d_head"],
    scale: float,
) -> Float[Tensor, "row head d_head"]:
    """o' - o of the rows that each patch wants; query head h reads key head h // (heads / kv_heads)."""
    patch, pos = patches.rows()
    prompt, column = patches.prompt, patches.column
    group = q.shape[2] // k.shape[2]

    def per_row(x: Tensor) -> Tensor:
        return x.repeat_interleave(group, 1)[patch]  # [row head d_head]

    at = (prompt[patch], pos)
    query = q[at]  # [row head d_head]
    key = k[prompt, column]
    score, new_score, d_score = ((query * per_row(x)).sum(-1) * scale for x in (key, key + d_k, d_k))
    is_top = state.top[at] == column[patch][:, None]
    base = (state.lse[at], state.lse_rest[at], state.o[at], state.o_rest[at])
    return moved(score, new_score, d_score, is_top, *base, per_row(v[prompt, column]), per_row(d_v))


@jit
def expm1(x):
    """exp(x) - 1, by its Taylor polynomial where exp(x) is near 1."""
    near = tl.where(tl.abs(x) < 0.5, x, 0.0)
    y = 1.0 + near * (1.0 / 9.0)
    y = 1.0 + near * y * (1.0 / 8.0)
    y = 1.0 + near * y * (1.0 / 7.0)
    y = 1.0 + near * y * (1.0 / 6.0)
    y = 1.0 + near * y * (1.0 / 5.0)
    y = 1.0 + near * y * (1.0 / 4.0)
    y = 1.0 + near * y * (1.0 / 3.0)
    y = 1.0 + near * y * 0.5
    return tl.where(tl.abs(x) < 0.5, near * y, tl.exp(x) - 1.0)


@jit
def coefficients(score, new_score, d_score, is_top, lse, lse_rest):
    """What multiplies v_p - o (v_p - o_rest for `top`), and t."""
    rest = tl.exp(lse_rest - lse)
    a = tl.where(is_top & (rest < 0.5), 1.0 - rest, tl.exp(score - lse))
    rest = tl.where(is_top, rest, tl.maximum(1.0 - a, 0.25))  # below 1/2 only in rows not wanted
    x = new_score - tl.where(is_top, lse_rest, lse + tl.log(tl.where(is_top, 1.0, rest)))
    t = 1.0 / (1.0 + tl.exp(-x))
    kept = 1.0 / (1.0 + tl.exp(x))
    change = tl.where(d_score > 0, -t * rest * expm1(-d_score), a * kept * expm1(d_score))
    return change / tl.where(is_top, 1.0, rest), t


@jit
def one_column_kernel(
    q, k, v, lse, o, top, lse_rest, o_rest,
    order, begin, column, start, stop, offset, d_k, d_v, out,
    n_q, n_k, heads, kv_heads, scale,
    D: constexpr, BLOCK_D: constexpr, BM: constexpr, PER_PROGRAM: constexpr,
):  # fmt: skip
    """Grid (tile of rows, prompt and head, portion of the prompt's patches)."""
    tile, batch, head = tl.program_id(0) * BM, tl.program_id(1) // heads, tl.program_id(1) % heads
    kv_head = head // (heads // kv_heads)
    pos, dim = tile + tl.arange(0, BM), tl.arange(0, BLOCK_D)
    row = (batch * n_q + pos) * heads + head
    wide = row[:, None] * D + dim[None, :]
    mask = (pos < n_q)[:, None] & (dim < D)[None, :]
    q_tile = tl.load(q + wide, mask, 0.0).to(tl.float32)
    o_tile = tl.load(o + wide, mask, 0.0).to(tl.float32)
    rest_tile = tl.load(o_rest + wide, mask, 0.0).to(tl.float32)
    lse_row = tl.load(lse + row, pos < n_q, 0.0).to(tl.float32)
    lse_rest_row = tl.load(lse_rest + row, pos < n_q, 0.0).to(tl.float32)
    top_row = tl.load(top + row, pos < n_q, -1)
    first = tl.load(begin + batch) + tl.program_id(2) * PER_PROGRAM
    last = tl.minimum(first + PER_PROGRAM, tl.load(begin + batch + 1))
    for i in range(first, last):
        j = tl.load(order + i)
        low, high, p = tl.load(start + j), tl.load(stop + j), tl.load(column + j)
        if (low < tile + BM) & (high > tile):
            base = ((batch * n_k + p) * kv_heads + kv_head) * D + dim
            fresh = (j * kv_heads + kv_head) * D + dim
            k_p = tl.load(k + base, dim < D, 0.0).to(tl.float32)
            v_p = tl.load(v + base, dim < D, 0.0).to(tl.float32)
            dk = tl.load(d_k + fresh, dim < D, 0.0).to(tl.float32)
            dv = tl.load(d_v + fresh, dim < D, 0.0).to(tl.float32)
            is_top = top_row == p
            score = tl.sum(q_tile * k_p[None, :], 1) * scale
            new_score = tl.sum(q_tile * (k_p + dk)[None, :], 1) * scale
            d_score = tl.sum(q_tile * dk[None, :], 1) * scale
            change, t = coefficients(score, new_score, d_score, is_top, lse_row, lse_rest_row)
            toward = v_p[None, :] - tl.where(is_top[:, None], rest_tile, o_tile)
            moved_tile = change[:, None] * toward + t[:, None] * dv[None, :]
            out_row = (tl.load(offset + j) + pos - low) * heads + head
            wanted = (pos >= low) & (pos < high)
            tl.store(out + out_row[:, None] * D + dim[None, :], moved_tile, wanted[:, None] & (dim < D)[None, :])


def untested(q: Tensor, k: Tensor, v: Tensor, state: State, patches: Patches, d_k: Tensor, *rest) -> str | None:
    """Why the kernel is not to be trusted with these arguments; None where it is tested."""
    if {x.dtype for x in (q, k, v, state.o, d_k)} != {torch.float32}:
        return f"dtype {q.dtype}, tested with torch.float32"
    return None if q.shape[-1] <= 128 else f"d_head {q.shape[-1]}, tested up to 128"


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: State,
    patches: Patches,
    d_k: Tensor,
    d_v: Tensor,
    scale: float,
    *,
    arch: str,
) -> Launch:
    """The kernel with its tables and an output that it fills."""
    batch, n_q, heads, d_head = q.shape
    block = power_of_2(d_head)
    tile = 32 if block <= 64 else 16
    config = Config({"BM": tile, "BLOCK_D": block}, num_warps=4 if tile * block <= 1024 else 8)
    counts = patches.stop - patches.start
    prompts = torch.arange(batch + 1, device=q.device)
    in_order, order = patches.prompt.sort(stable=True)
    out = torch.empty(patches.n_rows, heads, d_head, dtype=q.dtype, device=q.device)
    small = {
        "order": order,
        "begin": torch.searchsorted(in_order, prompts),
        "column": patches.column,
        "start": patches.start,
        "stop": patches.stop,
        "top": state.top,
    }
    large = {"q": q, "k": k, "v": v, "d_k": d_k, "d_v": d_v}
    large |= {name: getattr(state, name) for name in ("lse", "o", "lse_rest", "o_rest")}
    arguments = {name: x.to(torch.int32).contiguous() for name, x in small.items()}
    arguments |= {name: x.contiguous() for name, x in large.items()}
    arguments |= {"offset": counts.cumsum(0) - counts, "out": out, "n_q": n_q, "n_k": k.shape[1]}
    arguments |= {"heads": heads, "kv_heads": k.shape[2], "scale": scale}
    grid = (-(-n_q // tile), batch * heads, -(-patches.per_prompt // PER_PROGRAM))
    grid = grid if out.numel() else (0, 1, 1)
    return Launch(one_column_kernel, grid, arguments, {"D": d_head, "PER_PROGRAM": PER_PROGRAM}, config, out)


def launch(
    q: Float[Tensor, "batch q_pos head d_head"],
    k: Float[Tensor, "batch k_pos kv_head d_head"],
    v: Float[Tensor, "batch k_pos kv_head d_head"],
    state: State,
    patches: Patches,
    d_k: Float[Tensor, "patch kv_head d_head"],
    d_v: Float[Tensor, "patch kv_head d_head"],
    scale: float,
) -> Float[Tensor, "row head d_head"]:
    """The reference's result, by the kernel."""
    return prepare(q, k, v, state, patches, d_k, d_v, scale, arch=architecture(q.device)).start()


class Case(NamedTuple):
    """Sizes of one example."""

    batch: int = 1
    n_pos: int = 40
    heads: int = 2
    kv_heads: int = 2
    d_head: int = 32
    n_patches: int = 5
    sink: float = 0.0  # how far the score of column 0 stands above the others
    size: float = 1.0  # scale of the differences
    last_only: bool = False


CASES = {
    "d_head 32": Case(),
    "d_head 64, grouped queries, two ragged prompts": Case(batch=2, heads=4, kv_heads=2, d_head=64),
    "d_head 128": Case(n_pos=33, d_head=128, heads=1, kv_heads=1),
    "d_head 24, last row only": Case(d_head=24, last_only=True, n_patches=9),
    "small differences": Case(size=1e-5),
    "d_head 80": Case(d_head=80, n_pos=20),
    "more patches than one program writes": Case(n_pos=6, heads=1, kv_heads=1, d_head=16, n_patches=70),
    "sink, 1 - a about 1e-3": Case(sink=10.0, n_patches=8),
    "sink, 1 - a about 1e-9": Case(sink=24.0, n_patches=8),
    "single position": Case(n_pos=1, n_patches=2),
    "no patches": Case(n_patches=0),
}


def example(case: Case, generator: torch.Generator) -> tuple:
    """Random float32 arguments of those sizes; the first patch is of column 0, and changes down as well as up occur."""
    shape, kv_shape = ((case.batch, case.n_pos, n, case.d_head) for n in (case.heads, case.kv_heads))
    q, k, v = (torch.randn(s, generator=generator) for s in (shape, kv_shape, kv_shape))
    scale = case.d_head**-0.5
    q[..., 0] = 3.0
    k[..., 0], k[:, 0, :, 0] = 0.0, case.sink / (3.0 * scale)
    scores = torch.einsum("bihd,bjhd->bhij", q, k.repeat_interleave(case.heads // case.kv_heads, 2)) * scale
    hidden = torch.ones(case.n_pos, case.n_pos, dtype=torch.bool).triu(1)
    state = recorded(scores.masked_fill(hidden, -torch.inf).double(), v.double())
    state = State(*(x.float() if x.is_floating_point() else x for x in vars(state).values()))
    n = case.n_patches
    prompt = torch.randint(case.batch, (n,), generator=generator).sort().values
    column = torch.randint(case.n_pos, (n,), generator=generator)
    column[: n // 2 + 1] = 0 if case.sink else column[: n // 2 + 1]
    stop = case.n_pos - prompt  # prompts of unequal length
    column = column.clamp(max=stop - 1)
    start = stop - 1 if case.last_only else column
    d_k, d_v = (torch.randn(n, case.kv_heads, case.d_head, generator=generator) * case.size for _ in range(2))
    d_k[::2, :, 0] -= case.sink / (3.0 * scale)
    return q, k, v, state, Patches(prompt, column, start, stop), d_k, d_v, scale
