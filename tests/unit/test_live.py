"""Edges that are not live change nothing when left out; live ones do; paths are followed both ways."""

import pytest
import torch

from circuits.live import connected, differing, live_edges
from circuits.masked import MaskedRuns
from tests.unit.small_decoders import FAMILIES, logit_diff, prompts, small_decoder

PLAIN = [name for name in FAMILIES if not any(layer.adds_to_normed for layer in small_decoder(name).layers)]


def masked(name: str, positions="last", **settings) -> MaskedRuns:
    clean, corrupted = prompts()
    given = {"corrupted": corrupted, "metric": logit_diff(positions=positions), "precision": "fp64"} | settings
    return MaskedRuns(small_decoder(name), clean=clean, **given)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("positions", ["last", 4])
def test_live_edges_are_those_whose_absence_changes_something(name, positions):
    runs = masked(name, positions)
    live = live_edges(runs, by_position=True)
    keyed = torch.tensor([receiver[-2:] in (".k", ".v") for receiver in runs.graph.receivers])
    places = torch.ones(6, 6, dtype=torch.bool).triu()
    asked = runs.graph.exists[:, :, None, None] & places & (keyed[:, None, None] | torch.eye(6, dtype=torch.bool))
    cases = asked.nonzero()
    some = cases[torch.randperm(len(cases), generator=torch.Generator().manual_seed(0))[:300]]
    left_out = torch.ones(len(some), *asked.shape, dtype=torch.float64)
    left_out[(torch.arange(len(some)), *some.T)] = 0
    moved = (runs.values(left_out) - runs.clean).abs().amax(1) > 1e-13
    assert bool((live <= asked).all())
    assert (moved <= live[tuple(some.T)]).all(), "an edge that is not live changed the metric"
    assert moved.sum() > 0.9 * live[tuple(some.T)].sum() > 0


def test_only_live_edges_kept_is_the_clean_run():
    for name in PLAIN[:3]:
        runs = masked(name)
        for by_position in (False, True):
            value = runs.values(live_edges(runs, by_position)[None].double())[0]
            assert (value - runs.clean).abs().max() < 1e-10


def test_nothing_differs_before_the_first_different_token():
    runs = masked(PLAIN[0])
    assert not differing(runs)[:, :2].any() and differing(runs)[:, 2].all()
    assert not live_edges(runs, by_position=True)[:, :, :2].any()


def test_edges_without_a_path_are_dropped_and_change_nothing():
    runs = masked(PLAIN[0])
    graph = runs.graph
    kept = torch.zeros_like(graph.exists)
    for edge in ("embed->L0.H0.v", "L0.H0->logits", "L0.H1->logits", "embed->L1.H0.q"):
        kept[graph.index(edge)] = True
    found = connected(runs.decoder, graph, kept, torch.tensor([False] * 5 + [True]))
    assert {graph.name(*edge) for edge in found.nonzero().tolist()} == {"embed->L0.H0.v", "L0.H0->logits"}
    values = runs.values(torch.stack((kept, found)).double())
    assert (values[0] - values[1]).abs().max() < 1e-12


def test_by_position_a_path_follows_its_positions():
    runs = masked(PLAIN[0])
    graph, read = runs.graph, torch.tensor([False] * 5 + [True])
    kept = torch.zeros(*graph.exists.shape, 6, 6, dtype=torch.bool)
    kept[(*graph.index("embed->L0.H0.v"), 3, 5)] = True  # read by query 5, which the logits read
    kept[(*graph.index("embed->L0.H0.v"), 3, 4)] = True  # read by query 4, whose output nobody reads
    kept[(*graph.index("L0.H0->logits"), 5, 5)] = True
    found = connected(runs.decoder, graph, kept, read)
    assert int(found.sum()) == 2 and not found[..., 4].any()
    values = runs.values(torch.stack((kept, found)).double())
    assert (values[0] - values[1]).abs().max() < 1e-12 and (values[0] - runs.ablated).abs().max() > 1e-6
