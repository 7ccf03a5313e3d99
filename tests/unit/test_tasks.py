"""Iteration tasks: sequences, layout, oracle, split, masks, parameters and presets against hand-worked examples."""

import json

import pytest
import torch

from interp.config import DataConfig, ModelConfig, RunConfig
from interp.errors import ConfigError, TaskError, UnknownName
from interp.registry import load, names
from interp.rng import generator
from interp.tasks._iteration import IterationTask
from interp.tasks._load import build_task, model_config_for
from interp.tasks._rule import Rule
from interp.tasks.base import preset_of

TASKS = ["binary_copy", "parity", "polynomial"]
SMALL = DataConfig(per_length=40, train_share=0.5)


def ids(task, *values):
    """Token ids of one row of values."""
    return torch.tensor([[task.vocabulary.id(str(value)) for value in values]])


def written(task, *values):
    """Token names of the full sequence for these inputs."""
    return " ".join(task.vocabulary.names(task.encode(ids(task, *values))[0]))


def test_the_three_tasks_are_listed_and_the_shared_files_are_not():
    assert set(TASKS) <= set(names("task"))
    assert not [name for name in names("task") if name.startswith("_")]


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("polynomial", (3, 2, 5), "BoS 3 2 5 EoI 3 7 3 EoS"),  # 3; 3*2+1 = 7; 7*5+1 = 36 = 3 mod 11
        ("polynomial", (10,), "BoS 10 EoI 10 EoS"),
        ("polynomial", (10, 1), "BoS 10 1 EoI 10 0 EoS"),  # 10*1+1 = 11 = 0
        ("parity", (1, 1, 0, 1), "BoS 1 1 0 1 EoI 1 0 0 1 EoS"),
        ("binary_copy", (1, 1, 0, 1), "BoS 1 1 0 1 EoI 1 1 0 1 EoS"),
    ],
)
def test_states_written_after_the_inputs_are_those_worked_out_by_hand(name, values, text):
    assert written(build_task(name, {}), *values) == text


def test_without_chain_of_thought_only_the_last_state_follows():
    task = build_task("polynomial", {"chain_of_thought": False})
    assert written(task, 3, 2, 5) == "BoS 3 2 5 EoI 3 EoS"
    layout = task.layout(3)
    assert (layout.n_pos, layout.eoi, layout.states, layout.queries, layout.end) == (7, 4, (5,), (4,), 5)
    assert task.n_ctx == build_task("polynomial", {}).n_ctx


def test_reversed_order_and_shift_change_which_input_a_state_consumes():
    # reversed: 5; 5*2+1 = 11 = 0; 0*3+1 = 1. shift 1: x_2 x_3 x_1 = 2; 2*5+1 = 11 = 0; 0*3+1 = 1
    assert written(build_task("polynomial", {"order": "reversed"}), 3, 2, 5) == "BoS 3 2 5 EoI 5 0 1 EoS"
    assert written(build_task("polynomial", {"input_shift": 1}), 3, 2, 5) == "BoS 3 2 5 EoI 2 0 1 EoS"
    # both: backwards from x_2, so x_2 x_1 x_3
    both = build_task("binary_copy", {"order": "reversed", "input_shift": 1})
    assert written(both, 0, 1, 1) == "BoS 0 1 1 EoI 1 0 1 EoS"
    # a shift by the whole length is none
    assert written(build_task("binary_copy", {"input_shift": 3}), 0, 1, 1) == "BoS 0 1 1 EoI 0 1 1 EoS"


def test_another_polynomial_and_a_composite_modulus():
    # s^2 + 2 x mod 6 on 3, 5, 2: 3; 9+10 = 19 = 1; 1+4 = 5
    task = build_task("polynomial", {"modulus": 6, "terms": [[1, 2, 0], [2, 0, 1]]})
    assert written(task, 3, 5, 2) == "BoS 3 5 2 EoI 3 1 5 EoS"
    assert "s^2 + 2 x mod 6" in task.rule.formula
    assert len(task.vocabulary) == 3 + 6
    # a negative coefficient: 1 - s on 4: 4; 1-4 = -3 = 3 mod 6
    assert written(build_task("polynomial", {"modulus": 6, "terms": [[1, 0, 0], [-1, 1, 0]]}), 4, 1) == (
        "BoS 4 1 EoI 4 3 EoS"
    )


