"""What differences of the final residual stream do to chosen logits: exact final norm, then chosen directions only.

    effect[row, k] = (norm(x + d) - norm(x)) . u_k,   x = base[index], u_k = directions[index, k]

with the difference of the norm as in `kernels.delta_norm`. A direction is an unembedding column (a logit) or a
difference of two (a logit difference), chosen per base row, so no vocabulary appears. A metric that averages logits
over positions is a mean of these numbers.

Memory traffic per row, in units of 4 d_model bytes: difference read (1), base row and its directions from cache
(1 + n_directions); n_directions numbers written. Bound by memory.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.delta_norm import difference, norm_parts, row_config
from kernels.lazy import Launch, architecture, constexpr, jit

if TYPE_CHECKING:
    import triton.language as tl


def reference(
    base: Float[Tensor, "base_row d_model"],
    index: Int[Tensor, "row"],
    delta: Float[Tensor, "row d_model"],
    w: Float[Tensor, "d_model"] | None,
    eps: float,
    centred: bool,
    directions: Float[Tensor, "base_row direction d_model"],
) -> Float[Tensor, "row direction"]:
    """(norm(base[index] + delta) - norm(base[index])) . directions[index].

    Args:
        centred: LayerNorm, else RMSNorm; the bias of the norm cancels.
        directions: for every base row, the directions that its metric reads.
    """
    changed = difference(base, index, delta, w, eps, centred)
    return torch.einsum("rd,rkd->rk", changed, directions[index])


@jit
def norm_logit_kernel(
    base, index, delta, w, directions, out,
    n_rows, n_directions, eps,
    D: constexpr, BLOCK_D: constexpr, BM: constexpr, CENTRED: constexpr, SCALED: constexpr,
):  # fmt: skip
    """Grid (tile of rows)."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    dim = tl.arange(0, BLOCK_D)
    live = row < n_rows
    mask = live[:, None] & (dim < D)[None, :]
    base_row = tl.load(index + row, live, 0).to(tl.int64)
    x = tl.load(base + base_row[:, None] * D + dim[None, :], mask, 0.0).to(tl.float32)
    d = tl.load(delta + row.to(tl.int64)[:, None] * D + dim[None, :], mask, 0.0).to(tl.float32)
    x, d, after, change = norm_parts(x, d, mask, eps, D, CENTRED)
    y = d * after[:, None] + x * change[:, None]
    if SCALED:
        y *= tl.load(w + dim, dim < D, 0.0).to(tl.float32)[None, :]
    for k in range(n_directions):
        at = (base_row * n_directions + k)[:, None] * D + dim[None, :]
        u = tl.load(directions + at, mask, 0.0).to(tl.float32)
        tl.store(out + row.to(tl.int64) * n_directions + k, tl.sum(y * u, 1), live)


def untested(base: Tensor, index: Tensor, delta: Tensor, *rest) -> str | None:
    """Why the kernel is not to be trusted with these arguments; None where it is tested."""
    if {base.dtype, delta.dtype} != {torch.float32}:
        return f"dtype {delta.dtype}, tested with torch.float32"
    return None if base.shape[-1] <= 8192 else f"d_model {base.shape[-1]}, tested up to 8192"


def prepare(
    base: Tensor,
    index: Tensor,
    delta: Tensor,
    w: Tensor | None,
    eps: float,
    centred: bool,
    directions: Tensor,
    *,
    arch: str,
) -> Launch:
    """The kernel with an output that it fills."""
    n_rows, d_model = delta.shape
    config = row_config(d_model)
    out = torch.empty(n_rows, directions.shape[1], dtype=delta.dtype, device=delta.device)
    arguments = {"base": base.contiguous(), "index": index.contiguous(), "delta": delta.contiguous()}
    arguments |= {"w": base if w is None else w.contiguous(), "directions": directions.contiguous(), "out": out}
    arguments |= {"n_rows": n_rows, "n_directions": directions.shape[1], "eps": eps}
    constants = {"D": d_model, "CENTRED": centred, "SCALED": w is not None}
    grid = (-(-n_rows // config.sizes["BM"]),)
    return Launch(norm_logit_kernel, grid, arguments, constants, config, out)


def launch(
    base: Float[Tensor, "base_row d_model"],
    index: Int[Tensor, "row"],
    delta: Float[Tensor, "row d_model"],
    w: Float[Tensor, "d_model"] | None,
    eps: float,
    centred: bool,
    directions: Float[Tensor, "base_row direction d_model"],
) -> Float[Tensor, "row direction"]:
    """The reference's result, by the kernel."""
    return prepare(base, index, delta, w, eps, centred, directions, arch=architecture(delta.device)).start()


class Case(NamedTuple):
    """Sizes of one example; `size` is the scale of the differences beside base rows of about 1."""

    rows: int = 13
    base_rows: int = 3
    d_model: int = 64
    n_directions: int = 1
    centred: bool = True
    scaled: bool = True
    size: float = 1.0


CASES = {
    "LayerNorm, one direction": Case(),
    "RMSNorm, three directions": Case(n_directions=3, centred=False, d_model=100),
    "LayerNorm without weight": Case(scaled=False, n_directions=2),
    "small differences": Case(size=1e-5, rows=20),
    "wide rows": Case(d_model=4096, rows=3, centred=False),
    "one row": Case(rows=1, base_rows=1),
    "no rows": Case(rows=0),
}


def example(case: Case, generator: torch.Generator) -> tuple:
    """Random float32 arguments of those sizes, with one outlier channel as trained models have."""
    base = torch.randn(case.base_rows, case.d_model, generator=generator) + 0.5
    base[:, 3] += 30.0
    index = torch.randint(case.base_rows, (case.rows,), generator=generator)
    delta = torch.randn(case.rows, case.d_model, generator=generator) * case.size
    w = torch.randn(case.d_model, generator=generator) if case.scaled else None
    directions = torch.randn(case.base_rows, case.n_directions, case.d_model, generator=generator)
    return base, index, delta, w, 1e-5, case.centred, directions
