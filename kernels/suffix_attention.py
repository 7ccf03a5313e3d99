"""Branch-packed suffix attention: rows of many patches against one shared base prefix and their own changed suffix.

A branch changes positions `first` .. `stop` - 1 of its prompt; for its query at position i and head h

    o' = softmax_j(scale * q'_i . k'_j) v'_j   over j <= i,   with q' = q + dq, k' = k + dk, v' = v + dv,

where dk and dv are zero for j < first, and the result is o' - o. Branches of one prompt and one `first` form a group
and lie together. A tile of BM query rows of a group reads the base keys j < first once for all branches in it, then the
packed rows of its own branches under the mask "same branch and j <= i", in one online softmax: no padding, no copy of
the prefix, no second pass to merge. Base q, k, v and o are gathered inside: inputs and outputs are differences. Source:
prefix sharing as in Hydragen (Juravsky et al. 2024), with differences in and out.

The rounding error of the result is relative to o, not to the difference.

Memory traffic per tile and head, in units of 4 d_head bytes: 3 BM (dq, q, o) + 2 first (base k, v, from cache for all
tiles but the first) + 4 BN per block of own keys (k, dk, v, dv), and BM written. 4 d_head operations per visible pair
of query and key: bound by arithmetic from about 100 keys on.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.lazy import Config, Launch, architecture, constexpr, jit, power_of_2, tiles_for

if TYPE_CHECKING:
    import triton.language as tl


@dataclass(frozen=True)
class Groups:
    """Branches that share prompt and first changed position, group by group.

    Key rows are packed [group][branch][position first .. stop - 1], query rows [group][branch][query of the group]. The
    queries of group g are query_pos[query_begin[g]] .. query_pos[query_begin[g + 1] - 1], in ascending order and none
    before `first`: all of first .. stop - 1, or only those that a metric reads. The tables live on the CPU.
    """

    prompt: Int[Tensor, "group"]
    first: Int[Tensor, "group"]
    stop: Int[Tensor, "group"]
    branches: Int[Tensor, "group"]
    query_pos: Int[Tensor, "query"]
    query_begin: Int[Tensor, "group_plus_1"]

    @cached_property
    def placed(self) -> dict[tuple[torch.device, int], dict[str, Tensor]]:
        """Tables by device and size of a tile, as `on` has copied them."""
        return {}

    @cached_property
    def query_rows(self) -> Int[Tensor, "group_plus_1"]:
        """Where each group's query rows begin, and their total."""
        return _starts(self.branches * self.query_begin.diff())

    @cached_property
    def key_rows(self) -> Int[Tensor, "group_plus_1"]:
        """Where each group's key rows begin, and their total."""
        return _starts(self.branches * (self.stop - self.first))

    def tiles(self, size: int) -> tuple[Int[Tensor, "tile"], Int[Tensor, "tile"]]:
        """Group and first query row (within the group) of each tile of at most `size` rows; none spans two groups."""
        per_group = -(-self.query_rows.diff() // size)
        group = torch.arange(len(per_group)).repeat_interleave(per_group)
        return group, (torch.arange(len(group)) - _starts(per_group)[group]) * size

    def on(self, device: torch.device, size: int) -> dict[str, Tensor]:
        """All tables on a device, with tiles of at most `size` rows; copied once."""
        if (device, size) not in self.placed:
            group, row = self.tiles(size)
            short = {"tile_group": group, "tile_row": row}
            short |= {name: getattr(self, name) for name in ("prompt", "first", "stop", "query_pos", "query_begin")}
            found = {name: x.to(device, torch.int32).contiguous() for name, x in short.items()}
            long = {name: getattr(self, name).to(device, torch.int64) for name in ("query_rows", "key_rows")}
            self.placed[device, size] = found | long
        return self.placed[device, size]


def _starts(counts: Int[Tensor, "group"]) -> Int[Tensor, "group_plus_1"]:
    return torch.cat((counts.new_zeros(1), counts.cumsum(0)))


def reference(
    q: Float[Tensor, "batch pos head d_head"],
    k: Float[Tensor, "batch pos kv_head d_head"],
    v: Float[Tensor, "batch pos kv_head d_head"],
    o: Float[Tensor, "batch pos head d_head"],
    groups: Groups,
    d_q: Float[Tensor, "q_row head d_head"],
    d_k: Float[Tensor, "k_row kv_head d_head"],
    d_v: Float[Tensor, "k_row kv_head d_head"],
    scale: float,
) -> Float[Tensor, "q_row head d_head"]:
    """o' - o of every query row, one group at a time; head h reads key head h // (heads / kv_heads).

    Args:
        q, k, v, o: queries, keys, values (after rotary positions) and attention output of the base run.
        d_q, d_k, d_v: differences from them, row by row as `groups` packs them.
    """
    out = torch.empty_like(d_q)
    kv_heads, heads = k.shape[2], q.shape[2]
    table = torch.stack((groups.prompt, groups.first, groups.stop, groups.branches), 1).tolist()
    query_begin, query_rows, key_rows = (x.tolist() for x in (groups.query_begin, groups.query_rows, groups.key_rows))
    for g, (prompt, first, stop, n) in enumerate(table):
        rows, keys = slice(query_rows[g], query_rows[g + 1]), slice(key_rows[g], key_rows[g + 1])
        if rows.start == rows.stop:
            continue
        pos = groups.query_pos[query_begin[g] : query_begin[g + 1]].to(q.device)
        query = (d_q[rows].unflatten(0, (n, -1)) + q[prompt, pos]).unflatten(2, (kv_heads, heads // kv_heads))
        key, value = (
            delta[keys].unflatten(0, (n, -1)) + base[prompt, first:stop] for delta, base in ((d_k, k), (d_v, v))
        )  # [branch k_pos kv_head d_head]
        own = torch.einsum("nighd,njgd->nghij", query, key)
        own = own.masked_fill(torch.arange(first, stop, device=q.device) > pos[:, None], -torch.inf)
        shared = torch.einsum("nighd,jgd->nghij", query, k[prompt, :first])
        weight = torch.cat((shared, own), -1).mul_(scale).softmax(-1)
        z = torch.einsum("nghij,jgd->nighd", weight[..., :first], v[prompt, :first])
        z = z + torch.einsum("nghij,njgd->nighd", weight[..., first:], value)
        torch.sub(z.flatten(2, 3), o[prompt, pos], out=out[rows].unflatten(0, (n, -1)))
    return out


@jit
def softmax_step(score, visible, best, total, acc, value, PRECISION: constexpr):
    """One block of an online softmax; a row that sees nothing of it is left as it was."""
    score = tl.where(visible, score, float("-inf"))
    new = tl.maximum(best, tl.max(score, 1))
    finite = tl.where(new == float("-inf"), 0.0, new)
    weight = tl.exp(score - finite[:, None])
    fade = tl.exp(best - finite)
    acc = acc * fade[:, None] + tl.dot(weight, value, input_precision=PRECISION)
    return new, total * fade + tl.sum(weight, 1), acc


@jit
def suffix_attention_kernel(
    q, k, v, o, d_q, d_k, d_v, out,
    tile_group, tile_row, prompt, first, stop, query_pos, query_begin, query_rows, key_rows,
    n_pos, heads, kv_heads, scale,
    D: constexpr, BLOCK_D: constexpr, BM: constexpr, BN: constexpr, PRECISION: constexpr,
):  # fmt: skip
    """Grid (tile, head)."""
    tile, head = tl.program_id(0), tl.program_id(1)
    kv_head = head // (heads // kv_heads)
    group, start = tl.load(tile_group + tile), tl.load(tile_row + tile)
    base, low = tl.load(prompt + group) * n_pos, tl.load(first + group)
    length, queries = tl.load(stop + group) - low, tl.load(query_begin + group)
    n_queries = tl.load(query_begin + group + 1) - queries
    row_0, key_0 = tl.load(query_rows + group), tl.load(key_rows + group)
    end = tl.minimum(start + BM, (tl.load(query_rows + group + 1) - row_0).to(tl.int32))
    row, dim = start + tl.arange(0, BM), tl.arange(0, BLOCK_D)
    live, branch = row < end, row // n_queries
    pos = tl.load(query_pos + queries + row % n_queries, live, 0)
    mask = live[:, None] & (dim < D)[None, :]
    base_at = ((base + pos) * heads + head)[:, None] * D + dim[None, :]
    row_at = ((row_0 + row) * heads + head)[:, None] * D + dim[None, :]
    query = tl.load(q + base_at, mask, 0.0).to(tl.float32) + tl.load(d_q + row_at, mask, 0.0).to(tl.float32)
    best = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BLOCK_D], tl.float32)
    for block in range(0, low, BN):  # the shared prefix
        j = block + tl.arange(0, BN)
        at = ((base + j) * kv_heads + kv_head)[:, None] * D + dim[None, :]
        seen = (j < low)[:, None] & (dim < D)[None, :]
        key = tl.load(k + at, seen, 0.0).to(tl.float32)
        value = tl.load(v + at, seen, 0.0).to(tl.float32)
        score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        best, total, acc = softmax_step(score, (j < low)[None, :], best, total, acc, value, PRECISION)
    last_pos = tl.load(query_pos + queries + (end - 1) % n_queries)
    key_end = (end - 1) // n_queries * length + last_pos - low + 1
    for block in range(start // n_queries * length, key_end, BN):  # rows of the tile's own branches
        r = block + tl.arange(0, BN)
        j = low + r % length
        at = ((base + j) * kv_heads + kv_head)[:, None] * D + dim[None, :]
        delta_at = ((key_0 + r) * kv_heads + kv_head)[:, None] * D + dim[None, :]
        seen = (r < key_end)[:, None] & (dim < D)[None, :]
        key = tl.load(k + at, seen, 0.0).to(tl.float32) + tl.load(d_k + delta_at, seen, 0.0).to(tl.float32)
        value = tl.load(v + at, seen, 0.0).to(tl.float32) + tl.load(d_v + delta_at, seen, 0.0).to(tl.float32)
        score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        visible = ((r // length)[None, :] == branch[:, None]) & (j[None, :] <= pos[:, None]) & (r < key_end)[None, :]
        best, total, acc = softmax_step(score, visible, best, total, acc, value, PRECISION)
    changed = acc / tl.where(live, total, 1.0)[:, None] - tl.load(o + base_at, mask, 0.0).to(tl.float32)
    tl.store(out + row_at, changed, mask)


# Tiles by (architecture, size of a head), chosen for no spills and for the shared memory of each; see `kernels.aot`.
CONFIGS = {
    ("sm_80", 32): Config({"BM": 32, "BN": 16}, num_warps=4),
    ("sm_80", 64): Config({"BM": 32, "BN": 32}, num_warps=4),
    ("sm_80", 128): Config({"BM": 16, "BN": 32}, num_warps=4),
    ("sm_90", 64): Config({"BM": 64, "BN": 32}, num_warps=4),
    ("sm_90", 128): Config({"BM": 16, "BN": 32}, num_warps=4),
    ("gfx942", 64): Config({"BM": 32, "BN": 16}, num_warps=4),
    ("gfx942", 128): Config({"BM": 32, "BN": 16}, num_warps=4),
}


def config_for(arch: str, block: int) -> Config:
    """Tiles for heads padded to `block`; small enough for any device where the table has none."""
    small = Config({"BM": 16, "BN": 16}, num_warps=4)
    arch = tiles_for(arch)
    tiles = CONFIGS.get((arch, block), CONFIGS.get((arch, max(block, 64)), small))
    return tiles._replace(sizes={**tiles.sizes, "BLOCK_D": block})


def untested(q: Tensor, k: Tensor, v: Tensor, o: Tensor, groups: Groups, d_q: Tensor, *rest) -> str | None:
    """Why the kernel is not to be trusted with these arguments; None where it is tested."""
    if {x.dtype for x in (q, k, v, o, d_q)} != {torch.float32}:
        return f"dtype {q.dtype}, tested with torch.float32"
    return None if q.shape[-1] <= 128 else f"d_head {q.shape[-1]}, tested up to 128"


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    groups: Groups,
    d_q: Tensor,
    d_k: Tensor,
    d_v: Tensor,
    scale: float,
    *,
    arch: str,
) -> Launch:
    """The kernel with its tables and an output that it fills."""
    n_pos, heads, d_head = q.shape[1:]
    config = config_for(arch, power_of_2(d_head))
    arguments: dict[str, Tensor | int | float] = dict(groups.on(q.device, config.sizes["BM"]))
    large = {"q": q, "k": k, "v": v, "o": o, "d_q": d_q, "d_k": d_k, "d_v": d_v}
    out = torch.empty(d_q.shape, dtype=d_q.dtype, device=d_q.device)
    arguments |= {name: x.contiguous() for name, x in large.items()} | {"out": out}
    arguments |= {"n_pos": n_pos, "heads": heads, "kv_heads": k.shape[2], "scale": scale}
    precision = "ieee" if arch.startswith("gfx") else "tf32x3"
    constants = {"D": d_head, "PRECISION": precision}
    return Launch(suffix_attention_kernel, (len(arguments["tile_group"]), heads), arguments, constants, config, out)


def launch(
    q: Float[Tensor, "batch pos head d_head"],
    k: Float[Tensor, "batch pos kv_head d_head"],
    v: Float[Tensor, "batch pos kv_head d_head"],
    o: Float[Tensor, "batch pos head d_head"],
    groups: Groups,
    d_q: Float[Tensor, "q_row head d_head"],
    d_k: Float[Tensor, "k_row kv_head d_head"],
    d_v: Float[Tensor, "k_row kv_head d_head"],
    scale: float,
) -> Float[Tensor, "q_row head d_head"]:
    """The reference's result, by the kernel."""
    return prepare(q, k, v, o, groups, d_q, d_k, d_v, scale, arch=architecture(q.device)).start()


class Case(NamedTuple):
    """Sizes of one example; `spans` are (prompt, first, stop, branches, queries), queries None for all positions."""

    spans: tuple[tuple[int, int, int, int, tuple[int, ...] | None], ...]
    batch: int = 1
    n_pos: int = 24
    heads: int = 2
    kv_heads: int = 2
    d_head: int = 16
    sink: float = 0.0  # how far the score of column 0 stands above the others


CASES = {
    "ragged groups of two prompts": Case(((0, 20, 24, 3, None), (0, 5, 24, 2, None), (1, 9, 17, 3, None)), batch=2),
    "grouped queries, d_head 64": Case(((0, 3, 24, 2, None), (0, 17, 24, 5, None)), heads=4, d_head=64),
    "d_head 128, one kv head": Case(((0, 2, 24, 2, None), (0, 19, 24, 2, None)), kv_heads=1, d_head=128),
    "d_head 80": Case(((0, 9, 24, 2, None), (0, 19, 24, 3, None)), heads=1, kv_heads=1, d_head=80),
    "first position": Case(((0, 0, 24, 2, None), (0, 1, 24, 1, None)), heads=1, kv_heads=1, d_head=24),
    "one changed position": Case(((0, 23, 24, 9, None), (0, 7, 8, 1, None), (0, 0, 1, 2, None))),
    "metric rows only": Case(((0, 4, 24, 3, (23,)), (0, 21, 24, 20, (22, 23)), (0, 8, 24, 2, ()))),
    "sink": Case(((0, 0, 24, 2, None), (0, 6, 24, 2, None)), sink=24.0),
    "no branches": Case(((0, 3, 24, 0, None),)),
    "no groups": Case(()),
}


def example(case: Case, generator: torch.Generator) -> tuple:
    """Random float32 arguments of those sizes."""
    shape, kv_shape = ((case.batch, case.n_pos, n, case.d_head) for n in (case.heads, case.kv_heads))
    q, k, v = (torch.randn(s, generator=generator) for s in (shape, kv_shape, kv_shape))
    scale = case.d_head**-0.5
    q[..., 0] = 3.0
    k[..., 0], k[:, 0, :, 0] = 0.0, case.sink / (3.0 * scale)
    key, value = (x.double().repeat_interleave(case.heads // case.kv_heads, 2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q.double(), key) * scale
    hidden = torch.ones(case.n_pos, case.n_pos, dtype=torch.bool).triu(1)
    weight = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    o = torch.einsum("bhij,bjhd->bihd", weight, value).float()
    prompt, first, stop, branches = torch.tensor([span[:4] for span in case.spans], dtype=torch.long).reshape(-1, 4).T
    queries = [span[4] if span[4] is not None else tuple(range(span[1], span[2])) for span in case.spans]
    pos = torch.tensor([i for places in queries for i in places], dtype=torch.long)
    begin = torch.tensor([0, *(len(places) for places in queries)]).cumsum(0)
    groups = Groups(prompt, first, stop, branches, pos, begin)
    d_q = torch.randn(int(groups.query_rows[-1]), case.heads, case.d_head, generator=generator)
    d_k, d_v = (
        torch.randn(int(groups.key_rows[-1]), case.kv_heads, case.d_head, generator=generator) for _ in range(2)
    )
    return q, k, v, o, groups, d_q, d_k, d_v, scale
