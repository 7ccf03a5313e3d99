"""What edges and sets will cost is known before they run: operations, branches and rows, within the memory allowed."""

import dataclasses

import pytest
import torch

from circuits import patch_edges as patch_edges_module
from circuits import patch_sets as patch_sets_module
from circuits.engine import sweep
from circuits.engine.plan import forward_flops, recorded_bytes, row_bytes
from circuits.metrics import KL, LogProb
from circuits.patch_edges import patch_edges, plan_edges
from circuits.patch_sets import At, patch_sets, plan_sets
from circuits.patching import patch_heads
from interp.errors import NotExpressible, UnknownName, UsageError
from tests.unit.random_bridges import hugging_face, wrapped
from tests.unit.small_decoders import FAMILIES, logit_diff, prompts, small_decoder
from tests.unit.test_patch_sets import drawn
from tests.unit.test_patching_bridges import METRIC, SLIDING, pairs

RESOLVED = ["position", "query", "pooled"]


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of tiny products: a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def differing(n: int = 2, length: int = 5, **options) -> dict:
    """Prompts that differ at every position: a token that agrees would be predicted too."""
    clean = prompts(n=n, length=length)[0]
    return {"clean": clean, "corrupted": (clean + 1) % 7, "metric": logit_diff(n, "all")} | options


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("resolve", RESOLVED)
@pytest.mark.parametrize("positions", ["last", "all"])
def test_operations_and_branches_of_edges_are_those_that_are_counted(name, resolve, positions):
    decoder = small_decoder(name, n_layers=3)
    given = differing(metric=logit_diff(positions=positions), resolve=resolve)
    for max_bytes in (None, 20_000):
        result = patch_edges(decoder, **given, max_bytes=max_bytes)
        assert result.plan.flops == pytest.approx(result.flops, rel=0.01)
        assert result.plan.branches == result.branches == int(result.edges.ran.sum())
        assert result.plan.patches == 2 * result.branches
        assert (len(result.plan.chunks) > 20) == (max_bytes is not None)


@pytest.mark.parametrize("resolve", RESOLVED)
@pytest.mark.parametrize("metric", [KL("all"), LogProb(torch.tensor([1, 2]), torch.tensor([[1, 3], [2, 4]]))])
def test_operations_are_predicted_for_whole_logits_and_some_edges_too(resolve, metric):
    edges = ["embed->L1.KV0.k", "L0.H1->L2.H0.q", "M0->M2", "L1.H1->logits", "L0.H3->M0", "M1->L2.KV1.v"]
    given = differing(metric=metric, resolve=resolve, edges=edges)
    result = patch_edges(small_decoder("grouped", n_layers=3), **given)
    assert result.plan.flops == pytest.approx(result.flops, rel=0.01)
    assert result.plan.branches == result.branches


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("max_bytes", [None, 20_000])
def test_operations_of_sets_are_those_that_are_counted(name, positions, max_bytes):
    decoder, sets = small_decoder(name, n_layers=3), [*drawn(name, 12, 3, 5), []]
    given = differing(metric=logit_diff(positions=positions), max_bytes=max_bytes)
    result = patch_sets(decoder, sets, **given)
    assert result.plan.flops == pytest.approx(result.flops, rel=0.01)
    assert (result.plan.branches, result.plan.patches) == (12, 24)
    assert sorted(one for chunk in result.plan.chunks for one in chunk.sets) == list(range(12))
    assert (len(result.plan.chunks) > 2) == (max_bytes is not None)


@pytest.mark.parametrize("site", ["z", "q", "k", "v", "resid_pre", "mlp_post"])
@pytest.mark.parametrize("name", FAMILIES)
def test_operations_of_single_patches_are_predicted_in_every_family(name, site):
    if site == "mlp_post" and name in ("attention only", "no norm, relu"):  # neurons that are silent in both runs agree
        return
    result = patch_heads(small_decoder(name, n_layers=3), **differing(length=7), site=site)
    assert result.plan.flops == pytest.approx(result.flops, rel=0.01)


@pytest.mark.parametrize("resolve", RESOLVED)
def test_a_plan_of_edges_alone_is_that_of_the_call_and_runs_nothing(resolve, monkeypatch):
    decoder, given = small_decoder("preset", n_layers=3), differing(resolve=resolve, max_bytes=100_000)
    plan = patch_edges(decoder, **given).plan
    monkeypatch.delattr(patch_edges_module, "run_edges")
    alone = plan_edges(decoder, **given)
    assert alone.seconds > 0
    assert dataclasses.replace(alone, seconds=None) == plan
    assert plan.naive_flops == plan.patches * forward_flops(decoder, 5)
    assert f"{plan.patches:,} patches in {len(plan.chunks)} chunks" in str(plan)


