"""Intervention pairs: what differs, what stays, and the oracle's answers, against an independent implementation."""

import pytest
import torch

from interp.errors import TaskError, UnknownName
from interp.rng import generator
from interp.tasks._load import build_task

UPDATE = {
    "binary_copy": lambda s, x, t: x,
    "parity": lambda s, x, t: x if t == 0 else (s + x) % 2,
    "polynomial": lambda s, x, t: x if t == 0 else (s * x + 1) % 11,
}
VARIANTS = [{}, {"order": "reversed"}, {"input_shift": 1}]


def plain_index(changes, length, t):
    """Index of the consumed input, written out separately from the task."""
    if changes.get("order") == "reversed":
        return length - t - 1
    return (t + changes.get("input_shift", 0)) % length


def row_of(task, text):
    """One row of token ids from names."""
    return torch.tensor([[task.vocabulary.id(name) for name in text.split()]])


def named(task, tokens):
    """Names of the first row of a batch, or of its first answer."""
    return " ".join(task.vocabulary.names(tokens.flatten() if tokens.ndim == 1 else tokens[0]))


def pairs_of(task, family, length, t, n=64, **options):
    return task.pairs(family, length, t, n=n, generator=generator(0, family, length, t), **options)


def test_an_input_pair_by_hand():
    task = build_task("polynomial", {})
    clean = row_of(task, "BoS 3 2 5 EoI 3 7 3 EoS")
    batch = pairs_of(task, "input", 3, 1, n=30, clean=clean)
    others = {named(task, row[None]) for row in batch.donor}
    # x_2 = 4: s_2 = 3*4+1 = 13 = 2, s_3 = 2*5+1 = 11 = 0; x_2 = 2 is the clean value and never appears
    assert "BoS 3 4 5 EoI 3 2 0 EoS" in others
    assert named(task, clean) not in others
    assert (batch.query, batch.t_donor, batch.donor_length) == (5, 1, 3)
    assert set(task.vocabulary.names(batch.clean_answer)) == {"7"}
    assert torch.equal(batch.swap_answer, batch.donor[:, 6])


def test_a_state_pair_by_hand():
    task = build_task("polynomial", {})
    clean = row_of(task, "BoS 3 2 5 EoI 3 7 3 EoS")
    batch = pairs_of(task, "state", 3, 1, n=60, clean=clean)
    others = {named(task, row[None]) for row in batch.donor}
    # s_1 = 6 in place of 3: s_2 = 6*2+1 = 13 = 2, s_3 = 2*5+1 = 0
    assert "BoS 3 2 5 EoI 6 2 0 EoS" in others
    assert torch.equal(batch.donor[:, :5], batch.clean[:, :5])
    assert len(others) == 9  # s_1 is one of 1..10, other than 3
    assert batch.differs.all()


def test_a_clock_pair_by_hand():
    task = build_task("polynomial", {})
    clean = row_of(task, "BoS 3 2 5 4 EoI 3 7 3 2 EoS")  # 3*4+1 = 13 = 2
    batch = pairs_of(task, "clock", 4, 1, n=5, clean=clean, donor_length=3)
    # query 5+1 = 6 stands at s_1; in a sequence of length 3, EoI is at 4, so it is step 2
    assert (batch.query, batch.t, batch.t_donor) == (6, 1, 2)
    assert batch.donor.shape == (5, 9)
    assert set(task.vocabulary.names(batch.swap_answer)) == {"5"}  # s_1 x_3 + 1 = 3*5+1 = 16 = 5
    assert set(task.vocabulary.names(batch.clean_answer)) == {"7"}
    assert torch.equal(batch.donor_answer, batch.donor[:, 7])


def test_a_clock_pair_at_the_first_step_of_the_clean_sequence_uses_the_first_rule():
    task = build_task("polynomial", {})
    clean = row_of(task, "BoS 3 2 5 4 EoI 3 7 3 2 EoS")
    batch = pairs_of(task, "clock", 4, 0, n=2, clean=clean, donor_length=3)
    assert (batch.query, batch.t_donor) == (5, 1)
    assert set(task.vocabulary.names(batch.swap_answer)) == {"2"}  # x_2, with no state
    # and a donor at its own first step does not make the clean sequence forget its state
    first = pairs_of(task, "clock", 4, 1, n=2, clean=clean, donor_length=5)
    assert first.t_donor == 0
    assert set(task.vocabulary.names(first.swap_answer)) == {"10"}  # s_1 x_1 + 1 = 3*3+1


