"""Effects of kept edges are exact, have intervals over sequences, keep to a budget, and survive the file."""

from dataclasses import replace

import pytest
import torch

from circuits.circuit import CircuitFile
from circuits.circuit_effects import EdgeEffect, EdgeEffects
from circuits.discovery import discover
from circuits.edge_effects import edge_effects, means
from circuits.find import Found, Settings
from circuits.problem import Problem
from circuits.pruning import joined, order_of, top
from circuits.subject import Subject
from interp.errors import StoreError
from interp.rng import generator
from tests.unit.own_answers import own_pairs, own_problem
from tests.unit.small_circuits import circuit
from tests.unit.small_decoders import small_decoder


def found_in(problem: Problem, share: float = 0.3) -> Found:
    """A random circuit with random scores."""
    scores = torch.rand(problem.live.shape, generator=generator(0, "found")) * problem.live
    order = order_of(scores, problem.live)
    return Found(joined(problem, top(order, int(share * len(order)), problem.live)), scores, {}, "")


@pytest.mark.parametrize(
    ("ablation", "by_position"), [("resample", False), ("mean", False), ("zero", False), ("resample", True)]
)
def test_an_effect_is_what_the_clean_run_loses_without_that_one_edge(ablation, by_position):
    problem = own_problem(n=32, ablation=ablation, by_position=by_position)
    found, runs = found_in(problem), problem.parts["evaluate"].runs
    effects, notes = edge_effects(problem, found, 60.0, 0)
    assert notes == [] and (effects.measured, effects.of) == (int(found.kept.sum()),) * 2
    assert (effects.n, effects.n_prompts, effects.level) == (8, 8, 0.95) and effects.counted == "all"
    whole = torch.ones_like(problem.live) if by_position else runs.graph.exists
    for one in effects.edges[:: max(1, len(effects.edges) // 12)]:
        without = whole.clone()
        without[(*runs.graph.index(one.edge), *(one.place or ()))] = False
        lost = runs.clean.double() - runs.values(without[None])[0].double()
        assert one.value == pytest.approx(float(lost.mean()), abs=2e-5)
        assert one.low <= one.value <= one.high
    sizes = [abs(one.value) for one in effects.edges]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 1e-3


def test_intervals_resample_sequences_and_not_prompts():
    values = torch.tensor([[0.0, 1.0], [0.0, 1.0], [2.0, 1.0], [2.0, 1.0]], dtype=torch.float64)
    mean, low, high = means(values, torch.tensor([5, 5, 9, 9]), generator(0, "draws"))
    assert mean == [1.0, 1.0]
    assert (low, high) == ([0.0, 1.0], [2.0, 1.0]), "of two sequences, both draws are the same with probability 1/4"
    once = means(values[:1].expand(40, -1), torch.arange(40), generator(0, "draws"))
    assert once == ([0.0, 1.0],) * 3


def test_what_is_predicted_to_take_too_long_leaves_the_largest_rank_scores(monkeypatch):
    asked = []

    def predicted(problem, parts, names):
        asked.append(len(names))
        return float(len(names))

    monkeypatch.setattr("circuits.edge_effects._predicted", predicted)
    problem = own_problem(n=32)
    found = found_in(problem)
    effects, (note,) = edge_effects(problem, found, 4.0, 0)
    graph = problem.parts["evaluate"].runs.graph
    largest = order_of(found.scores, found.kept)[: effects.measured].tolist()
    assert {one.edge for one in effects.edges} == {graph.name(*divmod(i, len(graph.receivers))) for i in largest}
    assert 2 <= effects.measured <= 4 < effects.of and asked[0] == effects.of
    assert effects.counted == f"{effects.measured} of {effects.of}"
    assert f"effects of {effects.measured} of {effects.of} kept edges" in note and "4 s allowed" in note
    assert edge_effects(problem, found, 0.5, 0)[0] is None


def test_prompts_in_pieces_give_the_same_effects():
    whole = own_problem(n=32)
    found = found_in(whole)
    size = whole.parts["evaluate"].runs.graph.exists.numel() * 4
    parted = replace(whole, max_bytes=3 * size)
    one, two = (edge_effects(problem, found, 60.0, 0)[0] for problem in (whole, parted))
    for first, second in zip(one.edges, two.edges, strict=True):
        assert (first.edge, first.value) == (second.edge, pytest.approx(second.value, abs=1e-5))
    mean = replace(own_problem(n=32, ablation="mean"), max_bytes=3 * size)
    none, (note,) = edge_effects(mean, found_in(mean), 60.0, 0)
    assert none is None and "cannot be divided" in note


def with_effects(edges: dict[str, float], measured: dict[str, float]):
    """A small circuit, some of whose edges have an effect."""
    rows = [EdgeEffect(edge=name, value=value, low=value - 1, high=value + 1) for name, value in measured.items()]
    effects = EdgeEffects(unit="logit_diff", n=32, n_prompts=32, measured=len(rows), of=len(edges), edges=rows)
    return circuit(edges=edges, effects=effects)


def test_a_file_with_effects_comes_back_and_one_from_before_them_is_read():
    one = with_effects({"embed->M0": 2.0, "M0->logits": 1.5}, {"embed->M0": 7.5})
    text = one.to_file().model_dump_json()
    back = CircuitFile.model_validate_json(text).circuit()
    assert back.effects == one.effects and back.to_file() == one.to_file()
    body = one.to_file().model_dump(mode="json")
    del body["effects"]
    assert CircuitFile.model_validate(body).circuit().effects is None


@pytest.mark.parametrize("edge", ["embed->M1", "M0->L1.H0.q"])
def test_an_effect_of_an_edge_that_is_not_kept_is_refused(edge):
    file = with_effects({"embed->M0": 2.0}, {edge: 7.5}).to_file()
    with pytest.raises(StoreError, match="is no kept edge"):
        file.circuit()


def test_the_table_of_edges_begins_with_the_largest_effects():
    edges = {"embed->M0": 1.2, "embed->M1": 1.9, "M0->logits": 1.5, "M1->logits": 1.4}
    frame = with_effects(edges, {"embed->M0": 3.0, "embed->M1": -7.5}).to_frame()
    assert frame.edge[:4].tolist() == ["embed->M1", "embed->M0", "M0->logits", "M1->logits"]
    assert frame.effect[:2].tolist() == [-7.5, 3.0] and frame.effect[2:].isna().all()
    assert (frame.low[0], frame.high[0]) == (-8.5, -6.5)


def test_a_discovery_holds_the_effects_of_its_edges():
    decoder = small_decoder("grouped").to(torch.float32)
    one = Subject(decoder, own_pairs(decoder, n=160, seed=2), "small", 7, "ab", "its own answers")
    quick = Settings(method="eap", reruns=0, controls=4, removals=20)
    found, kept = discover(one, one.problem("resample", False), quick)
    effects = found.circuit.effects
    assert effects == kept.effects and effects.measured == effects.of == found.n_kept
    assert "effects of edges" in found.timing
