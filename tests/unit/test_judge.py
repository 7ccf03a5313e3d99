"""What a judgement measures on held-out prompts: attention without padding."""

from dataclasses import replace

import pytest
import torch

from circuits.judge import attention_mass
from circuits.problem import Problem
from interp.decoder import affine, attend, normed, qkv
from tests.unit.own_answers import own_problem


@pytest.mark.parametrize("left", [False, True])
def test_attention_mass_counts_no_padding(left):
    """Each query's mean is over the prompts that are long enough to have it, whatever stands in the padding."""
    problem = own_problem()
    pairs, lengths = problem.pairs, [5, 3]
    mask = torch.ones_like(pairs.mask)
    short = torch.arange(len(pairs)) % 2 == 1
    mask[short, :2] = not left
    mask[short, 3:] = left
    position = torch.where(short & (not left), 2, 4)[:, None]
    uneven = Problem(problem.decoder, replace(pairs, mask=mask, position=position))
    part = uneven.parts["evaluate"]
    expected, counted = torch.zeros(2, 4, 5, 5), torch.zeros(5)
    for tokens, real in zip(part.pairs.clean, part.pairs.mask, strict=True):
        n, own = int(real.sum()), own_attention(problem.decoder, tokens[real][None])
        assert n in lengths
        expected[:, :, :n, :n] += own
        counted[:n] += 1
    assert counted.unique().tolist() == sorted({float(counted[0]), float(counted[4])}) and counted[4] < counted[0]
    assert (attention_mass(part) - expected / counted[:, None]).abs().max() < 1e-6


def own_attention(decoder, tokens: torch.Tensor) -> torch.Tensor:
    """Attention of one prompt without padding, [layer head q_pos k_pos], from the recorded queries and keys."""
    x, found = decoder.embed(tokens), []
    for layer in decoder.layers:
        y = normed(layer.ln1, x)
        z, pattern = attend(layer.attn, *qkv(layer, y))
        found.append(pattern[0])
        x = x + affine(z.flatten(-2), layer.attn.W_O.flatten(0, 1), layer.attn.b_O)
        x = x + layer.mlp(normed(layer.ln2, x))
    return torch.stack(found)
