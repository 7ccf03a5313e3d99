"""Births and deaths take three consecutive passes; change is measured against two halves of the prompts."""

import pytest
import torch

from circuits.trajectory import tracked, trajectory
from tests.unit.small_circuits import circuit, discovery

A, B, C = "embed->M0", "M0->M1", "M1->logits"
STEPS = [0, 10, 20, 30, 40, 50, 60]


def holding(*edges: str):
    return circuit(edges=dict.fromkeys(edges, 1.0))


WITH = {"x": holding(A, B), ".": holding(B), "c": holding(A, B), "k": holding(B)}
VERDICTS = {"x": "circuit", ".": "circuit", "c": "candidate", "k": "candidate"}
VERDICTS |= {"n": "no behaviour to explain", "s": "no faithful circuit", "t": "too few prompts to tell", "f": None}


def life(pattern: str) -> tuple[int | None, int | None]:
    """(born, died) of an edge: x a circuit holds it, . lacks it; c and k are candidates; n, s, t: no circuit."""
    steps = STEPS[: len(pattern)]
    row = [WITH.get(here) for here in pattern]
    (edge,) = (one for one in tracked(steps, row, [VERDICTS[here] for here in pattern]) if one.edge == A)
    assert edge.present == [step for step, here in zip(steps, pattern, strict=True) if here == "x"]
    assert edge.candidate == [step for step, here in zip(steps, pattern, strict=True) if here == "c"]
    return edge.born, edge.died


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("xxx", (0, None)),
        (".xxx", (10, None)),
        ("xx.xx", (None, None)),  # never three in a row
        ("x.xxx..", (20, None)),  # two without it are no death
        ("xxx...", (0, 30)),
        (".xxx...", (10, 40)),
        ("xxx..x", (0, None)),
        ("ccc", (None, None)),  # candidates are no passes
        ("xxcx", (None, None)),
        ("ccxxx", (20, None)),
        ("xxxkkk", (0, None)),  # a candidate without the edge is no death
        ("xxx.k.", (0, None)),
        ("xxxccc", (0, None)),
        ("xxxnnn", (0, 30)),  # without behaviour nothing holds the edge
        ("xxx.n.", (0, 30)),
        ("xxxsss", (0, None)),  # a search that found nothing says nothing
        ("xxxttt", (0, None)),  # nor do too few prompts
        ("xxfx", (None, None)),  # a checkpoint that failed ends the row
        ("xxx..f.", (0, None)),
    ],
)
def test_an_edge_is_born_and_dies_with_three_passes_in_a_row(pattern, expected):
    assert life(pattern) == expected


def test_checkpoints_without_a_circuit_hold_no_edge():
    row = [None, holding(A), holding(A, C), holding(A)]
    edges = {one.edge: one for one in tracked(STEPS[:4], row, ["no behaviour to explain", *3 * ["circuit"]])}
    assert edges[A].born == 10 and edges[C].born is None and edges[C].present == [20]


def test_edges_come_in_order_of_birth_and_unborn_ones_last():
    row = [holding(B), holding(B, A), holding(B, A, C), holding(B, A)]
    assert [one.edge for one in tracked(STEPS[:4], row, 4 * ["circuit"])] == [B, A, C]


def found(edges: tuple[str, ...] | None, half: float | None = 0.5, verdict: str = "circuit"):
    """A discovery that holds some edges; None for no behaviour."""
    if edges is None:
        return discovery(None, "no behaviour to explain", "None.")
    return discovery(holding(*edges), verdict).model_copy(update={"split_half": half})


def test_a_change_counts_only_below_the_overlap_of_two_halves():
    story = trajectory(STEPS[:3], [found((A, B, C)), found((A, B)), found((A,))])
    assert [point.overlap for point in story.points] == [None, pytest.approx(2 / 3), pytest.approx(1 / 2)]
    assert [point.changed for point in story.points] == [None, False, False], "inside the band"
    noisy = trajectory(STEPS[:3], [found((A, B, C), 0.9), found((A, B), 0.6), found((A,), 0.9)])
    assert [point.changed for point in noisy.points] == [None, False, True], "the wider band of the two counts"
    assert "1 of 2" in noisy.note and "at most a third of them, 0.7 on average" in noisy.note
    assert story.bands() == [None, 0.5, 0.5] and noisy.bands() == [None, 0.6, 0.6], "what overlaps were compared with"


def test_the_band_of_a_step_does_not_depend_on_its_own_halves_alone():
    story = trajectory(STEPS[:3], [found((A, B, C), 0.5), found((A, B), 1.0), found((A,), 1.0)])
    assert [point.split_half for point in story.points] == [0.5, 1.0, 1.0] and story.bands() == [None, 0.5, 1.0]
    assert [point.changed for point in story.points] == [None, False, True]


def test_a_change_is_said_only_between_two_that_pass():
    story = trajectory(STEPS[:2], [found((A,), 0.9), found((B,), 0.9, "candidate")])
    assert story.points[1].overlap == 0.0 and story.points[1].changed is None
    assert "both have the verdict 'circuit'" in story.note


def test_births_and_the_verdicts_of_a_trajectory_go_by_one_rule():
    row = [found((A,), verdict="candidate"), found((A,)), found((A,)), found((A,)), found((A,), verdict="candidate")]
    story = trajectory(STEPS[:5], row)
    assert (story.emerged, [edge.born for edge in story.edges]) == (10, [10])
    assert (story.edges[0].present, story.edges[0].candidate) == ([10, 20, 30], [0, 40])


def test_a_checkpoint_that_failed_is_named_and_ends_every_row():
    row = [found((A,)), found((A,)), None, found((A,))]
    story = trajectory(STEPS[:4], row, {20: "no memory"})
    assert [point.step for point in story.points] == [0, 10, 30]
    assert story.emerged is None and story.edges[0].born is None and story.points[2].overlap is None
    assert [(one.step, one.reason) for one in story.failed] == [(20, "no memory")]


def test_edges_beyond_what_a_file_holds_are_counted(monkeypatch):
    monkeypatch.setattr("circuits.trajectory.MOST_STEPS", 12)
    story = trajectory(STEPS[:3], [found((A, B, C))] * 3)
    assert story.n_edges == 3 and [edge.edge for edge in story.edges] == [B]


def test_without_halves_nothing_is_said_about_change():
    story = trajectory(STEPS[:2], [found((A,), None), found((B,), None)])
    assert [point.changed for point in story.points] == [None, None] and "nothing is said" in story.note


def test_a_missing_circuit_breaks_the_comparison():
    story = trajectory(STEPS[:3], [found((A,)), found(None), found((A,))])
    assert [point.overlap for point in story.points] == [None, None, None]
    assert story.points[1].verdict == "no behaviour to explain" and story.points[1].n_kept == 0


@pytest.mark.parametrize(
    ("verdicts", "emerged"),
    [("nncccc", 20), ("ncncncc", None), ("ccc", 0), ("nccnccc", 40), ("nnn", None), ("cc", None)],
)
def test_a_circuit_emerges_with_three_passes_in_a_row(verdicts, emerged):
    row = [found((A,)) if one == "c" else found((A,), verdict="candidate") for one in verdicts]
    assert trajectory(STEPS[: len(row)], row).emerged == emerged


def test_a_trajectory_is_the_same_after_json():
    story = trajectory(STEPS[:3], [found((A, B)), found((A,)), found((A, C))])
    assert type(story).model_validate_json(story.model_dump_json()) == story
    assert torch.equal(found((A, B)).circuit.circuit().kept, holding(A, B).kept)
