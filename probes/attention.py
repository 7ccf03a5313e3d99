"""Attention patterns of a model and how much of their mass lies on given (query, key) positions."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.hooks import HookedModel

Pairs = list[tuple[int, int]]


@torch.inference_mode()
def attention_patterns(
    model: HookedModel, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "layer batch head q_pos k_pos"]:
    """Attention patterns of every layer; each row over k_pos sums to 1."""
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(tokens, names_filter=names)
    return torch.stack([cache[name] for name in names])


@dataclass(frozen=True)
class DiagonalScore:
    """Attention on a set of (query, key) targets, one value per layer and head.

    `mass` is the mean attention on the target key (1: all of it; uniform attention over a causal row of q+1 keys
    gives 1/(q+1)). `argmax_rate` is the share of targets that are the most attended key. `invariance` is 1 minus the
    standard deviation over sequences, averaged over targets: 1 when the head ignores the token values.
    `sequence_mass` keeps the mean mass of each sequence for intervals.
    """

    mass: Float[Tensor, "layer head"]
    argmax_rate: Float[Tensor, "layer head"]
    invariance: Float[Tensor, "layer head"]
    sequence_mass: Float[Tensor, "layer batch head"]
    sequence_argmax: Float[Tensor, "layer batch head"]


def diagonal_score(patterns: Float[Tensor, "layer batch head q_pos k_pos"], targets: Pairs) -> DiagonalScore:
    """Score every head on the targets."""
    queries = torch.tensor([q for q, _ in targets], device=patterns.device)
    keys = torch.tensor([k for _, k in targets], device=patterns.device)
    on_target = patterns[..., queries, keys]  # layer batch head target
    is_argmax = (patterns[..., queries, :].argmax(-1) == keys).to(patterns.dtype)
    spread = on_target.std(dim=1, correction=0)  # layer head target
    return DiagonalScore(
        mass=on_target.mean(dim=(1, 3)),
        argmax_rate=is_argmax.mean(dim=(1, 3)),
        invariance=1 - spread.mean(-1),
        sequence_mass=on_target.mean(-1),
        sequence_argmax=is_argmax.mean(-1),
    )


def shifted(targets: Pairs, offset: int) -> Pairs:
    """The same queries with every key moved by `offset`; targets that leave the causal triangle are dropped."""
    return [(q, k + offset) for q, k in targets if 0 <= k + offset <= q]
