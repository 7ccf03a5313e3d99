"""The labelling script is independent of the detector, and labels planted models rightly."""

import ast
from pathlib import Path

import pytest

from circuits.detectors._iteration_scan import label
from tests.truth.pattern_surgery import Label, label_model
from tests.truth.planted import Shape, held_out, planted_task, textbook
from tests.truth.planted_negatives import ANY_HEADS, SEVERAL_HEADS, Case, blurred, silent_reading, split_reading

SCRIPT = Path(__file__).with_name("pattern_surgery.py")


def labelled(case: Case) -> Label:
    return label_model(case.model, case.task, case.sequences)


def test_the_script_imports_neither_detector_nor_probes():
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {module.split(".")[0] for module in modules} & {"circuits", "probes", "kernels", "tests"} == set()


@pytest.mark.parametrize(
    "task, shape",
    [("binary_copy", Shape(2, 1)), ("parity", Shape(3, 2, "layer")), ("polynomial", Shape(2, 8, "rms"))],
    ids=["binary_copy", "parity", "polynomial"],
)
def test_a_planted_circuit_is_textbook_with_its_heads(task, shape):
    planted = textbook(planted_task(task), shape, seed=7, level=0.1)
    found = label_model(planted.model, planted.task, held_out(planted.task))
    assert (found.label, found.clock, found.reading) == ("textbook", label(*planted.clock), label(*planted.reading))
    assert found.margin > 0.95


@pytest.mark.parametrize("seed", range(len(ANY_HEADS)))
@pytest.mark.parametrize("n_heads", [1, 2])
def test_a_model_that_solves_its_task_otherwise_is_labelled_other(seed, n_heads):
    assert labelled(ANY_HEADS[seed](n_heads, seed)).label == "other"


@pytest.mark.parametrize("maker", SEVERAL_HEADS)
def test_a_role_shared_by_two_heads_is_labelled_other(maker):
    assert labelled(maker(2, 0)).label == "other"


def test_a_split_reading_directs_the_answer_about_half_of_the_time():
    found = labelled(split_reading(2, 1))
    assert all(0.3 < shares["own"] < 0.65 for shares in found.readers.values())


@pytest.mark.parametrize("maker", [silent_reading, blurred])
def test_a_model_that_does_not_solve_its_task_is_unsolved(maker):
    assert labelled(maker(1, 0)).label == "unsolved"
