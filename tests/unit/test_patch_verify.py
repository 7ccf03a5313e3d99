"""Edges and sets are checked by plain forwards of the model, and a wrong effect is seen."""

import pytest
import torch

from circuits.engine import edges as edges_module
from circuits.engine import sets as sets_module
from circuits.engine import sweep
from circuits.metrics import KL, LogitDiff, UserMetric
from circuits.patch_edges import EdgeResult, patch_edges
from circuits.patch_sets import At, SetResult, patch_sets
from circuits.patch_verify import logits_with
from circuits.patch_verify_edges import edits_of
from tests.unit.edges_by_hand import ByHand
from tests.unit.random_bridges import bridge_of
from tests.unit.small_decoders import FAMILIES, logit_diff, prompts, small_decoder
from tests.unit.test_decoder import random_model
from tests.unit.test_patch_edges import metric_of
from tests.unit.test_patch_sets import drawn
from tests.unit.test_patching_bridges import METRIC, pairs

RESOLVED = ["position", "query", "pooled"]


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of tiny products: a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def edge_result(model, resolve: str, **options) -> EdgeResult:
    clean, corrupted = prompts(length=5, same=1)
    options = {"metric": logit_diff(positions="all"), "precision": "fp64"} | options
    return patch_edges(model, clean=clean, corrupted=corrupted, resolve=resolve, **options)


def set_result(model, name: str = "preset", **options) -> SetResult:
    clean, corrupted = prompts(length=5, same=1)
    options = {"metric": logit_diff(positions="all"), "precision": "fp64"} | options
    return patch_sets(model, [*drawn(name, 10, 2, 5), []], clean=clean, corrupted=corrupted, **options)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("resolve", RESOLVED)
