"""Sets of right and wrong answers: the mean logit difference, the same in every engine that measures it."""

import torch

from circuits.masked import MaskedRuns
from circuits.metrics import AnswerDiff, LogitDiff
from circuits.patching import patch_heads
from tests.unit.small_decoders import prompts, small_decoder

RIGHT = torch.tensor([[[1, 4, -1], [2, -1, -1]], [[0, 3, 5], [6, 1, -1]]])
OTHER = torch.tensor([[[2, 3, 5], [4, 5, -1]], [[1, -1, -1], [0, 2, 3]]])
PLACES = [3, 5]


def naive(logits: torch.Tensor) -> torch.Tensor:
    """The definition, from logits [batch, 2, d_vocab] at the two positions."""
    value = torch.zeros(len(logits), dtype=logits.dtype)
    for prompt in range(2):
        for column in range(2):
            right, other = ([int(t) for t in sets[prompt, column] if t >= 0] for sets in (RIGHT, OTHER))
            value[prompt] += (logits[prompt, column, right].mean() - logits[prompt, column, other].mean()) / 2
    return value


def test_patches_move_the_mean_difference_of_the_sets():
    decoder, (clean, corrupted) = small_decoder("grouped"), prompts()
    metric = AnswerDiff(RIGHT, OTHER, torch.tensor([PLACES, PLACES]))
    found = patch_heads(decoder, clean=clean, corrupted=corrupted, metric=metric, precision="fp64")
    slow = patch_heads(
        decoder, clean=clean, corrupted=corrupted, metric=lambda logits: naive(logits[:, PLACES]), precision="fp64"
    )
    assert (found.effect - slow.effect).abs().max() < 1e-12 and found.effect.abs().max() > 1e-3


def test_a_circuits_value_is_that_of_its_logits():
    decoder, (clean, corrupted) = small_decoder("grouped"), prompts()
    runs = MaskedRuns(
        decoder,
        clean=clean,
        corrupted=corrupted,
        metric=AnswerDiff(RIGHT, OTHER, torch.tensor([PLACES, PLACES])),
        precision="fp64",
    )
    kept = (torch.rand(1, *runs.graph.exists.shape, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    logits = runs.run(kept)[0].view(2, 2, -1)
    assert (runs.values(kept)[0] - naive(logits)).abs().max() < 1e-12


def test_sets_of_one_are_the_logit_difference():
    decoder, (clean, corrupted) = small_decoder("grouped"), prompts()
    one, two = torch.tensor([1, 4]), torch.tensor([3, 0])
    given = {"clean": clean, "corrupted": corrupted, "precision": "fp64"}
    sets = patch_heads(decoder, metric=AnswerDiff(one[:, None, None], two[:, None, None]), **given)
    single = patch_heads(decoder, metric=LogitDiff(one, two), **given)
    assert (sets.effect - single.effect).abs().max() < 1e-14
