"""Matrix products of differences in a named precision, counted: where the engine multiplies by weights."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.decoder import Attention, Norm
from interp.errors import UsageError
from kernels import dispatch
from kernels.delta_norm import standardised

if TYPE_CHECKING:
    from circuits.engine.replay import Tape

Backend = Literal["auto", "torch", "triton"]
Precision = Literal["fp64", "fp32", "tf32", "bf16"]
TABLES = 4  # standardised tables that are kept: those of one block and the final norm
MANTISSA = {"tf32": 13, "bf16": 16}  # bits of a float32 that the format drops


@dataclass
class Products:
    """Weight products of one engine run, and which implementation runs its other operations.

    Attributes:
        flops: 2 per multiply-add.
        launches: products, attentions and kernels so far.
        ran: implementation by operation, for those that a kernel exists for.
        fell_back: whether an operation was handed to `kernels.dispatch` and ran there as its torch reference.
        tape: where decisions of the host are kept while a chunk is captured for replay; None otherwise.
        flattened: projections of `flat` and `joined`, each with what it is of, by the id of that.
        tables: standardised base rows, each with the table and the norm that they are of, by the id of the table.
    """

    precision: Precision = "fp32"
    backend: Backend = "auto"
    flops: int = 0
    launches: int = 0
    ran: dict[str, str] = field(default_factory=dict)
    fell_back: bool = False
    tape: "Tape | None" = field(default=None, repr=False)
    flattened: dict[int, tuple[Any, Tensor]] = field(default_factory=dict, repr=False)
    tables: dict[int, tuple[Tensor, Any, tuple[Tensor, Tensor]]] = field(default_factory=dict, repr=False)

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
        heads, _, d_head = weight.shape
        return self(delta, self.flat(weight)).unflatten(-1, (heads, d_head))

    def flat(self, weight: Float[Tensor, "head d_model d_head"]) -> Float[Tensor, "d_model head_d_head"]:
        """The projection of all heads as one matrix, kept for the run: many products read it."""
        kept = self.flattened.get(id(weight))
        if kept is None or kept[0] is not weight:
            kept = self.flattened[id(weight)] = (weight, weight.transpose(0, 1).flatten(1))
        return kept[1]

    def joined(self, attn: Attention) -> Float[Tensor, "d_model q_k_v"]:
        """Queries, keys and values of all heads as one matrix, kept for the run; `flat` then gives parts of it."""
        weights = (attn.W_Q, attn.W_K, attn.W_V)
        kept = self.flattened.get(id(attn))
        if kept is None or kept[0] is not attn:
            whole = torch.cat([weight.transpose(0, 1).flatten(1) for weight in weights], 1)
            parts = whole.split([weight.shape[0] * weight.shape[2] for weight in weights], 1)
            self.flattened |= {id(weight): (weight, part) for weight, part in zip(weights, parts, strict=True)}
            kept = self.flattened[id(attn)] = (attn, whole)
        return kept[1]

    def keys_values(
        self, delta: Float[Tensor, "*row d_model"], attn: Attention
    ) -> tuple[Float[Tensor, "*row kv_head d_head"], Float[Tensor, "*row kv_head d_head"]]:
        """Differences of keys (before rotary positions) and values by one product."""
        heads, _, d_head = attn.W_K.shape
        both = self(delta, self.joined(attn)[:, -2 * heads * d_head :]).unflatten(-1, (2, heads, d_head))
        return both.unbind(-3)

    def onto(
        self, base: Float[Tensor, "*row n_out"], delta: Float[Tensor, "*row n_in"], weight: Float[Tensor, "n_in n_out"]
    ) -> Float[Tensor, "*row n_out"]:
        """base + delta W, written over base."""
        if self.precision not in ("fp64", "fp32") or not base.is_contiguous():
            return base.add_(self(delta, weight))
        self.count(2 * delta.numel() * weight.shape[1])
        base.view(-1, base.shape[-1]).addmm_(delta.reshape(-1, delta.shape[-1]), weight)
        return base

    def into(
        self, out: Float[Tensor, "*row n_out"], delta: Float[Tensor, "*row n_in"], weight: Float[Tensor, "n_in n_out"]
    ) -> Float[Tensor, "*row n_out"]:
        """delta W, written into out."""
        if self.precision not in ("fp64", "fp32") or not out.is_contiguous():
            return out.copy_(self(delta, weight))
        self.count(2 * delta.numel() * weight.shape[1])
        torch.mm(delta.reshape(-1, delta.shape[-1]), weight, out=out.view(-1, out.shape[-1]))
        return out

    def standardised(
        self, norm: Norm, base: Float[Tensor, "batch pos d_model"]
    ) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch pos 1"]]:
        """What every difference of a norm needs of the base run, kept for the tables that were asked for last."""
        kept = self.tables.get(id(base))
        if kept is None or kept[0] is not base or kept[1] is not norm:
            if len(self.tables) >= TABLES:
                self.tables.pop(next(iter(self.tables)))
            kept = self.tables[id(base)] = (base, norm, standardised(base, norm.eps, norm.centred))
        return kept[2]

    def batched(
        self, delta: Float[Tensor, "head case n_in"], weight: Float[Tensor, "head n_in n_out"]
    ) -> Float[Tensor, "head case n_out"]:
        """delta[h] W[h] for every head h."""
        self.count(2 * delta.numel() * weight.shape[-1])
        if self.precision in ("fp64", "fp32"):
            return delta @ weight
        return rounded(delta, self.precision) @ rounded(weight, self.precision)

    def kernel_for(self, op: str, x: Tensor) -> bool:
        """Whether an operation on such tensors is handed to `kernels.dispatch`, rather than computed densely here.

        Raises:
            UsageError: where kernels are demanded on a device that cannot run them.
        """
        forced = os.environ.get(dispatch.VARIABLE)
        wanted = self.backend != "torch" and x.dtype == torch.float32 and (x.is_cuda or forced not in (None, "torch"))
        if self.backend == "triton" and not wanted:
            raise UsageError(
                f"backend: triton needs float32 tensors on a GPU (or {dispatch.VARIABLE}=interpret), not {x.dtype} on "
                f"{x.device}"
            )
        if not wanted:
            self.ran.setdefault(op, "torch")
        return wanted

    def run(self, op: str, *arguments: Any) -> Any:
        """An operation by the implementation that `kernels.dispatch` names for it."""
        self.launches += 1
        done = dispatch.run(op, *arguments)
        self.ran[op] = done.by
        self.fell_back |= done.by == "torch"
        return done.value

    @property
    def by(self) -> str:
        """Which implementation ran, by operation."""
        return ", ".join(f"{op}: {by}" for op, by in sorted(self.ran.items()))

    def fixed(self, decide: Callable[[], Any]) -> Any:
        """What the host decides from the shape of a chunk, never from values that differ between chunks of one shape.

        Taken at once; while a chunk is captured for replay, read back from its first pass.
        """
        return decide() if self.tape is None else self.tape.once(decide)

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
