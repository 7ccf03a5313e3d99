"""A circuit's run equals its definition, single edges left out equal exact edge patching, gradients are those of it."""

import pytest
import torch

from circuits.engine.record import record
from circuits.masked import MaskedRuns
from circuits.masked_reference import run_circuit, written
from circuits.metrics import KL
from circuits.patch_edges import patch_edges
from interp.decoder import forward
from interp.errors import NotExpressible, UsageError
from tests.unit.small_decoders import FAMILIES, logit_diff, prompts, small_decoder

PLAIN = [name for name in FAMILIES if not any(layer.adds_to_normed for layer in small_decoder(name).layers)]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def masked(name: str, n_layers: int = 2, **settings) -> MaskedRuns:
    clean, corrupted = prompts()
    given = {"corrupted": corrupted, "metric": logit_diff(), "precision": "fp64"} | settings
    return MaskedRuns(small_decoder(name, n_layers), clean=clean, **given)


def extremes(runs: MaskedRuns) -> torch.Tensor:
    """The circuits of all edges and of none."""
    whole = torch.ones(runs.graph.exists.shape, dtype=torch.float64)
    return torch.stack((whole, 0 * whole))


def by_position(kept: torch.Tensor, n_pos: int) -> torch.Tensor:
    return kept[..., None, None].expand(*kept.shape, n_pos, n_pos)


@pytest.mark.parametrize("name", PLAIN)
def test_a_circuit_runs_as_defined(name):
    runs, stream = masked(name), torch.Generator().manual_seed(3)
    clean, corrupted = prompts()
    other = record(runs.decoder, corrupted)
    ablated = [written(runs.decoder, other, i) for i in range(len(clean))]
    shape = (*runs.graph.exists.shape, clean.shape[1], clean.shape[1])
    kept = torch.rand(shape, generator=stream, dtype=torch.float64)
    expected = run_circuit(runs.decoder, clean, ablated, kept)[:, -1]
    assert (runs.run(kept[None])[0] - expected).abs().max() < 1e-10
    whole = kept.round()  # nothing but 0 and 1 takes another way to the same numbers
    expected = run_circuit(runs.decoder, clean, ablated, whole)[:, -1]
    assert (runs.run(torch.stack((whole, 1 - whole)))[0] - expected).abs().max() < 1e-10
    pooled = torch.rand(2, *runs.graph.exists.shape, generator=stream, dtype=torch.float64).round()
    for found, one in zip(runs.run(pooled), pooled, strict=True):
        assert (
            found - run_circuit(runs.decoder, clean, ablated, by_position(one, clean.shape[1]))[:, -1]
        ).abs().max() < 1e-10


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("resolve", ["pooled", "query"])
def test_leaving_one_edge_out_equals_exact_edge_patching(name, resolve):
    runs, (clean, corrupted) = masked(name, 3), prompts()
    exact = patch_edges(
        runs.decoder,
        clean=clean,
        corrupted=corrupted,
        metric=logit_diff(),
        resolve=resolve,
        direction="noise",
        precision="fp64",
    )
    full = torch.ones(exact.effect.shape[1:], dtype=torch.float64)
    cases = runs.graph.exists.nonzero()
    if resolve == "query":
        stream = torch.Generator().manual_seed(0)
        places = torch.triu_indices(6, 6).T
        keyed = torch.tensor([name[-2:] in (".k", ".v") for name in runs.graph.receivers])
        cases = torch.cat([torch.cat((c.expand(len(places), 2), places), 1) for c in cases])
        cases = cases[keyed[cases[:, 1]] | (cases[:, 2] == cases[:, 3])]
        cases = cases[torch.randperm(len(cases), generator=stream)[:200]]
    left_out = full.repeat(len(cases), *([1] * full.dim()))
    left_out[(torch.arange(len(cases)), *cases.T)] = 0
    effect = runs.values(left_out) - runs.clean
    assert (effect.T - exact.effect[(slice(None), *cases.T)]).abs().max() < 1e-10
    assert effect.abs().max() > 1e-3


