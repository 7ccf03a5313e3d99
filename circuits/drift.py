"""How far logits and metric of prompt pairs move when a 16-bit checkpoint is run in float32, as it is here."""

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.metrics import metric_rows
from circuits.problem import Part, Problem
from interp.adapters.agreement import logits_in
from interp.adapters.drift import SIXTEEN_BITS
from interp.decoder import Decoder
from interp.pairs.base import Pairs

PROMPTS = 16  # held-out ones where the pairs are divided; logits of all positions are kept for them


@torch.no_grad()
def drift_of_pairs(decoder: Decoder, dtype: str, pairs: Pairs) -> dict[str, str]:
    """Differences between float32 and the checkpoint's own format on up to 16 clean prompts, in words, by name.

    Both use the same formulas, in the same order, on the same weights. Empty where the weights have 32 bits or more.

    Args:
        decoder: in float32, with values of the 16-bit format.
    """
    if dtype not in SIXTEEN_BITS:
        return {}
    held_out = [index for index, part in enumerate(pairs.part) if part == "evaluate"] or range(len(pairs))
    some = pairs.subset(list(held_out)[:PROMPTS])
    tokens = _from_the_left(some)
    metric = Part(Problem(decoder, some), some).metric
    rows = metric_rows(metric, some.lengths)
    at = (rows.prompt, rows.pos)
    ours, own = (logits_in(decoder, tokens, one)[at].float() for one in (None, SIXTEEN_BITS[dtype]))
    value, value_own = (rows.mean(metric.of_logits(logits, rows, ours)) for logits in (ours, own))  # [prompt]
    moved, error = value - value_own, (ours - own).abs().amax(-1)
    same = float((ours.argmax(-1) == own.argmax(-1)).float().mean())
    n = f"n={len(some)}, float32 minus {dtype}"
    spread = f"mean {moved.mean():+.3g}, largest {moved.abs().max():.3g}, of a mean {value.mean():+.3g}"
    return {
        "drift_of_metric": f"{spread} ({n})",
        "drift_of_logits": f"median {error.median():.3g}, largest {error.max():.3g}, same top token {same:.0%} ({n})",
    }


def _from_the_left(pairs: Pairs) -> Int[Tensor, "batch pos"]:
    """Clean prompts with their real tokens first; what comes after them is read by nobody."""
    column = torch.arange(pairs.clean.shape[1]) + pairs.starts[:, None]
    return pairs.clean.gather(1, column % pairs.clean.shape[1])
