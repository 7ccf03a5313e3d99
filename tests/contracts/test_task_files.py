"""Every task that the registry lists keeps the promises of the `Task` protocol."""

import pytest
import torch

from interp.config import DataConfig, RunConfig
from interp.errors import TaskError
from interp.registry import load, names
from interp.rng import generator
from interp.tasks._load import build_task, model_config_for
from interp.tasks.base import TaskEntry, preset_of

DATA = DataConfig(per_length=24, train_share=0.5)
FAMILIES = ("input", "state", "clock")


@pytest.fixture(scope="module", params=names("task"))
def name(request):
    """Each listed task in turn."""
    return request.param


@pytest.fixture(scope="module")
def entry(name) -> TaskEntry:
    """What its file exports."""
    return load("task", name)


@pytest.fixture(scope="module")
def task(name, entry):
    """The task of its preset."""
    return build_task(name, preset_of(entry).task_params)


def middle(task) -> tuple[int, int]:
    """A length with something before and after step t, and that step."""
    length = task.lengths[len(task.lengths) // 2]
    return length, length // 2


def test_preset_is_a_checked_run_of_this_task(name, entry):
    preset = preset_of(entry)
    assert isinstance(preset, RunConfig)
    assert preset.task == name
    assert RunConfig.model_validate(preset.model_dump(mode="json")) == preset


def test_default_parameters_build_and_fit_a_model(name, entry):
    task = entry.build(entry.params())
    assert task.name == name
    config = model_config_for(preset_of(entry).model, task)
    assert (config.d_vocab, config.n_ctx) == (len(task.vocabulary), task.n_ctx)


def test_vocabulary_starts_with_the_shared_specials(task):
    assert task.vocabulary.tokens[:3] == ("BoS", "EoI", "EoS")


def test_every_length_is_split_into_disjoint_distinct_sequences(task):
    split = task.split(0, DATA)
    assert set(split.train) == set(split.test) == set(task.lengths) == set(split.duplicates)
    for length in task.lengths:
        train, test = (set(map(tuple, part[length].tolist())) for part in (split.train, split.test))
        assert not train & test
        assert len(train) == len(split.train[length])
        assert len(test) == len(split.test[length])


def test_split_is_a_pure_function_of_the_seed(task):
    first, again, other = (task.split(seed, DATA) for seed in (3, 3, 4))
    length = task.lengths[-1]
    assert torch.equal(first.train[length], again.train[length])
    assert torch.equal(first.test[length], again.test[length])
    assert not torch.equal(first.train[length], other.train[length])


def test_sequences_fit_the_layout_and_reencode_to_themselves(task):
    split = task.split(0, DATA)
    for length in task.lengths:
        tokens, layout = split.test[length], task.layout(length)
        assert tokens.shape[1] == layout.n_pos <= task.n_ctx
        assert torch.equal(task.encode(tokens[:, list(layout.inputs)]), tokens)


def test_only_predicted_positions_are_scored(task):
    for loss in ("states", "all"):
        for length in task.lengths:
            mask = task.target_mask(length, loss)
            assert mask.shape == (task.layout(length).n_pos,)
            assert not mask[-1]
    scored = task.target_mask(task.lengths[-1]).nonzero().squeeze(1).tolist()
    layout = task.layout(task.lengths[-1])
    assert scored == [*layout.queries, layout.end]


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_answer_as_the_sequences_themselves_do(task, family):
    length, t = middle(task)
    pairs = task.pairs(family, length, t, n=8, generator=generator(0, "pairs"))
    again = task.pairs(family, length, t, n=8, generator=generator(0, "pairs"))
    assert torch.equal(pairs.clean, again.clean)
    assert torch.equal(pairs.donor, again.donor)
    assert torch.equal(pairs.clean[:, pairs.query + 1], pairs.clean_answer)
    assert pairs.clean.shape[1] == task.layout(length).n_pos
    assert pairs.donor.shape[1] == task.layout(pairs.donor_length).n_pos
    if family != "clock":
        assert (pairs.donor_length, pairs.t_donor) == (length, t)


def test_pairs_refuse_a_length_the_task_does_not_have(task):
    with pytest.raises(TaskError, match="lengths are"):
        task.pairs("input", task.lengths[-1] + 1, 0, n=1, generator=generator(0))
    with pytest.raises(TaskError):
        task.layout(-1)


def test_true_circuit_looks_backwards_only(task):
    for length in task.lengths:
        for role, targets in task.attention_targets(length).items():
            assert role in {"clock", "reading"}
            assert all(0 <= key <= query < task.layout(length).n_pos for query, key in targets)
