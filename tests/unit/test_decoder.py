"""The plain decoder computes what the model computes, for every configuration."""

import itertools

import pytest
import torch

from interp.config import ModelConfig
from interp.decoder import decoder_of, forward
from interp.model import Transformer

VARIANTS = {
    "preset": {"embed_norm": True},
    "rms swiglu rotary": {"norm": "rms", "activation": "swiglu", "positions": "rotary", "bias": True},
    "attention only": {"attn_only": True, "n_layers": 3},
    "no norm, relu": {"norm": "none", "activation": "relu", "positions": "none"},
    "normed residual": {"residual": "normed", "norm_bias": True, "pos_dim": 3},
    "tied, wide heads": {"tied": True, "d_head": 6, "final_norm": False},
}


def random_model(seed: int = 0, **settings) -> Transformer:
    """A float64 model with random weights, biases and norms included."""
    base = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_vocab": 7, "n_ctx": 9}
    model = Transformer(ModelConfig(**{**base, **settings}), seed=seed).double().eval()
    stream = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=stream, dtype=torch.float64))
    return model


@pytest.mark.parametrize("name", VARIANTS)
def test_decoder_equals_its_model(name):
    model = random_model(**VARIANTS[name])
    tokens = torch.randint(7, (3, 9), generator=torch.Generator().manual_seed(1))
    difference = (forward(decoder_of(model), tokens) - model(tokens)).abs().max()
    assert difference < 1e-12


@pytest.mark.parametrize(("norm", "bias"), itertools.product(["layer", "rms"], [True, False]))
def test_decoder_in_float32_is_that_of_the_cast_weights(norm, bias):
    model = random_model(norm=norm, bias=bias, positions="rotary")
    tokens = torch.arange(7)[None]
    cast = forward(decoder_of(model).to(torch.float32), tokens)
    assert cast.dtype == torch.float32
    assert (cast - model.float()(tokens)).abs().max() < 1e-4
