"""Prompt pairs: what the type refuses, its parts by sequence, its columns and their names."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from interp.errors import UnknownName, UsageError
from interp.pairs.base import Pairs


def small(**changes) -> Pairs:
    """Three prompts of 4, 3 and 4 tokens, padded at the right: `A B C D`, read at the last token."""
    clean = torch.tensor([[1, 2, 3, 4], [1, 2, 4, 0], [5, 2, 3, 4]])
    corrupted = torch.tensor([[1, 6, 3, 4], [1, 6, 4, 0], [5, 6, 3, 4]])
    fields = {
        "clean": clean,
        "corrupted": corrupted,
        "mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]]).bool(),
        "position": torch.tensor([[3], [2], [3]]),
        "answers": torch.tensor([[[7, 8]], [[7, -1]], [[8, -1]]]),
        "wrong": torch.tensor([[[9]], [[9]], [[-1]]]),
        "unit": torch.tensor([0, 1, 0]),
        "d_vocab": 10,
        "spans": ({"A": (1, 2), "END": (3, 4)}, {"A": (1, 2), "END": (2, 3)}, {"A": (1, 2), "END": (3, 4)}),
        "group": ("x", "y", "x"),
        "part": ("", "", ""),
        "names": {2: " two", 4: " four"},
    }
    return Pairs(**{**fields, **changes})


def many(n_units: int, per_unit: int = 2, groups: int = 3, **changes) -> Pairs:
    """`n_units` sequences of `per_unit` prompts each, in groups of unequal size."""
    n = n_units * per_unit
    unit = torch.arange(n_units).repeat(per_unit)
    tokens = torch.stack([unit, torch.arange(n) // n_units], 1)
    fields = {
        "clean": tokens,
        "corrupted": tokens.flip(1),
        "mask": torch.ones(n, 2, dtype=torch.bool),
        "position": torch.ones(n, 1, dtype=torch.long),
        "answers": torch.zeros(n, 1, 1, dtype=torch.long),
        "wrong": torch.ones(n, 1, 1, dtype=torch.long),
        "unit": unit,
        "d_vocab": 1000,
        "spans": ({},) * n,
        "group": tuple(f"g{min(each % 7, groups - 1)}" for each in unit.tolist()),
        "part": ("",) * n,
    }
    return Pairs(**{**fields, **changes})


def test_places_count_from_the_first_real_token_on_either_side():
    right = small()
    left = small(clean=right.clean.flip(1), corrupted=right.corrupted.flip(1), mask=right.mask.flip(1), spans=({},) * 3)
    assert right.starts.tolist() == [0, 0, 0] and right.lengths.tolist() == [4, 3, 4]
    assert right.places.tolist() == [[3], [2], [3]]
    assert left.starts.tolist() == [0, 1, 0]
    assert left.places.tolist() == [[3], [1], [3]]


def test_tokens_are_shown_by_name_without_padding():
    pairs = small()
    assert pairs.tokens(1) == ["[1]", " two", " four"]
    assert pairs.tokens(1, "corrupted") == ["[1]", "[6]", " four"]


REFUSED = {
    "no prompts": ({"clean": torch.zeros(0, 4)}, r"clean of shape \[0, 4\]: expected \[batch, pos\]"),
    "corrupted shape": (
        {"corrupted": torch.zeros(3, 5)},
        r"corrupted of shape \[3, 5\]: expected that of clean, \[3, 4\]",
    ),
    "mask type": ({"mask": torch.ones(3, 4)}, "mask of torch.float32: expected booleans"),
    "position shape": ({"position": torch.ones(3)}, r"position of shape \[3\]: expected \[3, at least 1"),
    "answers shape": ({"answers": torch.ones(3, 2, 1).long()}, r"answers of shape \[3, 2, 1\]: expected \[3, 1\] and"),
    "wrong shape": ({"wrong": torch.ones(2, 1, 1).long()}, r"wrong of shape \[2, 1, 1\]: expected \[3, 1\] and a set"),
    "unit count": ({"unit": torch.zeros(2)}, "unit for 2 prompts: expected 3"),
    "hole in mask": (
        {"mask": torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]]).bool()},
        "prompt 0: the real tokens of mask are not consecutive",
    ),
    "token outside": ({"d_vocab": 9}, "prompt 0: wrong has token id 9, the vocabulary has 0 to 8"),
    "negative token": ({"clean": torch.full((3, 4), -1)}, "prompt 0: clean has token id -1"),
    "read in padding": (
        {"position": torch.tensor([[3], [3], [3]])},
        "prompt 1: read position 3 is outside the prompt, whose columns are 0 to 2",
    ),
    "read outside": ({"position": torch.tensor([[3], [2], [4]])}, "prompt 2: read position 4 is outside the prompt"),
    "no answer": ({"answers": torch.tensor([[[7]], [[-1]], [[8]]])}, "prompt 1: a read position has no answer"),
    "overlap": ({"wrong": torch.tensor([[[8]], [[9]], [[9]]])}, r"prompt 0: \[8\] is in both answers and wrong"),
    "span outside": (
        {"spans": ({}, {"A": (2, 4)}, {})},
        "prompt 1: span A covers columns 2 to 3, the prompt has 0 to 2",
    ),
    "span name": ({"spans": ({"A.1": (1, 2)}, {}, {})}, "prompt 0: span name 'A.1': expected letters"),
    "part name": ({"part": ("", "train", "")}, "prompt 1: part 'train': expected one of score, choose, evaluate"),
    "unit in two parts": (
        {"part": ("score", "", "choose")},
        r"prompt 2: its sequence \(unit 0\) is in part score and in choose; prompts that share",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_pairs_are_refused_by_name(name):
    changes, message = REFUSED[name]
    with pytest.raises(UsageError, match=message):
        small(**changes)


def test_a_subset_keeps_order_columns_and_labels():
    chosen = small().subset([2, 0])
    assert chosen.clean[:, 0].tolist() == [5, 1] and chosen.group == ("x", "x")
    assert small().subset(torch.tensor([False, True, False])).spans == ({"A": (1, 2), "END": (2, 3)},)
    assert small().of_group("y").lengths.tolist() == [3]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "no prompt is left of 3"),
        ([3], "prompts 3 to 3 asked for, there are 3"),
        (torch.tensor([True]), r"a mask of shape \[1\] for 3 prompts"),
    ],
)
def test_a_subset_that_cannot_be_is_refused(index, message):
    with pytest.raises(UsageError, match=message):
        small().subset(index)


def test_an_unknown_group_or_missing_part_is_said():
    with pytest.raises(UnknownName, match="unknown group 'z'"):
        small().of_group("z")
    with pytest.raises(UsageError, match=r"no prompt has part 'score' \(parts found: none\); `split` divides"):
        small().of_part("score")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_parts_share_no_sequence_and_have_their_shares(seed):
    pairs = many(80).split(seed)
    owners = {part: set(pairs.of_part(part).unit.tolist()) for part in ("score", "choose", "evaluate")}
    assert sum(map(len, owners.values())) == len(set.union(*owners.values())) == 80
    assert {part: len(units) for part, units in owners.items()} == {"score": 40, "choose": 20, "evaluate": 20}


def test_prompts_that_another_part_has_too_are_counted():
    clean, corrupted = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 0]]), torch.tensor([[2, 2], [4, 4], [0, 1], [3, 0]])
    mask = torch.tensor([[True, True]] * 3 + [[True, False]])
    some = many(2, groups=1, clean=clean, corrupted=corrupted, mask=mask, position=torch.zeros(4, 1, dtype=torch.long))
    some = replace(some, unit=torch.arange(4), part=("score", "score", "evaluate", "evaluate"))
    assert some.seen_by("evaluate", ("score",)) == 1, "the corrupted prompt of row 2 is the clean one of row 0"
    assert some.seen_by("score", ("evaluate",)) == 1 and some.seen_by("evaluate", ("choose",)) == 0


def test_parts_are_stratified_by_group():
    groups = tuple(f"template {unit // 4}" for unit in range(80)) * 2  # 20 groups of 4 sequences
    pairs = many(80, group=groups).split(3)
    for part, units in {"score": 2, "choose": 1, "evaluate": 1}.items():
        assert Counter(pairs.of_part(part).group) == dict.fromkeys(set(groups), 2 * units)


def test_parts_are_a_pure_function_of_the_seed():
    assert many(30).split(5).part == many(30).split(5).part
    assert many(30).split(5).part != many(30).split(6).part


def test_given_parts_are_kept_and_count():
    given = ("evaluate", *[""] * 7) * 2
    pairs = many(8, part=given, groups=1).split(0, {"score": 0.875, "evaluate": 0.125})
    assert [unit for unit, part in zip(pairs.unit.tolist(), pairs.part, strict=True) if part == "evaluate"] == [0, 0]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"score": 0.5, "choose": 0.6}, "expected numbers of at least 0 that sum to 1"),
        ({"score": 1.5, "choose": -0.5}, "expected numbers of at least 0 that sum to 1"),
        ({"train": 1.0}, "unknown part 'train'"),
    ],
)
def test_shares_that_make_no_sense_are_refused(shares, message):
    with pytest.raises(UsageError, match=message):
        many(8).split(0, shares)


def test_too_few_sequences_for_three_parts_is_said():
    with pytest.raises(
        UsageError, match=r"2 sequences cannot be divided into score, choose, evaluate: .* would have none"
    ):
        many(2, per_unit=5).split(0)


def test_columns_of_aligned_prompts_have_names_of_their_own():
    labels = small().subset([0, 2]).position_labels()
    assert labels.names == ("0", "A", "2:[3]", "END")  # the first tokens differ, the third is the same everywhere
    assert labels.one_to_one and labels.index.tolist() == [[0, 1, 2, 3]] * 2


def test_spans_align_prompts_of_unequal_length():
    labels = small().position_labels()
    assert labels.names == ("start..A", "A", "A..END", "END") and not labels.one_to_one
    assert labels.index.tolist() == [[0, 1, 2, 3], [0, 1, 3, -1], [0, 1, 2, 3]]
    assert labels.columns(1, "END") == [2] and labels.columns(1, "A..END") == []


def test_longer_spans_are_counted_and_tokens_after_the_last_have_a_name():
    spans = ({"A": (0, 2)}, {"A": (1, 2)}, {"A": (0, 3)})
    labels = small(spans=spans).position_labels()
    assert labels.names == ("start..A", "A", "A.1", "A.2", "A..end")
    assert labels.index.tolist() == [[1, 2, 4, 4], [0, 1, 4, -1], [1, 2, 3, 4]]


def test_alignment_with_padding_at_the_left_is_that_of_the_right():
    right = small()
    order = torch.tensor([[0, 1, 2, 3], [3, 0, 1, 2], [0, 1, 2, 3]])
    moved = {key: getattr(right, key).gather(1, order) for key in ("clean", "corrupted", "mask")}
    spans = (right.spans[0], {"A": (2, 3), "END": (3, 4)}, right.spans[2])
    left = small(**moved, position=torch.tensor([[3], [3], [3]]), spans=spans)
    assert left.position_labels().names == right.position_labels().names
    assert left.position_labels().index.tolist() == [[0, 1, 2, 3], [-1, 0, 1, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (
            ({}, {}, {}),
            "exact edges: prompts have 3 to 4 tokens and prompt 0 names no spans to align them by; give prompts",
        ),
        (
            ({"A": (0, 1), "B": (2, 3)}, {"B": (0, 1), "A": (2, 3)}, {"A": (0, 1), "B": (2, 3)}),
            "and prompt 1 has the spans B, A where prompt 0 has A, B; .*by keeping one group",
        ),
        (({"A": (0, 1)}, {}, {}), "and prompt 1 has the spans none where prompt 0 has A"),
        (({"A": (0, 2), "B": (1, 3)},) * 3, "prompt 0: spans A and B overlap at column 1"),
    ],
)
def test_position_results_of_prompts_that_cannot_be_aligned_are_refused(spans, message):
    with pytest.raises(UsageError, match=message):
        small(spans=spans).position_labels("exact edges")


def test_prompts_of_one_length_with_spans_elsewhere_are_not_aligned():
    pairs = small().subset([0, 2])
    moved = replace(pairs, spans=({"A": (1, 2)}, {"A": (2, 3)}))
    assert pairs.aligned() and not moved.aligned()
    with pytest.raises(UsageError, match="prompts have their spans at different positions"):
        replace(pairs, spans=({"A": (1, 2)}, {"B": (2, 3)})).position_labels()


def test_the_fingerprint_sees_every_field_a_result_depends_on():
    changes = [
        {"clean": torch.tensor([[1, 2, 3, 5], [1, 2, 4, 0], [5, 2, 3, 4]])},
        {"answers": torch.tensor([[[7, -1]], [[7, -1]], [[8, -1]]])},
        {"unit": torch.tensor([0, 1, 2])},
        {"group": ("x", "x", "x")},
        {"part": ("score", "choose", "score")},
        {"spans": ({}, {}, {})},
        {"d_vocab": 11},
    ]
    prints = [small().fingerprint(), *(small(**change).fingerprint() for change in changes)]
    assert len(set(prints)) == len(prints)
    assert small(names={}).fingerprint() == small().fingerprint()


def test_provenance_counts_prompts_sequences_and_groups():
    found = small().provenance()
    assert (found["prompts"], found["units"], found["groups"]) == (3, 2, {"x": 2, "y": 1})
    assert found["fingerprint"] == small().fingerprint() and found["kind"] == "tokens"
