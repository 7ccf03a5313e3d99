"""Prompts as the engine wants them: two aligned token tables, right-padded, with their lengths checked."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import UsageError


@dataclass(frozen=True)
class Prompts:
    """Base and source tokens of the same lengths, shifted so that every prompt begins at column 0.

    Attributes:
        shift: columns of padding before each prompt as the caller gave it.
    """

    base: Int[Tensor, "batch pos"]
    source: Int[Tensor, "batch pos"] | None
    lengths: Int[Tensor, "batch"]
    shift: Int[Tensor, "batch"]
    mask: Bool[Tensor, "batch pos"]

    @property
    def first_difference(self) -> Int[Tensor, "batch"]:
        """First position at which the two prompts differ; the length where they never do, 0 without a source."""
        if self.source is None:
            return torch.zeros_like(self.lengths)
        place = torch.arange(self.base.shape[1], device=self.base.device)
        differs = (self.base != self.source) & (place < self.lengths[:, None])
        return torch.where(differs.any(1), differs.int().argmax(1), self.lengths)


def aligned(
    base: Tensor, source: Tensor | None, mask: Tensor | None, names: tuple[str, str], d_vocab: int, n_ctx: int
) -> Prompts:
    """Check and right-pad prompts.

    Args:
        mask: true where a token is real, [batch, pos]; padding may be on the left or on the right. None: no padding.
        names: what the caller calls the two tables, for messages.

    Raises:
        UsageError: for tables of other shapes or types, no prompts, unknown tokens, or padding in the middle.
    """
    _check_tokens(base, names[0], d_vocab, n_ctx)
    if source is not None:
        _check_tokens(source, names[1], d_vocab, n_ctx)
        if source.shape != base.shape:
            raise UsageError(
                f"{names[1]}: shape {tuple(source.shape)}, but {names[0]} has {tuple(base.shape)}: both need the same "
                "number of prompts and of tokens, since patching is position by position"
            )
    if mask is None:
        whole = torch.full((len(base),), base.shape[1], device=base.device)
        return Prompts(base, source, whole, torch.zeros_like(whole), torch.ones_like(base, dtype=torch.bool))
    if mask.shape != base.shape:
        raise UsageError(f"mask: shape {tuple(mask.shape)}, but {names[0]} has {tuple(base.shape)}")
    mask = mask.bool()
    lengths, shift = mask.sum(1), mask.int().argmax(1)
    place = torch.arange(base.shape[1], device=base.device)
    expected = (place >= shift[:, None]) & (place < (shift + lengths)[:, None])
    if bool((lengths == 0).any()):
        raise UsageError(f"mask: prompt {int((lengths == 0).nonzero()[0])} has no token")
    if bool((mask != expected).any()):
        raise UsageError(f"mask: prompt {int((mask != expected).any(1).nonzero()[0])} has padding between its tokens")
    column = (place + shift[:, None]) % base.shape[1]
    moved = [
        None if x is None else x.gather(1, column).masked_fill(place >= lengths[:, None], 0) for x in (base, source)
    ]
    return Prompts(moved[0], moved[1], lengths, shift, mask)


def _check_tokens(tokens: Tensor, name: str, d_vocab: int, n_ctx: int) -> None:
    if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.is_floating_point():
        got = f"shape {tuple(tokens.shape)}, {tokens.dtype}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise UsageError(f"{name}: {got}: expected token ids of shape [batch, pos]")
    if not tokens.numel():
        raise UsageError(f"{name}: shape {tuple(tokens.shape)}: there is no prompt to patch")
    if tokens.shape[1] > n_ctx:
        raise UsageError(f"{name}: {tokens.shape[1]} positions, but the model has {n_ctx}")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= d_vocab:
        raise UsageError(f"{name}: tokens run from {low} to {high}, but this model knows 0 to {d_vocab - 1}")
