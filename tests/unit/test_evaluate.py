"""Accuracy and margin on held-out sequences, worked out by hand on models that are written as rules."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from interp.config import ModelConfig
from interp.evaluate import free_running, logit_margin, score_lengths, step_positions, teacher_forced
from interp.hooks import HookedRootModule
from interp.model import Transformer
from interp.tasks._load import build_task, model_config_for

BOS, EOI, EOS, ZERO, ONE = range(5)
PARITY = build_task("parity", {"max_length": 6})


class Rule(HookedRootModule):
    """A model whose greedy next token is a function of the prefix; its logit is 2, every other 0.5."""

    def __init__(self, following: Callable[[list[int]], int], right: float = 2.0):
        super().__init__()
        self.cfg = None
        self.following, self.right, self.rows_seen = following, right, []
        self.setup()

    def forward(self, tokens: Tensor) -> Tensor:
        self.rows_seen.append(len(tokens))
        logits = torch.full((*tokens.shape, 5), 0.5)
        for row, sequence in enumerate(tokens.tolist()):
            for position in range(len(sequence)):
                logits[row, position, self.following(sequence[: position + 1])] = self.right
        return logits


def parity_of(prefix: list[int]) -> int:
    """The right next token: EoS after the last state, else the next state from the last state as it is written."""
    if EOI not in prefix:
        return EOI
    eoi = prefix.index(EOI)
    inputs, states = prefix[1:eoi], prefix[eoi + 1 :]
    if len(states) >= len(inputs):
        return EOS
    last = states[-1] if states else ZERO
    return ZERO if last == inputs[len(states)] else ONE


def wrong_first(prefix: list[int]) -> int:
    """Right everywhere but at s_1, where it writes the other value."""
    answer = parity_of(prefix)
    return ZERO + ONE - answer if prefix[-1] == EOI else answer


def sometimes_wrong(prefix: list[int]) -> int:
    """Wrong on a pseudo-random quarter of the prefixes, a function of the whole prefix."""
    answer = parity_of(prefix)
    code = sum((index + 3) * (token + 1) ** 2 for index, token in enumerate(prefix))
    return answer if code % 4 or answer not in (ZERO, ONE) else ZERO + ONE - answer


def test_scored_steps_are_the_states_and_the_first_eos():
    assert step_positions(PARITY, 2) == [3, 4, 5]  # EoI predicts s_1, s_1 predicts s_2, s_2 predicts EoS
    no_cot = build_task("parity", {"max_length": 6, "chain_of_thought": False})
    assert step_positions(no_cot, 2) == [3, 4]


def test_margin_is_the_correct_logit_minus_the_best_wrong_one():
    logits = torch.tensor([[1.0, 4.0, 3.0], [5.0, 4.0, 3.0]])
    assert logit_margin(logits, torch.tensor([1, 2])).tolist() == [1.0, -2.0]


def test_a_tie_with_a_wrong_token_is_not_a_right_step():
    tokens = torch.tensor([[BOS, ONE, EOI, ONE, EOS]])
    found = teacher_forced(Rule(parity_of, right=0.5), PARITY, tokens, 1)
    assert found.margin.tolist() == [[0.0, 0.0]] and not found.correct.any()


def test_perfect_model_has_margin_and_loss_as_computed_by_hand():
    tokens = torch.tensor([[BOS, ONE, ZERO, EOI, ONE, ONE, EOS], [BOS, ONE, ONE, EOI, ONE, ZERO, EOS]])
    found = teacher_forced(Rule(parity_of), PARITY, tokens, 2)
    assert found.correct.all() and found.sequence.tolist() == [True, True]
    assert found.margin.tolist() == [[1.5] * 3] * 2
    assert found.loss == pytest.approx(math.log(math.exp(2) + 4 * math.exp(0.5)) - 2, abs=1e-6)


def test_one_early_error_is_one_wrong_step_teacher_forced_and_all_later_ones_free_running():
    tokens = torch.tensor([[BOS, ONE, ZERO, ONE, EOI, ONE, ONE, ZERO, EOS]])
    forced = teacher_forced(Rule(wrong_first), PARITY, tokens, 3)
    assert forced.correct.tolist() == [[False, True, True, True]]
    assert free_running(Rule(wrong_first), PARITY, tokens, 3).tolist() == [[False, False, False, True]]
    score = score_lengths(Rule(wrong_first), PARITY, {3: tokens}, free=True)[3]
    assert (score.n, score.sequence, score.step, score.free_step) == (1, 0.0, 0.75, 0.25)
    assert score.margin == pytest.approx((3 * 1.5 - 1.5) / 4)


@pytest.mark.parametrize("length", range(1, 7))
def test_free_running_gets_a_whole_sequence_right_exactly_where_teacher_forcing_does(length: int):
    tokens = PARITY.draw(length, 24, torch.Generator().manual_seed(length))
    forced = teacher_forced(Rule(sometimes_wrong), PARITY, tokens, length)
    free = free_running(Rule(sometimes_wrong), PARITY, tokens, length)
    assert free.all(1).tolist() == forced.sequence.tolist()
    if length >= 3:
        assert 0 < forced.sequence.sum() < 24 and not torch.equal(free, forced.correct)


def test_free_running_of_a_transformer_equals_a_loop_over_single_tokens():
    cfg = model_config_for(ModelConfig(n_layers=1, d_model=8), PARITY)
    model = Transformer(cfg, seed=3).eval()
    tokens = PARITY.draw(4, 6, torch.Generator().manual_seed(1))
    found = free_running(model, PARITY, tokens, 4)
    for row, right in zip(tokens, found, strict=True):
        written = row[:6].tolist()
        while len(written) < 11:
            with torch.no_grad():
                written.append(int(model(torch.tensor([written]))[0, -1].argmax()))
        assert right.tolist() == [a == b for a, b in zip(written[6:], row[6:].tolist(), strict=True)]


def test_only_sequences_with_a_wrong_step_are_run_again_free():
    tokens = PARITY.draw(5, 16, torch.Generator().manual_seed(0))
    model = Rule(sometimes_wrong)
    wrong = int((~teacher_forced(model, PARITY, tokens, 5).sequence).sum())
    model.rows_seen.clear()
    score = score_lengths(model, PARITY, {5: tokens}, free=True)[5]
    assert model.rows_seen == [16] + [wrong] * 6
    assert score.free_step == pytest.approx(free_running(model, PARITY, tokens, 5).float().mean().item())


def test_lengths_without_sequences_are_left_out_and_the_mode_is_given_back():
    model = Rule(parity_of).train()
    tokens = PARITY.draw(2, 3, torch.Generator().manual_seed(0))
    scores = score_lengths(model, PARITY, {1: tokens[:0, :5], 2: tokens})
    assert list(scores) == [2] and scores[2].free_step is None and scores[2].sequence == 1.0
    assert model.training


def test_scoring_draws_nothing_from_the_global_stream():
    cfg = model_config_for(ModelConfig(n_layers=1, d_model=8, dropout=0.5), PARITY)
    model = Transformer(cfg, seed=0).train()
    tokens = PARITY.draw(3, 8, torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    first = score_lengths(model, PARITY, {3: tokens}, free=True)
    assert first == score_lengths(model, PARITY, {3: tokens}, free=True)
    assert torch.equal(before, torch.get_rng_state())
