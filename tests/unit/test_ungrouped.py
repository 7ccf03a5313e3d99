"""A decoder whose heads share keys and values, written with a copy for every head, computes the same."""

import pytest
import torch

from circuits.graph import edge_graph, fed_by
from circuits.ungrouped import ungrouped, ungrouped_mask, ungrouped_runs
from interp.decoder import forward
from tests.unit.own_answers import own_problem
from tests.unit.small_decoders import small_decoder


def test_receivers_are_read_by_their_head_their_group_or_their_mlp():
    graph = edge_graph(small_decoder("grouped", n_layers=1))
    read = {name: [graph.senders[i] for i in found] for name, found in zip(graph.receivers, fed_by(graph), strict=True)}
    assert read["L0.H3.q"] == ["L0.H3"] and read["M0"] == ["M0"] and read["logits"] == []
    assert read["L0.KV0.k"] == read["L0.KV0.v"] == ["L0.H0", "L0.H1"]
    assert read["L0.KV1.k"] == read["L0.KV1.v"] == ["L0.H2", "L0.H3"]


@pytest.mark.parametrize("name", ["grouped", "grouped parallel"])
def test_an_ungrouped_decoder_gives_the_same_logits(name):
    decoder = small_decoder(name)
    own = ungrouped(decoder)
    tokens = torch.randint(7, (3, 6), generator=torch.Generator().manual_seed(0))
    assert {layer.attn.group for layer in own.layers} == {1} != {layer.attn.group for layer in decoder.layers}
    assert (forward(own, tokens) - forward(decoder, tokens)).abs().max() < 1e-12
    plain = small_decoder("preset")
    assert all(one is two for one, two in zip(ungrouped(plain).layers, plain.layers, strict=True))


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_a_circuit_with_every_copy_of_its_edges_runs_the_same(ablation, by_position):
    problem = own_problem(by_position=by_position, ablation=ablation)
    runs = problem.parts["score"].runs
    own = ungrouped_runs(runs)
    stream = torch.Generator().manual_seed(1)
    kept = problem.live & (torch.rand(8, *problem.live.shape, generator=stream) < 0.7)
    copied = torch.stack([ungrouped_mask(one, runs.graph, own.graph) for one in kept])
    expected, found = runs.values(kept), own.values(copied)
    assert (expected - runs.clean).abs().amax(1).min() > 0.01, "a circuit that leaves nothing out shows nothing"
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_leaving_out_the_copies_of_one_group_is_leaving_out_its_edge():
    problem = own_problem()
    runs = problem.parts["score"].runs
    own = ungrouped_runs(runs)
    shared, copies = problem.live.clone(), ungrouped_mask(problem.live, runs.graph, own.graph)
    shared[runs.graph.index("M0->L1.KV1.v")] = False
    one = copies.clone()
    for head in (2, 3):
        copies[own.graph.index(f"M0->L1.H{head}.v")] = False
    one[own.graph.index("M0->L1.H2.v")] = False
    expected, found, half = (r.values(mask[None])[0] for r, mask in ((runs, shared), (own, copies), (own, one)))
    assert (found - expected).abs().max() < 1e-5
    assert (half - expected).abs().max() > 1e-3 and (half - runs.clean).abs().max() > 1e-3, "a copy is its own edge"
