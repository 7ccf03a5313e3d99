"""Statistic and family-wise null of the iteration-head detector on patterns worked out by hand."""

import pytest
import torch

from circuits.detectors._iteration_scan import (
    OFFSETS,
    cells,
    family_p,
    label,
    model_cells,
    parse_label,
    scan_sequences,
    scanned_maxima,
    summarise_null,
    with_intervals,
)
from interp.config import DataConfig
from interp.model import Transformer
from interp.registry import load
from interp.tasks._load import model_config_for
from probes.null import NullScan

ZERO = OFFSETS.index(0)


@pytest.fixture(scope="module")
def task():
    return load("task", "parity").build(load("task", "parity").params(max_length=5))


def pattern(task, length: int, layers: int = 2, heads: int = 2) -> torch.Tensor:
    """Attention on position 0 everywhere: [twin=1, layer, batch=3, head, q_pos, k_pos]."""
    n_pos = task.layout(length).n_pos
    found = torch.zeros(1, layers, 3, heads, n_pos, n_pos)
    found[..., 0] = 1
    return found


def attend(found: torch.Tensor, layer: int, head: int, pairs: list[tuple[int, int]], mass: float = 1.0) -> None:
    """Move `mass` of the listed queries of one head from position 0 to their keys."""
    for query, key in pairs:
        found[:, layer, :, head, query] = 0
        found[:, layer, :, head, query, 0] += 1 - mass
        found[:, layer, :, head, query, key] += mass


def test_mass_on_the_reading_diagonal_is_found_at_its_head_and_offset(task):
    patterns = {length: pattern(task, length) for length in (4, 5)}
    for length, found in patterns.items():
        attend(found, 1, 1, [(q, k + 1) for q, k in task.attention_targets(length)["reading"]], 0.75)
    reading = cells(task, patterns).reading[0]
    assert reading[1, 1, ZERO + 1] == pytest.approx(0.75)
    assert reading[1, 1, ZERO] == 0
    assert reading[0].max() == reading[1, 0].max()


def test_a_diagonal_held_at_one_length_only_scores_half(task):
    patterns = {length: pattern(task, length) for length in (4, 5)}
    attend(patterns[4], 1, 0, task.attention_targets(4)["reading"])
    assert cells(task, patterns).reading[0, 1, 0, ZERO] == pytest.approx(0.5)


def test_the_joint_statistic_needs_the_clock_in_an_earlier_layer(task):
    def joint(clock_layer: int, reading_layer: int) -> float:
        patterns = {4: pattern(task, 4)}
        attend(patterns[4], clock_layer, 0, task.attention_targets(4)["clock"], 0.8)
        attend(patterns[4], reading_layer, 1, task.attention_targets(4)["reading"], 0.9)
        return float(cells(task, patterns).joint[0, ..., ZERO, ZERO].max())

    assert joint(0, 1) == pytest.approx(0.8)
    assert joint(1, 0) == 0
    assert joint(1, 1) == 0


def test_the_summary_names_the_pair_and_counts_exceedances(task):
    patterns = {4: pattern(task, 4)}
    attend(patterns[4], 0, 1, task.attention_targets(4)["clock"], 0.6)
    attend(patterns[4], 1, 0, task.attention_targets(4)["reading"], 0.9)
    null = NullScan(torch.tensor([[0.1, 0.1, 0.1], [0.95, 0.2, 0.2], [0.9, 0.6, 0.7]]), torch.tensor([1.0, 10.0, 10.0]))
    by_role = {row.role: row for row in summarise_null(cells(task, patterns), null, 1)}
    assert by_role["joint"].component == "L0.H1+L1.H0"
    assert by_role["reading"].exceedances == 2
    assert by_role["joint"].exceedances == 1
    assert by_role["joint"].p_value == pytest.approx(2 / 4)
    assert by_role["joint"].smallest_p == pytest.approx(1 / 4)
    assert by_role["joint"].n_sharp == 2


def test_a_tested_pair_is_judged_by_its_own_attention_not_by_the_best_heads(task):
    patterns = {4: pattern(task, 4)}
    attend(patterns[4], 0, 0, task.attention_targets(4)["clock"], 0.9)
    attend(patterns[4], 1, 0, task.attention_targets(4)["reading"], 0.9)
    attend(patterns[4], 1, 1, task.attention_targets(4)["reading"], 0.1)
    null = NullScan(torch.full((99, 3), 0.5), torch.ones(99))
    found = cells(task, patterns)
    best = summarise_null(found, null, 1)[2]
    weak = summarise_null(found, null, 1, ((0, 0), (1, 1)))[2]
    assert (best.component, best.p_value) == ("L0.H0+L1.H0", pytest.approx(0.01))
    assert (weak.component, weak.p_value) == ("L0.H0+L1.H1", 1.0)
    assert weak.observed == pytest.approx(0.1)


def test_p_over_several_checkpoints_is_the_chance_of_any_of_them():
    maxima = torch.arange(99) / 100
    assert family_p(2.0, maxima, 1) == (0.01, 0)  # exactly, so that 99 null models can reach the level
    assert family_p(2.0, maxima, 10)[0] == pytest.approx(1 - 0.99**10)


def test_maxima_run_over_heads_and_offsets(task):
    patterns = {4: pattern(task, 4)}
    attend(patterns[4], 0, 0, [(q, k - 1) for q, k in task.attention_targets(4)["reading"] if k > 1], 0.7)
    reading, _, joint = scanned_maxima(cells(task, patterns))[0].tolist()
    assert reading >= 0.7
    assert joint == 0 or joint <= reading


def test_the_probe_set_is_at_most_six_lengths_of_eight_sequences_from_four_up():
    task = load("task", "parity").build(load("task", "parity").params(max_length=16))
    sequences = {n: torch.zeros(20, task.layout(n).n_pos, dtype=torch.long) for n in task.lengths}
    probe = scan_sequences(task, sequences)
    assert list(probe) == [4, 6, 9, 11, 14, 16]
    assert {len(tokens) for tokens in probe.values()} == {8}


def test_labels_go_out_and_in():
    assert parse_label(label(3, 11)) == (3, 11)


def test_the_interval_of_the_observed_mass_holds_it_and_names_lengths_and_sequences():
    entry = load("task", "polynomial")
    small = entry.build(entry.params(max_length=6, modulus=5))
    cfg = model_config_for(entry.preset().model.model_copy(update={"d_model": 8, "n_heads": 2}), small)
    model = Transformer(cfg, seed=3).eval()
    probe = scan_sequences(small, small.split(0, DataConfig(per_length=40)).test)
    maxima = NullScan(torch.rand(9, 3), torch.ones(9))
    rows = with_intervals(summarise_null(model_cells(model, small, probe), maxima, 1), model, small, probe)
    for row in rows:
        assert row.observed_interval.value == pytest.approx(row.observed, abs=1e-6), "of the same sequences"
        assert row.observed_interval.low < row.observed < row.observed_interval.high
        assert row.observed_interval.n == 24 and row.over == "8 held-out sequences of each of the lengths 4, 5, 6"
    of = {row.role: row.observed_interval for row in rows}
    clock, reading = rows[-1].component.split("+")
    if (clock, reading) == (rows[1].component, rows[0].component):
        assert of["joint"] == min(of["clock"], of["reading"], key=lambda one: one.value)
