"""The logit lens ends in the model's own logits, and counts ranks and probabilities by hand."""

import pytest
import torch

from interp.decoder import decoder_of, forward
from interp.rng import generator
from probes.lens import answered_from, depth_names, lens, lens_logits, residuals
from tests.unit.small_decoders import FAMILIES, small_decoder
from tests.unit.test_decoder import random_model

TOKENS = torch.randint(7, (6, 8), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_depth_gives_the_logits_of_the_model(name):
    decoder = small_decoder(name)
    assert (lens_logits(decoder, TOKENS)[-1] - forward(decoder, TOKENS)).abs().max() < 1e-12
    assert len(lens_logits(decoder, TOKENS)) == len(depth_names(decoder))


def test_every_depth_is_the_stream_that_a_hook_sees_there():
    model = random_model(embed_norm=True)
    decoder = decoder_of(model)
    assert depth_names(decoder) == ("embed", "L0 attention", "L0", "L1 attention", "L1")
    names = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_mid", "blocks.0.hook_resid_post"]
    names += ["blocks.1.hook_resid_mid", "blocks.1.hook_resid_post"]
    _, cache = model.run_with_cache(TOKENS, names_filter=names)
    for found, name in zip(residuals(decoder, TOKENS), names, strict=True):
        assert (found - cache[name]).abs().max() < 1e-12


def test_blocks_without_an_mlp_and_parallel_blocks_have_one_depth_each():
    assert depth_names(small_decoder("attention only", 3)) == ("embed", "L0", "L1", "L2")
    assert depth_names(small_decoder("parallel")) == ("embed", "L0", "L1")


def test_probability_rank_and_share_are_those_of_the_logits():
    decoder = small_decoder("preset")
    found = lens(decoder, TOKENS, generator(0, "test"), examples=2)
    logits = forward(decoder, TOKENS[:, :-1])
    for pos in (0, 3, 6):
        chance = logits[:, pos].softmax(-1)
        answers = TOKENS[:, pos + 1]
        own = torch.stack([chance[i, answer] for i, answer in enumerate(answers)])
        rank = 1 + (chance > own[:, None]).sum(-1)
        assert found.probability[-1, pos] == pytest.approx(float(own.mean()), abs=1e-12)
        assert found.rank[-1, pos] == pytest.approx(float(rank.double().mean()))
        assert found.first[-1, pos] == pytest.approx(float((rank == 1).double().mean()))
        assert found.low[-1, pos] <= own.mean() <= found.high[-1, pos]
        assert found.top[:, -1, pos].tolist() == chance[:2].argmax(-1).tolist()
        assert found.answer_rank[:, -1, pos].tolist() == rank[:2].tolist()
    assert found.probability.shape == (5, 7) and found.top.shape == (2, 5, 7)


def test_the_answer_is_there_from_the_depth_after_the_last_gap():
    scored = torch.tensor([False, True])
    first = torch.tensor([[1.0, 0.1], [0.0, 0.95], [1.0, 0.5], [0.0, 0.9], [0.0, 1.0]])
    assert answered_from(first, scored) == 3
    assert answered_from(first[:3], scored) is None
    assert answered_from(torch.ones(2, 2), scored) == 0