def test_a_plan_of_sets_alone_is_that_of_the_call_and_runs_nothing(monkeypatch):
    decoder, given = small_decoder("preset", n_layers=3), differing(max_bytes=100_000)
    sets = drawn("preset", 12, 3, 5)
    plan = patch_sets(decoder, sets, **given).plan
    monkeypatch.delattr(patch_sets_module, "carry")
    alone = plan_sets(decoder, sets, **given)
    assert alone.seconds > 0
    assert dataclasses.replace(alone, seconds=None) == plan
    assert plan.naive_flops == 12 * 2 * forward_flops(decoder, 5)


def carried_rows(monkeypatch) -> list[int]:
    """Rows of all branches and prompts that leave each block from now on."""
    seen, real = [], sweep.Stack.of

    def counting(like, n_rows, parts):
        stack = real(like, n_rows, parts)
        seen.append(0 if stack.branches is None else len(like) * len(stack.branches.p) * n_rows)
        return stack

    monkeypatch.setattr(sweep.Stack, "of", counting)
    return seen


def room_of_chunks(plan, decoder, length: int) -> int:
    """Bytes that a plan has for its chunks besides the recorded runs."""
    final = torch.empty(2, length, decoder.d_model)  # float32
    return plan.bytes - recorded_bytes(final, 2, len(decoder.layers))


@pytest.mark.parametrize("resolve", RESOLVED)
@pytest.mark.parametrize("rows", [40, 100, 400])
def test_edges_stay_within_the_memory_that_they_are_allowed(resolve, rows, monkeypatch):
    decoder = small_decoder("grouped", n_layers=4)
    allowed, seen = rows * row_bytes(decoder, 4), carried_rows(monkeypatch)
    given = differing(resolve=resolve, max_bytes=allowed)
    result = patch_edges(decoder, **given)
    least = 2 * 5 * (5 if resolve == "query" else 1)  # one sender at one position, for both prompts
    assert max(seen) <= result.plan.rows <= max(rows, least)
    assert room_of_chunks(result.plan, decoder, 5) <= max(allowed, least * row_bytes(decoder, 4))
    assert result.plan.budget == allowed
    whole = patch_edges(decoder, **differing(resolve=resolve))
    assert result.plan.rows < whole.plan.rows
    assert (result.effect - whole.effect).abs().max() < 1e-4 * whole.effect.abs().max()


def test_senders_of_one_receiver_are_parted_where_they_do_not_fit_together():
    decoder = small_decoder("preset", n_layers=4)
    given = differing(receivers=["L2.H1.k"], max_bytes=30 * row_bytes(decoder, 4))
    plan = plan_edges(decoder, **given)
    first = [chunk for chunk in plan.chunks if chunk.positions[0] == 0]
    assert [len(chunk.senders) for chunk in first] == [3, 3, 1]
    assert sorted(sender for chunk in first for sender in chunk.senders) == list(range(7))
    assert all(chunk.receivers == first[0].receivers for chunk in first)


@pytest.mark.parametrize("rows", [10, 30, 60])
def test_sets_stay_within_the_memory_that_they_are_allowed(rows, monkeypatch):
    decoder, seen, real = small_decoder("grouped", n_layers=3), [], patch_sets_module.carry

    def counting(decoder, base, source, events, n_branches, span, *rest):
        seen.append(len(base.final) * n_branches * span.count)
        return real(decoder, base, source, events, n_branches, span, *rest)

    monkeypatch.setattr(patch_sets_module, "carry", counting)
    allowed = rows * row_bytes(decoder, 4)
    result = patch_sets(decoder, drawn("preset", 12, 3, 5), **differing(max_bytes=allowed))
    assert max(seen) == result.plan.rows <= rows
    assert room_of_chunks(result.plan, decoder, 5) <= allowed


def test_a_plan_refuses_what_the_call_refuses():
    decoder = small_decoder("preset")
    with pytest.raises(UnknownName, match=r"L0\.H1"):
        plan_edges(decoder, **differing(), senders=["L0.H7"])
    with pytest.raises(UsageError, match="resolve"):
        plan_edges(decoder, **differing(), resolve="head")
    with pytest.raises(UsageError, match="known layer"):
        plan_sets(decoder, [[At("z", 9)]], **differing())
    bridge, (clean, corrupted) = wrapped(hugging_face("Mistral", "ForCausalLM", SLIDING)), pairs()
    with pytest.raises(NotExpressible, match="window"):
        plan_edges(bridge, clean=clean, corrupted=corrupted, metric=METRIC)
