"""The first tensor that is not finite is found and named, in the order in which one update computes them."""

import pytest
import torch
from torch import Tensor

from interp.config import ModelConfig
from interp.finite import all_finite, bad_activation, bad_gradient, bad_parameter, first_bad_tensor
from interp.model import Transformer

TOKENS = torch.tensor([[0, 1, 2], [2, 1, 0]])
GOOD, BAD = torch.tensor(0.5), torch.tensor(float("nan"))
VALUES = [float("nan"), float("inf"), -float("inf")]


@pytest.fixture
def model() -> Transformer:
    return Transformer(ModelConfig(n_layers=2, n_heads=2, d_model=8, d_vocab=3, n_ctx=3), seed=0)


def spoil(model: Transformer, hook_name: str, value: float) -> None:
    """From now on the first number of this activation is `value` in every run."""

    def hook(activation: Tensor, hook) -> Tensor:
        activation = activation.clone()
        activation[(0,) * activation.ndim] = value
        return activation

    model.add_hook(hook_name, hook, is_permanent=True)


def with_gradients(model: Transformer) -> Transformer:
    model(TOKENS).sum().backward()
    return model


def test_finite_means_neither_nan_nor_infinite():
    assert all_finite() and all_finite(torch.zeros(0), torch.tensor([1e38, -1e38]))
    assert not any(all_finite(torch.ones(2), torch.tensor([0.0, value])) for value in VALUES)


def test_healthy_model_has_nothing_to_name(model: Transformer):
    with_gradients(model)
    assert bad_parameter(model) is None and bad_gradient(model) is None
    assert bad_activation(model, TOKENS) is None, "masked scores are -inf by design"


@pytest.mark.parametrize("value", VALUES)
def test_parameter_is_named_before_everything_it_spoils(model: Transformer, value: float):
    with torch.no_grad():
        model.blocks[1].mlp.W_out[3, 2] = value
    assert first_bad_tensor(model, TOKENS, BAD) == "parameter blocks.1.mlp.W_out"


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(
    "name", ["hook_embed", "blocks.0.attn.hook_z", "blocks.1.hook_resid_mid", "blocks.1.hook_resid_post"]
)
def test_first_activation_in_order_of_computation_is_named(model: Transformer, name: str, value: float):
    spoil(model, name, value)
    assert first_bad_tensor(model, TOKENS, BAD) == f"activation {name}"


def test_nan_in_attention_scores_is_seen_through_the_mask(model: Transformer):
    spoil(model, "blocks.0.attn.hook_attn_scores", float("nan"))
    assert bad_activation(model, TOKENS) == "activation blocks.0.attn.hook_attn_scores"


def test_logits_that_overflow_are_named(model: Transformer):
    with torch.no_grad():
        model.unembed.W_U.fill_(3e38)
    assert bad_activation(model, TOKENS) == "logits"


def test_loss_is_named_before_the_gradients_that_it_spoils(model: Transformer):
    (model(TOKENS).sum() * float("nan")).backward()
    assert bad_gradient(model) is not None
    assert first_bad_tensor(model, TOKENS, BAD) == "loss"


def test_gradients_are_named_from_the_last_parameter_to_the_first(model: Transformer):
    with_gradients(model)
    for name in ("embed.W_E", "blocks.1.attn.W_V"):
        model.get_parameter(name).grad.view(-1)[0] = float("inf")
    assert first_bad_tensor(model, TOKENS, GOOD) == "gradient of blocks.1.attn.W_V"


def test_norm_that_overflows_over_finite_gradients_is_named(model: Transformer):
    with_gradients(model)
    for parameter in model.parameters():
        parameter.grad.fill_(3e38)
    assert not all_finite(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]))
    assert first_bad_tensor(model, TOKENS, GOOD) == "norm of the gradients"


def test_search_leaves_no_hooks_and_keeps_gradients(model: Transformer):
    with_gradients(model)
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    assert bad_activation(model, TOKENS) is None
    assert not any(point.hooked for point in model.hook_dict.values())
    assert all(torch.equal(before[name], parameter.grad) for name, parameter in model.named_parameters())