def test_the_reference_of_edges_is_the_definition_by_hand(name, resolve):
    result = edge_result(small_decoder(name), resolve)
    runs, metric = result.edges.runs, result.edges.runs.metric
    hand, checks = ByHand(runs.decoder, runs.prompts.base, runs.prompts.source), result.checks()
    before = metric_of(metric, hand.base.logits)
    for sender, receiver, *where in checks.places[:: max(1, len(checks.places) // 40)].tolist():
        pos, query = (*where, None)[:2] if where else (slice(None), None)
        names = result.graph.senders[sender], result.graph.receivers[receiver]
        expected = metric_of(metric, hand.logits(*names, pos, query)) - before
        assert (checks.both([sender, receiver, *where])[1] - expected).abs().max() < 1e-11


@pytest.mark.parametrize("resolve", RESOLVED)
def test_one_wrong_edge_is_seen_where_all_are_rerun(resolve):
    result = edge_result(small_decoder("grouped"), resolve)
    places = result.checks().places
    assert len(places) == result.branches == int((result.effect != 0).any(0).sum())
    right = result.verify(10_000)
    assert (right.n, right.max_error < 1e-10, right.largest_effect > 1e-3) == (len(places), True, True)
    result.effect[(1, *places[len(places) // 2].tolist())] += 1e-6
    assert result.verify(10_000).max_error == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize("make", [lambda d: edge_result(d, "position"), set_result], ids=["edges", "sets"])
def test_other_seeds_draw_other_effects_and_the_same_seed_the_same(make):
    result = make(small_decoder("preset"))
    assert result.verify(3, seed=1) == result.verify(3, seed=1)
    assert len({result.verify(3, seed=seed).largest_effect for seed in range(6)}) > 1


def test_one_wrong_set_is_seen_where_all_are_rerun():
    result = set_result(small_decoder("preset"))
    right = result.verify(100)
    assert (right.n, right.max_error < 1e-10, right.largest_effect > 1e-3) == (10, True, True)
    result.effect[0, 7] -= 1e-6
    assert result.verify(100).max_error == pytest.approx(1e-6, rel=1e-3)


def frozen(norm, base, rows, delta, mul):
    """The norm is taken as the identity."""
    return delta


@pytest.mark.parametrize("resolve", RESOLVED)
def test_a_broken_term_of_the_engine_is_seen_by_the_check_of_edges(resolve, monkeypatch):
    decoder = small_decoder("preset", n_layers=3)
    monkeypatch.setattr(sweep, "norm_delta", frozen)
    monkeypatch.setattr(edges_module, "norm_delta", frozen)
    assert edge_result(decoder, resolve).verify(100).max_error > 1e-4


def test_a_broken_term_of_the_engine_is_seen_by_the_check_of_sets(monkeypatch):
    monkeypatch.setattr(sets_module, "norm_delta", frozen)
    assert set_result(small_decoder("preset")).verify(100).max_error > 1e-4


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
@pytest.mark.parametrize("side", ["none", "right", "left"])
def test_ablations_and_padding_are_checked_as_they_were_asked_for(ablation, side):
    decoder, clean = small_decoder("preset"), prompts(n=3, length=6)[0]
    mask = torch.ones(3, 6, dtype=torch.bool)
    if side != "none" and ablation != "resample":
        mask[1, 4:] = False
        mask = mask.flip(1) if side == "left" else mask
    given = {"clean": clean * mask, "metric": logit_diff(3), "ablation": ablation, "mask": mask, "precision": "fp64"}
    results = [patch_edges(decoder, **given, resolve=resolve) for resolve in RESOLVED]
    results.append(patch_sets(decoder, [*drawn("preset", 6, 2, 6)], **given))
    for result in results:
        checked = result.verify(25)
        assert checked.max_error < 1e-10 < checked.largest_effect


@pytest.mark.parametrize(
    "metric", [KL("all"), UserMetric(lambda logits: logits.square().mean((1, 2)))], ids=["kl", "own"]
)
def test_metrics_that_are_not_linear_are_checked(metric):
    decoder = small_decoder("preset")
    for result in (edge_result(decoder, "position", metric=metric), set_result(decoder, metric=metric)):
        checked = result.verify(20)
        assert checked.max_error < 1e-10 < checked.largest_effect


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_of_fewer_bits_is_rerun_in_float64_and_stays_as_it_is(dtype):
    model = random_model(n_layers=2, positions="rotary", norm="rms", activation="swiglu").to(dtype)
    for result in (edge_result(model, "position", precision="fp32"), set_result(model, precision="fp32")):
        checked = result.verify(16)
        assert 0 < checked.l2_error < 1e-5
        assert checked.largest_effect > 1e-3
    assert next(model.parameters()).dtype == dtype


def test_a_function_of_logits_is_given_the_dtype_of_the_engine():
    weight = torch.randn(7, generator=torch.Generator().manual_seed(1))
    model, metric = random_model().float(), UserMetric(lambda logits: logits[:, -1] @ weight)
    for result in (
        edge_result(model, "pooled", metric=metric, precision="fp32"),
        set_result(model, metric=metric, precision="fp32"),
    ):
        assert result.verify(5).l2_error < 1e-4


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "qwen2"])
def test_edges_and_sets_of_a_bridge_are_checked_through_its_own_hooks(name):
    bridge, (clean, corrupted) = bridge_of(name), pairs()
    given = {"clean": clean, "corrupted": corrupted, "metric": METRIC}
    sites = ["resid_pre", "q", "k", "v", "z", "attn_out", "mlp_post", "mlp_out", "resid_post"]
    sites += [] if name == "neox" else ["resid_mid"]
    sets = [[At(site, layer, None, 2)] for site in sites for layer in (0, 1)]
    sets += [[At("attn_out", 0, None, 1), At("z", 0, 0), At("mlp_out", 1, None, 3), At("resid_pre", 1, None, 4)]]
    results = [patch_edges(bridge, **given, resolve=resolve) for resolve in RESOLVED] + [
        patch_sets(bridge, sets, **given)
    ]
    for result in results:
        checked = result.verify(24)
        assert checked.max_error < 1e-4 * float(result.effect.abs().max())
        assert checked.n == min(24, result.plan.branches)
        result.effect.add_(0.5)
        assert result.verify(24).max_error == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("order", [1, -1])
def test_a_later_patch_of_a_set_overwrites_an_earlier_one_in_whatever_order_they_are_named(order):
    bridge, (clean, corrupted) = bridge_of("gpt2"), pairs()
    patches = [At("attn_out", 0), At("resid_mid", 0, None, 2)][::order]
    result = patch_sets(bridge, [patches], clean=clean, corrupted=corrupted, metric=METRIC)
    assert result.verify().max_error < 1e-5 * float(result.effect.abs().max()) + 1e-6


def test_edits_of_a_set_are_those_of_its_places():
    decoder, (clean, _) = small_decoder("preset"), prompts()
    source = {("z", 0): torch.full((2, 6, 2, 4), 3.0, dtype=torch.float64)}
    (edit,) = edits_of([At("z", 0, 1, 2), At("z", 0, 0, None)], source)
    z = edit.change(torch.zeros(2, 6, 2, 4, dtype=torch.float64))
    assert bool((z[:, :, 0] == 3).all()) and bool((z[:, 2, 1] == 3).all()) and float(z[:, :, 1].sum()) == 2 * 4 * 3
    assert torch.equal(logits_with(decoder, clean), logits_with(decoder, clean, []))


def test_nothing_that_was_run_is_nothing_to_check():
    clean, _ = prompts()
    given = {"clean": clean, "corrupted": clean.clone(), "metric": logit_diff()}
    for resolve in RESOLVED:
        result = patch_edges(small_decoder("preset"), **given, resolve=resolve)
        assert (result.branches, result.plan.branches, result.verify().n) == (0, 0, 0)
    assert patch_sets(small_decoder("preset"), [[]], **given).verify().n == 0


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_coarse_result_of_edges_or_sets_prints_the_error_of_its_check(precision):
    decoder = small_decoder("preset").to(torch.float32)
    for make in (lambda p: edge_result(decoder, "position", precision=p), lambda p: set_result(decoder, precision=p)):
        coarse = make(precision)
        assert str(coarse.verify()) in str(coarse)
        assert str(coarse.plan) in str(coarse) and f"in {precision}" in str(coarse)
        assert "rerun" not in str(make("fp32"))


def test_edges_that_were_not_asked_for_are_not_rerun():
    result = edge_result(small_decoder("preset"), "position", senders=["L0.H1"], receivers=["L1.H0.k", "logits"])
    names = {result.graph.name(sender, receiver) for sender, receiver, _ in result.checks().places.tolist()}
    assert names == {"L0.H1->L1.H0.k", "L0.H1->logits"}
    assert isinstance(result.edges.runs.metric, LogitDiff)
    assert result.verify().max_error < 1e-10