def test_layout_puts_eoi_after_the_inputs_and_each_query_before_its_state():
    layout = build_task("polynomial", {}).layout(3)
    assert layout.n_pos == 2 * 3 + 3
    assert (layout.inputs, layout.eoi) == ((1, 2, 3), 4)
    assert (layout.states, layout.queries, layout.end) == ((5, 6, 7), (4, 5, 6), 7)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("changes", [{}, {"order": "reversed"}, {"input_shift": 2}])
def test_every_written_state_is_the_oracles_answer(name, changes):
    task = build_task(name, {"max_length": 6, **changes})
    for length in task.lengths:
        layout, tokens = task.layout(length), task.draw(length, 20, generator(length))
        for t, query in enumerate(layout.queries):
            value = tokens[:, layout.inputs[task.input_index(length, t)]]
            assert torch.equal(task.oracle(tokens[:, query], value, t), tokens[:, query + 1])


def test_oracle_ignores_the_state_at_the_first_step_only():
    task = build_task("polynomial", {})
    state, value, eoi = ids(task, 4)[0], ids(task, 6)[0], torch.tensor([task.vocabulary.id("EoI")])
    assert task.vocabulary.names(task.oracle(state, value, 0)) == ["6"]
    assert task.vocabulary.names(task.oracle(eoi, value, 0)) == ["6"]
    assert task.vocabulary.names(task.oracle(state, value, 1)) == ["3"]  # 4*6+1 = 25 = 3
    with pytest.raises(TaskError, match="token ids 3 to 13"):
        task.oracle(eoi, value, 1)


def test_oracle_answers_for_a_whole_grid_of_states_and_inputs():
    task = build_task("polynomial", {})
    values = torch.arange(3, 14)
    grid = task.oracle(values[:, None], values[None, :], 3)
    assert grid.tolist() == [[3 + (s * x + 1) % 11 for x in range(11)] for s in range(11)]


def test_target_mask_scores_the_states_and_the_first_eos():
    task = build_task("parity", {})
    assert task.target_mask(2).tolist() == [False, False, False, True, True, True, False]
    assert task.target_mask(2, "all").tolist() == [True] * 6 + [False]
    silent = build_task("parity", {"chain_of_thought": False})
    assert silent.target_mask(2).tolist() == [False, False, False, True, True, False]


def test_scored_predictions_are_exactly_the_tokens_after_eoi():
    for name in TASKS:
        for chain_of_thought in (True, False):
            task = build_task(name, {"chain_of_thought": chain_of_thought})
            tokens, layout = task.draw(5, 1, generator(0))[0], task.layout(5)
            following = tokens[1:][task.target_mask(5)[:-1]]
            assert torch.equal(following, tokens[layout.eoi + 1 :])


def test_the_tasks_share_one_vocabulary_by_name_and_by_id():
    copy, parity, polynomial = (build_task(name, {}).vocabulary.tokens for name in TASKS)
    assert copy == parity == ("BoS", "EoI", "EoS", "0", "1") == polynomial[:5]


@pytest.mark.parametrize("name", TASKS)
def test_split_has_no_sequence_twice_and_none_on_both_sides(name):
    split = build_task(name, {"max_length": 7}).split(0, SMALL)
    for length in split.train:
        rows = [tuple(row) for part in (split.train, split.test) for row in part[length].tolist()]
        assert len(rows) == len(set(rows))
        assert len(split.train[length]) >= 1
        assert len(split.test[length]) >= 1


