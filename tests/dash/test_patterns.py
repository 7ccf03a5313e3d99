"""Stored attention patterns: what is computed, what is kept, and when they are no longer the right ones."""

import json

import numpy as np
import pytest
import torch

from circuits.report.canvas.grid import attention_grid
from interp.cli import main
from interp.errors import StoreError, TaskError, UnknownName, UsageError
from interp.train import load_model
from probes import patterns_store
from probes.attention import attention_patterns
from probes.patterns_compute import store_patterns
from probes.patterns_own import patterns_of_inputs
from probes.patterns_store import PatternRecord, followed, pattern_index, pattern_key, read_patterns


def test_stored_patterns_are_those_of_the_model(normal_store):
    run = normal_store.run("tiny")
    done = store_patterns(run)
    index = pattern_index(run)
    assert done.computed == index.steps == [0, 8, 16, 32, 60]
    model, task, _ = load_model(run, 32)
    place = next(i for i, prompt in enumerate(done.prompts) if prompt.label == "length 5, sequence 2")
    tokens = task.split(run.config.seed, run.config.data).test[5][1:2]
    assert list(done.prompts[place].tokens) == task.vocabulary.names(tokens[0])
    assert done.prompts[place].targets["clock"] == tuple(task.attention_targets(5)["clock"])
    expected = attention_patterns(model, tokens)[:, 0].numpy()
    assert np.abs(read_patterns(run, index, place, [32])[0] - expected).max() <= 1e-6


def test_what_is_stored_is_not_computed_again_unless_asked(normal_store):
    run = normal_store.run("tiny")
    store_patterns(run)
    again = store_patterns(run)
    assert (again.computed, again.kept) == ([], [0, 8, 16, 32, 60])
    assert store_patterns(run, fresh=True).computed == [0, 8, 16, 32, 60]


def test_other_weights_sequences_or_code_have_another_key(normal_store, monkeypatch):
    run, other = normal_store.run("tiny"), normal_store.run("other")
    keys = {pattern_key(run, ref) for ref in run.checkpoints()} | {pattern_key(other, other.checkpoints()[-1])}
    monkeypatch.setattr(patterns_store, "PER_LENGTH", 4)
    keys.add(pattern_key(run, run.checkpoints()[-1]))
    monkeypatch.setattr(patterns_store, "code_hash", lambda: "edited")
    keys.add(pattern_key(run, run.checkpoints()[-1]))
    assert len(keys) == 8


def test_very_many_checkpoints_are_thinned_to_the_first_the_last_and_between(normal_store, monkeypatch):
    monkeypatch.setattr(patterns_store, "MOST_CHECKPOINTS", 3)
    assert [ref.step for ref in followed(normal_store.run("tiny"))] == [0, 16, 60]


def test_a_record_whose_target_lies_outside_its_tokens_is_refused(normal_store):
    run = normal_store.run("tiny")
    store_patterns(run)
    key = pattern_key(run, run.checkpoints()[-1])
    record, arrays = run.analysis(key), run.analysis_arrays(key)
    record["prompts"][0]["targets"] = {"clock": [[1, 99]]}
    run.write_analysis(key, record, arrays)
    with pytest.raises(StoreError, match="outside its"):
        pattern_index(run)


def test_own_inputs_become_the_sequence_that_the_task_writes(normal_store):
    run = normal_store.run("tiny")
    own = patterns_of_inputs(run, ["1", "1"])
    assert own.tokens == ["BoS", "1", "1", "EoI", "1", "0", "EoS"]
    assert own.steps == [0, 8, 16, 32, 60]
    model, task, _ = load_model(run, 60)
    ids = torch.tensor([[task.vocabulary.id(name) for name in own.tokens]])
    assert np.abs(own.patterns[-1] - attention_patterns(model, ids)[:, 0].numpy()).max() <= 1e-6


def test_an_input_that_the_task_refuses_is_named_as_it_was_written(normal_store):
    run = normal_store.run("tiny")
    with pytest.raises(TaskError, match="'EoI' cannot be an input"):
        patterns_of_inputs(run, ["1", "EoI"])
    with pytest.raises(UnknownName, match="unknown token '7'"):
        patterns_of_inputs(run, ["7"])
    with pytest.raises(TaskError, match="no length 9"):
        patterns_of_inputs(run, ["1"] * 9)


def test_the_command_prints_what_it_did_and_its_object_is_valid(normal_store, capsys):
    line = ["patterns", "tiny", "--store", str(normal_store.root)]
    assert main([*line, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    patterns_store.PatternsOutput.model_validate(value)
    assert (value["computed"], value["kept"]) == ([0, 8, 16, 32, 60], [])
    assert main(line) == 0
    assert "5 were stored" in capsys.readouterr().out


def test_a_notebook_grid_of_a_run_shows_its_stored_patterns(normal_store):
    run = normal_store.run("tiny")
    with pytest.raises(UsageError, match="interp patterns tiny"):
        attention_grid(run)
    store_patterns(run)
    data = attention_grid(run, sequence=2).data
    assert data["steps"] == [0, 8, 16, 32, 60]
    record = PatternRecord.model_validate(run.analysis(pattern_key(run, run.checkpoints()[-1])))
    assert data["examples"][0]["tokens"] == list(record.prompts[2].tokens)
    with pytest.raises(UsageError, match="sequences 0 to"):
        attention_grid(run, sequence=99)
