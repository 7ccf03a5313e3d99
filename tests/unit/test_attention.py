"""Attention patterns and the mass on target positions, with patterns small enough to add up by hand."""

import pytest
import torch

from interp.config import ModelConfig
from interp.model import Transformer
from probes.attention import attention_patterns, diagonal_score, shifted

CFG = ModelConfig(n_layers=2, n_heads=2, d_model=8, d_vocab=5, n_ctx=6)


def pattern_of(*sequences: list[list[float]]) -> torch.Tensor:
    """One layer and one head; rows are queries."""
    return torch.tensor(sequences)[None, :, None]  # layer batch head q_pos k_pos


FIRST = [[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.5, 0.25, 0.25]]
SECOND = [[1.0, 0.0, 0.0], [0.75, 0.25, 0.0], [0.5, 0.25, 0.25]]


def test_patterns_are_causal_distributions_of_every_layer_and_head():
    tokens = torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1], [0, 0, 0, 0]])
    patterns = attention_patterns(Transformer(CFG, seed=0), tokens)
    assert patterns.shape == (2, 3, 2, 4, 4)
    assert (patterns.sum(-1) - 1).abs().max() <= 4 * torch.finfo(torch.float32).eps
    assert bool((patterns.triu(1) == 0).all())


def test_patterns_equal_softmax_of_queries_and_keys():
    model = Transformer(CFG, seed=1).double()
    tokens = torch.tensor([[0, 1, 2, 3]])
    names = ["blocks.1.attn.hook_q", "blocks.1.attn.hook_k"]
    _, cache = model.run_with_cache(tokens, names_filter=names)
    q, k = (cache[name][0, :, 1] for name in names)  # pos d_head of head 1
    pattern = attention_patterns(model, tokens)[1, 0, 1]
    for query in range(4):
        scores = torch.stack([q[query] @ k[key] / 2 for key in range(query + 1)])  # sqrt(d_head) = 2
        assert (pattern[query, : query + 1] - scores.softmax(0)).abs().max() < 1e-14


def test_reading_patterns_leaves_no_hooks():
    model = Transformer(CFG, seed=0)
    attention_patterns(model, torch.tensor([[0, 1]]))
    assert not any(point.hooked for point in model.hook_dict.values())


def test_mass_and_argmax_rate_are_means_over_sequences_and_targets():
    score = diagonal_score(pattern_of(FIRST, SECOND), [(1, 1), (2, 0)])
    assert score.mass.tolist() == [[(0.75 + 0.5 + 0.25 + 0.5) / 4]]
    assert score.argmax_rate.tolist() == [[0.75]]
    assert score.sequence_mass.tolist() == [[[0.625], [0.375]]]
    assert score.sequence_argmax.tolist() == [[[1.0], [0.5]]]


def test_invariance_falls_by_the_spread_over_sequences():
    score = diagonal_score(pattern_of(FIRST, SECOND), [(1, 1), (2, 0)])
    assert score.invariance.item() == pytest.approx(1 - 0.25 / 2)  # masses .75 and .25 spread by .25; .5 and .5 by 0
    assert diagonal_score(pattern_of(FIRST, FIRST), [(1, 1)]).invariance.item() == 1.0


def test_uniform_attention_scores_one_over_the_row_length():
    uniform = torch.ones(4, 4).tril() / torch.arange(1, 5)[:, None]
    score = diagonal_score(uniform.expand(2, 3, 1, 4, 4), [(1, 0), (3, 2)])
    assert score.mass.flatten().tolist() == pytest.approx([(1 / 2 + 1 / 4) / 2] * 2)


def test_layers_and_heads_are_scored_apart():
    patterns = torch.zeros(2, 1, 2, 2, 2)
    patterns[..., 0, 0] = 1
    patterns[..., 1, 1] = 1
    patterns[1, :, 0, 1] = torch.tensor([0.75, 0.25])
    assert diagonal_score(patterns, [(1, 0)]).mass.tolist() == [[0.0, 0.0], [0.75, 0.0]]


def test_shifted_targets_keep_the_query_and_stay_causal():
    targets = [(2, 0), (3, 1), (4, 2)]
    assert shifted(targets, 0) == targets
    assert shifted(targets, 2) == [(2, 2), (3, 3), (4, 4)]
    assert shifted(targets, 3) == []
    assert shifted(targets, -1) == [(3, 0), (4, 1)]
