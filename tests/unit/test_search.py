"""Every search method ranks live edges only; exact ranks by exact effects; pruning keeps what it promises."""

import pytest
import torch

from circuits.find import Settings, find_circuit
from circuits.patch_edges import patch_edges
from circuits.pruning import Keeping, joined, order_of, removed, smallest, top
from circuits.search.acdc import divergence, pruned
from circuits.search.base import Search, larger
from circuits.search.masks import open_probability
from interp.errors import UsageError
from interp.registry import load, names
from tests.unit.own_answers import own_problem


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("name", names("search"))
def test_every_method_ranks_live_edges_only(name, by_position):
    method, problem = load("search", name), own_problem(by_position=by_position)
    search = Search(problem, steps=5)
    assert method.predicted_seconds(search) > 0
    if by_position and not method.by_position:
        with pytest.raises(UsageError, match="positions"):
            method.rank(search)
        return
    found = method.rank(search)
    assert found.scores.shape == problem.live.shape and bool(found.scores.isfinite().all())
    assert not found.scores[~problem.live].any()
    assert (found.scores[problem.live] != 0).float().mean() > 0.5 and found.method and found.kind


@pytest.mark.parametrize(("name", "ablation", "seed"), [("preset", "mean", 0), ("rms swiglu rotary", "zero", 0)])
def test_what_is_returned_keeps_the_target_under_every_ablation(name, ablation, seed):
    """A sender with ablated inputs still writes something of its own there, so edges off any path can act."""
    problem = own_problem(name, ablation=ablation, n=48, seed=seed)
    found = find_circuit(problem, Settings(method="exact"), look_for_interactions=False)
    parts = [problem.parts[one] for one in ("score", "choose")]
    assert found.kept.any() and float(Keeping(parts).of(found.kept[None])[0]) >= 0.95
