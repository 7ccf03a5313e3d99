"""Shares of circuits that fall short are not measured further, and edges go in as large a number as can."""

import pytest
import torch

from circuits import pruning
from circuits.pruning import Keeping
from tests.unit.own_answers import own_problem


class Counted(Keeping):
    """Counts prompts that circuits are run on."""

    prompts = 0

    def _on(self, part, kept):
        self.prompts += len(kept) * len(part.pairs)
        return super()._on(part, kept)


@pytest.mark.parametrize("by_position", [False, True])
def test_shares_that_reach_the_target_are_those_on_all_parts_and_others_cost_less(by_position):
    problem = own_problem(by_position=by_position)
    parts = [problem.parts["score"], problem.parts["choose"]]
    some = problem.live.repeat(12, *[1] * problem.live.dim())
    for number, one in enumerate(some):
        edge = problem.live.nonzero()[5 * number]
        one[tuple(edge)] = False
    some[0] = False
    whole, short = Counted(parts), Counted(parts)
    expected = whole.of(some)
    target = float(expected.median())
    got = short.reaching(some, target)
    reach = expected >= target
    assert 0 < int(reach.sum()) < len(some)
    assert torch.equal(got[reach], expected[reach]) and bool((got[~reach] < target).all())
    assert short.prompts < whole.prompts and short.spent == whole.spent == len(some)


class Additive(Keeping):
    """Every edge is worth something of its own: what can go is known."""

    def of(self, kept):
        self.spent += len(kept)
        worth = torch.where(torch.arange(kept[0].numel()) % 3 == 0, 0.01, 0.0)
        return 1 - ((~kept).flatten(1) * worth).sum(1)

    def reaching(self, kept, target):
        return self.of(kept)


def test_all_that_is_worth_nothing_goes_and_of_the_rest_as_much_as_the_target_allows(monkeypatch):
    monkeypatch.setattr(pruning, "joined", lambda problem, kept: kept)  # worth here does not need a path
    live = own_problem().live
    scores = torch.rand(live.shape, generator=torch.Generator().manual_seed(0))
    worth = (torch.arange(live.numel()).view(live.shape) % 3 == 0) & live
    start = Additive([])
    target = float(start.of(live[None])[0]) - 0.02 - 1e-4
    found, complete = pruning.removed(own_problem(), live, scores, target, start, most=5000)
    assert complete
    assert int((worth & ~found).sum()) == 2
    assert not bool((found & ~worth).any())


@pytest.mark.parametrize(("most", "rounds"), [(60, [8, 26]), (300, [8, 32, 82]), (1, []), (0, [])])
def test_where_nothing_can_go_no_round_is_coarser_than_the_one_before(most, rounds, monkeypatch):
    tried: list[int] = []

    class Needed(Keeping):
        def reaching(self, kept, target):
            tried.append(len(kept))
            self.spent += len(kept)
            return torch.zeros(len(kept))

    monkeypatch.setattr(pruning, "joined", lambda problem, kept: kept)
    live = own_problem().live
    assert int(live.sum()) == 82
    kept, complete = pruning.removed(own_problem(), live, torch.rand(live.shape), 0.9, Needed([]), most)
    assert (tried, complete) == (rounds, rounds[-1:] == [82]) and torch.equal(kept, live)
