"""Difference of an activation behind a matrix product: act(h + A B) - act(h), without the product in memory.

    out[row] = act(h[index[row]] + a[row] B) - act(h[index[row]])

where h are the base pre-activations (bias included) and a B their difference. A and B may be float32 or bfloat16; sums,
h and the result are float32, and the rounding error is relative to the activation, not to its difference.

Memory traffic: one read of A, B and (from cache) h, one write of the result, where a product followed by a separate
activation also writes and reads the product: 8 d_mlp of about 12 d_mlp + 4 d_model bytes per row saved. 2 d_model d_mlp
operations per row: bound by the matrix product from a d_model of about 512 on.
"""

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kernels.lazy import INTERPRETER, Config, Launch, architecture, constexpr, jit, tiles_for

if TYPE_CHECKING:
    import triton.language as tl

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
Precision = Literal["fp32", "tf32"]


def activated(x: Tensor, activation: Activation) -> Tensor:
    """The activation function, by name."""
    if activation in ("gelu", "gelu_tanh"):
        return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")
    return F.relu(x) if activation == "relu" else F.silu(x)


def reference(
    h: Float[Tensor, "base_row d_mlp"],
    index: Int[Tensor, "row"],
    a: Float[Tensor, "row d_model"],
    b: Float[Tensor, "d_model d_mlp"],
    activation: Activation,
    precision: Precision = "fp32",
) -> Float[Tensor, "row d_mlp"]:
    """act(h[index] + a b) - act(h[index]).

    Args:
        precision: of float32 products on a GPU; here they are exact either way.
    """
    after = torch.addmm(h[index], a.to(h.dtype), b.to(h.dtype))
    return activated(after, activation).sub_(activated(h, activation)[index])


@jit
def act(x, ACTIVATION: constexpr):
    """The activation function, by name."""
    if ACTIVATION == "relu":
        y = tl.maximum(x, 0.0)
    elif ACTIVATION == "silu":
        y = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:  # tanh form: (1 + tanh u) / 2 = 1 / (1 + exp(-2 u))
        y = x / (1.0 + tl.exp(-1.5957691216057308 * x * (1.0 + 0.044715 * x * x)))
    return y


@jit
def delta_gemm_kernel(
    h, index, a, b, out,
    n_rows, n_out, n_in,
    BM: constexpr, BN: constexpr, BK: constexpr,
    ACTIVATION: constexpr, PRECISION: constexpr, UPCAST: constexpr,
):  # fmt: skip
    """Grid (tile of rows, tile of outputs)."""
    row, col = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    wide = row.to(tl.int64)[:, None]
    acc = tl.zeros([BM, BN], tl.float32)
    for start in range(0, n_in, BK):
        k = start + tl.arange(0, BK)
        left = tl.load(a + wide * n_in + k[None, :], (row < n_rows)[:, None] & (k < n_in)[None, :], 0.0)
        right = tl.load(b + k[:, None] * n_out + col[None, :], (k < n_in)[:, None] & (col < n_out)[None, :], 0.0)
        if UPCAST:  # the interpreter multiplies the bit patterns of bfloat16
            left, right = left.to(tl.float32), right.to(tl.float32)
        acc = tl.dot(left, right, acc, input_precision=PRECISION)
    mask = (row < n_rows)[:, None] & (col < n_out)[None, :]
    base_row = tl.load(index + row, row < n_rows, 0).to(tl.int64)
    before = tl.load(h + base_row[:, None] * n_out + col[None, :], mask, 0.0).to(tl.float32)
    tl.store(out + wide * n_out + col[None, :], act(before + acc, ACTIVATION) - act(before, ACTIVATION), mask)


