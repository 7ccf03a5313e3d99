"""Branches of one row, carried through the MLP of the block in which they begin for all chunks of a call together.

Chunks of long suffixes begin few branches in each block, and products of a dozen rows read a weight matrix for little.
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.engine.plan import Plan
from circuits.engine.rows import OneRow, Span
from circuits.engine.runs import Runs
from circuits.engine.sites import Site, Wanted, joining
from circuits.engine.sweep import Branches, Joining, merged
from circuits.engine.wave import mlp_delta

FEW_ROWS = 128  # of a chunk's own in one block; products of more are no faster together
CHEAP = {"z", "attn_out", "resid_mid"}  # sites whose differences before the MLP may be made twice
SHARE = 8  # of the memory that chunks may take, one in so many parts


@dataclass(frozen=True)
class Starts:
    """All patches of a call after their own blocks, made block by block when the first chunk asks.

    Attributes:
        wanted: every patch of the call.
        kept: by block, differences of all patches after it, and the column of each slot.
    """

    runs: Runs
    source: list[Tensor]
    wanted: Wanted
    kept: dict[int, tuple[Float[Tensor, "batch branch d_model"], Int[Tensor, "slot"]]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        runs: Runs,
        source: list[Tensor],
        which: tuple[Site, tuple[int, ...], tuple[int, ...]],
        slots: Int[Tensor, "layer component pos"],
        plan: Plan,
    ) -> "Starts | None":
        """None where it would save nothing: few or large chunks, or prompts and positions that no chunk runs.

        Args:
            which: site, layers and components of the call.
        """
        site, layers, components = which
        positions = sorted({p for chunk in plan.chunks for p in chunk.positions})
        per_layer = len(runs.base.final) * len(positions) * len(components)
        sizes = [len(c.prompts) * len(c.positions) * (c.components[1] - c.components[0]) for c in plan.chunks]
        memory = per_layer * len(layers) * runs.base.final.shape[-1] * runs.base.final.element_size()
        if site not in CHEAP or len(sizes) < 2 or sum(sizes) != per_layer:
            return None
        if max(sizes) > FEW_ROWS or memory > plan.budget // SHARE:
            return None
        listed = (torch.tensor(some, device=slots.device) for some in (components, positions))
        return cls(runs, source, Wanted(site, layers, *listed, runs.read.any(0), slots, all_of_them=True))

    def after_block(self, number: int, joins: Joining, prompts: Int[Tensor, "prompt"] | None) -> Joining:
        """The same branches behind the block's MLP instead of before it; in the last block they stay where they are."""
        if joins.mid is None or number == len(self.runs.decoder.layers) - 1:
            return joins
        delta, column = self._table(number)
        delta = (delta if prompts is None else delta[prompts]).index_select(1, column[joins.mid.slot])
        return replace(joins, mid=None, post=merged([replace(joins.mid, delta=delta), joins.post]))

    def _table(self, number: int) -> tuple[Float[Tensor, "batch branch d_model"], Int[Tensor, "slot"]]:
        if number not in self.kept:
            runs, rows = self.runs, Span(0, self.runs.base.final.shape[1])

            def no_state(*_: object) -> None:
                raise AssertionError("a branch of one row before the MLP needs no attention state")

            begin = joining(runs.decoder, runs.base, self.source, self.wanted, number, rows, no_state, runs.mul)
            column = torch.full((self.wanted.slots.numel(),), -1, device=begin.mid.slot.device)
            column[begin.mid.slot] = torch.arange(len(begin.mid.slot), device=column.device)
            self.kept[number] = self._behind(number, begin.mid), column
        return self.kept[number]

    def _behind(self, number: int, mid: Branches) -> Float[Tensor, "batch branch d_model"]:
        layer, base = self.runs.decoder.layers[number], self.runs.base.layers[number]
        if layer.mlp is None:
            return mid.delta
        return mlp_delta(layer, base, OneRow(mid.p), mid.delta, self.runs.mul, onto=mid.delta)