@pytest.mark.parametrize("name", PLAIN)
def test_all_edges_are_the_clean_run_and_none_the_corrupted_one(name):
    runs, (clean, corrupted) = masked(name), prompts()
    whole, nothing = runs.run(
        torch.stack((torch.ones(runs.graph.exists.shape), torch.zeros(runs.graph.exists.shape))).double()
    )
    assert (whole - forward(runs.decoder, clean)[:, -1]).abs().max() < 1e-10
    assert (nothing - forward(runs.decoder, corrupted)[:, -1]).abs().max() < 1e-10
    assert (runs.clean - runs.values(runs.graph.exists[None])[0]).abs().max() < 1e-10


@pytest.mark.parametrize("resolved", [False, True])
def test_gradients_of_a_mask_are_those_of_finite_differences(resolved):
    runs, stream = masked("full" if "full" in PLAIN else PLAIN[0]), torch.Generator().manual_seed(1)
    shape = (1, *runs.graph.exists.shape, *((6, 6) if resolved else ()))
    kept = torch.rand(shape, generator=stream, dtype=torch.float64).requires_grad_()
    direction = torch.randn(shape, generator=stream, dtype=torch.float64)
    value = runs.values(kept).sum()
    (gradient,) = torch.autograd.grad(value, kept)
    step = 1e-5
    with torch.no_grad():
        numeric = (runs.values(kept + step * direction).sum() - runs.values(kept - step * direction).sum()) / (2 * step)
    assert abs(float((gradient * direction).sum() - numeric)) < 1e-6 * max(1.0, abs(float(numeric)))


def test_ablations_by_zero_and_mean_have_their_own_empty_circuits():
    zero, mean = masked(PLAIN[0], corrupted=None, ablation="zero"), masked(PLAIN[0], corrupted=None, ablation="mean")
    n = len(zero.graph.senders)
    assert all(bool((x == 0).all()) for x in zero.ablations) and len(zero.ablations) == n
    assert all(bool((x == x[0, 0]).all()) for x in mean.ablations)
    assert (zero.ablated - mean.ablated).abs().max() > 1e-3


def test_prompts_of_unequal_length_give_what_they_give_alone():
    clean, corrupted = prompts()
    mask = torch.ones_like(clean, dtype=torch.bool)
    mask[1, 4:] = False
    runs = masked(PLAIN[0], mask=mask)
    kept = (torch.rand(3, *runs.graph.exists.shape, generator=torch.Generator().manual_seed(2)) < 0.6).double()
    metric = logit_diff()
    one = type(metric)(metric.correct[1:], metric.wrong[1:])
    alone = MaskedRuns(runs.decoder, clean=clean[1:, :4], corrupted=corrupted[1:, :4], metric=one, precision="fp64")
    assert (runs.values(kept)[:, 1:] - alone.values(kept)).abs().max() < 1e-10


def test_another_metric_is_read_from_the_same_run():
    runs = masked(PLAIN[0])
    kl = runs.values(extremes(runs), KL())
    assert kl[0].abs().max() < 1e-12 and kl[1].min() > 1e-4


def test_small_memory_gives_the_same_values():
    runs, tight = masked(PLAIN[0]), masked(PLAIN[0], max_bytes=1)
    kept = (torch.rand(5, *runs.graph.exists.shape, generator=torch.Generator().manual_seed(2)) < 0.6).double()
    assert tight.at_once(kept) == 1 and runs.at_once(kept) == 5
    assert (runs.values(kept) - tight.values(kept)).abs().max() < 1e-12


def test_a_stream_that_blocks_renormalise_is_refused():
    name = next(name for name in FAMILIES if name not in PLAIN)
    with pytest.raises(NotExpressible, match="renormalises"):
        masked(name)


def test_a_circuit_runs_on_the_clean_prompts():
    with pytest.raises(UsageError, match="direction"):
        masked(PLAIN[0], direction="denoise")