# Tiles by (architecture, operands), chosen for no spills; see `kernels.aot`. SMALL elsewhere and for ragged sizes.
SMALL = Config({"BM": 32, "BN": 32, "BK": 32}, num_warps=4)
CONFIGS = {
    ("sm_80", "fp32"): Config({"BM": 128, "BN": 64, "BK": 32}, num_warps=8),
    ("sm_80", "tf32"): Config({"BM": 128, "BN": 64, "BK": 32}, num_warps=8, num_stages=3),
    ("sm_80", "bf16"): Config({"BM": 128, "BN": 64, "BK": 32}, num_warps=8, num_stages=3),
    ("sm_90", "fp32"): Config({"BM": 128, "BN": 64, "BK": 32}, num_warps=8, num_stages=3),
    ("sm_90", "tf32"): Config({"BM": 128, "BN": 64, "BK": 32}, num_warps=8, num_stages=3),
    ("sm_90", "bf16"): Config({"BM": 128, "BN": 64, "BK": 64}, num_warps=8, num_stages=3),
    ("gfx942", "fp32"): Config({"BM": 128, "BN": 64, "BK": 32}, num_warps=8),
    ("gfx942", "tf32"): Config({"BM": 128, "BN": 64, "BK": 32}, num_warps=8),
    ("gfx942", "bf16"): Config({"BM": 128, "BN": 64, "BK": 32}, num_warps=8),
}


def untested(h: Tensor, index: Tensor, a: Tensor, b: Tensor, *rest) -> str | None:
    """Why the kernel is not to be trusted with these arguments; None where it is tested."""
    if h.dtype != torch.float32 or a.dtype != b.dtype or a.dtype not in (torch.float32, torch.bfloat16):
        return f"dtypes {h.dtype}, {a.dtype} and {b.dtype}, tested with torch.float32 and torch.bfloat16 operands"
    return None


def prepare(
    h: Tensor,
    index: Tensor,
    a: Tensor,
    b: Tensor,
    activation: Activation,
    precision: Precision = "fp32",
    *,
    arch: str,
) -> Launch:
    """The kernel with an output that it fills."""
    n_rows, n_out = len(a), b.shape[1]
    kind = "bf16" if a.dtype == torch.bfloat16 else precision
    aligned = n_out % 16 == 0 and a.shape[1] % 16 == 0
    config = CONFIGS.get((tiles_for(arch), kind), SMALL) if aligned else SMALL
    exact = "ieee" if arch.startswith("gfx") or kind == "bf16" else "tf32x3"
    out = torch.empty(n_rows, n_out, dtype=h.dtype, device=h.device)
    arguments = {"h": h.contiguous(), "index": index.contiguous(), "a": a.contiguous(), "b": b.contiguous()}
    arguments |= {"out": out, "n_rows": n_rows, "n_out": n_out, "n_in": a.shape[1]}
    constants = {"ACTIVATION": activation, "PRECISION": "tf32" if kind == "tf32" else exact}
    constants["UPCAST"] = arch == INTERPRETER and kind == "bf16"
    grid = (-(-n_rows // config.sizes["BM"]), -(-n_out // config.sizes["BN"]))
    return Launch(delta_gemm_kernel, grid, arguments, constants, config, out)


def launch(
    h: Float[Tensor, "base_row d_mlp"],
    index: Int[Tensor, "row"],
    a: Float[Tensor, "row d_model"],
    b: Float[Tensor, "d_model d_mlp"],
    activation: Activation,
    precision: Precision = "fp32",
) -> Float[Tensor, "row d_mlp"]:
    """The reference's result, by the kernel."""
    return prepare(h, index, a, b, activation, precision, arch=architecture(a.device)).start()


class Case(NamedTuple):
    """Sizes of one example."""

    rows: int = 21
    base_rows: int = 3
    d_model: int = 48
    d_mlp: int = 80
    activation: Activation = "gelu"
    precision: Precision = "fp32"
    bf16: bool = False


CASES = {
    "gelu": Case(),
    "tanh gelu": Case(activation="gelu_tanh"),
    "relu, ragged": Case(activation="relu", d_model=37, d_mlp=51),
    "silu": Case(activation="silu", d_model=64),
    "bf16 operands": Case(bf16=True, d_model=64, d_mlp=64),
    "tf32 operands": Case(precision="tf32", d_model=64, d_mlp=64),
    "one row": Case(rows=1),
    "no rows": Case(rows=0),
}


def example(case: Case, generator: torch.Generator) -> tuple:
    """Random arguments of those sizes, float32 but for bfloat16 operands."""
    h = torch.randn(case.base_rows, case.d_mlp, generator=generator)
    index = torch.randint(case.base_rows, (case.rows,), generator=generator)
    a = torch.randn(case.rows, case.d_model, generator=generator) * 0.1
    b = torch.randn(case.d_model, case.d_mlp, generator=generator)
    if case.bf16:
        a, b = a.bfloat16(), b.bfloat16()
    return h, index, a, b, case.activation, case.precision
