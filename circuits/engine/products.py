"""Matrix products of differences in a named precision, counted: where the engine multiplies by weights."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Precision = Literal["fp64", "fp32", "tf32", "bf16"]
MANTISSA = {"tf32": 13, "bf16": 16}  # bits of a float32 that the format drops


@dataclass
class Products:
    """Weight products of one engine run; `flops` counts 2 per multiply-add and `launches` the products."""

    precision: Precision = "fp32"
    flops: int = 0
    launches: int = 0

    def __call__(
        self, delta: Float[Tensor, "*row n_in"], weight: Float[Tensor, "n_in n_out"]
    ) -> Float[Tensor, "*row n_out"]:
        """delta W, with both operands in the named precision and sums in float32 (float64 for fp64)."""
        self.count(2 * delta.numel() * weight.shape[1])
        if self.precision in ("fp64", "fp32"):
            return delta @ weight
        if delta.is_cuda and self.precision == "bf16":
            flat = delta.reshape(-1, delta.shape[-1]).bfloat16()
            product = torch.mm(flat, weight.bfloat16(), out_dtype=torch.float32)
            return product.reshape(*delta.shape[:-1], weight.shape[1])
        return rounded(delta, self.precision) @ rounded(weight, self.precision)

    def heads(
        self, delta: Float[Tensor, "*row d_model"], weight: Float[Tensor, "head d_model d_head"]
    ) -> Float[Tensor, "*row head d_head"]:
        """Per-head projections of a difference by one product."""
        heads, d_model, d_head = weight.shape
        return self(delta, weight.transpose(0, 1).reshape(d_model, heads * d_head)).unflatten(-1, (heads, d_head))

    def batched(
        self, delta: Float[Tensor, "head case n_in"], weight: Float[Tensor, "head n_in n_out"]
    ) -> Float[Tensor, "head case n_out"]:
        """delta[h] W[h] for every head h."""
        self.count(2 * delta.numel() * weight.shape[-1])
        if self.precision in ("fp64", "fp32"):
            return delta @ weight
        return rounded(delta, self.precision) @ rounded(weight, self.precision)

    def count(self, flops: int) -> None:
        """Book work done elsewhere, such as attention scores."""
        self.flops += flops
        self.launches += 1


def rounded(x: Tensor, precision: Precision) -> Tensor:
    """x rounded to nearest-even in the mantissa of tf32 or bf16, kept in float32."""
    drop = MANTISSA[precision]
    bits = x.contiguous().view(torch.int32)
    bits = bits + ((1 << (drop - 1)) - 1) + ((bits >> drop) & 1)
    return (bits & ~((1 << drop) - 1)).view(torch.float32)
