"""How far the logits of a 16-bit checkpoint, run in float32, are from those in the checkpoint's own format."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from interp.adapters.agreement import logits_in
from interp.decoder import Decoder
from interp.rng import generator

SEQUENCES, LONGEST = 2, 16
SIXTEEN_BITS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Drift:
    """Difference of logits between float32 and a 16-bit format, by the same formulas on the same weights.

    Attributes:
        typical, worst: largest difference over the vocabulary, at the median and at the worst position.
        same_top: share of positions with the same most probable token.
        positions: how many were compared.
    """

    dtype: str
    typical: float
    worst: float
    same_top: float
    positions: int

    def __str__(self) -> str:
        return (
            f"{self.typical:.3g} at the median and {self.worst:.3g} at the worst of {self.positions} positions, "
            f"the same top token at {self.same_top:.0%} of them ({self.dtype})"
        )


@torch.no_grad()
def drift_of(
    decoder: Decoder,
    dtype: str,
    tokens: Int[Tensor, "batch pos"] | None = None,
    mask: Tensor | None = None,
) -> Drift | None:
    """What float32 changes for weights that were stored in `dtype`; None where that is no 16-bit format.

    Args:
        decoder: in float32, with values of the 16-bit format.
        tokens: prompts; None for 2 sequences of up to 16 random tokens.
        mask: true where a token is real, with any padding on the right; None for everywhere.
    """
    if dtype not in SIXTEEN_BITS:
        return None
    if tokens is None:
        shape = (SEQUENCES, min(LONGEST, decoder.n_ctx))
        tokens = torch.randint(len(decoder.W_E), shape, generator=generator(0, "drift"))
    tokens = tokens.to(decoder.W_E.device)
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    ours, own = (logits_in(decoder, tokens, one)[real].float() for one in (None, SIXTEEN_BITS[dtype]))
    error = (ours - own).abs().amax(-1)  # [position]
    return Drift(
        dtype=dtype,
        typical=float(error.median()),
        worst=float(error.max()),
        same_top=float((ours.argmax(-1) == own.argmax(-1)).float().mean()),
        positions=len(error),
    )
