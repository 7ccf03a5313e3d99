"""Untrained twins: stacked they are what they are one by one, gains sharpen the logits, p-values count exceedances."""

import pytest
import torch

from interp.config import ModelConfig
from interp.model import Transformer
from probes.attention import attention_patterns
from probes.null import GAINS, NullScan, null_scan, p_value, stacked_twins, twin_patterns

SHAPES = {
    "plain": {"n_heads": 2},
    "bias": {"bias": True},
    "rotary": {"positions": "rotary", "norm": "rms"},
    "embed_norm": {"embed_norm": True, "dropout": 0.5},
    "attn_only": {"attn_only": True, "n_heads": 4},
}
TOKENS = torch.tensor([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 2, 0, 1, 3]])


def config(**changes) -> ModelConfig:
    return ModelConfig(**{"n_layers": 2, "n_heads": 1, "d_model": 8, "d_vocab": 5, "n_ctx": 6, **changes})


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scan(patterns: dict[int, torch.Tensor]) -> torch.Tensor:
    """Largest mean attention from the last query to the first key over layers and heads; one statistic."""
    return torch.stack([p[..., -1, 0].mean(2).flatten(1).amax(1) for p in patterns.values()], 1).amax(1, keepdim=True)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_stacked_twins_attend_as_a_loop_over_twins_does(shape: dict):
    cfg = config(**shape)
    twins = stacked_twins(cfg, [1.0, 3.0, 30.0], stream())
    together = twin_patterns(cfg, twins, TOKENS)
    for index in range(3):
        model = Transformer(cfg, seed=99).eval()
        model.load_state_dict({name: value[index] for name, value in twins.items()})
        alone, exact = attention_patterns(model, TOKENS), attention_patterns(model.double(), TOKENS)
        error, floor = (alone - exact).abs().max().item(), torch.finfo(torch.float32).eps
        assert (together[index] - exact).abs().max().item() <= 2 * error + floor, index


def test_a_gain_multiplies_the_attention_logits():
    cfg = config(bias=True)
    plain, sharp = stacked_twins(cfg, [1.0], stream(4)), stacked_twins(cfg, [4.0], stream(4))
    assert torch.equal(sharp["blocks.0.attn.W_Q"], 4 * plain["blocks.0.attn.W_Q"])
    differ = {name for name in plain if not torch.equal(plain[name], sharp[name])}
    assert differ == {f"blocks.{layer}.attn.W_Q" for layer in range(2)}, "b_Q is 0 at the start"
    name, scores = "blocks.0.attn.hook_attn_scores", []
    for twins in (plain, sharp):
        model = Transformer(cfg, seed=0).eval()
        model.load_state_dict({key: value[0] for key, value in twins.items()})
        scores.append(model.run_with_cache(TOKENS, names_filter=[name])[1][name])
    assert torch.equal(scores[1], 4 * scores[0]), "exact: a power of two does not round"


def test_sharper_twins_attend_more_to_one_key():
    cfg = config(n_heads=4)
    peaks = [twin_patterns(cfg, stacked_twins(cfg, [gain] * 8, stream()), TOKENS).amax(-1).mean() for gain in GAINS]
    assert peaks == sorted(peaks) and peaks[-1] > 0.9


def test_twins_differ_from_each_other_and_repeat_with_the_generator():
    cfg = config()
    twins, again = stacked_twins(cfg, [1.0, 1.0], stream()), stacked_twins(cfg, [1.0, 1.0], stream())
    assert all(torch.equal(twins[name], again[name]) for name in twins)
    assert not torch.equal(twins["embed.W_E"][0], twins["embed.W_E"][1])
    assert not torch.equal(twins["embed.W_E"], stacked_twins(cfg, [1.0, 1.0], stream(1))["embed.W_E"])


def test_gains_cycle_and_every_chunk_is_counted():
    told = []
    found = null_scan(
        config(), {5: TOKENS}, scan, n=7, generator=stream(), chunk=3, progress=lambda done, of: told.append((done, of))
    )
    assert found.gains.tolist() == [1.0, 10.0, 30.0, 100.0, 1.0, 10.0, 30.0]
    assert (found.n, found.n_sharp, tuple(found.maxima.shape)) == (7, 5, (7, 1))
    assert told == [(3, 7), (6, 7), (7, 7)]


def test_chunks_do_not_change_the_null():
    whole = null_scan(config(), {5: TOKENS, 4: TOKENS[:, :4]}, scan, n=6, generator=stream(), chunk=50)
    parts = null_scan(config(), {5: TOKENS, 4: TOKENS[:, :4]}, scan, n=6, generator=stream(), chunk=4)
    assert (whole.maxima - parts.maxima).abs().max() <= 8 * torch.finfo(torch.float32).eps


def test_null_draws_nothing_from_the_global_stream():
    before = torch.get_rng_state()
    null_scan(config(dropout=0.5), {5: TOKENS}, scan, n=2, generator=stream())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("observed", "expected"), [(0.5, (3 / 5, 2)), (0.7, (2 / 5, 1)), (0.71, (1 / 5, 0)), (0.0, (5 / 5, 4))]
)
def test_p_value_counts_twins_at_least_as_large(observed: float, expected: tuple[float, int]):
    maxima = torch.tensor([0.1, 0.5, 0.7, 0.2], dtype=torch.float64)
    assert p_value(observed, maxima) == expected


def test_smallest_p_of_499_twins_is_two_per_mille():
    assert p_value(1.0, torch.zeros(499)) == (1 / 500, 0)


def test_p_values_of_untrained_models_are_not_too_small():
    cfg = config(n_heads=2)
    null = null_scan(cfg, {5: TOKENS}, scan, n=40, generator=stream(1))
    fresh = null_scan(cfg, {5: TOKENS}, scan, n=40, generator=stream(2))
    small = sum(p_value(float(value), null.maxima[:, 0])[0] <= 0.1 for value in fresh.maxima[:, 0])
    assert small <= 15, "about 4 of 40 are expected, more than 15 once in 2,000 seeds"


def test_counts_of_a_null_are_those_of_its_gains():
    null = NullScan(torch.zeros(3, 2), torch.tensor([1.0, 10.0, 1.0]))
    assert (null.n, null.n_sharp) == (3, 1)
