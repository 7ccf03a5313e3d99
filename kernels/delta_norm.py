"""Difference of a norm: what LayerNorm or RMSNorm of a base row plus a difference adds to the norm of the base row.

With x the base row and d its difference (both minus their mean for LayerNorm), r = 1 / sqrt(mean(x^2) + eps) and r' the
same for x + d,

    norm(x + d) - norm(x) = w (d r' + x (r' - r)),   r' - r = -mean(d (2 x + d)) (r r')^2 / (r + r')

so that nothing is frozen and the rounding error stays proportional to d. Where r' and r differ by a quarter, the plain
form w ((x + d) r' - x r) is as good, and better where d cancels x. The bias of the norm cancels. The patch of a row
that joins here is added to its difference first, in the same pass.

Memory traffic per row, in units of 4 d_model bytes: difference read (1), base row read from cache (1), result written
(1); with patches, patch read for the rows that have one and the new difference written (1). Bound by memory.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.lazy import Config, Launch, architecture, constexpr, jit, power_of_2

if TYPE_CHECKING:
    import triton.language as tl


FAR = 0.25  # share of r by which r' differs where the plain form is as good


def reference(
    base: Float[Tensor, "base_row d_model"],
    index: Int[Tensor, "row"],
    delta: Float[Tensor, "row d_model"],
    w: Float[Tensor, "d_model"] | None,
    eps: float,
    centred: bool,
    patch: Float[Tensor, "patch d_model"] | None = None,
    patch_of: Int[Tensor, "row"] | None = None,
) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, "row d_model"]]:
    """norm(base[index] + delta') - norm(base[index]), and delta' = delta + patch[patch_of].

    Args:
        centred: LayerNorm, else RMSNorm.
        patch_of: the patch of each row, -1 for none; without patches delta' is `delta` itself.
    """
    if patch is not None:
        joins = (patch_of >= 0).nonzero()[:, 0]
        delta = delta.index_add(0, joins, patch[patch_of[joins]])
    return difference(base, index, delta, w, eps, centred), delta


def difference(
    base: Float[Tensor, "base_row d_model"],
    index: Int[Tensor, "row"],
    delta: Float[Tensor, "row d_model"],
    w: Float[Tensor, "d_model"] | None,
    eps: float,
    centred: bool,
) -> Float[Tensor, "row d_model"]:
    """norm(base[index] + delta) - norm(base[index]) by the formula above."""
    x, scale = standardised(base, eps, centred)
    return changed(x[index], scale[index], delta, w, eps, centred)


def standardised(
    base: Float[Tensor, "*row d_model"], eps: float, centred: bool
) -> tuple[Float[Tensor, "*row d_model"], Float[Tensor, "*row 1"]]:
    """x and r of the formula above: what does not depend on the difference."""
    x = base - base.mean(-1, keepdim=True) if centred else base
    return x, (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def changed(
    x: Float[Tensor, "*#row d_model"],
    scale: Float[Tensor, "*#row 1"],
    delta: Float[Tensor, "*#row d_model"],
    w: Float[Tensor, "d_model"] | None,
    eps: float,
    centred: bool,
    both: bool = False,
) -> Float[Tensor, "*#row d_model"]:
    """The difference of the norm from `standardised` base rows; x broadcasts, so that branches share their base.

    Args:
        both: compute both forms for all rows, without looking first whether one needs the plain form; on a GPU that
            look waits for it.
    """
    delta = delta - delta.mean(-1, keepdim=True) if centred else delta
    product = torch.add(delta, x, alpha=2).mul_(delta)
    gain = product.mean(-1, keepdim=True)  # of the mean square
    after = (scale.pow(-2) + gain).clamp_(min=0).rsqrt_()
    less = (scale * after).square_().mul_(gain).div_(scale + after)  # r - r'
    if both or not all_near(after / scale):
        far = (after - scale).abs() >= FAR * scale  # as where the difference cancels the base row: there, plainly
        moved = x + delta
        after = torch.where(far, (moved.square().mean(-1, keepdim=True) + eps).rsqrt(), after)
        less, delta = torch.where(far, scale, less), torch.where(far, moved, delta)
    result = torch.mul(delta, after, out=product).addcmul_(x, less, value=-1)
    return result if w is None else result.mul_(w)


def all_near(ratio: Float[Tensor, "*row 1"]) -> bool:
    """Whether no row's r' / r is far from 1; also false where one is no number."""
    if not ratio.numel():
        return True
    low, high = ratio.aminmax()
    return float(low) > 1 - FAR and float(high) < 1 + FAR


@jit
def norm_parts(x, d, mask, eps, D: constexpr, CENTRED: constexpr):
    """x, what r' multiplies, r', and what multiplies x (r' - r, or -r in the plain form), for tiles [rows, d_model]."""
    if CENTRED:
        x = tl.where(mask, x - tl.sum(x, 1)[:, None] / D, 0.0)
        d = tl.where(mask, d - tl.sum(d, 1)[:, None] / D, 0.0)
    scale = 1.0 / tl.sqrt_rn(tl.sum(x * x, 1) / D + eps)
    after = 1.0 / tl.sqrt_rn(tl.sum((x + d) * (x + d), 1) / D + eps)
    both = scale * after
    near = tl.abs(after - scale) < 0.25 * scale
    exact = -(tl.sum(d * (2.0 * x + d), 1) / D) * both * both / (scale + after)
    change = tl.where(near, exact, -scale)
    return x, tl.where(near[:, None], d, x + d), after, change


@jit
def delta_norm_kernel(
    base, index, delta, w, patch, patch_of, out, out_delta,
    n_rows, eps,
    D: constexpr, BLOCK_D: constexpr, BM: constexpr, CENTRED: constexpr, SCALED: constexpr, PATCHED: constexpr,
):  # fmt: skip
    """Grid (tile of rows)."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    dim = tl.arange(0, BLOCK_D)
    live = row < n_rows
    mask = live[:, None] & (dim < D)[None, :]
    at = row.to(tl.int64)[:, None] * D + dim[None, :]
    base_row = tl.load(index + row, live, 0).to(tl.int64)
    x = tl.load(base + base_row[:, None] * D + dim[None, :], mask, 0.0).to(tl.float32)
    d = tl.load(delta + at, mask, 0.0).to(tl.float32)
    if PATCHED:
        joins = tl.load(patch_of + row, live, -1).to(tl.int64)
        d += tl.load(patch + joins[:, None] * D + dim[None, :], mask & (joins >= 0)[:, None], 0.0).to(tl.float32)
        tl.store(out_delta + at, d, mask)
    x, d, after, change = norm_parts(x, d, mask, eps, D, CENTRED)
    y = d * after[:, None] + x * change[:, None]
    if SCALED:
        y *= tl.load(w + dim, dim < D, 0.0).to(tl.float32)[None, :]
    tl.store(out + at, y, mask)


def row_config(d_model: int) -> Config:
    """Whole rows in registers: a tile of about 2,048 numbers, more warps where one row is longer."""
    block = power_of_2(d_model)
    return Config({"BM": max(1, 2048 // block), "BLOCK_D": block}, num_warps=4 if block <= 2048 else 8)


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
    patch: Tensor | None = None,
    patch_of: Tensor | None = None,
    *,
    arch: str,
) -> Launch:
    """The kernel with outputs that it fills."""
    n_rows, d_model = delta.shape
    config = row_config(d_model)
    delta = delta.contiguous()
    out = torch.empty(delta.shape, dtype=delta.dtype, device=delta.device)
    after = delta if patch is None else torch.empty(delta.shape, dtype=delta.dtype, device=delta.device)
    arguments = {"base": base.contiguous(), "index": index.contiguous(), "delta": delta}
    arguments |= {"w": base if w is None else w.contiguous()}
    arguments |= {"patch": base if patch is None else patch.contiguous()}
    arguments |= {"patch_of": index if patch_of is None else patch_of.contiguous()}
    arguments |= {"out": out, "out_delta": after, "n_rows": n_rows, "eps": eps}
    constants = {"D": d_model, "CENTRED": centred, "SCALED": w is not None, "PATCHED": patch is not None}
    grid = (-(-n_rows // config.sizes["BM"]),)
    return Launch(delta_norm_kernel, grid, arguments, constants, config, (out, after))


def launch(
    base: Float[Tensor, "base_row d_model"],
    index: Int[Tensor, "row"],
    delta: Float[Tensor, "row d_model"],
    w: Float[Tensor, "d_model"] | None,
    eps: float,
    centred: bool,
    patch: Float[Tensor, "patch d_model"] | None = None,
    patch_of: Int[Tensor, "row"] | None = None,
) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, "row d_model"]]:
    """The reference's result, by the kernel."""
    arch = architecture(delta.device)
    return prepare(base, index, delta, w, eps, centred, patch, patch_of, arch=arch).start()


class Case(NamedTuple):
    """Sizes of one example; `size` is the scale of the differences beside base rows of about 1."""

    rows: int = 11
    base_rows: int = 4
    d_model: int = 64
    centred: bool = True
    scaled: bool = True
    patches: int = 0
    size: float = 1.0


CASES = {
    "LayerNorm": Case(),
    "LayerNorm with patches": Case(patches=3),
    "RMSNorm, ragged width": Case(d_model=100, centred=False),
    "RMSNorm without weight, with patches": Case(centred=False, scaled=False, patches=2),
    "small differences": Case(size=1e-5, rows=20),
    "large differences": Case(size=100.0, d_model=768),
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
    arguments = (base, index, delta, w, 1e-5, case.centred)
    if not case.patches:
        return arguments
    patch = torch.randn(case.patches, case.d_model, generator=generator) * case.size
    patch_of = torch.randint(-1, case.patches, (case.rows,), generator=generator)
    return (*arguments, patch, patch_of)
