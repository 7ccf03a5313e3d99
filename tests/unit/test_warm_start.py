"""Starting from another run's weights: token rows go by name, positions by place, everything else must fit."""

import pytest
import torch

from interp.config import ModelConfig
from interp.errors import ConfigError
from interp.model import Transformer
from interp.tasks._load import build_task, model_config_for
from interp.tasks.base import Task
from interp.warm_start import WarmStart, warm_start

POLYNOMIAL = build_task("polynomial", {"max_length": 5})
PARITY = build_task("parity", {"max_length": 3})
SHARED = ("BoS", "EoI", "EoS", "0", "1")


def model_for(task: Task, seed: int, **changes) -> Transformer:
    return Transformer(model_config_for(ModelConfig(n_layers=1, d_model=8, **changes), task), seed=seed)


def start(source_task: Task, task: Task, **changes) -> tuple[Transformer, Transformer, Transformer, WarmStart]:
    """(source, the model before, the model after, report)."""
    source, model = model_for(source_task, 1, **changes), model_for(task, 2, **changes)
    report = warm_start(model, task, source, source_task)
    return source, model_for(task, 2, **changes), model, report


def test_parity_takes_the_rows_of_its_tokens_from_polynomial():
    source, _, model, report = start(POLYNOMIAL, PARITY)
    for name in SHARED:
        here, there = PARITY.vocabulary.id(name), POLYNOMIAL.vocabulary.id(name)
        assert torch.equal(model.embed.W_E[here], source.embed.W_E[there])
        assert torch.equal(model.unembed.W_U[:, here], source.unembed.W_U[:, there])
    assert report == WarmStart(SHARED, (), positions_copied=9, positions_reinitialised=0)
    assert torch.equal(model.pos_embed.W_pos, source.pos_embed.W_pos[:9])


def test_polynomial_from_parity_keeps_fresh_rows_for_tokens_that_parity_lacks():
    source, fresh, model, report = start(PARITY, POLYNOMIAL)
    assert report.copied == SHARED and report.reinitialised == tuple(map(str, range(2, 11)))
    new = [POLYNOMIAL.vocabulary.id(name) for name in report.reinitialised]
    assert torch.equal(model.embed.W_E[new], fresh.embed.W_E[new])
    assert torch.equal(model.unembed.W_U[:, new], fresh.unembed.W_U[:, new])
    assert (report.positions_copied, report.positions_reinitialised) == (9, 4)
    assert torch.equal(model.pos_embed.W_pos[9:], fresh.pos_embed.W_pos[9:])
    assert torch.equal(model.pos_embed.W_pos[:9], source.pos_embed.W_pos)


def test_rows_follow_the_name_when_the_same_token_has_another_id():
    copy = build_task("binary_copy", {"max_length": 3})
    order = {"BoS": 2, "EoI": 0, "EoS": 1}
    shuffled = type(copy.vocabulary)(tuple(sorted(copy.vocabulary.tokens, key=lambda name: order.get(name, 9))))
    assert shuffled.id("BoS") != copy.vocabulary.id("BoS")

    class Renamed:
        vocabulary = shuffled

    source, model = model_for(copy, 1), model_for(copy, 2)
    warm_start(model, copy, source, Renamed())
    assert torch.equal(model.embed.W_E[copy.vocabulary.id("BoS")], source.embed.W_E[shuffled.id("BoS")])


def test_all_other_weights_are_copied_whole():
    source, fresh, model, _ = start(POLYNOMIAL, PARITY, bias=True)
    theirs, before = source.state_dict(), fresh.state_dict()
    by_rows = {"embed.W_E", "unembed.W_U", "unembed.b_U", "pos_embed.W_pos"}
    for name, value in model.state_dict().items():
        if name not in by_rows:
            assert torch.equal(value, theirs[name]), name
    assert not torch.equal(before["blocks.0.mlp.W_in"], theirs["blocks.0.mlp.W_in"])


def test_source_model_is_not_changed_and_shares_no_memory():
    source, _, model, _ = start(POLYNOMIAL, PARITY)
    untouched = model_for(POLYNOMIAL, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), untouched.parameters(), strict=True))


def test_tied_model_and_model_without_positions_start_too():
    source, _, model, report = start(POLYNOMIAL, PARITY, tied=True, positions="none")
    assert torch.equal(model.embed.W_E, source.embed.W_E[:5])
    assert (report.positions_copied, report.positions_reinitialised) == (0, 0)


def test_report_is_plain_json():
    assert WarmStart(("BoS",), ("7",), 3, 1).summary() == {
        "copied": ["BoS"],
        "reinitialised": ["7"],
        "positions_copied": 3,
        "positions_reinitialised": 1,
    }


def test_another_width_is_refused_with_both_values():
    source, model = model_for(POLYNOMIAL, 1), model_for(PARITY, 2, d_mlp=16)
    with pytest.raises(ConfigError, match=r"--init: model\.d_mlp is 32 in the source and 16 here"):
        warm_start(model, PARITY, source, POLYNOMIAL)


@pytest.mark.parametrize(
    "changes", [{"bias": True}, {"activation": "relu"}, {"final_norm": False}, {"norm": "rms"}, {"positions": "none"}]
)
def test_another_function_is_refused_by_its_setting_even_where_the_shapes_agree(changes: dict):
    source, model = model_for(POLYNOMIAL, 1), model_for(PARITY, 2, **changes)
    with pytest.raises(ConfigError, match=f"--init: model.{next(iter(changes))} is "):
        warm_start(model, PARITY, source, POLYNOMIAL)


def test_refusal_leaves_the_model_as_it_was():
    source, model = model_for(POLYNOMIAL, 1), model_for(PARITY, 2, d_mlp=16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError):
        warm_start(model, PARITY, source, POLYNOMIAL)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
