"""Scores of every head of a model, with the two nulls and the family-wise p-values against them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from circuits.detectors.base import HeadDetector
from circuits.heads.probe import Probe
from circuits.heads.view import View, views
from interp.decoder import Decoder

SIGN_DRAWS = 1999


@dataclass(frozen=True)
class Scanned:
    """What one head type finds in a model.

    Attributes:
        scores: per independent sequence; `contrast` likewise, None where the type has none.
    """

    scores: Float[Tensor, "unit layer head"]
    contrast: Float[Tensor, "unit layer head"] | None
    rates: Float[Tensor, "layer head"]


@dataclass(frozen=True)
class Scan:
    """Everything measured in one pass over a model; `spent` and `attended` are those of `checks.Setting`."""

    found: dict[str, Scanned]
    spent: Float[Tensor, "layer head"]
    attended: Int[Tensor, "layer head prompt query"]


@torch.no_grad()
def scan(decoder: Decoder, tokens: Int[Tensor, "row pos"], probe: Probe, kinds: Sequence[HeadDetector]) -> Scan:
    """One forward pass, read by each head type."""
    seen: dict[str, list[tuple[Tensor, Tensor | None, Tensor]]] = {kind.name: [] for kind in kinds}
    spent, attended = [], []
    for view in views(decoder, tokens.to(decoder.W_E.device)):
        for kind in kinds:
            parts = kind.scores(view, probe), kind.contrast(view, probe), kind.rates(view, probe)
            seen[kind.name].append(tuple(None if part is None else part.cpu() for part in parts))
        rows = read_rows(view, probe)
        spent.append(rows.clamp(min=0).sum(-1).mean((0, 2)).cpu())
        attended.append(rows.argmax(-1).transpose(0, 1).cpu())
    found = {name: stacked(probe, parts) for name, parts in seen.items()}
    return Scan(found, torch.stack(spent), torch.stack(attended))


def stacked(probe: Probe, parts: list[tuple[Tensor, Tensor | None, Tensor]]) -> Scanned:
    """Layers together, prompts of a unit averaged."""
    scores, contrasts, rates = zip(*parts, strict=True)
    contrast = None if contrasts[0] is None else probe.by_unit(torch.stack(contrasts, 1))
    return Scanned(probe.by_unit(torch.stack(scores, 1)), contrast, torch.stack(rates))


def read_rows(view: View, probe: Probe) -> Float[Tensor, "prompt head query k_pos"]:
    """Attention of the probe's queries; -1 on keys that do not count: the first place and the query's own."""
    n_pos = view.pattern.shape[-1]
    queries = probe.queries.to(view.pattern.device)
    index = queries[:, None, :, None].expand(-1, view.pattern.shape[1], -1, n_pos)
    place = torch.arange(n_pos, device=queries.device)
    outside = (place == 0) | (place >= queries[..., None])  # [prompt query k_pos]
    return view.pattern[: probe.n].gather(2, index).masked_fill(outside[:, None], -1)


def sign_maxima(contrast: Float[Tensor, "unit layer head"], stream: Generator) -> Float[Tensor, "draw"]:
    """The largest mean contrast of any head, with the signs of whole sequences drawn anew.

    Without a repeat-specific head a sequence and its version without the repeat could change places, which turns the
    sign of the difference for all heads at once.
    """
    flat = contrast.flatten(1).double()  # [unit head]
    signs = torch.randint(2, (SIGN_DRAWS, len(flat)), generator=stream).double() * 2 - 1
    return (signs @ flat / len(flat)).amax(1)


def p_values(observed: Float[Tensor, "layer head"], maxima: Float[Tensor, "draw"]) -> Float[Tensor, "layer head"]:
    """Family-wise p of each head: (1 + number of maxima at least as large) / (1 + n); ties up to rounding count."""
    observed, maxima = observed.double(), maxima.double()
    slack = 1e-9 * maxima.abs().amax().clamp(min=1e-30)
    reached = (maxima[:, None, None] >= observed - slack).sum(0)
    return (1 + reached).double() / (1 + len(maxima))