def test_split_takes_every_sequence_where_few_exist_and_says_what_was_missing():
    split = build_task("parity", {"max_length": 7}).split(0, SMALL)
    sizes = {length: len(split.train[length]) + len(split.test[length]) for length in split.train}
    assert sizes == {1: 2, 2: 4, 3: 8, 4: 16, 5: 32, 6: 40, 7: 40}
    assert [split.duplicates[length] for length in range(1, 6)] == [38, 36, 32, 24, 8]
    assert split.duplicates[6] > 0  # 40 of 64 cannot well be drawn without a repeat
    assert [len(split.train[length]) for length in range(1, 8)] == [1, 2, 4, 8, 16, 20, 20]


def test_split_is_a_pure_function_of_the_seed_whatever_else_was_drawn():
    task = build_task("polynomial", {"max_length": 5})
    first = task.split(3, SMALL)
    torch.manual_seed(99)
    torch.rand(7)
    state = torch.get_rng_state()
    again = build_task("polynomial", {"max_length": 5}).split(3, SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(first.train[n], again.train[n]) and torch.equal(first.test[n], again.test[n]) for n in (1, 5)
    )
    other = task.split(4, SMALL)
    assert not torch.equal(first.train[5], other.train[5])


def test_split_of_a_length_does_not_depend_on_the_other_lengths_or_on_chain_of_thought():
    short, long = (build_task("polynomial", {"max_length": n}).split(0, SMALL) for n in (4, 9))
    silent = build_task("polynomial", {"max_length": 4, "chain_of_thought": False}).split(0, SMALL)
    assert torch.equal(short.test[4], long.test[4])
    assert torch.equal(short.test[4][:, :5], silent.test[4][:, :5])


def test_a_length_with_one_sequence_shows_an_empty_test_set():
    task = build_task("polynomial", {"modulus": 3, "max_length": 2})
    split = task.split(0, DataConfig(per_length=2, train_share=0.99))
    assert (len(split.train[1]), len(split.test[1])) == (1, 1)  # two sequences: one on each side, whatever the share
    rule = Rule("s_t = s_{t-1} + 1 mod 3", (1,), task.rule.table, task.rule.first)
    single = IterationTask("single", "one input value", task.params, rule).split(0, SMALL)
    assert (single.train[1].shape, single.test[1].shape) == ((1, 5), (0, 5))


def test_attention_targets_are_eoi_and_the_diagonal():
    task = build_task("polynomial", {})
    assert task.attention_targets(3) == {"clock": [(5, 4), (6, 4)], "reading": [(4, 1), (5, 2), (6, 3)]}
    assert task.true_targets(3) == task.attention_targets(3)
    assert task.attention_targets(1) == {"clock": [], "reading": [(2, 1)]}
    assert build_task("polynomial", {"chain_of_thought": False}).attention_targets(3) == {}


def test_hard_negatives_keep_the_textbook_target_and_state_their_own():
    task = build_task("polynomial", {"order": "reversed"})
    assert task.attention_targets(3)["reading"] == [(4, 1), (5, 2), (6, 3)]
    assert task.true_targets(3)["reading"] == [(4, 3), (5, 2), (6, 1)]
    assert build_task("parity", {"input_shift": 1}).true_targets(3)["reading"] == [(4, 2), (5, 3), (6, 1)]


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("polynomial", {}, False),
        ("polynomial", {"terms": [[1, 1, 0], [1, 0, 1]]}, True),  # s + x
        ("polynomial", {"terms": [[1, 1, 1]]}, True),  # s x
        ("polynomial", {"terms": [[1, 1, 0], [2, 0, 1]]}, False),  # s + 2 x: the first input counts once, later twice
        ("parity", {}, True),
        ("binary_copy", {}, False),
    ],
)
def test_permutation_invariance_agrees_with_trying_every_order(name, params, expected):
    task = build_task(name, params)
    assert task.permutation_invariant() is expected
    tokens = task.draw(3, 64, generator(0))
    swaps = [tokens[:, [1, 3, 2]], tokens[:, [2, 1, 3]]]
    same = all(torch.equal(task.encode(inputs)[:, 7], tokens[:, 7]) for inputs in swaps)
    assert same is expected


