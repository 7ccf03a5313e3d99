"""Prompt pairs of a task: held-out sequences, the oracle's answers, donors of other lengths, and what is refused."""

from collections import Counter

import pytest
import torch

from interp.config import DataConfig
from interp.errors import TaskError, UnknownName
from interp.pairs.base import PARTS
from interp.pairs.from_task import pairs_of_task
from interp.pairs.mixed import mixed_donor_lengths
from interp.rng import generator
from interp.tasks._load import build_task

VALUES = {"polynomial": 11, "parity": 2, "binary_copy": 2}
RULE = {
    "polynomial": lambda s, x, t: x if t == 0 else (s * x + 1) % 11,
    "parity": lambda s, x, t: x if t == 0 else (s + x) % 2,
}


def held_out(task, per_length: int = 64):
    return task.split(0, DataConfig(per_length=per_length)).test


def made(name: str = "polynomial", length: int = 8, n: int = 24, params: dict | None = None, seed: int = 0, **options):
    task = build_task(name, params or {})
    return pairs_of_task(task, length, n, generator(seed, "from task"), held_out(task), **options)


def rows_of(tokens, width: int) -> set[tuple[int, ...]]:
    """The sequences, cut to a width."""
    return {tuple(row[:width]) for row in tokens.tolist()}


@pytest.mark.parametrize("name", RULE)
def test_answers_of_mixed_pairs_are_the_next_states_by_hand(name):
    pairs = made(name)
    for row, tokens in enumerate(pairs.clean.tolist()):
        values = [token - 3 for token in tokens]  # three specials come first
        state = None
        for t in range(8):
            state = RULE[name](state, values[1 + t], t)
            assert pairs.answers[row, t].tolist() == [state + 3]
            others = sorted({*range(VALUES[name])} - {state})
            assert [token - 3 for token in pairs.wrong[row, t].tolist()] == others
    assert pairs.position.tolist() == [list(range(9, 17))] * 24


def test_mixed_pairs_are_held_out_on_both_sides():
    task = build_task("polynomial", {})
    sequences = held_out(task)
    pairs = pairs_of_task(task, 8, 24, generator(0, "x"), sequences)
    donors = set.union(*(rows_of(sequences[length], 17) for length in (7, 8, 9, 10)))
    assert rows_of(pairs.clean, 17) <= rows_of(sequences[8], 17)
    assert rows_of(pairs.corrupted, 17) <= donors
    assert not (pairs.clean == pairs.corrupted).all(1).any()


def test_every_second_mixed_donor_has_another_length():
    pairs = made(n=40)
    task = build_task("polynomial", {})
    eoi = task.vocabulary.id("EoI")
    columns = (pairs.corrupted == eoi).int().argmax(1)
    for part in PARTS:
        here = columns[torch.tensor([each == part for each in pairs.part])]
        assert bool((here[0::2] == 9).all()) and not bool((here[1::2] == 9).any())
    assert Counter(pairs.group) == Counter(f"donor length {int(column) - 1}" for column in columns)
    assert set(pairs.group) == {"donor length 7", "donor length 8", "donor length 9", "donor length 10"}


def test_each_sequence_is_used_once_before_any_comes_again():
    pairs = made(n=32)
    assert pairs.n_units == 32 and len(rows_of(pairs.clean, 17)) == 32
    more = made(n=40)
    assert more.n_units == 32 and max(Counter(more.unit.tolist()).values()) == 2
    assert len(rows_of(more.clean, 17)) == 32
    more.split(0)  # units are consistent


@pytest.mark.parametrize("family", ["mixed", "input", "state", "clock"])
def test_prompts_of_one_sequence_are_one_unit_and_never_their_own_donor(family):
    task = build_task("polynomial", {})
    few = {length: tokens[:3] for length, tokens in held_out(task).items()}
    pairs = pairs_of_task(task, 8, 60, generator(0, "x"), few, family=family)
    owners = {
        unit: {tuple(row) for row in pairs.clean[pairs.unit == unit].tolist()} for unit in set(pairs.unit.tolist())
    }
    assert len(owners) == 3 and all(len(rows) == 1 for rows in owners.values())
    assert len(set.union(*owners.values())) == 3
    assert not (pairs.clean == pairs.corrupted).all(1).any()


