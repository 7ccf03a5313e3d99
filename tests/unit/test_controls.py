"""Random controls are unions of paths of the same size and kinds, and say how much of the circuit they hold."""

from collections import Counter

import pytest
import torch

from circuits.controls import (
    FINEST,
    LEVELS,
    attention_top,
    control_sets,
    finest_level,
    random_paths,
    shifted,
    types_of,
    uniform,
)
from circuits.graph import graph_of
from circuits.judge import attention_mass
from circuits.pruning import joined, order_of, top
from interp.rng import generator
from tests.unit.own_answers import own_problem
from tests.unit.small_circuits import shape


def found_in(problem, share: float = 0.4) -> torch.Tensor:
    """The connected part of a random half of the live edges."""
    scores = torch.rand(problem.live.shape, generator=generator(0, "found"))
    order = order_of(scores, problem.live)
    return joined(problem, top(order, int(share * len(order)), problem.live))


def test_types_name_kind_slot_layers_and_offset():
    graph = graph_of(shape())
    named = (("embed->L0.H1.k", 1, 4), ("M0->L1.H0.q", 2, 2), ("L1.H1->logits", 5, 5))
    places = [(*graph.index(edge), key, query) for edge, key, query in named]
    assert types_of(graph, places, LEVELS[FINEST]) == [
        ("embed", -1, "k", 0, 3),
        ("mlp", 0, "q", 1, 0),
        ("head", 1, "l", 10**6, 0),
    ]
    assert types_of(graph, places, (5,)) == [(True,), (False,), (False,)]


def test_matching_is_as_fine_as_leaves_half_of_the_circuit_to_chance():
    graph = graph_of(shape())
    live = graph.exists.clone()
    found = torch.zeros_like(live)
    for name in ("embed->M0", "embed->M1"):  # all edges of their type: a draw would be the circuit
        found[graph.index(name)] = True
    assert finest_level(graph, live, found) == "number and offset alone"
    heads = torch.zeros_like(live)
    heads[graph.index("embed->L0.H0.q")] = True  # one of two edges of its type: one half
    assert finest_level(graph, live, heads) == FINEST


@pytest.mark.parametrize("by_position", [False, True])
def test_random_paths_are_connected_and_of_the_same_size_and_types(by_position):
    problem = own_problem(by_position=by_position)
    runs, live, found = problem.parts["evaluate"].runs, problem.live, found_in(problem)
    control = random_paths(runs, live, found, 8, generator(0, "paths"))
    level = LEVELS[finest_level(runs.graph, live, found)]
    every = [[tuple(p) for p in kept.nonzero().tolist()] for kept in (found, *control.circuits)]
    kinds = [Counter(types_of(runs.graph, places, level)) for places in every]
    size, shared = int(found.sum()), []
    for kept, kind in zip(control.circuits, kinds[1:], strict=True):
        assert bool((kept <= live).all()) and torch.equal(joined(problem, kept), kept)
        assert 0.75 * size <= int(kept.sum()) <= size
        assert sum((kind & kinds[0]).values()) >= 0.7 * size
        shared.append(int((kept & found).sum()) / size)
    assert control.shared == pytest.approx(sum(shared) / 8)
    assert control.headline and not all(torch.equal(kept, control.circuits[0]) for kept in control.circuits)
    again = random_paths(runs, live, found, 8, generator(0, "paths"))
    assert all(torch.equal(one, two) for one, two in zip(control.circuits, again.circuits, strict=True))


def test_the_circuit_moved_by_one_position_loses_what_falls_off():
    live = torch.ones(1, 1, 4, 4, dtype=torch.bool).triu()
    found = torch.zeros_like(live)
    found[0, 0, 0, 1] = found[0, 0, 2, 3] = True
    later, gone = shifted(live, found)
    earlier, lost = shifted(live, found, -1)
    assert later.nonzero().tolist() == [[0, 0, 1, 2]] and gone == 1
    assert earlier.nonzero().tolist() == [[0, 0, 1, 2]] and lost == 1


def test_attention_controls_take_heads_that_attend_most():
    problem = own_problem()
    runs, live = problem.parts["evaluate"].runs, problem.live
    mass = torch.zeros_like(attention_mass(problem.parts["evaluate"]))
    mass[1, 2] = 1.0
    kept = attention_top(runs, live, 4, mass)
    names = [(runs.graph.senders[s], runs.graph.receivers[r]) for s, r in kept.nonzero().tolist()]
    assert int(kept.sum()) == 4 and all(s == "L1.H2" or r.startswith(("L1.H2", "L1.KV1")) for s, r in names)


def test_attention_mass_is_a_mean_of_distributions():
    part = own_problem().parts["evaluate"]
    mass = attention_mass(part)
    assert mass.shape == (2, 4, 5, 5)
    assert torch.allclose(mass.sum(-1), torch.ones(2, 4, 5), atol=1e-5) and not mass.triu(1).any()


def test_uniform_edges_are_live_and_as_many():
    live = graph_of(shape()).exists
    for kept in uniform(live, 5, 3, generator(0, "uniform")):
        assert int(kept.sum()) == 5 and bool((kept <= live).all())


def test_all_controls_of_a_circuit_and_only_one_carries_the_claim():
    problem = own_problem(by_position=True)
    part, found = problem.parts["evaluate"], found_in(problem)
    sets = control_sets(part.runs, problem.live, found, 3, generator(0, "all"), attention_mass(part), 2)
    names = [one.name for one in sets]
    assert {"random paths", "shifted", "attention", "complement", "uniform"} <= set(names)
    assert [one.name for one in sets if one.headline] == ["random paths"]
    by_name = {one.name: one for one in sets}
    assert torch.equal(by_name["complement"].circuits[0], problem.live & ~found)
    assert len(by_name["random paths"].circuits) == 3 and len(by_name["uniform"].circuits) == 2
    without = control_sets(part.runs, problem.live, found, 0, generator(0, "all"), attention_mass(part))
    assert not any(one.headline for one in without)
