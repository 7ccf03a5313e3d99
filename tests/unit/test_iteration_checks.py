"""Causal checks of the iteration-head detector: batched equals one at a time, and edits do what they say."""

import pytest
import torch

from circuits.detectors._iteration_checks import (
    _row_weights,
    edit_keys,
    edit_offset,
    keep_only_check,
    mean_ablation_check,
)
from circuits.detectors._iteration_interchange import (
    Setting,
    collect_cases,
    interchange,
    interchange_check,
    interchange_everywhere,
    pair_batches,
)
from circuits.patching_reference import Patch, record, run_patched, z_name
from interp.config import DataConfig
from interp.model import Transformer
from interp.registry import load
from interp.rng import generator
from interp.tasks._load import model_config_for


@pytest.fixture
def setting() -> Setting:
    entry = load("task", "polynomial")
    task = entry.build(entry.params(max_length=7, modulus=5))
    cfg = model_config_for(entry.preset().model.model_copy(update={"d_model": 8, "n_heads": 2}), task)
    model = Transformer(cfg, seed=3).eval().double()
    sequences = task.split(0, DataConfig(per_length=40)).test
    return Setting(model, task, sequences, per_step=12, per_length=6, generator=generator(0, "checks"))


@pytest.mark.parametrize("family", ["input", "clock"])
def test_batched_interchange_equals_one_forward_per_case(setting, family):
    cases = collect_cases(setting, family)
    head = (1, 1)
    batched = interchange(setting, [head], cases)
    one_by_one, unchanged = [], []
    for case in cases:
        for row in range(len(case.clean)):
            position = int(case.query[row])
            patch = Patch(z_name(1), position, case.donor_z[z_name(1)][row : row + 1, 1], 1)
            logits = run_patched(setting.model, case.clean[row : row + 1], [patch])
            one_by_one.append(bool(logits[0, position].argmax() == case.swap_answer[row]))
            unchanged.append(bool(logits[0, position].argmax() == case.clean_answer[row]))
    assert len(one_by_one) > 20
    assert any(one_by_one) and any(unchanged), "a test in which no case is decided would not notice a difference"
    assert batched.swapped.tolist() == one_by_one
    assert batched.unchanged.tolist() == unchanged


@pytest.mark.parametrize("family", ["input", "clock"])
def test_cases_hold_the_donor_output_of_their_own_pair(setting, family):
    case = collect_cases(setting, family)[-1]
    row = 0
    for batch in case.donor:
        for index in batch.differs.nonzero().flatten().tolist():
            alone = record(setting.model, batch.donor[index : index + 1], [z_name(0)])[z_name(0)][0, batch.query]
            assert torch.allclose(case.donor_z[z_name(0)][row], alone, atol=1e-12)
            row += 1
    assert row == len(case.clean)


def test_every_possible_donor_length_of_the_clock_is_a_cell_of_its_own(setting):
    cells = [(pair.length, pair.t, pair.donor_length) for pair in pair_batches(setting, "clock")]
    assert len(cells) == len(set(cells))
    # length 7, t = 3: length 6 has t' = 4 at that place; length 5 would need t' = 5, and 8 is beyond the task.
    assert [donor for length, t, donor in cells if (length, t) == (7, 3)] == [6]
    assert [donor for length, t, donor in cells if (length, t) == (5, 3)] == [6, 7]  # t' = 2 and 1
    drawn = torch.cat([case.cell for case in collect_cases(setting, "clock")])
    assert drawn.unique().tolist() == list(range(int(drawn.max()) + 1))


def test_only_cases_whose_answer_would_change_are_counted(setting):
    for case in collect_cases(setting, "clock"):
        assert bool((case.swap_answer != case.clean_answer).all())


def test_clock_pairs_leave_eoi_out_in_both_runs(setting):
    pairs = list(pair_batches(setting, "clock"))
    assert pairs
    assert all(pair.t >= 1 and pair.t_donor >= 1 for pair in pairs)


def test_an_identical_donor_is_not_tested_rather_than_without_effect(setting):
    with torch.no_grad():
        setting.model.blocks[0].attn.W_V[0] = 0
    check = interchange_check(setting, "reading", (0, 0), [])
    assert (check.moved, check.tested, check.passed) == (0.0, False, None)


def test_a_last_layer_head_patched_everywhere_acts_at_the_query_alone(setting):
    cases = collect_cases(setting, "input")
    everywhere = interchange_everywhere(setting, (1, 0), cases)
    alone = interchange(setting, [(1, 0)], cases)
    assert everywhere.value == pytest.approx(
        float(alone.swapped.float().mean())
    )  # nothing reads a last-layer head later


def test_row_weights_remove_the_target_keep_it_or_match_its_mass():
    row = torch.tensor([[0.1, 0.4, 0.3, 0.2, 0.0]])
    assert _row_weights(row, 3, 1, "knock-out").tolist() == [[1, 0, 1, 1, 1]]
    assert _row_weights(row, 3, 1, "keep-only").tolist() == [[0, 1, 0, 0, 0]]
    # 0.4 to remove: all of key 2 (0.3) and half of key 3 (0.2)
    assert _row_weights(row, 3, 1, "control")[0].tolist() == pytest.approx([1, 1, 0, 0.5, 1])
    # 0.2 to remove: half of key 1
    assert _row_weights(row, 3, 3, "control")[0].tolist() == pytest.approx([1, 0.5, 1, 1, 1])


def test_the_control_removes_the_targets_mass_in_every_sequence_or_all_there_is():
    row = torch.tensor([[0.2, 0.7, 0.1], [0.6, 0.1, 0.3]])
    removed = (row * (1 - _row_weights(row, 2, 1, "control"))).sum(-1)
    assert removed.tolist() == pytest.approx([0.3, 0.1])  # min(0.7, 0.3) and 0.1


def test_control_heads_are_random_and_begin_in_the_same_layer(setting):
    pair = ((0, 0), (1, 0))
    assert setting.controls((1, 0), pair) == [(1, 1), (0, 1)]
    assert setting.controls((0, 0), pair) == [(0, 1), (1, 1)]


def test_keep_only_of_a_head_without_output_is_not_tested(setting):
    with torch.no_grad():
        setting.model.blocks[1].attn.W_V[0] = 0
    assert keep_only_check(setting, "reading", (1, 0)).passed is None


def test_knock_out_and_keep_only_report_the_mass_they_remove(setting):
    gone, kept = (edit_keys(setting, "reading", (1, 0), mode) for mode in ("knock-out", "keep-only"))
    assert gone.removed_mass + kept.removed_mass == pytest.approx(1)
    assert len(gone.before) == len(gone.after) == sum(min(6, len(setting.sequences[n])) for n in setting.lengths)


def test_an_offset_beyond_every_input_is_not_edited(setting):
    assert edit_offset(setting, (1, 0), 99) is None
    same = edit_offset(setting, (1, 0), 0)
    assert torch.equal(same.after, edit_keys(setting, "reading", (1, 0), "knock-out").after)


def test_a_head_with_constant_output_is_not_tested_by_mean_ablation(setting):
    with torch.no_grad():
        setting.model.blocks[1].attn.W_V[1] = 0
    check = mean_ablation_check(setting, "reading", (1, 1), [])
    assert (check.tested, check.passed) == (False, None)