@pytest.mark.parametrize("family", ["mixed", "input", "state", "clock"])
@pytest.mark.parametrize(
    ("name", "length", "per_length"), [("polynomial", 8, 64), ("polynomial", 2, 64), ("parity", 6, 32)]
)
def test_no_sequence_is_in_two_parts_clean_or_corrupted(name, length, per_length, family):
    task = build_task(name, {})
    pairs = pairs_of_task(task, length, 96, generator(0, "x"), held_out(task, per_length), family=family).split(5)
    seen = {
        part: {
            tuple(row)
            for tokens in (pairs.clean, pairs.corrupted)
            for row, each in zip(tokens.tolist(), pairs.part, strict=True)
            if each == part
        }
        for part in PARTS
    }
    assert all(seen.values()) and set(pairs.part) == set(PARTS)
    for one, other in (("score", "choose"), ("score", "evaluate"), ("choose", "evaluate")):
        assert not seen[one] & seen[other], (one, other)


@pytest.mark.parametrize("seed", range(4))
def test_beginnings_of_much_longer_donors_are_in_one_part_too(seed):
    task = build_task("parity", {})
    longer = held_out(task, 200)
    pairs = pairs_of_task(task, 3, 128, generator(seed, "x"), longer, donor_lengths=(16,)).split(seed)
    assert "donor length 16" in pairs.group
    assert pairs.seen_by("evaluate", ("score", "choose")) == 0 == pairs.seen_by("score", ("choose",))


@pytest.mark.parametrize("family", ["mixed", "input"])
def test_parts_have_their_shares_of_prompts_and_each_part_its_own_sequences(family):
    pairs = made(n=64, family=family)
    counts = Counter(pairs.part)
    assert (counts["score"], counts["choose"], counts["evaluate"]) == (32, 16, 16)
    whole = made(n=64, family=family, shares={"score": 1.0})
    assert set(whole.part) == {"score"}
    few = made(n=4, family=family)
    assert set(few.part) == set(PARTS), "of a few prompts too"


def test_a_part_with_a_single_sequence_takes_donors_of_other_lengths():
    task = build_task("polynomial", {})
    few = {length: tokens[:3] for length, tokens in held_out(task).items()}
    pairs = pairs_of_task(task, 8, 12, generator(0, "x"), few)
    assert "donor length 8" not in pairs.group and sorted(Counter(pairs.part).values()) == [4, 4, 4]


def test_input_pairs_whose_donors_are_all_taken_are_refused():
    task = build_task("parity", {})
    every = {3: task.encode(torch.cartesian_prod(*3 * [torch.tensor([3, 4])]))}
    with pytest.raises(TaskError, match=r"no input pair of length 3 for part '.*' whose donor is in no other part"):
        pairs_of_task(task, 3, 12, generator(0, "x"), every, family="input", step=0)


def test_columns_are_named_by_the_layout():
    labels = made().position_labels()
    states = [f"s{t}" for t in range(1, 8)]
    assert labels.one_to_one and labels.names == ("BoS", *[f"x{t}" for t in range(1, 9)], "EoI", *states)


@pytest.mark.parametrize("family", ["input", "state", "clock"])
def test_step_families_are_spread_over_steps_and_read_once(family):
    pairs = made(family=family, n=21)
    steps = {group: int(group.removeprefix("step ")) for group in pairs.groups}
    assert set(steps.values()) == set(range(1 if family == "state" else 0, 8))
    assert max(Counter(pairs.group).values()) - min(Counter(pairs.group).values()) <= 1
    assert pairs.position[:, 0].tolist() == [9 + steps[group] for group in pairs.group]
    for row, column in enumerate(pairs.position[:, 0].tolist()):
        values, t = (pairs.clean[row] - 3).tolist(), column - 9
        expected = RULE["polynomial"](values[column], values[1 + t], t)
        assert pairs.answers[row, 0].tolist() == [expected + 3] and pairs.wrong.shape[2] == 10


