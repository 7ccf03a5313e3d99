"""Bad requests for gradient scores are refused with a message that names the argument."""

import dataclasses

import pytest
import torch

from circuits.attribution import attribution_patching, eap, eap_ig
from circuits.metrics import KL, Accuracy, LogitDiff, UserMetric
from interp.errors import NotExpressible, UsageError
from tests.unit.small_decoders import logit_diff, prompts, small_decoder

METHODS = [eap, eap_ig, attribution_patching]
TOKENS = torch.zeros(2, 6, dtype=torch.long)
EMPTY = torch.zeros(0, 6, dtype=torch.long)
TWO = torch.tensor([0, 1])
BAD = {
    "another number of tokens": ({"corrupted": TOKENS[:, :5]}, r"corrupted: shape \(2, 5\), but clean has \(2, 6\)"),
    "another number of prompts": ({"corrupted": TOKENS[:1]}, r"corrupted: shape \(1, 6\)"),
    "numbers that are no tokens": ({"clean": TOKENS.float()}, "clean: .*expected token ids"),
    "an unknown token": ({"clean": TOKENS + 7}, "clean: tokens run from 7 to 7, but this model knows 0 to 6"),
    "no prompts": ({"clean": EMPTY, "corrupted": EMPTY}, "clean: .*no prompt"),
    "too many positions": ({"clean": TOKENS.repeat(1, 2), "corrupted": TOKENS.repeat(1, 2)}, "clean: 12 positions"),
    "a mask of another shape": ({"mask": torch.ones(2, 5)}, "mask: shape"),
    "a mask with a hole": ({"mask": torch.tensor([[1, 0, 1, 1, 1, 1]] * 2)}, "mask: prompt 0 has padding between"),
    "a place outside": ({"metric": LogitDiff(TWO, TWO, 6)}, "metric: position 6 is outside prompt 0 of length 6"),
    "targets of another shape": ({"metric": LogitDiff(TWO[:1], TWO[:1])}, r"metric: correct of shape \(1,\)"),
    "a name for a metric": ({"metric": "logit_diff"}, "metric: a str: expected one of circuits.metrics"),
    "a step function": ({"metric": Accuracy(TWO)}, "metric: Accuracy is a step whose gradient is zero"),
    "one number for all": ({"metric": lambda logits: logits.mean()}, r"metric: the function gave shape \(\): expected"),
    "no tensor": ({"metric": lambda logits: 1.0}, "metric: the function gave float"),
    "no gradient": ({"metric": lambda logits: logits.argmax(-1)[:, 0].double()}, "metric: .*do not depend diff"),
    "an infinite gradient": ({"metric": lambda logits: (logits - logits)[:, -1, 0].sqrt()}, "metric: its gradient"),
    "an object that is no model": ({"model": object()}, "object cannot be written as a Decoder"),
    "no memory": ({"max_bytes": 0}, "max_bytes: 0"),
}


def call(method, **changed):
    clean, corrupted = prompts()
    given = {"model": small_decoder("preset"), "clean": clean, "corrupted": corrupted, "metric": logit_diff()}
    return method(**{**given, **changed})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_is_named_in_the_message(method, name):
    changed, message = BAD[name]
    with pytest.raises((UsageError, NotExpressible), match=message):
        call(method, **changed)


@pytest.mark.parametrize("weight", ["W_E", "W_U"])
@pytest.mark.parametrize("method", METHODS)
def test_weights_that_are_not_finite_are_named_as_the_models(method, weight):
    decoder = small_decoder("preset")
    broken = getattr(decoder, weight).clone()
    broken[:, 0] = torch.nan
    with pytest.raises(UsageError, match="^model: .* not finite" if weight == "W_E" else "not finite"):
        call(method, model=dataclasses.replace(decoder, **{weight: broken}))


@pytest.mark.parametrize("method", [eap, attribution_patching])
def test_a_divergence_from_the_base_run_is_refused_where_its_gradient_is_zero(method):
    with pytest.raises(UsageError, match=f"metric: KL .* where {method.__name__} takes the gradient"):
        call(method, metric=KL())
    assert call(eap_ig, metric=KL()).scores.any()


def test_unknown_variants_steps_and_a_single_layer_to_drop_are_refused():
    with pytest.raises(UsageError, match="variant: 'outputs': expected 'inputs' or 'activations'"):
        call(eap_ig, variant="outputs")
    for steps in (0, 2.5):
        with pytest.raises(UsageError, match="steps: "):
            call(eap_ig, steps=steps)
    with pytest.raises(UsageError, match="grad_drop: a model of one layer"):
        call(attribution_patching, grad_drop=True, model=small_decoder("preset", n_layers=1))
    assert call(attribution_patching, metric=UserMetric(lambda logits: logits[:, -1, 0])).z.any()
