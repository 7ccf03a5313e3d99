"""Random paths run from the embedding to the metric, through edges of the types asked for, as often as they should."""

from collections import Counter

import pytest
import torch

from circuits.graph import ModelShape, fed_by, graph_of
from circuits.random_paths import Paths, Uniform, Union
from interp.rng import generator

GROUPED = ModelShape(d_model=8, d_vocab=5, heads=[4, 4], kv_heads=[2, 2], mlp=[True, False], parallel=[False, False])


def test_choices_are_as_frequent_as_they_should_be():
    uniform, n = Uniform(generator(0, "choices")), 20_000
    even = Counter(uniform.below(5) for _ in range(n))
    assert set(even) == set(range(5))
    assert all(abs(count / n - 0.2) < 5 * (0.2 * 0.8 / n) ** 0.5 for count in even.values())
    odd = Counter(uniform.that_fits(range(100), lambda one: one in (7, 8)) for _ in range(n))  # mostly none is guessed
    assert set(odd) == {7, 8} and abs(odd[7] / n - 0.5) < 5 * (0.25 / n) ** 0.5
    assert uniform.that_fits(range(5), lambda one: False) is None and uniform.that_fits([], bool) is None


def test_types_come_as_often_as_they_are_lacking():
    uniform, n = Uniform(generator(0, "types")), 20_000
    union = Union([0, 0, 0, 0, 1, 1, 2, 2, 2], [4, 2, 0])
    union.add([0, 1, 2])  # one of type 0 and two of type 1 are left
    counts = Counter(union.wished(uniform) for _ in range(n))
    assert set(counts) == {0, 1} and abs(counts[0] / n - 1 / 3) < 5 * (2 / 9 / n) ** 0.5
    assert union.size == 3 and union.lacking == 3
    union.add([6])  # nobody wants it
    assert union.lacking == 3 and union.exceeded([7]) and union.exceeded([3, 0]) and not union.exceeded([3, 4, 5])


def test_receivers_feed_their_head_their_group_or_nothing():
    graph = graph_of(GROUPED)
    named = zip(graph.receivers, fed_by(graph), strict=True)
    feeds = {receiver: [graph.senders[sender] for sender in found] for receiver, found in named}
    assert feeds["L0.H2.q"] == ["L0.H2"]
    assert feeds["L1.KV1.v"] == ["L1.H2", "L1.H3"]
    assert feeds["M0"] == ["M0"] and feeds["logits"] == []


def reaches(graph, kept: set, sender: int, feeds: tuple) -> bool:
    """Whether kept edges lead from a sender to the logits, walked edge by edge."""
    out = [receiver for source, receiver in kept if source == sender]
    return any(not feeds[to] or any(reaches(graph, kept, next_, feeds) for next_ in feeds[to]) for to in out)


def reached(graph, kept: set, sender: int, feeds: tuple) -> bool:
    """Whether kept edges lead from the embedding to a sender."""
    arriving = [source for source, to in kept if sender in feeds[to]]
    return sender == 0 or any(reached(graph, kept, source, feeds) for source in arriving)


@pytest.mark.parametrize("size", [4, 11, 25])
def test_every_edge_of_a_union_is_on_a_path_in_a_model_with_shared_keys(size):
    graph = graph_of(GROUPED)
    feeds, edges = fed_by(graph), graph.exists.nonzero()
    paths = Paths(graph, graph.exists, [0] * len(edges), generator(size, "paths"))
    sizes = []
    for _ in range(20):
        numbers = paths.union([size], size)
        kept = {tuple(edge) for edge in edges[numbers].tolist()}
        sizes.append(len(kept))
        for source, to in kept:
            assert reached(graph, kept, source, feeds)
            assert not feeds[to] or any(reaches(graph, kept, sender, feeds) for sender in feeds[to])
    assert max(sizes) <= size and sum(sizes) / len(sizes) > size - 1.5


def test_types_that_are_wanted_are_what_comes():
    graph = graph_of(GROUPED)
    edges = graph.exists.nonzero()
    slots = [graph.receivers[to][-1] for _, to in edges.tolist()]
    types = ["qkv0s".find(slot) for slot in slots]  # queries, keys, values, MLP 0, logits
    paths = Paths(graph, graph.exists, types, generator(0, "types"))
    target = [3, 0, 3, 0, 4]
    for _ in range(10):
        got = Counter(types[edge] for edge in paths.union(target, 10))
        assert sum(min(got[kind], wanted) for kind, wanted in enumerate(target)) >= 9 and got[1] == got[3] == 0


def test_a_live_edge_without_a_path_is_never_taken():
    graph = graph_of(GROUPED)
    live = torch.zeros_like(graph.exists)
    for name in ("embed->L0.H0.q", "L0.H0->logits", "L1.H0->logits"):  # nothing feeds L1.H0
        live[graph.index(name)] = True
    paths = Paths(graph, live, [0] * 3, generator(0, "dead"))
    edges = live.nonzero()
    found = {graph.name(*edges[i].tolist()) for _ in range(10) for i in paths.union([3], 3)}
    assert found == {"embed->L0.H0.q", "L0.H0->logits"}