def test_swap_answers_are_those_of_the_donor_where_only_the_input_differs():
    pairs = made(family="input", wrong="swap", step=3, n=16)
    assert pairs.groups == ("step 3",) and pairs.wrong.shape == (16, 1, 1)
    for row in range(16):
        values, donor = (pairs.clean[row] - 3).tolist(), (pairs.corrupted[row] - 3).tolist()
        assert pairs.wrong[row, 0, 0] - 3 == (values[12] * donor[4] + 1) % 11
        different = (pairs.clean[row] != pairs.corrupted[row]).nonzero().flatten().tolist()
        assert different[0] == 4 and all(column == 4 or column > 12 for column in different)


def test_clock_donors_that_end_early_are_filled_after_what_is_read():
    task = build_task("polynomial", {})
    pairs = made(family="clock", n=64)
    end = task.vocabulary.id("EoS")
    for row in range(64):
        filled = (pairs.corrupted[row] == end).nonzero().flatten().tolist()
        assert all(column > int(pairs.position[row, 0]) for column in filled)


def test_pairs_of_a_task_are_a_pure_function_of_the_generator():
    for family in ("mixed", "input", "state", "clock"):
        assert made(family=family).fingerprint() == made(family=family).fingerprint()
        assert made(family=family).fingerprint() != made(family=family, seed=1).fingerprint()


def test_mixed_pairs_without_chain_of_thought_read_the_last_state():
    pairs = made(params={"chain_of_thought": False})
    assert pairs.n_read == 1 and pairs.clean.shape[1] == 10
    values = (pairs.clean[:, 1:9] - 3).tolist()
    for row, inputs in enumerate(values):
        state = None
        for t, value in enumerate(inputs):
            state = RULE["polynomial"](state, value, t)
        assert pairs.answers[row, 0, 0] == state + 3


def test_the_longest_length_takes_the_donors_that_there_are():
    task = build_task("polynomial", {})
    assert mixed_donor_lengths(task, 16, held_out(task)) == (15,)
    assert set(made(length=16).group) == {"donor length 15", "donor length 16"}
    assert mixed_donor_lengths(task, 8, held_out(task))[:3] == (7, 9, 10)
    assert set(made(donor_lengths=(12,)).group) == {"donor length 8", "donor length 12"}


REFUSED = {
    "family": ({"family": "noise"}, UnknownName, "unknown pair family 'noise'"),
    "number": ({"n": 0}, TaskError, "polynomial: n=0 pairs asked for; ask for at least 1"),
    "length": ({"length": 40}, TaskError, "polynomial: no length 40; lengths are 1 to 16"),
    "mixed step": ({"step": 2}, TaskError, "mixed pairs read every step against all values; leave step and wrong out"),
    "mixed swap": ({"wrong": "swap"}, TaskError, "mixed pairs read every step against all values"),
    "donors of others": (
        {"family": "input", "donor_lengths": (7,)},
        TaskError,
        "donor_lengths are for mixed pairs; input pairs take their own donors",
    ),
    "donors too short": (
        {"donor_lengths": (5,)},
        TaskError,
        r"no mixed pairs at length 8 with donors of lengths \(5,\); possible donor lengths: 7, 9, 10, 11,",
    ),
    "no other length": (
        {"length": 1, "params": {"max_length": 1}},
        TaskError,
        "no mixed pairs at length 1 with donors of lengths other than it; possible donor lengths: none; input pairs",
    ),
    "state of copy": (
        {"name": "binary_copy", "family": "state"},
        TaskError,
        "binary_copy: no state pair of length 8 changes the answer; use input pairs",
    ),
    "state of one step": ({"length": 1, "family": "state"}, TaskError, "no state pair at t=0; length 1 has no t"),
    "step outside": ({"family": "input", "step": 8}, TaskError, "no input pair at t=8; length 8 has t from 0 to 7"),
    "two sequences for three parts": (
        {"name": "parity", "length": 2},
        TaskError,
        "parity: length 2 has 2 held-out sequences, fewer than the 3 parts of the prompts; lower data.train_share",
    ),
    "two sequences": ({"name": "parity", "length": 1}, TaskError, "parity: length 1 has a single held-out sequence"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_pairs_that_do_not_exist_are_refused(name):
    options, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        made(**options)


def test_no_held_out_sequence_is_said():
    task = build_task("polynomial", {})
    with pytest.raises(TaskError, match=r"no held-out sequence of length 8; lower data\.train_share or take another"):
        pairs_of_task(task, 8, 4, generator(0, "x"), {8: torch.empty(0, 19, dtype=torch.long)})
