"""How closely a decoder computes what the model it was read from computes, measured on random tokens."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.decoder import Decoder, affine, forward
from interp.errors import NotExpressible, UsageError
from interp.rng import generator

SEQUENCES, LONGEST = 2, 32
TYPICAL, WORST = 4, 32  # how many times the rounding error is allowed: at the median position, at the worst one
COLUMNS = 8192  # of the vocabulary, unembedded at a time


@dataclass(frozen=True)
class Agreement:
    """Distance of a model's logits from those of its decoder in float64, and how much of it can be rounding.

    Each is the largest difference over the vocabulary, at the median and at the worst of the positions tried.
    """

    typical: float
    typical_bound: float
    worst: float
    worst_bound: float

    @property
    def holds(self) -> bool:
        """Whether both are within their bounds; not-a-number is not."""
        return self.typical <= self.typical_bound and self.worst <= self.worst_bound


def logits_in(
    decoder: Decoder, tokens: Int[Tensor, "batch pos"], dtype: torch.dtype | None
) -> Float[Tensor, "batch pos d_vocab"]:
    """`forward` in another precision (None: as it is), with no more than one layer converted at a time."""

    def cast(weights):
        return weights if dtype is None or weights is None else weights.to(dtype)

    used, index = tokens.unique(return_inverse=True)
    rows = forward(
        dataclasses.replace(
            decoder,
            W_E=cast(decoder.W_E[used]),
            W_pos=cast(decoder.W_pos),
            ln_embed=cast(decoder.ln_embed),
            layers=(cast(layer) for layer in decoder.layers),
            ln_final=cast(decoder.ln_final),
            W_U=torch.eye(decoder.d_model, dtype=dtype or decoder.W_E.dtype, device=decoder.W_E.device),
            b_U=None,
        ),
        index,
    )  # [batch pos d_model], normalised
    parts = [affine(rows, cast(columns), None) for columns in decoder.W_U.split(COLUMNS, 1)]
    logits = torch.cat(parts, -1)
    return logits if decoder.b_U is None else logits + cast(decoder.b_U)


@torch.no_grad()
def agreement(decoder: Decoder, model: Callable[[Tensor], Tensor]) -> Agreement:
    """Compare logits on 2 sequences of random tokens, of up to 32 positions.

    The yardstick is what rounding does to the same formulas: at the median position the model may be 4 times as far
    from the decoder in float64 as the decoder in the model's own precision is, and 32 times at the worst one, where
    saturated attention amplifies a rounding. The own precision of a float64 model is float32, in which Hugging Face
    computes norms, attention weights and rotary angles whatever the dtype. A rounding error is never taken to be less
    than the spacing of floating-point numbers at the largest logit.
    """
    shape = (SEQUENCES, min(LONGEST, decoder.n_ctx))
    tokens = torch.randint(len(decoder.W_E), shape, generator=generator(0, "agreement")).to(decoder.W_E.device)
    double = decoder.W_E.dtype == torch.float64
    exact = logits_in(decoder, tokens, torch.float64)
    own = logits_in(decoder, tokens, torch.float32 if double else None)
    error, rounding = ((logits.double() - exact).abs().amax(-1).flatten() for logits in (model(tokens), own))
    rounding = rounding.clamp(min=torch.finfo(own.dtype).eps * float(exact.abs().max()))
    return Agreement(
        typical=float(error.median()),
        typical_bound=TYPICAL * float(rounding.median()),
        worst=float(error.max()),
        worst_bound=WORST * float(rounding.max()),
    )


def require_agreement(decoder: Decoder, model: Callable[[Tensor], Tensor]) -> None:
    """Refuse a decoder that computes something else than its model.

    Raises:
        NotExpressible: with the measured errors and their bounds.
        UsageError: for logits that are not finite.
    """
    found = agreement(decoder, model)
    if not math.isfinite(found.worst + found.worst_bound):
        raise UsageError(
            f"{decoder.name}: its logits for random tokens are not finite; look for NaN or infinity among its weights, "
            f"and for overflow in {decoder.W_E.dtype}"
        )
    if not found.holds:
        raise NotExpressible(
            f"{decoder.name}: written as a Decoder, its logits differ from the model's by {found.typical:.3g} at the "
            f"median position and {found.worst:.3g} at the worst, where rounding in {decoder.W_E.dtype} explains at "
            f"most {found.typical_bound:.3g} and {found.worst_bound:.3g}; the model computes something else"
        )
