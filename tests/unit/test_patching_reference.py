"""Identities of sequential patching, and attention rows rewritten by hand."""

import pytest
import torch
from torch import Tensor

from circuits.patching_reference import (
    KeyEdit,
    Patch,
    edited_rows,
    patch_heads_reference,
    record,
    relative_move,
    run_patched,
    run_with_key_edits,
    z_name,
)
from interp.config import ModelConfig
from interp.model import Transformer

CFG = ModelConfig(n_layers=2, n_heads=2, d_model=8, d_vocab=5, n_ctx=5, embed_norm=True)
CLEAN = torch.tensor([[0, 1, 2, 3, 4], [0, 4, 3, 2, 1], [2, 2, 2, 2, 2]])
CORRUPTED = torch.tensor([[0, 3, 2, 3, 4], [1, 4, 3, 2, 1], [2, 2, 0, 2, 2]])
EVERYWHERE = slice(None)


@pytest.fixture
def model() -> Transformer:
    return Transformer(CFG, seed=0).double().eval()


def last_logit(logits: Tensor) -> Tensor:
    return logits[:, -1, 0]


def patched_everywhere(model: Transformer, names: list[str]) -> Tensor:
    """Clean run with these activations, at all positions, from the corrupted run."""
    values = record(model, CORRUPTED, names)
    patches = []
    for name in names:
        heads = range(CFG.n_heads) if name.endswith("hook_z") else [None]
        for head in heads:
            value = values[name] if head is None else values[name][:, :, head]
            patches.append(Patch(name, EVERYWHERE, value, head))
    return run_patched(model, CLEAN, patches)


def test_clean_into_clean_has_no_effect_at_all(model: Transformer):
    effect = patch_heads_reference(model, CLEAN, CLEAN, last_logit, [0, 2, 4])
    assert effect.shape == (3, 2, 2, 3) and bool((effect == 0).all())


def test_equal_prefixes_have_no_effect_before_they_differ(model: Transformer):
    effect = patch_heads_reference(model, CLEAN, CORRUPTED, last_logit, list(range(5)))
    assert bool((effect[0, :, :, 0] == 0).all()) and bool((effect[2, :, :, :2] == 0).all())
    assert bool((effect[0, 0, :, 1] != 0).all()), "row 0 differs from position 1 on"
    assert bool((effect[:, 1, :, :4] == 0).all()), "the last layer reaches the metric only at its position"


def test_every_component_from_the_corrupted_run_gives_the_corrupted_run(model: Transformer):
    parts = [
        "hook_embed",
        *(z_name(layer) for layer in range(2)),
        *(f"blocks.{layer}.hook_mlp_out" for layer in range(2)),
    ]
    assert torch.equal(patched_everywhere(model, parts), model(CORRUPTED))


@pytest.mark.parametrize("name", ["hook_embed", "blocks.0.hook_resid_pre", "blocks.1.hook_resid_post"])
def test_whole_residual_stream_from_the_corrupted_run_gives_the_corrupted_run(model: Transformer, name: str):
    assert torch.equal(patched_everywhere(model, [name]), model(CORRUPTED))


def test_clean_values_of_everything_change_nothing(model: Transformer):
    names = [z_name(0), z_name(1), "blocks.0.hook_mlp_out"]
    values = record(model, CLEAN, names)
    patches = [Patch(z_name(layer), 3, values[z_name(layer)][:, 3, head], head) for layer in (0, 1) for head in (0, 1)]
    patches.append(Patch("blocks.0.hook_mlp_out", EVERYWHERE, values["blocks.0.hook_mlp_out"]))
    assert torch.equal(run_patched(model, CLEAN, patches), model(CLEAN))


def test_effect_of_one_head_in_a_linear_model_is_its_output_change():
    cfg = ModelConfig(n_layers=1, n_heads=2, d_model=8, d_vocab=5, n_ctx=5, norm="none", attn_only=True)
    model = Transformer(cfg, seed=3).double().eval()
    effect = patch_heads_reference(model, CLEAN, CORRUPTED, last_logit, [4])
    z = [record(model, tokens, [z_name(0)])[z_name(0)][:, 4] for tokens in (CLEAN, CORRUPTED)]  # batch head d_head
    for head in range(2):
        expected = (z[1] - z[0])[:, head] @ model.blocks[0].attn.W_O[head] @ model.unembed.W_U[:, 0]
        assert (effect[:, 0, head, 0] - expected).abs().max() < 1e-13


