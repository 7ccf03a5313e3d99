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

    def positions(self, batch: int, device: torch.device | None = None) -> Int[Tensor, "batch branch"]:
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

    def positions(self, batch: int, device: torch.device | None = None) -> Int[Tensor, "batch row"]:
        """Absolute positions of the rows; on the CPU if not told otherwise."""
        return torch.arange(self.start, self.stop, device=device).expand(batch, -1)

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
        if len(x) == 1:
            return x.index_select(1, self.index[0])[:, None]
        return x[torch.arange(len(x), device=x.device)[:, None], self.index][:, None]

    def positions(self, batch: int, device: torch.device | None = None) -> Int[Tensor, "batch row"]:
        """Absolute positions of the rows."""
        return self.index

    @property
    def count(self) -> int:
        """Rows per branch."""
        return self.index.shape[1]


Rows = Span | Chosen


@dataclass(frozen=True)
class OwnRows:
    """Where the changed rows of one-row branches stand among the rows that a layer carries on.

    Attributes:
        branch: branches whose row is carried on in some prompt.
        row: the index of that row in each prompt.
        here: whether the row is carried on in each prompt; None for everywhere.
    """

    branch: Int[Tensor, "some"]
    row: Int[Tensor, "batch some"]
    here: Bool[Tensor, "batch some"] | None

    @classmethod
    def of(cls, rows: Rows, p: Int[Tensor, "branch"], n_batch: int) -> "OwnRows":
        """The places of branches that begin at positions p."""
        if isinstance(rows, Span):
            branch = ((p >= rows.start) & (p < rows.stop)).nonzero()[:, 0]
            return cls(branch, (p[branch] - rows.start).expand(n_batch, -1), None)
        own = rows.index[:, None] == p[:, None]  # [batch branch row]
        here = own.any(-1)
        branch = here.any(0).nonzero()[:, 0]
        row, here = own[:, branch].int().argmax(-1), here[:, branch]
        return cls(branch, row, None if bool(here.all()) else here)

    def put(self, x: Float[Tensor, "batch branch row *width"], new: Float[Tensor, "batch some *width"]) -> None:
        """Write the branches' values at their own rows of x."""
        x[self.at] = new if self.here is None else torch.where(self._wide(new), new, x[self.at])

    def add(self, x: Float[Tensor, "batch branch row *width"], new: Float[Tensor, "batch some *width"]) -> None:
        """Add the branches' values at their own rows of x."""
        x[self.at] += new if self.here is None else new * self._wide(new)

    @property
    def at(self) -> tuple[Tensor, Tensor, Tensor]:
        """Index of the rows in [batch branch row]."""
        batch = torch.arange(len(self.row), device=self.row.device)[:, None]
        return batch, self.branch, self.row

    def _wide(self, x: Tensor) -> Bool[Tensor, "batch some *one"]:
        return self.here[(..., *(None,) * (x.dim() - 2))]


def narrow(
    delta: Float[Tensor, "batch branch row *width"], span: Span, rows: Rows
) -> Float[Tensor, "batch branch kept *width"]:
    """The rows of `rows` out of differences over `span`; rows before the span did not change and give zeros."""
    if isinstance(rows, Span):
        return delta[:, :, rows.start - span.start : rows.stop - span.start]
    index = rows.index - span.start  # [batch row]
    index = index[(..., *(None,) * (delta.dim() - 3))].unsqueeze(1)  # [batch 1 row 1..]
    index = index.expand(-1, delta.shape[1], -1, *delta.shape[3:])
    return delta.gather(2, index.clamp(min=0)).masked_fill_(index < 0, 0)


def repeated(x: Float[Tensor, "batch pos kv_head *width"], group: int) -> Float[Tensor, "batch pos head *width"]:
    """Keys or values by query head: each key head once for every query head that reads it."""
    return x if group == 1 else x.repeat_interleave(group, 2)
