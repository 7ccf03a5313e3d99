"""Circuit discovery against trained models: their ground truth holds, and the pipeline finds it."""

import hashlib
import json
from functools import cache

import pytest
import torch

from circuits.edge_scoring import promoted
from tests.truth import train_circuit_models
from tests.truth.circuit_measuring import Known
from tests.truth.edge_truth import MATTERS, by_slot, by_subsets, leak
from tests.truth.train_circuit_models import accuracy, interchange_accuracy, train_family
from tests.truth.trained_circuits import FOLDER, index, tasks, trained

SIIT = [name for name in index() if name.startswith("siit")]
WIRED = [name for name in index() if name.startswith("wired")]
SOME = ("siit_either-s0", "siit_polynomial-s0", "wired_match-s1", "induction_two_layers-s0")


@cache
def known(name: str) -> Known:
    return trained(name)


def slow_unless_some(names) -> list:
    return [pytest.param(name, marks=() if name in SOME else pytest.mark.slow) for name in names]


def test_at_least_half_of_the_families_are_trained():
    from tests.truth.circuit_families import FAMILIES

    assert len(tasks()) >= len(FAMILIES) + 1  # the compiled algorithms are one more
    assert {row.family for row in index().values()} == set(tasks())


def test_weights_are_those_of_the_index_and_small():
    rows = index().values()
    assert sorted(path.stem for path in FOLDER.glob("*.safetensors")) == sorted(row.name for row in rows)
    assert all(hashlib.sha256((FOLDER / f"{r.name}.safetensors").read_bytes()).hexdigest() == r.sha256 for r in rows)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 3_000_000


@pytest.mark.parametrize("name", index())
def test_a_trained_model_does_its_task(name):
    from tests.truth.trained_circuits import weights

    row = index()[name]
    assert accuracy(weights(name), tasks()[row.family]) == pytest.approx(row.accuracy, abs=0.01)
    share, _ = known(name).behaviour()
    assert row.accuracy >= 0.97 and share >= 0.95


@pytest.mark.parametrize("name", SIIT)
def test_models_trained_by_interchange_follow_their_graph_and_nothing_else(name):
    row, task = index()[name], tasks()[index()[name].family]
    assert min(row.strict, *row.swaps.values()) >= 0.95
    assert row.leak < MATTERS  # what a true edge does at least
    part = known(name).problem.parts["evaluate"]
    assert leak(part, list(task.edges)) == pytest.approx(row.leak, abs=0.005)


@pytest.mark.parametrize("name", WIRED)
def test_edges_outside_the_mask_have_no_effect_at_all(name):
    case = known(name)
    runs = case.problem.parts["evaluate"].runs
    masked = torch.stack([by_slot(runs.graph, edge) for edge in index()[name].mask]).any(0)
    assert int(promoted(runs.graph, case.problem.live).sum()) > len(index()[name].mask), "no other edge is live"
    difference = (runs.values(masked[None])[0] - runs.clean).abs().max()
    assert difference <= 1e-5 * (runs.clean - runs.ablated).abs().mean()


@pytest.mark.parametrize("name", slow_unless_some(index()))
def test_the_truth_is_what_all_subsets_say(name):
    row, task = index()[name], tasks()[index()[name].family]
    edges = list(task.edges or row.mask or task.size.all_edges)
    found = by_subsets(known(name).problem.parts["evaluate"], edges)
    assert found.true == row.true and found.open == row.open


@pytest.mark.parametrize("name", slow_unless_some(index()))
def test_the_pipeline_ranks_what_matters_first(name):
    case = known(name)
    found = case.score("pipeline").auroc
    assert found >= 0.9
    assert found >= case.score("eap").auroc


def test_interchange_training_makes_a_model_follow_its_graph(monkeypatch):
    monkeypatch.setitem(train_circuit_models.PLANS, "siit", (300, 1, 1))
    task = tasks()["siit_either"]
    ((seed, _, model),) = train_family(task)
    strict, swaps = interchange_accuracy(model, task)
    assert seed == 0 and strict >= 0.95 and min(swaps.values()) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("family", ["wired_match", "induction_two_layers", "siit_parity"])
def test_training_anew_gives_models_that_do_the_task(family):
    task = tasks()[family]
    found = train_family(task)
    kept = [row for row in index().values() if row.family == family]
    assert len(found) >= len(kept) and all(accuracy(model, task) >= 0.97 for _, _, model in found)


def test_the_index_says_its_format():
    read = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))
    assert read["format"] == 1 and read["dtype"] == "float16"
