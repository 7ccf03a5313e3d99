"""The engine leaves autograd's bookkeeping out, and what it gives back are ordinary tensors all the same."""

import pytest
import torch

from circuits.metrics import LogitDiff
from circuits.patch_edges import patch_edges
from circuits.patch_sets import patch_sets
from circuits.patch_sites import patch_sites
from circuits.patching import patch_heads
from tests.unit.small_decoders import logit_diff, prompts, small_decoder

CALLS = {
    "heads": lambda decoder, **given: patch_heads(decoder, **given),
    "sites": lambda decoder, **given: patch_sites(decoder, ["z", "mlp_out"], **given)["mlp_out"],
    "edges": lambda decoder, **given: patch_edges(decoder, **given),
    "sets": lambda decoder, **given: patch_sets(decoder, [[("z", 0, 0, 3)], []], **given),
}


def tensors(result) -> list[torch.Tensor]:
    return [value for value in vars(result).values() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("name", CALLS)
def test_results_can_be_written_to_and_take_part_in_gradients(name):
    clean, corrupted = prompts()
    result = CALLS[name](small_decoder("grouped"), clean=clean, corrupted=corrupted, metric=logit_diff(len(clean)))
    assert len(tensors(result)) >= 3
    for value in tensors(result):
        assert not value.is_inference()
        value.zero_()
    weight = torch.ones((), dtype=result.effect.dtype, requires_grad=True)
    (result.effect * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("name", CALLS)
def test_a_function_of_logits_may_take_gradients_of_its_own(name):
    clean, corrupted = prompts()

    def saliency(logits: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            leaf = logits.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(leaf[:, -1].softmax(-1).square().sum(), leaf)
        return gradient.square().sum((1, 2))

    result = CALLS[name](small_decoder("grouped"), clean=clean, corrupted=corrupted, metric=saliency)
    assert bool((result.effect != 0).any())


@pytest.mark.parametrize("name", CALLS)
def test_the_computation_itself_runs_in_inference_mode(name, monkeypatch):
    seen = []
    values = LogitDiff.directions

    def directions(self, *arguments):
        seen.append(torch.is_inference_mode_enabled())
        return values(self, *arguments)

    monkeypatch.setattr(LogitDiff, "directions", directions)
    clean, corrupted = prompts()
    CALLS[name](small_decoder("grouped"), clean=clean, corrupted=corrupted, metric=logit_diff(len(clean)))
    assert seen and all(seen)


def test_a_large_table_of_effects_is_not_copied(monkeypatch):
    made, zeros = [], torch.zeros

    def kept(*arguments, **given):
        made.append(zeros(*arguments, **given))
        return made[-1]

    monkeypatch.setattr(torch, "zeros", kept)
    clean, corrupted = prompts()
    result = patch_edges(small_decoder("grouped"), clean=clean, corrupted=corrupted, metric=logit_diff(2))
    assert result.effect.data_ptr() in {one.data_ptr() for one in made}
