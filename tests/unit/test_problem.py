"""One problem has one metric, and its search sees no held-out prompt."""

from dataclasses import replace

import pytest
import torch

from circuits.discovery import discover
from circuits.find import Settings
from circuits.live import live_edges
from circuits.metrics import AnswerDiff, LogProb
from circuits.problem import Problem
from circuits.subject import Subject
from interp.errors import UsageError
from tests.unit.own_answers import own_problem


@pytest.mark.parametrize("part", ["score", "choose", "evaluate"])
def test_wrong_answers_for_some_prompts_only_are_refused(part):
    """Also where all prompts of one part agree: two parts would be measured by two metrics."""
    problem = own_problem()
    without = torch.tensor([name == part for name in problem.pairs.part])
    wrong = torch.where(without[:, None, None], -1, problem.pairs.wrong)
    mixed = Problem(problem.decoder, replace(problem.pairs, wrong=wrong))
    for one in mixed.parts.values():
        with pytest.raises(UsageError, match="some prompts have wrong answers and others none"):
            _ = one.runs
    subject = Subject(mixed.decoder, mixed.pairs, "mixed", None, "", "its own answers")
    with pytest.raises(UsageError, match="give all of them some, or none"):
        discover(subject, mixed, Settings(controls=2, reruns=0))


def test_the_metric_follows_from_the_answers():
    problem = own_problem()
    assert isinstance(problem.parts["score"].metric, AnswerDiff)
    none = replace(problem.pairs, wrong=torch.full_like(problem.pairs.wrong, -1))
    part = Problem(problem.decoder, none).parts["score"]
    assert isinstance(part.metric, LogProb) and "log-probability" in part.metric_name
    two = torch.stack((none.answers[..., 0], (none.answers[..., 0] + 1) % 7), -1)
    with pytest.raises(UsageError, match="several right answers need wrong ones"):
        _ = Problem(problem.decoder, replace(none, answers=two)).parts["score"].metric


@pytest.mark.parametrize("moving", ["score", "choose", "evaluate"])
def test_live_edges_are_those_of_prompts_that_the_search_sees(moving):
    problem = own_problem()
    pairs = problem.pairs
    still = torch.tensor([part != moving for part in pairs.part])[:, None]
    quiet = Problem(problem.decoder, replace(pairs, corrupted=torch.where(still, pairs.clean, pairs.corrupted)))
    live = {name: bool(live_edges(part.runs, False).any()) for name, part in quiet.parts.items()}
    assert live == {name: name == moving for name in live}
    assert bool(quiet.live.any()) == (moving != "evaluate")
