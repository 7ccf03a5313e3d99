"""Scores of rankings on numbers worked out by hand; edges into heads, shared keys and positions by head."""

import numpy as np
import pytest
import torch

from circuits.edge_scoring import auprc, auroc, edge_score, named, nodes, owners, precision_at, promoted
from circuits.graph import ModelShape, graph_of
from interp.errors import UnknownName, UsageError

GRAPH = graph_of(
    ModelShape(d_model=4, d_vocab=3, heads=[1, 2], kv_heads=[1, 1], mlp=[True, False], parallel=[False] * 2)
)


def arrays(scores, truth):
    return np.array(scores, float), np.array(truth, bool)


@pytest.mark.parametrize(
    "scores, truth, expected",
    [
        ([3, 2, 1, 0], [1, 1, 0, 0], (1.0, 1.0, 1.0)),
        ([0, 1, 2, 3], [1, 1, 0, 0], (0.0, (1 / 3 + 2 / 4) / 2, 0.0)),
        ([3, 1, 2, 0], [1, 1, 0, 0], (0.75, (1 + 2 / 3) / 2, 0.5)),
        ([1, 1, 1, 1], [1, 0, 0, 0], (0.5, 0.25, 0.25)),
        ([2, 1, 1, 0], [1, 1, 0, 0], (0.875, (1 + 2 / 3) / 2, 0.75)),
    ],
)
def test_scores_by_hand_with_ties_counted_half(scores, truth, expected):
    given = arrays(scores, truth)
    found = (auroc(*given), auprc(*given), precision_at(*given, int(given[1].sum())))
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("truth", [[1, 1], [0, 0]])
def test_edges_of_one_kind_cannot_be_scored(truth):
    with pytest.raises(UsageError, match="both true and other edges"):
        auroc(*arrays([1, 2], truth))


def test_queries_keys_and_values_belong_to_their_heads():
    assert nodes(GRAPH) == ("L0.H0", "M0", "L1.H0", "L1.H1", "logits")
    by_name = dict(zip(GRAPH.receivers, owners(GRAPH), strict=True))
    assert by_name["L0.H0.k"] == [0] and by_name["M0"] == [1] and by_name["logits"] == [4]
    assert by_name["L1.H1.q"] == [3] and by_name["L1.KV0.v"] == [2, 3]


def test_a_head_has_the_largest_of_its_slots_and_positions():
    scores = torch.zeros(len(GRAPH.senders), len(GRAPH.receivers), 2, 2)
    receiver = GRAPH.receivers.index
    scores[0, receiver("L1.H0.q"), 1, 1] = 0.5
    scores[0, receiver("L1.KV0.v"), 0, 1] = -2.0
    found = promoted(GRAPH, scores)
    assert found[0].tolist() == [0.0, 0.0, -2.0, -2.0, 0.0]
    scores[0, receiver("L1.H1.q"), 1, 1] = 3.0
    assert promoted(GRAPH, scores)[0].tolist() == [0.0, 0.0, -2.0, 3.0, 0.0]
    assert promoted(GRAPH, scores != 0)[0].tolist() == [False, False, True, True, False]


def test_edges_are_named_between_nodes():
    found = named(GRAPH, ["embed->L1.H0", "M0->logits"])
    assert int(found.sum()) == 2 and bool(found[0, 2]) and bool(found[2, 4])
    with pytest.raises(UnknownName, match="edge"):
        named(GRAPH, ["M0->L0.H0"])


def test_only_scored_edges_count_and_magnitude_unless_signed():
    scores = torch.zeros(len(GRAPH.senders), len(GRAPH.receivers))
    logits = GRAPH.receivers.index("logits")
    scores[0, logits], scores[1, logits], scores[2, logits] = -5.0, 1.0, 9.0
    true = named(GRAPH, ["embed->logits"])
    scored = named(GRAPH, ["embed->logits", "L0.H0->logits"])
    assert edge_score(GRAPH, scores, true, scored).auroc == 1.0
    assert edge_score(GRAPH, scores, true, scored, signed=True).auroc == 0.0
    assert edge_score(GRAPH, scores, true, scored).n == 2
    assert edge_score(GRAPH, scores, true, scored | named(GRAPH, ["M0->logits"])).auroc == 0.5


def test_scores_that_are_no_numbers_are_refused():
    scores = torch.zeros(len(GRAPH.senders), len(GRAPH.receivers))
    scores[0, -1] = torch.nan
    with pytest.raises(UsageError, match="1 of 2 edges have no finite score"):
        edge_score(GRAPH, scores, named(GRAPH, ["M0->logits"]), named(GRAPH, ["embed->logits", "M0->logits"]))
