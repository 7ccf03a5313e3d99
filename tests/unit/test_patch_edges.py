"""Every edge of small decoders equals a forward in which that one receiver's input was changed by hand, in float64."""

import pytest
import torch

from circuits.metrics import LogitDiff
from circuits.patch_edges import patch_edges
from interp.decoder import Decoder
from interp.errors import UnknownName, UsageError
from tests.unit.edges_by_hand import ByHand
from tests.unit.small_decoders import FAMILIES, logit_diff, prompts, small_decoder


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of tiny products: a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def metric_of(metric: LogitDiff, logits: torch.Tensor) -> torch.Tensor:
    n = torch.arange(len(logits))
    wanted = logits[n, :, metric.correct] - logits[n, :, metric.wrong]  # [batch pos]
    return wanted.mean(1) if metric.positions == "all" else wanted[:, -1]


def largest_error(decoder: Decoder, metric: LogitDiff, length: int = 5) -> tuple[float, float]:
    """Over every edge and position, and the largest effect."""
    clean, corrupted = prompts(length=length, same=1)
    result = patch_edges(decoder, clean=clean, corrupted=corrupted, metric=metric, precision="fp64")
    hand = ByHand(decoder, corrupted, clean)
    before, errors = metric_of(metric, hand.base.logits), []
    for sender, receiver in result.graph.edges:
        names = result.graph.senders[sender], result.graph.receivers[receiver]
        for pos in range(length):
            expected = metric_of(metric, hand.logits(*names, pos)) - before
            errors.append((result.effect[:, sender, receiver, pos] - expected).abs().max())
    assert not bool(result.effect[:, ~result.graph.exists].any())
    return float(torch.stack(errors).max()), float(result.effect.abs().max())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("positions", ["last", "all"])
def test_every_edge_equals_a_forward_with_one_changed_input(name, positions):
    error, largest = largest_error(small_decoder(name), logit_diff(positions=positions))
    assert error < 1e-10
    assert largest > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_edge_of_three_layers_equals_a_forward(name):
    error, _ = largest_error(small_decoder(name, n_layers=3), logit_diff(positions="all"))
    assert error < 1e-10


@pytest.mark.parametrize("name", ["preset", "grouped", "grouped parallel"])
@pytest.mark.parametrize("positions", ["last", "all"])
def test_key_and_value_edges_by_query_equal_a_forward_with_one_changed_score(name, positions):
    decoder, length, metric = small_decoder(name), 4, logit_diff(positions=positions)
    clean, corrupted = prompts(length=length, same=1)
    result = patch_edges(decoder, clean=clean, corrupted=corrupted, metric=metric, precision="fp64", resolve="query")
    hand, seen = ByHand(decoder, corrupted, clean), 0
    before = metric_of(metric, hand.base.logits)
    for sender, receiver in result.graph.edges:
        names = result.graph.senders[sender], result.graph.receivers[receiver]
        if names[1][-2:] not in (".k", ".v"):
            continue
        for key in range(length):
            for query in range(length):
                expected = (metric_of(metric, hand.logits(*names, key, query)) - before) * (query >= key)
                assert (result.effect[:, sender, receiver, key, query] - expected).abs().max() < 1e-10
                seen += 1
    assert seen > 50


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("positions", ["last", "all"])
def test_pooled_edges_equal_a_forward_with_the_whole_input_changed(name, positions):
    decoder, metric = small_decoder(name, n_layers=3), logit_diff(positions=positions)
    clean, corrupted = prompts(length=5, same=1)
    result = patch_edges(decoder, clean=clean, corrupted=corrupted, metric=metric, precision="fp64", resolve="pooled")
    hand = ByHand(decoder, corrupted, clean)
    before = metric_of(metric, hand.base.logits)
    for sender, receiver in result.graph.edges:
        names = result.graph.senders[sender], result.graph.receivers[receiver]
        expected = metric_of(metric, hand.logits(*names, slice(None))) - before
        assert (result.effect[:, sender, receiver] - expected).abs().max() < 1e-10


def test_chosen_edges_and_small_budgets_change_no_number():
    decoder, metric = small_decoder("preset", n_layers=3), logit_diff(positions="all")
    clean, corrupted = prompts()
    runs = {"clean": clean, "corrupted": corrupted, "metric": metric, "precision": "fp64"}
    whole = patch_edges(decoder, **runs)
    tight = patch_edges(decoder, **runs, max_bytes=1)
    assert (tight.effect - whole.effect).abs().max() < 1e-12
    some = patch_edges(decoder, **runs, senders=["L0.H1"], receivers=["L2.H0.k", "M1", "logits"])
    assert (some.score("L0.H1->L2.H0.k") - whole.score("L0.H1->L2.H0.k")).abs().max() < 1e-12
    assert int(some.asked.sum()) == 3
    assert len(some.to_frame()) == 3 * 2 * 6


@pytest.mark.parametrize("direction", ["noise", "denoise"])
@pytest.mark.parametrize("name", ["preset", "grouped"])
def test_edges_by_name_have_the_effects_that_all_edges_have(name, direction):
    decoder, metric = small_decoder(name, n_layers=3), logit_diff(positions="all")
    clean, corrupted = prompts()
    runs = {"clean": clean, "corrupted": corrupted, "metric": metric, "precision": "fp64", "direction": direction}
    values = "L2.KV1.v" if name == "grouped" else "L2.H1.v"
    edges = ["embed->L1.H0.q", f"L0.H1->{values}", "M0->M2", "L1.H1->logits"]
    for resolve in ("pooled", "position", "query"):
        whole, some = (
            patch_edges(decoder, **runs, resolve=resolve),
            patch_edges(decoder, **runs, edges=edges, resolve=resolve),
        )
        assert int(some.asked.sum()) == 4 and some.branches < whole.branches
        assert not some.effect[:, ~some.asked].any()
        for edge in edges:
            assert some.score(edge).any() and (some.score(edge) - whole.score(edge)).abs().max() < 1e-12
    both = patch_edges(decoder, **runs, edges=edges, receivers=["M2"])
    assert int(both.asked.sum()) == 1 and both.score("M0->M2").any()


def test_unknown_nodes_and_resolutions_are_refused():
    decoder, (clean, corrupted) = small_decoder("preset"), prompts()
    runs = {"clean": clean, "corrupted": corrupted, "metric": logit_diff()}
    with pytest.raises(UnknownName, match=r"L0\.H1"):
        patch_edges(decoder, **runs, senders=["L0.H7"])
    with pytest.raises(UnknownName, match="M0->L0"):
        patch_edges(decoder, **runs, edges=["M0->L0.H0.q"])
    with pytest.raises(UsageError, match="resolve"):
        patch_edges(decoder, **runs, resolve="head")
