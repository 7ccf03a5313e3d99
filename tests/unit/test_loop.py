"""One optimiser step: which predictions the loss counts, how batches are drawn, what clipping does."""

import math

import pytest
import torch
from torch import Tensor

from interp.config import RunConfig
from interp.errors import Diverged
from interp.loop import Loop, batch_loss, diverged, draw_batch, update
from interp.train import _build, resolve

CPU = torch.device("cpu")


def loop_of(**changes) -> Loop:
    """A parity run of lengths 1 to 3 at step 0, without trackers; one layer, d_model 8."""
    settings = {"batch_size": 6, "warmup": 0, **changes}
    config, task = resolve(
        RunConfig(
            task="parity",
            task_params={"max_length": 3},
            data={"per_length": 16},
            model={"n_layers": 1, "d_model": 8},
            train=settings,
        )
    )
    return _build(config, task, CPU, None)[0]


@pytest.fixture(autouse=True)
def own_stream():
    """Building a loop seeds torch's global stream, which training gives back and these tests must too."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def weights(loop: Loop) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in loop.model.state_dict().items()}


def planted_logits(loop: Loop, confident: set[int]) -> None:
    """Logits that are sure of token 0 at these positions and know nothing elsewhere."""

    def model(tokens: Tensor) -> Tensor:
        logits = torch.zeros(*tokens.shape, 5)
        logits[:, list(confident), 0] = 100.0
        return logits

    loop.model = model


@pytest.mark.parametrize(
    ("kind", "counted"), [("states", {3, 4, 5}), ("all", {0, 1, 2, 3, 4, 5})], ids=["states", "all"]
)
def test_loss_counts_exactly_the_configured_positions(kind: str, counted: set[int]):
    loop = loop_of(loss=kind)
    tokens = torch.tensor([[0, 4, 3, 1, 4, 4, 2]])  # BoS 1 0 EoI 1 1 EoS: no target is token 0
    for position in range(7):
        planted_logits(loop, {position})
        ignorant = math.log(5)
        expected = (100.0 + (len(counted) - 1) * ignorant) / len(counted) if position in counted else ignorant
        assert batch_loss(loop, tokens, 2).item() == pytest.approx(expected, rel=1e-6), position


def test_loss_is_the_mean_over_sequences_and_steps():
    loop = loop_of()
    tokens = loop.split.train[2][:2]
    logits = loop.model(tokens).detach().double().log_softmax(-1)
    expected = -sum(logits[row, p, tokens[row, p + 1]] for row in range(2) for p in (3, 4, 5)) / 6
    assert batch_loss(loop, tokens, 2).item() == pytest.approx(expected.item(), rel=1e-6)


def test_batches_have_one_length_and_only_training_sequences():
    loop = loop_of()
    for _ in range(20):
        tokens, length = draw_batch(loop)
        assert tokens.shape == (6, 2 * length + 3)
        known = {tuple(row) for row in loop.split.train[length].tolist()}
        assert {tuple(row) for row in tokens.tolist()} <= known


def test_lengths_are_drawn_evenly_however_many_sequences_they_have():
    loop = loop_of()
    counts = torch.zeros(4)
    for _ in range(900):
        counts[draw_batch(loop)[1]] += 1
    assert counts[0] == 0 and all(abs(count - 300) < 5 * math.sqrt(900 * 2 / 9) for count in counts[1:].tolist())


def test_gradient_norm_above_the_clip_is_scaled_down_to_it():
    loop = loop_of(optimizer="sgd", lr=1.0, clip=0.01)
    before = weights(loop)
    update(loop)
    moved = torch.cat([(value - before[name]).flatten() for name, value in loop.model.state_dict().items()])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("clip", [0.0, 1e6])
def test_small_gradients_and_no_clip_leave_the_step_as_it_is(clip: float):
    loop = loop_of(optimizer="sgd", lr=0.5, clip=clip)
    before = weights(loop)
    update(loop)
    for name, parameter in loop.model.named_parameters():
        expected = before[name].double() - 0.5 * parameter.grad.double()
        rounding = 2 * torch.finfo(torch.float32).eps * (before[name].abs() + parameter.grad.abs())
        assert bool(((parameter.double() - expected).abs() <= rounding).all()), name


def test_update_counts_the_step_and_keeps_the_loss():
    loop = loop_of()
    update(loop)
    assert loop.step == 1 and 0 < loop.loss < 10 and loop.optimizer.param_groups[0]["lr"] == 2e-3


def test_warm_up_rate_is_used_by_the_update():
    loop = loop_of(warmup=4, lr=1.0)
    update(loop)
    assert loop.optimizer.param_groups[0]["lr"] == 0.25


def test_gradient_that_is_not_finite_is_named_and_the_weights_stay():
    loop = loop_of()
    loop.model.blocks[0].attn.W_V.register_hook(lambda gradient: gradient * float("inf"))
    before = weights(loop)
    with pytest.raises(Diverged, match=r"step 0: gradient of blocks\.0\.attn\.W_V is not finite"):
        update(loop)
    assert loop.step == 0 and all(torch.equal(value, before[name]) for name, value in loop.model.state_dict().items())


def test_message_of_divergence_says_what_to_do():
    message = str(diverged(loop_of(), "loss"))
    assert message.startswith("step 0: loss is not finite") and "lower train.lr" in message and "\n" not in message


def test_finished_means_out_of_steps_or_solved_often_enough():
    loop = loop_of(steps=5, stop_patience=2)
    assert not loop.finished
    loop.solved_in_a_row = 2
    assert loop.finished
    loop.solved_in_a_row, loop.step = 0, 5
    assert loop.finished