def test_patch_acts_at_its_position_and_on_later_ones_only(model: Transformer):
    value = torch.ones(3, 4, dtype=torch.float64)
    moved = (run_patched(model, CLEAN, [Patch(z_name(0), 2, value, 1)]) - model(CLEAN)).abs().amax(-1)
    assert bool((moved[:, :2] == 0).all()) and bool((moved[:, 2:] > 0).all())


def test_one_position_per_row_is_as_one_run_per_row(model: Transformer):
    value = torch.arange(12.0, dtype=torch.float64).reshape(3, 4)
    positions = torch.tensor([1, 4, 2])
    together = run_patched(model, CLEAN, [Patch(z_name(1), positions, value, 0)])
    for row, position in enumerate(positions.tolist()):
        alone = run_patched(model, CLEAN, [Patch(z_name(1), position, value, 0)])
        assert torch.equal(together[row], alone[row])


def test_patching_leaves_no_hooks_behind(model: Transformer):
    before = model(CLEAN)
    patch_heads_reference(model, CLEAN, CORRUPTED, last_logit, [1])
    run_with_key_edits(model, CLEAN, [KeyEdit(0, 0, {2: torch.tensor([0.0, 1, 1, 0, 0])})])
    assert not any(point.hooked for point in model.hook_dict.values()) and torch.equal(before, model(CLEAN))


PATTERN = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.5, 0.25, 0.25, 0.0]]])


@pytest.mark.parametrize(
    ("weights", "row"),
    [
        ([0.0, 1.0, 1.0, 0.0], [0.0, 0.5, 0.5, 0.0]),  # knock out key 0, renormalise the rest
        ([1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]),  # keep only key 0
        ([0.5, 1.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3, 0.0]),  # halve key 0
        ([0.0, 0.0, 0.0, 2.0], [0.0, 0.0, 0.0, 1.0]),  # no mass left: uniform over the keys that may keep some
        ([1.0, 1.0, 1.0, 1.0], [0.5, 0.25, 0.25, 0.0]),
    ],
)
def test_edited_row_is_weighted_and_renormalised(weights: list[float], row: list[float]):
    changed = edited_rows(PATTERN, KeyEdit(0, 0, {2: torch.tensor(weights)}))
    assert changed[0, 2].tolist() == pytest.approx(row, abs=1e-7)
    assert torch.equal(changed[:, :2], PATTERN[:, :2]), "other queries stay"


def test_edit_leaves_the_given_pattern_alone():
    before = PATTERN.clone()
    edited_rows(PATTERN, KeyEdit(0, 0, {1: torch.zeros(4)}))
    assert torch.equal(before, PATTERN)


def test_key_edit_changes_only_the_named_head_and_query(model: Transformer):
    weights = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])
    captured: dict[str, Tensor] = {}
    run_with_key_edits(model, CLEAN, [KeyEdit(0, 1, {3: weights})], captured)
    names = [z_name(0), "blocks.0.attn.hook_pattern", "blocks.0.attn.hook_v"]
    plain = record(model, CLEAN, names)
    changed = (captured[z_name(0)] - plain[z_name(0)]).abs().amax(-1) > 0  # batch pos head
    assert changed.nonzero()[:, 1:].unique(dim=0).tolist() == [[3, 1]]
    row = plain[names[1]][:, 1, 3] * weights
    expected = torch.einsum("bk,bkd->bd", row / row.sum(-1, keepdim=True), plain[names[2]][:, :, 1])
    assert (captured[z_name(0)][:, 3, 1] - expected).abs().max() < 1e-14


def test_edit_with_weight_one_everywhere_changes_nothing_but_rounding(model: Transformer):
    edits = [KeyEdit(layer, head, {q: torch.ones(5) for q in range(5)}) for layer in (0, 1) for head in (0, 1)]
    assert (run_with_key_edits(model, CLEAN, edits) - model(CLEAN)).abs().max() < 1e-13


def test_keeping_only_one_key_makes_the_head_copy_that_value(model: Transformer):
    captured: dict[str, Tensor] = {}
    keep = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    run_with_key_edits(model, CLEAN, [KeyEdit(1, 0, {4: keep})], captured)
    value = record(model, CLEAN, ["blocks.1.attn.hook_v"])["blocks.1.attn.hook_v"]
    assert (captured[z_name(1)][:, 4, 0] - value[:, 1, 0]).abs().max() < 1e-14


def test_relative_move_is_the_median_of_norm_ratios():
    before = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    change = torch.tensor([[0.0, 5.0], [0.0, 0.5], [0.0, 9.0]])  # ratios 1, 0.25 and 9
    assert relative_move(before, before + change) == 1.0
    assert relative_move(before, before) == 0.0
