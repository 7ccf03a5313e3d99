"""Which positions a tensor of differences covers, to fetch the base run's values for exactly these."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class OneRow:
    """Branch n differs at position `p[n]` only: differences are [batch, branch, ...]."""

    p: Int[Tensor, "branch"]

    def take(self, x: Float[Tensor, "batch pos *width"]) -> Float[Tensor, "batch branch *width"]:
        """The base values at each branch's row."""
        return x.index_select(1, self.p)

    def positions(self, batch: int) -> Int[Tensor, "batch branch"]:
        """Absolute positions of the rows."""
        return self.p.expand(batch, -1)


@dataclass(frozen=True)
class Span:
    """Every branch covers positions start..stop-1: differences are [batch, branch, row, ...]."""

    start: int
    stop: int

    def take(self, x: Float[Tensor, "batch pos *width"]) -> Float[Tensor, "batch 1 row *width"]:
        """The base values of the rows, with an axis for the branches."""
        return x[:, None, self.start : self.stop]

    def positions(self, batch: int) -> Int[Tensor, "batch row"]:
        """Absolute positions of the rows."""
        return torch.arange(self.start, self.stop).expand(batch, -1)

    @property
    def count(self) -> int:
        """Rows per branch."""
        return self.stop - self.start


@dataclass(frozen=True)
class Chosen:
    """Every branch covers the same few positions of its prompt: differences are [batch, branch, row, ...].

    Prompts with fewer rows than others repeat one of theirs; `counts` is false there, so that nothing counts twice.
    """

    index: Int[Tensor, "batch row"]
    counts: Bool[Tensor, "batch row"]

    def take(self, x: Float[Tensor, "batch pos *width"]) -> Float[Tensor, "batch 1 row *width"]:
        """The base values of the rows, with an axis for the branches."""
        return x[torch.arange(len(x), device=x.device)[:, None], self.index][:, None]

    def positions(self, batch: int) -> Int[Tensor, "batch row"]:
        """Absolute positions of the rows."""
        return self.index

    @property
    def count(self) -> int:
        """Rows per branch."""
        return self.index.shape[1]


Rows = Span | Chosen


def narrow(
    delta: Float[Tensor, "batch branch row *width"], span: Span, rows: Rows
) -> Float[Tensor, "batch branch kept *width"]:
    """The rows of `rows` out of differences over `span`; rows before the span did not change and give zeros."""
    if isinstance(rows, Span):
        return delta[:, :, rows.start - span.start : rows.stop - span.start]
    index = rows.index - span.start  # [batch row]
    index = index[(..., *(None,) * (delta.dim() - 3))].unsqueeze(1)  # [batch 1 row 1..]
    index = index.expand(-1, delta.shape[1], -1, *delta.shape[3:])
    found = delta.gather(2, index.clamp(min=0))
    return found.masked_fill(index < 0, 0) if bool((rows.index < span.start).any()) else found
