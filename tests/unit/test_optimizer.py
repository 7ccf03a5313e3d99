"""Learning-rate schedules by hand, and optimiser state that goes out to tensors and back without changing a bit."""

import pytest
import torch
from torch import Tensor, nn

from interp.config import TrainConfig
from interp.errors import CheckpointError, ConfigError
from interp.optimizer import build_optimizer, learning_rate, optimizer_tensors, restore_optimizer

KINDS = {
    "adam": {"optimizer": "adam", "weight_decay": 0.1},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1},
    "sgd": {"optimizer": "sgd"},
    "sgd_momentum": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01},
}


def settings(**changes) -> TrainConfig:
    return TrainConfig(**{"lr": 1.0, "warmup": 4, "steps": 14, **changes})


class One(nn.Module):
    """A single weight of 1."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))


def model_of(seed: int = 0) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()


def test_warm_up_rises_linearly_and_reaches_the_full_rate():
    assert [learning_rate(settings(), step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_no_warm_up_starts_at_the_full_rate():
    assert learning_rate(settings(warmup=0), 0) == 1.0


def test_linear_schedule_falls_to_zero_at_the_last_step():
    linear = settings(schedule="linear")
    assert [learning_rate(linear, step) for step in (3, 4, 9, 14, 20)] == [1.0, 1.0, 0.5, 0.0, 0.0]


def test_cosine_schedule_is_a_half_wave():
    cosine = settings(schedule="cosine")
    rates = [learning_rate(cosine, step) for step in (4, 9, 14, 99)]
    assert rates == pytest.approx([1.0, 0.5, 0.0, 0.0], abs=1e-15)
    assert learning_rate(cosine, 4 + 10 // 3) > learning_rate(settings(schedule="linear"), 4 + 10 // 3)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_longer_than_the_run_only_rises(schedule: str):
    short = settings(schedule=schedule, warmup=100, steps=10)
    rates = [learning_rate(short, step) for step in range(10)]
    assert rates == [(step + 1) / 100 for step in range(10)]


def test_one_sgd_step_is_rate_times_gradient():
    model = One()
    optimizer = build_optimizer(model, settings(optimizer="sgd", lr=0.1))
    (2 * model.w).sum().backward()
    optimizer.step()
    assert model.w.item() == pytest.approx(0.8, abs=1e-7)


@pytest.mark.parametrize(("kind", "expected"), [("adamw", 1 - 0.1 * 0.5), ("adam", 1 - 0.1)])
def test_weight_decay_shrinks_in_adamw_and_is_a_gradient_in_adam(kind: str, expected: float):
    model = One()  # the gradient is 0: AdamW takes w *= 1 - lr * decay; Adam sees decay * w and takes a unit step
    optimizer = build_optimizer(model, settings(optimizer=kind, lr=0.1, weight_decay=0.5))
    (0 * model.w).sum().backward()
    optimizer.step()
    assert model.w.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_state_out_to_tensors_and_back_continues_bit_exactly(kind: str):
    config = settings(lr=0.01, **KINDS[kind])
    model = model_of()
    optimizer = build_optimizer(model, config)
    advance(model, optimizer, range(3))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    tensors = optimizer_tensors(model, optimizer)
    advance(model, optimizer, range(3, 6))
    again = model_of(seed=9)
    again.load_state_dict(weights)
    restored = build_optimizer(again, config)
    restore_optimizer(again, restored, tensors)
    advance(again, restored, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    final, other = optimizer_tensors(model, optimizer), optimizer_tensors(again, restored)
    assert final.keys() == other.keys() and all(torch.equal(final[key], other[key]) for key in final)


def test_tensors_are_named_by_parameter_and_slot():
    model = model_of()
    optimizer = build_optimizer(model, settings(optimizer="adam"))
    assert optimizer_tensors(model, optimizer) == {}
    advance(model, optimizer, range(2))
    tensors = optimizer_tensors(model, optimizer)
    assert {key for key in tensors if key.startswith("optim.0.weight")} == {
        "optim.0.weight.step",
        "optim.0.weight.exp_avg",
        "optim.0.weight.exp_avg_sq",
    }
    assert tensors["optim.0.weight.step"].item() == 2.0 and tensors["optim.0.weight.exp_avg"].shape == (4, 3)


def test_tensors_are_copies_that_training_does_not_change():
    model = model_of()
    optimizer = build_optimizer(model, settings(optimizer="adam"))
    advance(model, optimizer, range(1))
    tensors = optimizer_tensors(model, optimizer)
    before = {key: value.clone() for key, value in tensors.items()}
    advance(model, optimizer, range(1, 3))
    assert all(torch.equal(before[key], tensors[key]) for key in before)


@pytest.mark.parametrize("key", ["optim.7.weight.exp_avg", "optim.0.weight"])
def test_state_of_a_parameter_that_is_not_trained_is_refused(key: str):
    model = model_of()
    optimizer = build_optimizer(model, settings())
    stored: dict[str, Tensor] = {key: torch.zeros(1), "rng.torch": torch.zeros(1, dtype=torch.uint8)}
    with pytest.raises(CheckpointError, match="belongs to no trained parameter"):
        restore_optimizer(model, optimizer, stored)


def test_state_of_another_shape_is_refused():
    model = model_of()
    optimizer = build_optimizer(model, settings())
    with pytest.raises(CheckpointError, match=r"optim\.0\.weight\.exp_avg is \[3, 4\], not \[4, 3\]"):
        restore_optimizer(model, optimizer, {"optim.0.weight.exp_avg": torch.zeros(3, 4)})


def test_frozen_parameters_are_not_given_to_the_optimiser():
    model = model_of()
    model[0].requires_grad_(False)
    given = build_optimizer(model, settings()).param_groups[0]["params"]
    assert [id(parameter) for parameter in given] == [id(model[2].weight), id(model[2].bias)]


def test_freezing_everything_is_a_configuration_error():
    with pytest.raises(ConfigError, match=r"model\.frozen freezes every parameter"):
        build_optimizer(model_of().requires_grad_(False), settings())
