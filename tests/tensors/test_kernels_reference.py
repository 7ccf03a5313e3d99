"""The torch references are the operations written out, in float64 to rounding and in float32 no worse than naively."""

import math

import pytest
import torch

from kernels import kl
from kernels.dispatch import load
from kernels.one_column import Patches, moved, recorded
from kernels.suffix_attention import Groups
from tests.tensors.comparing import CASES, DRAWN, NAIVE, bound, cast, example, flat, largest, mutant, rebuilt

EXACT = 1e-10  # relative to the largest value: float64 rounding through softmax, norms and sums
MUTATIONS = {
    "mask < for <=": ("suffix_attention", "first position", "device=q.device) > pos", "device=q.device) >= pos"),
    "base key not gathered": (
        "suffix_attention",
        "sink",
        "+ base[prompt, first:stop]",
        "+ 0 * base[prompt, first:stop]",
    ),
    "largest weight not left out": (
        "one_column",
        "sink, 1 - a about 1e-9",
        "is_top = state.top[at] == column[patch][:, None]",
        "is_top = state.top[at] < 0",
    ),
    "base row not gathered": (
        "delta_norm",
        "LayerNorm",
        "torch.add(delta, x, alpha=2)",
        "torch.add(delta, x, alpha=0)",
    ),
    "base activation not gathered": (
        "delta_gemm",
        "gelu",
        "activated(h, activation)[index]",
        "activated(h, activation)[:1]",
    ),
    "differences not centred": ("kl", "KL about 1e-9", "x -= torch.linalg", "x -= 0 * torch.linalg"),
}


@pytest.mark.parametrize(("op", "case"), CASES + [(op, seed) for op in DRAWN for seed in range(20)], ids=str)
def test_reference_in_float64_is_the_operation_written_out(op, case):
    arguments = rebuilt(op, cast(example(op, case), torch.float64))
    truth = flat(NAIVE[op](*arguments))
    assert largest(flat(load(op).reference(*arguments)) - truth) <= EXACT * max(1.0, largest(truth))


@pytest.mark.parametrize(("op", "case"), CASES, ids=lambda part: part)
def test_reference_in_float32_is_no_worse_than_twice_the_naive_form(op, case):
    arguments = rebuilt(op, example(op, case))
    truth = flat(NAIVE[op](*rebuilt(op, cast(example(op, case), torch.float64))))
    assert largest(flat(load(op).reference(*arguments)) - truth) <= bound(truth, flat(NAIVE[op](*arguments)))


@pytest.mark.parametrize("name", MUTATIONS)
def test_reference_with_one_wrong_term_is_noticed(name, tmp_path):
    op, case, old, new = MUTATIONS[name]
    arguments = rebuilt(op, cast(example(op, case), torch.float64))
    truth = flat(NAIVE[op](*arguments))
    error = largest(flat(mutant(op, old, new, tmp_path).reference(*arguments)) - truth)
    assert error > 100 * EXACT * largest(truth)


@pytest.mark.parametrize("op", ["delta_norm", "norm_logit", "one_column"])
def test_error_of_small_differences_stays_proportional_to_them(op):
    arguments = rebuilt(op, example(op, "small differences"))
    truth = flat(load(op).reference(*rebuilt(op, cast(example(op, "small differences"), torch.float64))))
    naive = largest(flat(NAIVE[op](*arguments)) - truth)
    assert largest(flat(load(op).reference(*arguments)) - truth) < naive / 20


def score_rows(kind: str) -> torch.Tensor:
    """4,096 rows of 64 float32 scores; those of a sink leave 1 - a of about the number named to the other columns."""
    scores = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    factor = {"peaky x4": 4.0, "peaky x12 and sink": 12.0}.get(kind, 1.0)
    scores = scores * factor
    if "sink" in kind:
        rest = float(kind.split()[-1]) if kind.startswith("sink") else 1e-6
        scores[:, 0] = scores[:, 1:].logsumexp(-1) - math.log(rest)
    return scores


def changed(scores, v, new, d_v, column, dtype, *, left_out=True):
    """o' - o of every row by the one-column update, in a dtype, with or without the left-out state."""
    state = recorded(scores[None, None].to(dtype), v[None, :, None].to(dtype))
    lse, top, lse_rest = (x[0, :, 0] for x in (state.lse, state.top, state.lse_rest))
    o, o_rest = state.o[0, :, 0], state.o_rest[0, :, 0]
    before = scores[:, column]
    three = (x.to(dtype) for x in (before, new, new.double() - before.double()))
    is_top = (top == column) & left_out
    return moved(*three, is_top, lse, lse_rest, o, o_rest, v[column].to(dtype), d_v.to(dtype))