@pytest.mark.parametrize("name", list(UPDATE))
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_pair_agrees_with_an_independent_implementation(name, changes):
    task = build_task(name, {"max_length": 6, **changes})
    for length in (1, 2, 5):
        for t in range(length):
            for family in ("input", "state", "clock"):
                if (family == "state" and t == 0) or (family == "clock" and not task.clock_donors(length, t)):
                    continue
                check_batch(name, changes, pairs_of(task, family, length, t, n=24))


def check_batch(name, changes, batch):
    """Recompute every answer in plain Python from the tokens."""
    update, offset = UPDATE[name], 3
    length, t = batch.length, batch.t
    assert batch.query == length + 1 + t == batch.donor_length + 1 + batch.t_donor
    index = plain_index(changes, length, t)
    for row in range(len(batch.clean)):
        clean, donor = (batch.clean[row] - offset).tolist(), (batch.donor[row] - offset).tolist()
        expected = update(clean[batch.query], clean[1 + index], t)
        donor_index = plain_index(changes, batch.donor_length, batch.t_donor)
        donor_expected = update(donor[batch.query], donor[1 + donor_index], batch.t_donor)
        state, value = clean[batch.query], clean[1 + index]
        if batch.family == "input":
            value = donor[1 + index]
            assert value != clean[1 + index]
            assert clean[: 1 + index] + clean[2 + index : batch.query + 1] == (
                donor[: 1 + index] + donor[2 + index : batch.query + 1]
            )
        elif batch.family == "state":
            state = donor[batch.query]
            assert state != clean[batch.query]
            assert clean[: batch.query] == donor[: batch.query]
        else:
            value = clean[1 + plain_index(changes, length, batch.t_donor)]
        swap = update(state, value, t)
        assert batch.clean_answer[row] == expected + offset == batch.clean[row, batch.query + 1]
        assert batch.donor_answer[row] == donor_expected + offset == batch.donor[row, batch.query + 1]
        assert batch.swap_answer[row] == swap + offset
        assert batch.differs[row] == (swap != expected)


def test_later_states_of_an_input_donor_follow_the_rule():
    task = build_task("polynomial", {"max_length": 6})
    batch = pairs_of(task, "input", 6, 2)
    assert torch.equal(task.encode(batch.donor[:, 1:7]), batch.donor)


def test_donor_states_are_values_that_can_occur_at_that_step():
    task = build_task("polynomial", {})
    at_first, at_second = pairs_of(task, "state", 4, 1, n=400), pairs_of(task, "state", 4, 2, n=400)
    assert task.vocabulary.id("0") not in at_first.donor[:, at_first.query]
    assert task.vocabulary.id("1") not in at_second.donor[:, at_second.query]
    assert len(at_second.donor[:, at_second.query].unique()) == 10


def test_a_state_pair_of_copy_never_changes_the_answer():
    assert not pairs_of(build_task("binary_copy", {}), "state", 4, 2).differs.any()
    assert pairs_of(build_task("parity", {}), "state", 4, 2).differs.all()


def test_an_input_change_shows_unless_the_state_is_zero():
    batch = pairs_of(build_task("polynomial", {}), "input", 5, 3, n=300)
    zero = batch.clean[:, batch.query] == 3  # the token 0
    assert torch.equal(batch.differs, ~zero)
    assert zero.any()


def test_pairs_draw_from_the_clean_sequences_given_and_depend_on_the_generator_only():
    task = build_task("polynomial", {})
    held_out = task.draw(5, 3, generator(1))
    torch.manual_seed(5)
    first = pairs_of(task, "clock", 5, 2, clean=held_out)
    torch.manual_seed(6)
    again = pairs_of(task, "clock", 5, 2, clean=held_out)
    assert {tuple(row) for row in first.clean.tolist()} == {tuple(row) for row in held_out.tolist()}
    assert torch.equal(first.clean, again.clean)
    assert torch.equal(first.donor, again.donor)


