"""The divergence of a run from the clean one has a finite, right gradient however far apart their logits are."""

import pytest
import torch

from circuits.metrics import log_mean_exp


@pytest.mark.parametrize("size", [1e-4, 1.0, 50.0, 300.0])
def test_the_gradient_is_the_difference_of_probabilities(size):
    """KL(p || softmax(base + delta)) has gradient softmax(base + delta) - p; exp(300) overflows in float32."""
    base = torch.tensor([[1.0, 0.0, -2.0], [0.5, 0.5, 3.0]])
    delta = (size * torch.tensor([[-1.0, 1.0, 0.3], [0.0, 0.0, 0.0]])).requires_grad_()
    found = log_mean_exp(delta, base)[1]
    (slope,) = torch.autograd.grad(found.sum(), delta)
    expected = (base + delta).softmax(-1) - base.softmax(-1)
    assert bool(found.isfinite().all())
    assert (slope - expected).abs().max() <= 2e-6