def recomputed(scores, v, new, d_v, column):
    """o' - o of every row by two full softmaxes."""
    after, value = scores.clone(), v.clone()
    after[:, column], value[column] = new, v[column] + d_v
    return after.softmax(-1) @ value - scores.softmax(-1) @ v


@pytest.mark.parametrize("kind", ["random", "peaky x4", "sink 1e-3", "sink 1e-6", "sink 1e-9", "peaky x12 and sink"])
def test_attention_sinks_cost_no_more_digits_than_a_full_recomputation(kind):
    scores, draw = score_rows(kind), torch.Generator().manual_seed(1)
    v, d_v = torch.randn(64, 16, generator=draw), torch.randn(16, generator=draw)
    worst = {"update": 0.0, "recomputed": 0.0, "subtracted": 0.0}
    for column in (0, 1, 17):
        new = torch.randn(4096, generator=draw)
        exact = recomputed(scores.double(), v.double(), new.double(), d_v.double(), column)
        assert largest(changed(scores, v, new, d_v, column, torch.float64) - exact) <= 1e-12
        forms = {
            "update": changed(scores, v, new, d_v, column, torch.float32),
            "recomputed": recomputed(scores, v, new, d_v, column),
            "subtracted": changed(scores, v, new, d_v, column, torch.float32, left_out=False),
        }
        worst = {name: max(worst[name], largest(form.double() - exact)) for name, form in forms.items()}
    assert worst["update"] <= 2 * worst["recomputed"], worst
    if "sink" in kind:
        assert worst["subtracted"] > 100 * worst["update"], worst


def test_columns_that_appear_or_vanish_beyond_the_range_of_exp_are_exact():
    scores = torch.tensor([[0.0, -200.0, 0.0], [300.0, 0.0, 0.0]])
    v, d_v = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0])
    appears = changed(scores, v, torch.tensor([250.0, 0.0]), d_v, 1, torch.float32)
    vanishes = changed(scores, v, torch.tensor([-300.0, -300.0]), d_v, 0, torch.float32)
    assert appears.tolist() == [[1.0], [0.0]]  # (1 + 3) / 2 -> 3, and a column that has no weight before or after
    assert vanishes.tolist() == [[1.0], [1.5]]  # 2 -> 3, and 1 -> (2 + 3) / 2


def test_recorded_state_is_the_softmax_with_and_without_its_largest_weight():
    scores = torch.tensor([[6.0, 1.0, 3.0], [1.0, 0.0, 0.0]], dtype=torch.float64).log()
    v = torch.tensor([[10.0], [0.0], [20.0]], dtype=torch.float64)
    state = recorded(scores[None, None], v[None, :, None])
    assert state.top.flatten().tolist() == [0, 0]
    expected = {"o": [12.0, 10.0], "o_rest": [15.0, 0.0], "lse": [math.log(10), 0.0]}
    for name, values in expected.items():
        assert largest(getattr(state, name).flatten() - torch.tensor(values, dtype=torch.float64)) < 1e-12
    assert state.lse_rest.flatten()[1] == -math.inf


def test_packed_rows_and_tiles_are_those_worked_out_by_hand():
    patches = Patches(*torch.tensor([[0, 1], [2, 0], [2, 1], [4, 4]]))
    assert [x.tolist() for x in patches.rows()] == [[0, 0, 1, 1, 1], [2, 3, 1, 2, 3]]
    groups = Groups(
        *torch.tensor([[0, 0], [1, 3], [4, 4], [2, 3]]), torch.tensor([1, 2, 3, 3]), torch.tensor([0, 3, 4])
    )
    assert (groups.key_rows.tolist(), groups.query_rows.tolist()) == ([0, 6, 9], [0, 6, 9])
    assert [x.tolist() for x in groups.tiles(4)] == [[0, 0, 1], [0, 4, 0]]


def test_kl_in_portions_of_rows_is_kl_of_all_rows(monkeypatch):
    arguments = cast(example("kl", "ragged width"), torch.float64)
    whole = kl.reference(*arguments)
    monkeypatch.setattr(kl, "PORTION", 200)
    assert largest(kl.reference(*arguments) - whole) < 1e-12
