"""Attention of heads on one target key per query: mean mass, and how often the target is the most attended key."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def target_mass(
    pattern: Float[Tensor, "row head q_pos k_pos"], queries: Int[Tensor, "query"], keys: Int[Tensor, "query"]
) -> Float[Tensor, "row head"]:
    """Mean attention from each query to its target key, in [0, 1]."""
    return pattern[:, :, queries, keys].mean(-1)


def target_first(
    pattern: Float[Tensor, "row head q_pos k_pos"], queries: Int[Tensor, "query"], keys: Int[Tensor, "query"]
) -> Float[Tensor, "head"]:
    """Share of queries whose target is the most attended key, the first place and the query's own left out.

    Those two are where heads rest when they have nothing to do.
    """
    rows = pattern[:, :, queries].clone()  # [row head query k_pos]
    rows[..., 0] = -1
    rows[:, :, torch.arange(len(queries)), queries] = -1
    return (rows.argmax(-1) == keys.to(rows.device)).float().mean((0, 2))
