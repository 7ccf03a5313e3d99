"""What a judgement measures on held-out prompts: attention without padding, controls with ties counted."""

from dataclasses import replace

import pytest
import torch

from circuits.controls import Control
from circuits.faithfulness import share_kept, share_tie
from circuits.judge import attention_mass, summary_of
from circuits.problem import Problem
from circuits.pruning import joined, order_of, top
from interp.decoder import affine, attend, normed, qkv
from interp.rng import generator
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


def kept_in(problem: Problem) -> torch.Tensor:
    """Half of the live edges, joined."""
    scores = torch.rand(problem.live.shape, generator=generator(0, "found"))
    order = order_of(scores, problem.live)
    return joined(problem, top(order, len(order) // 2, problem.live))


def test_controls_that_are_the_circuit_itself_are_all_as_good_whatever_rounding_says():
    problem = own_problem(n=80)
    runs, kept = problem.parts["evaluate"].runs, kept_in(problem)
    share = float(share_kept(runs.values(kept[None])[0], runs.clean, runs.ablated))
    for shift in (-1e-7, 0.0, 1e-7):
        found = summary_of(runs, Control("same types", "", (kept,) * 100, 1.0, 1.0), kept, share + shift)
        assert found.p_value == 1.0 and found.only_itself
        assert found.mean == found.largest == share + shift, "a circuit's own share, and no mean above the largest"


def test_a_control_that_is_below_by_rounding_alone_is_as_good_and_one_below_by_more_is_not():
    problem = own_problem(n=80)
    runs, kept = problem.parts["evaluate"].runs, kept_in(problem)
    other = kept.clone()
    other[tuple((~runs.graph.exists).nonzero()[0])] = True  # no edge: another mask of the same circuit
    share = float(share_kept(runs.values(other[None])[0], runs.clean, runs.ablated))
    tie, control = share_tie(runs), Control("random paths", "", (other,) * 9)
    assert summary_of(runs, control, kept, share + 0.5 * tie).p_value == 1.0
    below = summary_of(runs, control, kept, share + 3 * tie)
    assert below.p_value == 0.1 and below.tie == tie and not below.only_itself


def test_runs_of_one_circuit_beside_others_differ_by_less_than_a_tie():
    problem = own_problem("grouped", n=80)
    runs, kept = problem.parts["evaluate"].runs, kept_in(problem)
    shares = [
        share_kept(runs.values(kept.expand(n, *kept.shape)), runs.clean, runs.ablated).tolist()
        for n in (1, 2, 3, 7, 64)
    ]
    every = [share for some in shares for share in some]
    assert max(every) - min(every) < share_tie(runs) < 1e-4
