"""R13: a number that is not finite stops training before the update, is named, and leaves the last good checkpoint."""

import math
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import interp.loop as loop_module
import interp.train as training
from interp.config import RunConfig
from interp.errors import Diverged
from interp.finite import all_finite
from interp.loop import Loop
from interp.run import Run, Store
from interp.train import train

STEP = 7
TINY = RunConfig(
    task="parity",
    task_params={"max_length": 3},
    data={"per_length": 16},
    model={"n_layers": 2, "d_model": 8, "dropout": 0.1},
    train={"steps": 12, "batch_size": 4, "eval_every": 4, "track_every": 4, "checkpoint_first": 3, "warmup": 0},
)
VALUES = [math.nan, math.inf, -math.inf]

Fault = Callable[[Loop, float], str]  # break something for good; gives the name of the tensor that is bad first


def bad_activation(loop: Loop, value: float) -> str:
    def hook(activation: Tensor, hook) -> Tensor:
        return torch.full_like(activation, value)

    loop.model.add_hook("blocks.1.hook_mlp_out", hook, is_permanent=True)
    return "activation blocks.1.hook_mlp_out"


def bad_gradient(loop: Loop, value: float) -> str:
    loop.model.blocks[0].mlp.W_out.register_hook(lambda gradient: torch.full_like(gradient, value))
    return "gradient of blocks.0.mlp.W_out"


def bad_parameter(loop: Loop, value: float) -> str:
    with torch.no_grad():
        loop.model.blocks[0].attn.W_K[0, 0, 0] = value
    return "parameter blocks.0.attn.W_K"


def bad_loss(loop: Loop, value: float) -> str:
    real = loop_module.batch_loss
    loop_module.batch_loss = lambda *given: real(*given) * value
    return "loss"


FAULTS: dict[str, Fault] = {
    "loss": bad_loss,
    "gradient": bad_gradient,
    "activation": bad_activation,
    "parameter": bad_parameter,
}


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the disk, no trackers; `batch_loss` is put back after a test that breaks it."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(training, "entry_points", lambda group: [])
    monkeypatch.setattr(loop_module, "batch_loss", loop_module.batch_loss)


@pytest.fixture
def inject(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fault, float], dict]:
    """Break something just before update STEP; fills in the loop, its weights then, and the expected name."""

    def install(fault: Fault, value: float) -> dict:
        real, seen = training.update, {}

        def update(loop: Loop) -> None:
            if loop.step == STEP:
                seen["expected"], seen["loop"] = fault(loop, value), loop
                seen["weights"] = {name: tensor.clone() for name, tensor in loop.model.state_dict().items()}
                seen["optim"] = training.optimizer_tensors(loop.model, loop.optimizer)
            real(loop)

        monkeypatch.setattr(training, "update", update)
        return seen

    return install


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(value.nan_to_num(7.0), right[name].nan_to_num(7.0)) for name, value in left.items()
    )


def every_checkpoint_is_finite(run: Run) -> bool:
    refs = run.checkpoints(rolling=True)
    return bool(refs) and all(all_finite(*run.checkpoint(ref.step).model.values()) for ref in refs)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_training_stops_before_the_update_and_names_the_first_bad_tensor(
    store: Store, inject: Callable, fault: Fault, value: float
):
    seen = inject(fault, value)
    with pytest.raises(Diverged) as caught:
        train(TINY, store, "a")
    assert str(caught.value).startswith(f"step {STEP}: {seen['expected']} is not finite")
    loop = seen["loop"]
    assert loop.step == STEP and same(seen["weights"], loop.model.state_dict())
    assert same(seen["optim"], training.optimizer_tensors(loop.model, loop.optimizer)), "the optimiser was stepped"
    run = store.run("a")
    assert (run.status().state, run.status().message) == ("diverged", str(caught.value))
    checkpoint, skipped = run.latest_verified()
    assert checkpoint.step == run.status().step == 6 and skipped == []
    assert every_checkpoint_is_finite(run)
    assert run.metrics()[-1]["step"] <= STEP


@pytest.mark.parametrize("fault", ["gradient", "loss"])
def test_run_whose_fault_is_gone_resumes_to_the_undisturbed_end(
    store: Store, inject: Callable, monkeypatch: pytest.MonkeyPatch, fault: str
):
    whole = train(TINY, store, "whole")
    inject(FAULTS[fault], math.nan)
    with pytest.raises(Diverged):
        train(TINY, store, "a")
    monkeypatch.undo()
    monkeypatch.setattr(training, "entry_points", lambda group: [])
    run = train(TINY, store, "a", resume=True)
    assert run.checkpoint(12).hash == whole.checkpoint(12).hash and run.metrics() == whole.metrics()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_learning_rate_that_is_far_too_large_diverges_and_nothing_bad_is_kept(store: Store, optimizer: str):
    settings = {"optimizer": optimizer, "lr": 1e37, "clip": 0.0, "steps": 200, "rolling_seconds": 1e-9}
    config = TINY.model_copy(update={"train": TINY.train.model_copy(update=settings)})
    with pytest.raises(Diverged, match="is not finite"):
        train(config, store, "a")
    run = store.run("a")
    assert run.status().state == "diverged" and every_checkpoint_is_finite(run)


def test_weights_that_break_between_update_and_checkpoint_are_not_saved(store: Store, monkeypatch: pytest.MonkeyPatch):
    real = training.update

    def update(loop: Loop) -> None:
        real(loop)
        if loop.step == STEP:
            bad_parameter(loop, math.inf)

    monkeypatch.setattr(training, "update", update)
    rolling = TINY.model_copy(update={"train": TINY.train.model_copy(update={"rolling_seconds": 1e-9})})
    with pytest.raises(Diverged, match=r"step 7: parameter blocks\.0\.attn\.W_K"):
        train(rolling, store, "a")
    assert store.run("a").latest_verified()[0].step == 6


def test_evaluation_that_is_not_finite_is_divergence_not_a_row_that_json_cannot_hold(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    real = training.update

    def update(loop: Loop) -> None:
        real(loop)
        if loop.step == 8:  # an evaluation follows
            with torch.no_grad():
                loop.model.unembed.W_U.fill_(3e38)

    monkeypatch.setattr(training, "update", update)
    with pytest.raises(Diverged, match="step 8: logits is not finite"):
        train(TINY, store, "a")
    run = store.run("a")
    assert run.status().state == "diverged" and [row["step"] for row in run.metrics()] == [0, 3, 4, 6]


def test_tracked_score_that_is_not_finite_is_named(store: Store, monkeypatch: pytest.MonkeyPatch):
    class Point:
        name = "test"

        def load(self) -> Callable:
            return lambda model, task, held_out: {"clock": math.nan}

    monkeypatch.setattr(training, "entry_points", lambda group: [Point()])
    with pytest.raises(Diverged, match="step 0: evaluation clock is not finite"):
        train(TINY, store, "a")
    assert store.run("a").status().state == "diverged"
