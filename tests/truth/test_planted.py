"""A planted iteration circuit is found, with its heads, at every layer and head, in every basis and under noise."""

from collections import Counter

import pytest

from circuits.detectors._iteration_scan import label
from interp.evaluate import teacher_forced
from tests.truth.detecting import Nulls, detect
from tests.truth.planted import TASKS, Planted, Shape, held_out, planted_task, textbook

LEVELS = (0.0, 0.05, 0.1, 0.15)  # from 0.2 on some of the circuits no longer solve their task
SMALL = (Shape(2, 1), Shape(3, 2, "layer"), Shape(3, 1, "rms"), Shape(2, 8))
SHAPES = (*SMALL, Shape(4, 2), Shape(2, 2, "layer"), Shape(2, 8, "layer"), Shape(4, 1), Shape(2, 4, "rms"), Shape(3, 4))


def planted(shapes: tuple[Shape, ...], number: int) -> Planted:
    """Circuit `number`: shape, task and noise level each run through their lists."""
    task = list(TASKS)[number % len(shapes) % len(TASKS)]  # one task per shape, so that a null is reused
    level = LEVELS[(number // len(shapes) + number) % len(LEVELS)]
    return textbook(planted_task(task), shapes[number % len(shapes)], seed=number, level=level)


def verdict(case: Planted, nulls: Nulls) -> tuple[str, str, str]:
    """Verdict and heads that the detector names."""
    sequences = held_out(case.task)
    solved = min(
        teacher_forced(case.model, case.task, tokens, length).sequence.float().mean().item()
        for length, tokens in sequences.items()
    )
    assert solved >= 0.99, f"the planted circuit itself works at noise {case.level}, {case.shape}: {solved}"
    found = detect(case.model, case.task, sequences, nulls)
    return found.verdict, found.heads.get("clock", ""), found.heads.get("reading", "")


def missed(shapes: tuple[Shape, ...], count: int, nulls: Nulls) -> list[str]:
    """What the detector said about each circuit it did not name rightly."""
    wrong = []
    for number in range(count):
        case = planted(shapes, number)
        said = verdict(case, nulls)
        if said != ("iteration head", label(*case.clock), label(*case.reading)):
            wrong.append(f"{number}: {said}, planted {case.clock} and {case.reading}, {case.shape}, {case.level}")
    return wrong


def test_planted_circuits_are_found_with_their_heads(nulls):
    assert missed(SMALL, 12, nulls) == []


@pytest.mark.slow
def test_all_of_100_planted_circuits_are_found_with_their_heads(nulls):
    assert missed(SHAPES, 100, nulls) == []


def test_the_hundred_circuits_cover_layers_heads_tasks_and_noise():
    cases = [planted(SHAPES, number) for number in range(100)]
    assert {case.task.name for case in cases} == set(TASKS)
    assert {case.level for case in cases} == set(LEVELS)
    assert {case.shape.n_heads for case in cases} >= {1, 2, 8}
    assert {case.shape.norm for case in cases} == {"none", "layer", "rms"}
    places = Counter((case.clock[0], case.reading[0]) for case in cases if case.shape.n_layers == 4)
    assert set(places) == {(a, b) for b in range(4) for a in range(b)}
