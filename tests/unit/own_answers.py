"""Problems whose right answers are what a small random model says itself, so that there is behaviour to explain."""

import torch

from circuits.problem import Problem
from interp.decoder import Decoder, forward
from interp.pairs.base import Pairs
from tests.unit.small_decoders import small_decoder


def own_pairs(
    decoder: Decoder, n: int = 24, length: int = 5, seed: int = 0, answers: torch.Tensor | None = None
) -> Pairs:
    """Random clean and corrupted prompts; the right answer is the model's own, all other tokens are wrong."""
    stream = torch.Generator().manual_seed(seed)
    clean, corrupted = (torch.randint(7, (n, length), generator=stream) for _ in range(2))
    right = forward(decoder, clean)[:, -1].argmax(-1) if answers is None else answers
    wrong = torch.stack([torch.tensor([t for t in range(7) if t != int(r)]) for r in right])
    return Pairs(
        clean=clean,
        corrupted=corrupted,
        mask=torch.ones_like(clean, dtype=torch.bool),
        position=torch.full((n, 1), length - 1),
        answers=right[:, None, None],
        wrong=wrong[:, None],
        unit=torch.arange(n),
        d_vocab=len(decoder.W_E),
        spans=({},) * n,
        group=("",) * n,
        part=("",) * n,
    ).split(0)


def own_problem(name: str = "grouped", by_position: bool = False, ablation: str = "resample", **settings) -> Problem:
    """A small problem in float32."""
    decoder = small_decoder(name).to(torch.float32)
    return Problem(decoder, own_pairs(decoder, **settings), ablation, by_position)