def test_the_clean_sequences_given_are_not_changed():
    task = build_task("polynomial", {})
    held_out = task.draw(5, 3, generator(1))
    before = held_out.clone()
    for family in ("input", "state", "clock"):
        pairs_of(task, family, 5, 2, clean=held_out)
    assert torch.equal(held_out, before)


def test_clock_donors_are_those_whose_step_stands_at_the_same_place():
    task = build_task("polynomial", {"max_length": 8})
    # length 5, t 2: EoI at 6, query 8. Donor 4: t' 3; donor 6: t' 1; donor 7: t' 0. Donor 3: t' 4 is past its end.
    assert task.clock_donors(5, 2) == (4, 6, 7)
    # t' = 5 + 3 - L' must be below the clean length 5 too
    assert task.clock_donors(5, 3) == (6, 7, 8)
    assert task.clock_donors(5, 4) == (6, 7, 8)
    assert task.clock_donors(1, 0) == ()
    assert task.clock_donors(5, 5) == ()


def test_the_default_clock_donor_is_the_nearest_length():
    task = build_task("polynomial", {"max_length": 8})
    assert pairs_of(task, "clock", 5, 2).donor_length == 4
    assert pairs_of(task, "clock", 5, 3).donor_length == 6
    assert pairs_of(task, "clock", 5, 4).donor_length == 6


@pytest.mark.parametrize(
    ("family", "length", "t", "options", "message"),
    [
        ("input", 3, 3, {}, "no input pair at t=3; length 3 has t from 0 to 2"),
        ("input", 3, -1, {}, "no input pair at t=-1"),
        ("state", 3, 0, {}, "no state pair at t=0; length 3 has t from 1 to 2"),
        ("state", 1, 0, {}, "length 1 has no t"),
        ("input", 9, 0, {}, "lengths are 1 to 8"),
        ("input", 3, 0, {"n": 0}, "n=0 pairs asked for"),
        ("input", 3, 0, {"donor_length": 4}, "donors have the clean length 3, not 4"),
        ("clock", 5, 2, {"donor_length": 8}, "donor_length=8; donor lengths here: 4, 6, 7"),
        ("clock", 5, 2, {"donor_length": 5}, "donor lengths here: 4, 6, 7"),
        ("clock", 8, 7, {}, "possible donor lengths at this length: t=0: 5, 6, 7; t=1: 5, 6, 7"),
        ("clock", 1, 0, {}, "none, raise max_length"),
    ],
)
def test_a_pair_that_cannot_exist_is_refused_naming_what_can(family, length, t, options, message):
    task = build_task("polynomial", {"max_length": 8})
    with pytest.raises(TaskError, match=message):
        pairs_of(task, family, length, t, **options)


def test_an_unknown_family_and_unusable_clean_sequences_are_refused():
    task = build_task("polynomial", {})
    with pytest.raises(UnknownName, match="did you mean 'clock'"):
        pairs_of(task, "clok", 3, 1)
    with pytest.raises(TaskError, match=r"need shape \[at least 1, 9\], got \[0, 9\]"):
        pairs_of(task, "input", 3, 1, clean=torch.zeros(0, 9, dtype=torch.long))
    with pytest.raises(TaskError, match=r"got \[2, 11\]"):
        pairs_of(task, "input", 3, 1, clean=task.draw(4, 2, generator(0)))


def test_a_constant_polynomial_has_no_state_pair():
    task = build_task("polynomial", {"terms": [[4, 0, 0]]})
    with pytest.raises(TaskError, match="s_t has a single value"):
        pairs_of(task, "state", 3, 2)


def test_without_chain_of_thought_an_input_pair_asks_for_the_last_state():
    task = build_task("polynomial", {"chain_of_thought": False})
    clean = row_of(task, "BoS 3 2 5 EoI 3 EoS")
    batch = pairs_of(task, "input", 3, 1, n=30, clean=clean)
    assert batch.query == 4
    assert torch.equal(task.encode(batch.donor[:, 1:4]), batch.donor)
    assert torch.equal(batch.swap_answer, batch.donor[:, 5])
    assert (batch.donor[:, 2] != clean[0, 2]).all()
    for family in ("state", "clock"):
        with pytest.raises(TaskError, match="need chain_of_thought=true"):
            pairs_of(task, family, 3, 1)
    assert task.clock_donors(3, 1) == ()