def test_reachable_states_leave_out_those_that_never_occur():
    rule = build_task("polynomial", {}).rule
    # x_1 is never 0, and a product of two non-zero values is never 0, so s_2 is never 1
    assert (~rule.reachable(1)).nonzero().flatten().tolist() == [0]
    assert (~rule.reachable(2)).nonzero().flatten().tolist() == [1]
    assert rule.reachable(3).all()


def test_state_probabilities_match_counting_all_sequences():
    task = build_task("polynomial", {"modulus": 5})
    inputs = torch.cartesian_prod(*[torch.arange(4, 8)] * 3)  # token ids of 1..4
    states = task.encode(inputs)[:, 7] - 3
    counted = torch.bincount(states, minlength=5).double() / 64
    assert (task.rule.probabilities(3) - counted).abs().max() < 1e-12


def test_description_and_example_are_json_and_name_the_chance_level():
    task = build_task("polynomial", {})
    described = json.loads(json.dumps(task.describe(2)))
    assert described["tokens"][:4] == ["BoS", "EoI", "EoS", "0"]
    assert described["chance"]["step"] == 1 / 11
    assert described["layout"]["queries"] == [3, 4]
    assert described["sequences"] == 100
    example = task.example(2, generator(0))
    assert example["text"] == " ".join(example["tokens"])
    assert len(example["ids"]) == 7
    silent = build_task("parity", {"chain_of_thought": False}).describe(4)
    assert silent["chance"] == {"step": 0.5, "sequence": 0.5, "best_constant": [0.5]}


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("parity", {"max_length": 0}, "max_length.*greater than or equal to 1"),
        ("parity", {"max_length": -3}, "max_length.*greater than or equal to 1"),
        ("parity", {"max_lenght": 8}, "did you mean 'max_length'"),
        ("parity", {"modulus": 3}, "unknown key 'modulus'"),
        ("polynomial", {"terms": []}, "terms: .*at least one term"),
        ("polynomial", {"terms": [[1, -1, 0]]}, "terms.0.1.*greater than or equal to 0"),
        ("polynomial", {"modulus": 2}, "modulus.*greater than or equal to 3"),
        ("polynomial", {"order": "backwards"}, "order.*'forward' or 'reversed'"),
        ("polynomial", {"input_shift": -1}, "input_shift.*greater than or equal to 0"),
    ],
)
def test_bad_parameters_are_one_line_naming_the_key(name, params, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_task(name, params)
    assert "\n" not in str(caught.value)
    assert f"task_params of {name}" in str(caught.value)


def test_an_unknown_task_suggests_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'parity'"):
        build_task("party", {})


def test_lengths_and_inputs_that_the_task_lacks_are_refused():
    task = build_task("polynomial", {"max_length": 4})
    for length in (0, -1, 5):
        with pytest.raises(TaskError, match="lengths are 1 to 4"):
            task.layout(length)
    with pytest.raises(TaskError, match="inputs have token ids"):
        task.encode(ids(task, 3, 0))  # 0 is a state but never an input


def test_presets_are_the_measured_rows_and_survive_json():
    for name in TASKS:
        config = preset_of(load("task", name))
        assert config.task == name
        assert (config.model.d_vocab, config.model.n_ctx) == (0, 0)
        assert RunConfig.model_validate_json(config.model_dump_json()) == config
        assert build_task(name, config.task_params).n_ctx == 35
    polynomial = preset_of(load("task", "polynomial"))
    assert (polynomial.model.d_model, polynomial.model.embed_norm, polynomial.model.dropout) == (32, True, 0.2)
    assert (polynomial.train.lr, polynomial.train.batch_size, polynomial.train.loss) == (2e-3, 32, "states")


def test_model_shape_is_filled_in_from_the_task_and_a_too_small_one_refused():
    task = build_task("polynomial", {})
    filled = model_config_for(ModelConfig(), task)
    assert (filled.d_vocab, filled.n_ctx) == (14, 35)
    assert model_config_for(ModelConfig(d_vocab=20), task).d_vocab == 20
    with pytest.raises(ConfigError, match=r"model.n_ctx=34 is too small: polynomial needs 35"):
        model_config_for(ModelConfig(n_ctx=34), task)
