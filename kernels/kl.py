"""KL(base || patched) of next-token distributions from differences of the normalised final residual, without logits.

With p the base probabilities of a row, u_j the unembedding column of token j, y the difference of the normalised final
residual stream and x_j = y . (u_j - E_p[u]), so that E_p[x] = 0,

    KL = log E_p[exp x] = log1p(E_p[exp x - 1 - x])

which keeps its relative accuracy down to the smallest divergences: no digits are lost by subtracting log-probabilities.
Where exp overflows, the log-sum-exp of log p + x, kept beside it, takes over. The mean E_p[u] is one product per base
row, known before the pass over the vocabulary.

Memory traffic: U once per tile of BM rows (4 d_model d_vocab bytes, from cache where tiles run together), base logits
of the rows once, y once per portion of the vocabulary; 12 bytes per row and portion written. Logits of the rows, 4
d_vocab bytes each, are never written. 2 d_model d_vocab operations per row: bound by the matrix product.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.lazy import INTERPRETER, Config, Launch, architecture, constexpr, jit, tiles_for

if TYPE_CHECKING:
    import triton.language as tl

PORTION = 1 << 24  # logits that the reference holds at a time


def reference(
    logits: Float[Tensor, "base_row d_vocab"],
    index: Int[Tensor, "row"],
    y: Float[Tensor, "row d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
) -> Float[Tensor, "row"]:
    """KL(softmax(logits[index]) || softmax(logits[index] + y W_U)) in nats, a portion of rows at a time.

    Args:
        y: differences of the normalised final residual.
        W_U: a view of a [d_vocab, d_model] matrix, as tied embeddings are, spares the kernel a copy.
    """
    logp = logits.log_softmax(-1)
    p = logp.exp()
    rows = max(1, PORTION // max(1, logits.shape[1]))
    out = logits.new_empty(len(y))
    for start in range(0, len(y), rows):
        at = index[start : start + rows]
        x = y[start : start + rows].to(logits.dtype) @ W_U.to(logits.dtype)  # [row d_vocab]
        x -= torch.linalg.vecdot(p[at], x)[:, None]
        ratio = torch.log1p(torch.linalg.vecdot(p[at], excess(x)))
        out[start : start + rows] = torch.where(ratio.isfinite(), ratio, x.add_(logp[at]).logsumexp(-1))
    return out


def excess(x: Tensor) -> Tensor:
    """exp(x) - 1 - x without cancellation: its series where x is small."""
    series = x.mul(1 / 5040).add_(1 / 720)
    for factor in (1 / 120, 1 / 24, 1 / 6, 1 / 2):
        series.mul_(x).add_(factor)
    return torch.where(x.abs() < 0.1, series.mul_(x).mul_(x), torch.expm1(x).sub_(x))


@jit
def excess_tile(x):
    """exp(x) - 1 - x without cancellation, for a tile."""
    near = tl.where(tl.abs(x) < 0.5, x, 0.0)
    y = 1.0 + near * (1.0 / 10.0)
    y = 1.0 + near * y * (1.0 / 9.0)
    y = 1.0 + near * y * (1.0 / 8.0)
    y = 1.0 + near * y * (1.0 / 7.0)
    y = 1.0 + near * y * (1.0 / 6.0)
    y = 1.0 + near * y * (1.0 / 5.0)
    y = 1.0 + near * y * 0.25
    y = 0.5 + near * y * (1.0 / 6.0)
    return tl.where(tl.abs(x) < 0.5, near * near * y, tl.exp(x) - 1.0 - x)


@jit
def kl_kernel(
    logits, lse, index, y, mean, w, excesses, largest, totals,
    n_rows, n_vocab, n_in,
    BM: constexpr, BN: constexpr, BK: constexpr, PER_PROGRAM: constexpr, PRECISION: constexpr, UPCAST: constexpr,
):  # fmt: skip
    """Grid (tile of rows, portion of the vocabulary); partial sums of each portion are written side by side."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    live = row < n_rows
    wide = row.to(tl.int64)[:, None]
    base_row = tl.load(index + row, live, 0).to(tl.int64)
    lse_row, mean_row = tl.load(lse + base_row), tl.load(mean + row, live, 0.0)
    total_excess, total = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    best = tl.full([BM], float("-inf"), tl.float32)
    first = tl.program_id(1) * PER_PROGRAM
    for start in range(first, tl.minimum(first + PER_PROGRAM, n_vocab), BN):
        col = start + tl.arange(0, BN)
        acc = tl.zeros([BM, BN], tl.float32)
        for inner in range(0, n_in, BK):
            k = inner + tl.arange(0, BK)
            left = tl.load(y + wide * n_in + k[None, :], live[:, None] & (k < n_in)[None, :], 0.0)
            at = col[None, :] * n_in + k[:, None]
            right = tl.load(w + at, (k < n_in)[:, None] & (col < n_vocab)[None, :], 0.0)
            if UPCAST:  # the interpreter multiplies the bit patterns of bfloat16
                left, right = left.to(tl.float32), right.to(tl.float32)
            acc = tl.dot(left, right, acc, input_precision=PRECISION)
        seen = live[:, None] & (col < n_vocab)[None, :]
        logp = tl.load(logits + base_row[:, None] * n_vocab + col[None, :], seen, float("-inf")) - lse_row[:, None]
        x = tl.where(seen, acc - mean_row[:, None], 0.0)
        total_excess += tl.sum(tl.exp(logp) * excess_tile(x), 1)
        new = tl.maximum(best, tl.max(logp + x, 1))
        finite = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(best - finite) + tl.sum(tl.exp(logp + x - finite[:, None]), 1)
        best = new
    at = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(excesses + at, total_excess, live)
    tl.store(largest + at, best, live)
    tl.store(totals + at, total, live)


