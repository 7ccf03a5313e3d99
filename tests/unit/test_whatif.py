"""A what-if equals plain hooks and circuits with one edge off in float64, beside controls of its own kind."""

import dataclasses
import json

import pytest
import torch

from circuits.engine.record import record
from circuits.graph import edge_graph
from circuits.masked import MaskedRuns
from circuits.patch_command.cells import cells_of
from circuits.patch_command.request import request
from circuits.patch_command.run import patch_run
from circuits.whatif import WhatIf, WhatIfRequest, answer, subject_of, what_if
from circuits.whatif_cell import answer as exact_cell
from circuits.whatif_controls import matched
from circuits.whatif_prompts import new_sequences
from circuits.whatif_runs import ablation_of, changed_logits, turned
from interp.decoder import decoder_of, forward
from interp.errors import ConfigError, NotExpressible, UnknownName, UsageError
from interp.rng import generator
from interp.run import Run, Store
from interp.train import load_model
from interp.worker import Warm
from tests.truth.exported import exported
from tests.unit.small_decoders import FAMILIES, logit_diff, prompts, small_decoder
from tests.unit.test_decoder import VARIANTS, random_model

PLAIN = [name for name in FAMILIES if not any(layer.adds_to_normed for layer in small_decoder(name).layers)]
TOKENS = torch.randint(7, (5, 8), generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with a solved polynomial run `solved`: two layers of one head, L1.H0 reads."""
    (trained,) = exported("polynomial-d32-s1")
    model, _, _ = trained.load()
    folder = Store(tmp_path_factory.mktemp("runs"))
    with folder.create("solved", trained.config).writer() as writer:
        writer.save(trained.step, model=model.state_dict(), optim={}, state={})
    return folder


@pytest.fixture(scope="module")
def warm(store) -> Warm:
    """What the worker hands to a request."""
    return Warm(store)


@pytest.fixture(scope="module")
def run(store) -> Run:
    return store.run("solved")


def hooked(model, layer: int, head: int, value) -> torch.Tensor:
    """Logits with one head's z replaced by what `value` makes of it, through a plain hook."""

    def replace(z, hook):
        z[:, :, head] = value(z[:, :, head])
        return z

    return model.run_with_hooks(TOKENS, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", replace)])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_an_ablated_head_equals_a_plain_hook(name, ablation):
    model = random_model(**VARIANTS[name])
    decoder = decoder_of(model)
    base = record(decoder, TOKENS)
    values = {"zero": torch.zeros_like, "mean": lambda z: z.mean((0, 1)).expand_as(z)}
    for layer in range(model.cfg.n_layers):
        change = ablation_of(decoder, base, edge_graph(decoder), f"L{layer}.H1", ablation, 0)
        difference = changed_logits(decoder, base, change) - hooked(model, layer, 1, values[ablation])
        assert difference.abs().max() < 1e-11


def test_resampling_takes_the_value_of_another_prompt_and_of_every_prompt_once():
    model = random_model()
    decoder = decoder_of(model)
    base = record(decoder, TOKENS)
    change = ablation_of(decoder, base, edge_graph(decoder), "L0.H1", "resample", 3)
    written = base.layers[0].z[:, :, 1] @ decoder.layers[0].attn.W_O[1]
    new = written + change.delta
    near = torch.cdist(new.flatten(1), written.flatten(1))
    partner = near.argmin(1)
    assert near.min(1).values.max() < 1e-10
    assert sorted(partner.tolist()) == list(range(5))
    assert not (partner == torch.arange(5)).any()
    expected = hooked(model, 0, 1, lambda z: z[partner])
    assert (changed_logits(decoder, base, change) - expected).abs().max() < 1e-11


@pytest.mark.parametrize("name", PLAIN)
def test_every_ablated_edge_and_mlp_equals_the_circuit_without_it(name):
    decoder, (clean, _) = small_decoder(name), prompts()
    runs = MaskedRuns(decoder, clean=clean, metric=logit_diff(), ablation="mean", precision="fp64")
    base, graph = record(decoder, clean), runs.graph
    rows = torch.cartesian_prod(torch.arange(len(clean)), torch.arange(clean.shape[1])).T
    masks, targets = [], []
    for sender, receiver in graph.edges:
        masks.append(graph.exists.double())
        masks[-1][sender, receiver] = 0
        targets.append(graph.name(sender, receiver))
    for sender, node in enumerate(graph.senders[1:], 1):
        masks.append(graph.exists.double())
        masks[-1][sender] = 0
        targets.append(node)
    expected = runs.run(torch.stack(masks), (rows[0], rows[1]))
    for target, wanted in zip(targets, expected, strict=True):
        change = ablation_of(decoder, base, graph, target, "mean", 0)
        found = changed_logits(decoder, base, change).flatten(0, 1)
        assert (found - wanted).abs().max() < 1e-10, target


@pytest.mark.parametrize("target", ["L0.H1", "M1", "embed->L1.H0.k", "L0.H0->M0", "L1.H1->logits"])
def test_putting_in_what_is_there_changes_nothing(target):
    decoder = small_decoder("preset")
    base = record(decoder, TOKENS)
    change = ablation_of(decoder, base, edge_graph(decoder), target, "zero", 0)
    same = dataclasses.replace(change, delta=torch.zeros_like(change.delta))
    assert (changed_logits(decoder, base, same) - forward(decoder, TOKENS)).abs().max() < 1e-12
    assert (changed_logits(decoder, base, change) - forward(decoder, TOKENS)).abs().max() > 1e-6


def test_edges_of_a_renormalised_stream_and_unknown_names_are_refused():
    decoder = small_decoder("normed residual")
    base, graph = record(decoder, TOKENS), edge_graph(decoder)
    with pytest.raises(NotExpressible, match="plain sum"):
        ablation_of(decoder, base, graph, "embed->logits", "zero", 0)
    for name in ("L7.H0", "embed", "<b>", "L0.H0->L0.H1.q"):
        with pytest.raises(UnknownName):
            ablation_of(decoder, base, graph, name, "zero", 0)


def test_a_turned_change_has_the_same_size_everywhere_and_another_direction():
    decoder = small_decoder("preset")
    base = record(decoder, TOKENS)
    change = ablation_of(decoder, base, edge_graph(decoder), "L0.H1", "mean", 0)
    other = turned(change, torch.Generator().manual_seed(0))
    old, new = change.delta.flatten(0, 1), other.delta.flatten(0, 1)
    assert (old @ old.T - new @ new.T).abs().max() < 1e-12
    assert torch.nn.functional.cosine_similarity(old, new).abs().mean() < 0.9
    assert (other.place, other.layer) == (change.place, change.layer)


def test_controls_are_of_the_same_kind_and_of_the_nearest_layers_first():
    graph, stream = edge_graph(small_decoder("preset", 4, n_heads=3, d_model=12)), torch.Generator().manual_seed(0)
    heads = matched(graph, "L1.H0", 5, stream)
    assert set(heads[:2]) == {"L1.H1", "L1.H2"}
    assert len(set(heads)) == 5
    assert {name[:2] for name in heads[2:]} <= {"L0", "L2"}
    edges = matched(graph, "L0.H0->L2.H1.k", 5, stream)
    assert len(set(edges)) == 5
    assert all(one != "L0.H0->L2.H1.k" and one.startswith("L0.H") and one.endswith(".k") for one in edges)
    assert matched(graph, "M1", 5, stream) in (["M0", "M2"], ["M2", "M0"])
    draws = {tuple(matched(graph, "L1.H0", 1, torch.Generator().manual_seed(seed))) for seed in range(8)}
    assert len(draws) == 2


def test_prompts_share_no_sequence_with_training_or_held_out_ones(run):
    _, task, _ = load_model(run)
    split = task.split(run.config.seed, run.config.data)
    found = new_sequences(task, split, 9, 64, generator(0, "test"))
    known = {tuple(row) for part in (split.train, split.test) for row in part[9].tolist()}
    drawn = {tuple(row) for row in found.tokens.tolist()}
    assert found.disjoint and len(drawn) == 64 and not known & drawn
    short = new_sequences(task, split, 2, 64, generator(0, "test"))
    assert not short.disjoint and "may draw the same" in short.words
    assert {tuple(row) for row in short.tokens.tolist()} <= {tuple(row) for row in split.test[2].tolist()}


def test_losing_the_reading_head_costs_more_than_its_controls(warm):
    asked = {"run": "solved", "target": "L1.H0", "n": 64, "length": 10, "ablation": "mean"}
    found = answer(warm, asked)
    assert json.loads(json.dumps(found)) == found
    read = WhatIf.model_validate(found)
    assert read.exploratory and read.disjoint and "interp detect" in read.note
    assert read.base.accuracy.value > 0.95 and read.base.accuracy.n == 64
    kinds = [one.kind for one in read.controls]
    assert kinds == ["head", *["random"] * 4] and read.controls[0].component == "L0.H0"
    assert all(one.lost.value < read.changed.lost.low for one in read.controls)
    assert "0 of these lose as much or more" in read.reading
    assert answer(warm, asked) == found


def test_an_ablation_that_moves_nothing_is_not_tested(run):
    asked = WhatIfRequest(run="solved", target="L1.H0", length=10, n=16)
    subject = subject_of(run, asked)
    attn = dataclasses.replace(subject.decoder.layers[1].attn, W_O=torch.zeros_like(subject.decoder.layers[1].attn.W_O))
    layers = (subject.decoder.layers[0], dataclasses.replace(subject.decoder.layers[1], attn=attn))
    dead = dataclasses.replace(subject.decoder, layers=layers)
    base = record(dead, subject.sequences.tokens)
    found = what_if(dataclasses.replace(subject, decoder=dead, base=base), asked)
    assert not found.changed.tested and found.reading.startswith("Not tested")


def test_wrong_requests_say_what_is_wrong(warm):
    with pytest.raises(ConfigError, match="ablation"):
        answer(warm, {"run": "solved", "target": "L1.H0", "ablation": "maim"})
    with pytest.raises(ConfigError, match="targett"):
        answer(warm, {"run": "solved", "targett": "L1.H0"})
    with pytest.raises(UnknownName, match="checkpoint"):
        answer(warm, {"run": "solved", "target": "L1.H0", "step": 3})
    with pytest.raises(UnknownName, match="solved"):
        answer(warm, {"run": "solvd", "target": "L1.H0"})
    with pytest.raises(UsageError, match="length"):
        answer(warm, {"run": "solved", "target": "L1.H0", "length": 99})


@pytest.mark.parametrize("by", ["head,position", "edge,position", "layer,position"])
def test_the_exact_value_of_a_cell_is_that_of_the_heatmap(warm, run, by):
    options = {"pairs": "input", "length": 5, "n": 12, "metric": "logit-diff"}
    found = patch_run(run, request(by=by, t="3", **options))
    cells = cells_of(found)[0]
    for row in (0, len(cells) // 2, -1):
        cell = max(cells[row], key=lambda one: abs(one.effect.value))
        exact = exact_cell(
            warm, {"run": "solved", "component": cell.component, "position": cell.pos, "t": 3, **options}
        )
        assert exact["effect"]["value"] == pytest.approx(cell.effect.value, rel=1e-3, abs=1e-4)
        assert exact["effect"]["low"] == pytest.approx(cell.effect.low, rel=1e-3, abs=1e-4)
        assert exact["position_name"] == cell.place
        assert len(exact["effects"]) == len(exact["clean"]) == len(exact["donor"]) == exact["effect"]["n"] == 12
        assert sum(exact["effects"]) / 12 == pytest.approx(exact["effect"]["value"], abs=1e-9)


def test_a_cell_that_does_not_exist_is_refused_by_name(warm):
    for wrong, what in (({"component": "Q7"}, "Q7"), ({"position": 99}, "position 99"), ({"t": 77}, "77")):
        with pytest.raises(UsageError, match=what):
            exact_cell(warm, {"run": "solved", "component": "L1.H0", "position": 1, "t": 1, "length": 5, **wrong})
