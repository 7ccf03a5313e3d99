"""Small random float64 decoders of every family that the patching engine computes, for the tests."""

import dataclasses

import torch

from circuits.metrics import LogitDiff
from interp.decoder import Decoder, Rotary, decoder_of
from tests.unit.test_decoder import VARIANTS, random_model


def grouped(decoder: Decoder) -> Decoder:
    """One key-value head for every two query heads."""

    def fewer(layer):
        names = ("W_K", "W_V", "b_K", "b_V")
        kept = {n: None if getattr(layer.attn, n) is None else getattr(layer.attn, n)[::2] for n in names}
        return dataclasses.replace(layer, attn=dataclasses.replace(layer.attn, **kept))

    return dataclasses.replace(decoder, layers=tuple(fewer(layer) for layer in decoder.layers))


def parallel(decoder: Decoder) -> Decoder:
    """Attention and MLP read the same stream, as in GPT-NeoX."""
    layers = tuple(dataclasses.replace(layer, parallel=True) for layer in decoder.layers)
    return dataclasses.replace(decoder, layers=layers)


def half_rotary(decoder: Decoder) -> Decoder:
    """Rotary positions on half of each head's coordinates, paired (i, i + half)."""
    rotary = Rotary(torch.tensor([0.7], dtype=torch.float64), interleaved=False, scale=1.1)
    layers = tuple(
        dataclasses.replace(one, attn=dataclasses.replace(one.attn, rotary=rotary)) for one in decoder.layers
    )
    return dataclasses.replace(decoder, layers=layers)


def small_decoder(name: str, n_layers: int = 2, **settings) -> Decoder:
    """A decoder by its name in FAMILIES."""
    wide = {"n_heads": 4, "d_model": 16} if name in OUTSIDE else {}
    base = {"bias": True, "norm_bias": True} if name in OUTSIDE else VARIANTS[name]
    decoder = decoder_of(random_model(**{**base, **wide, "n_layers": n_layers, **settings}))
    return OUTSIDE[name](decoder) if name in OUTSIDE else decoder


OUTSIDE = {
    "grouped": lambda d: grouped(half_rotary(d)),
    "parallel": lambda d: parallel(half_rotary(d)),
    "grouped parallel": lambda d: grouped(parallel(d)),
}
FAMILIES = (*VARIANTS, *OUTSIDE)


def prompts(n: int = 2, length: int = 6, same: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean and corrupted tokens that share their first `same`, and differ at the next."""
    stream = torch.Generator().manual_seed(seed)
    clean, corrupted = (torch.randint(7, (n, length), generator=stream) for _ in range(2))
    corrupted[:, :same] = clean[:, :same]
    corrupted[:, same] = (clean[:, same] + 1) % 7
    return clean, corrupted


def logit_diff(n: int = 2, positions="last") -> LogitDiff:
    """A metric with other tokens for each prompt."""
    return LogitDiff(torch.arange(n) % 7, (torch.arange(n) + 3) % 7, positions)