# Tiles by (architecture, operands), chosen for no spills; see `kernels.aot`. SMALL elsewhere and for ragged widths.
SMALL = Config({"BM": 16, "BN": 32, "BK": 32, "PER_PROGRAM": 2048}, num_warps=4)
CONFIGS = {
    ("sm_80", "fp32"): Config({"BM": 64, "BN": 32, "BK": 32, "PER_PROGRAM": 2048}, num_warps=4),
    ("sm_80", "bf16"): Config({"BM": 64, "BN": 64, "BK": 32, "PER_PROGRAM": 2048}, num_warps=8),
    ("sm_90", "fp32"): Config({"BM": 64, "BN": 32, "BK": 32, "PER_PROGRAM": 2048}, num_warps=4, num_stages=3),
    ("sm_90", "bf16"): Config({"BM": 64, "BN": 64, "BK": 32, "PER_PROGRAM": 2048}, num_warps=8, num_stages=3),
    ("gfx942", "fp32"): Config({"BM": 64, "BN": 32, "BK": 32, "PER_PROGRAM": 2048}, num_warps=4),
    ("gfx942", "bf16"): Config({"BM": 64, "BN": 32, "BK": 32, "PER_PROGRAM": 2048}, num_warps=4),
}


def untested(logits: Tensor, index: Tensor, y: Tensor, W_U: Tensor) -> str | None:
    """Why the kernel is not to be trusted with these arguments; None where it is tested."""
    if logits.dtype != torch.float32 or y.dtype != W_U.dtype or y.dtype not in (torch.float32, torch.bfloat16):
        return f"dtypes {logits.dtype}, {y.dtype} and {W_U.dtype}, tested with float32 logits and float32 or bfloat16"
    return None if W_U.numel() < 2**31 else f"{W_U.numel()} weights, tested below 2**31"


def prepare(logits: Tensor, index: Tensor, y: Tensor, W_U: Tensor, *, arch: str) -> Launch:
    """The kernel with the partial sums that it fills: excess, largest exponent and sum of each row and portion."""
    n_rows, n_vocab = len(y), logits.shape[1]
    kind = "bf16" if y.dtype == torch.bfloat16 else "fp32"
    config = CONFIGS.get((tiles_for(arch), kind), SMALL) if y.shape[1] % 16 == 0 else SMALL
    lse = logits.logsumexp(-1)
    centre = (logits - lse[:, None]).exp() @ W_U.to(logits.dtype).mT  # [base_row d_model]
    mean = torch.linalg.vecdot(y.to(logits.dtype), centre[index])
    portions = -(-n_vocab // config.sizes["PER_PROGRAM"])
    partial = [torch.empty(n_rows, portions, dtype=logits.dtype, device=logits.device) for _ in range(3)]
    arguments = {"logits": logits.contiguous(), "lse": lse, "index": index.contiguous(), "y": y.contiguous()}
    arguments |= {"mean": mean, "w": W_U.mT.contiguous(), "n_rows": n_rows, "n_vocab": n_vocab, "n_in": y.shape[1]}
    arguments |= dict(zip(("excesses", "largest", "totals"), partial, strict=True))
    constants = {"PRECISION": "ieee" if arch.startswith("gfx") or kind == "bf16" else "tf32x3"}
    constants["UPCAST"] = arch == INTERPRETER and kind == "bf16"
    grid = (-(-n_rows // config.sizes["BM"]), portions)
    return Launch(kl_kernel, grid, arguments, constants, config, tuple(partial))


def launch(
    logits: Float[Tensor, "base_row d_vocab"],
    index: Int[Tensor, "row"],
    y: Float[Tensor, "row d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
) -> Float[Tensor, "row"]:
    """The reference's result, by the kernel."""
    excesses, largest, totals = prepare(logits, index, y, W_U, arch=architecture(y.device)).start()
    ratio = torch.log1p(excesses.sum(-1))
    return torch.where(ratio.isfinite(), ratio, (largest + totals.log()).logsumexp(-1))


class Case(NamedTuple):
    """Sizes of one example; `size` is the scale of the differences."""

    rows: int = 19
    base_rows: int = 3
    d_model: int = 40
    d_vocab: int = 77
    size: float = 1.0
    bf16: bool = False


CASES = {
    "ragged width": Case(),
    "odd vocabulary": Case(d_model=64, d_vocab=131),
    "two portions of a vocabulary": Case(d_vocab=2100, rows=3, d_model=16),
    "KL about 1e-9": Case(size=1e-5),
    "overflowing differences": Case(size=100.0),
    "bf16 operands": Case(bf16=True, d_model=64, d_vocab=128),
    "one row": Case(rows=1, base_rows=1),
    "no rows": Case(rows=0),
}


def example(case: Case, generator: torch.Generator) -> tuple:
    """Random arguments of those sizes, float32 but for bfloat16 operands."""
    logits = 3.0 * torch.randn(case.base_rows, case.d_vocab, generator=generator)
    index = torch.randint(case.base_rows, (case.rows,), generator=generator)
    y = torch.randn(case.rows, case.d_model, generator=generator) * case.size
    W_U = torch.randn(case.d_model, case.d_vocab, generator=generator)
    return (logits, index, y.bfloat16(), W_U.bfloat16()) if case.bf16 else (logits, index, y, W_U)
