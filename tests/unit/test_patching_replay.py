"""Chunks that are replayed as one graph have the effects that they have one by one, each with its own prompts."""

import functools

import pytest
import torch

from circuits import patching
from circuits.engine import sweep
from circuits.engine.products import Products
from circuits.engine.replay import LEAST, Replays, Tape, why_no_graph
from circuits.metrics import KL, UserMetric
from circuits.patching import patch_heads
from kernels import delta_norm
from tests.unit.recorded_graph import RecordedGraph
from tests.unit.small_decoders import logit_diff, prompts, small_decoder

CASES = [
    ("preset", "z", "last"), ("preset", "z", "all"), ("grouped", "k", "all"), ("rms swiglu rotary", "q", "last"),
    ("parallel", "v", "last"), ("normed residual", "resid_pre", "all"), ("preset", "mlp_post", "last"),
    ("preset", "mlp_out", "all"),
]  # fmt: skip


def with_graphs(monkeypatch, graph=RecordedGraph) -> list:
    """Make the engine replay on the CPU; the graphs that it makes are in the list.

    Without inference mode, in which composite operations come to the recording undivided, as no GPU gets them.
    """
    made = []

    def new():
        made.append(graph())
        return made[-1]

    monkeypatch.setattr(patching, "graphs_for", lambda runs: (new, ""))
    monkeypatch.setattr(patching, "without_autograd", lambda metric: torch.no_grad())
    return made


def runs(name: str, read: str, n: int = 13, **more) -> tuple:
    """A decoder and the arguments of a call that is cut into chunks of two prompts, and one of the last prompt."""
    decoder, (clean, corrupted) = small_decoder(name, n_layers=3, d_mlp=3), prompts(n, length=5, same=1)
    corrupted[:, 3] = clean[:, 3]  # nothing differs there before the first block
    given = {"clean": clean, "corrupted": corrupted, "metric": logit_diff(n, read), "precision": "fp64"}
    return decoder, given | {"max_bytes": 30_000, "positions": [1, 3]} | more


def same(monkeypatch, decoder, given, graph=RecordedGraph) -> tuple:
    """The call without and with graphs."""
    plain = patch_heads(decoder, **given)
    with_graphs(monkeypatch, graph)
    return plain, patch_heads(decoder, **given)


def gap(plain, replayed) -> float:
    """The largest difference of effects."""
    return float((plain.effect - replayed.effect).abs().max())


@pytest.mark.parametrize(("name", "site", "positions"), CASES)
def test_replayed_chunks_have_the_effects_of_chunks_run_one_by_one(name, site, positions, monkeypatch):
    decoder, given = runs(name, positions, site=site)
    plain, replayed = same(monkeypatch, decoder, given)
    assert "replayed for" in replayed.graph, replayed.graph
    assert gap(plain, replayed) < 1e-12 * plain.effect.abs().max()
    assert torch.equal(plain.reason, replayed.reason)
    assert plain.graph == "no graph: tensors are on cpu"


def test_the_result_counts_replays_and_the_operations_of_every_chunk(monkeypatch):
    decoder, given = runs("preset", "last", positions=[1])
    plain = patch_heads(decoder, **given)
    shapes = [len(chunk.prompts) for chunk in plain.plan.chunks]
    often = max(shapes)
    assert shapes.count(often) >= LEAST
    made = with_graphs(monkeypatch)
    replayed = patch_heads(decoder, **given)
    assert len(made) == 1
    assert replayed.graph == f"1 graph, replayed for {shapes.count(often) - 1} of {len(shapes)} chunks"
    assert replayed.flops == plain.flops
    assert replayed.patches.runs.mul.launches == plain.patches.runs.mul.launches


def test_a_chunk_of_another_shape_runs_by_itself(monkeypatch):
    decoder, given = runs("preset", "last", n=13)
    mask = torch.ones_like(given["clean"], dtype=torch.bool)
    mask[-2:, -1] = False  # two prompts are shorter: the metric reads another row
    plain, replayed = same(monkeypatch, decoder, given | {"mask": mask})
    assert "replayed for" in replayed.graph
    assert gap(plain, replayed) < 1e-12 * plain.effect.abs().max()
    few = runs("preset", "last", n=13)[1] | {"max_bytes": None}
    assert patch_heads(decoder, **few).graph == f"no graph: fewer than {LEAST} chunks of one shape"


def test_prompts_left_over_from_the_chunk_before_are_seen(monkeypatch):
    run = Replays.run

    def without_new_prompts(self, key, prompts, work):
        known = self.shapes.get(key)
        run(self, key, prompts if known is None else known.prompts, work)

    decoder, given = runs("preset", "last", positions=[1])
    monkeypatch.setattr(Replays, "run", without_new_prompts)
    plain, replayed = same(monkeypatch, decoder, given)
    assert "replayed for" in replayed.graph
    assert gap(plain, replayed) > 1e-3


def test_a_graph_whose_tensors_are_not_kept_is_seen(monkeypatch):
    captured = Replays._captured

    def dropped(self, shape, work):
        done = captured(self, shape, work)
        shape.sent = None
        return done

    monkeypatch.setattr(Replays, "_captured", dropped)
    decoder, given = runs("preset", "last", positions=[1])
    with_graphs(monkeypatch)
    with pytest.raises(MemoryError, match="freed"):
        patch_heads(decoder, **given)


def test_a_capture_that_fails_is_said_and_changes_no_effect(monkeypatch):
    class Failing(RecordedGraph):
        def capture(self, work):
            raise RuntimeError("not permitted\nsecond line")

    decoder, given = runs("preset", "all")
    plain, replayed = same(monkeypatch, decoder, given, Failing)
    assert replayed.graph == "no graph: the capture failed: not permitted"
    assert gap(plain, replayed) < 1e-12 * plain.effect.abs().max()
    assert replayed.flops == patch_heads(decoder, **given).flops


def test_a_step_that_waits_for_values_is_not_captured(monkeypatch):
    mlp_delta = sweep.mlp_delta

    def waiting(layer, base, rows, delta, mul, onto):
        return mlp_delta(layer, base, rows, delta, mul, onto) if bool(delta.any()) else onto

    monkeypatch.setattr(sweep, "mlp_delta", waiting)
    decoder, given = runs("preset", "last")
    plain, replayed = same(monkeypatch, decoder, given)
    assert "waits for the GPU" in replayed.graph
    assert gap(plain, replayed) < 1e-12 * plain.effect.abs().max()


@pytest.mark.parametrize("site", ["z", "k"])
@pytest.mark.parametrize("positions", ["last", "all"])
def test_operations_with_kernels_are_captured_without_a_wait_of_the_engine(site, positions, monkeypatch):
    decoder, given = runs("grouped", positions, site=site)
    plain = patch_heads(decoder, **given)
    made, run = with_graphs(monkeypatch), Products.run

    def reference(self, op, *arguments):  # waits inside are those of the reference; a kernel has none
        for graph in made:
            graph.taken.lenient = True
        value = run(self, op, *arguments)
        self.fell_back = False
        for graph in made:
            graph.taken.lenient = False
        return value

    monkeypatch.setattr(Products, "run", reference)
    monkeypatch.setattr(Products, "kernel_for", lambda self, op, x: True)
    monkeypatch.setattr(delta_norm, "changed", functools.partial(delta_norm.changed, both=True))
    replayed = patch_heads(decoder, **given)
    assert "replayed for" in replayed.graph, replayed.graph
    assert "suffix_attention: torch" in replayed.backend
    assert gap(plain, replayed) < 1e-12 * plain.effect.abs().max()


def test_an_operation_that_has_no_kernel_there_ends_the_capture(monkeypatch):
    monkeypatch.setattr(Products, "kernel_for", lambda self, op, x: True)
    decoder, given = runs("preset", "last")
    with_graphs(monkeypatch)
    assert "torch reference, which waits" in patch_heads(decoder, **given).graph


def test_functions_of_logits_and_divergences_are_not_captured():
    gpu = torch.device("cuda")
    assert why_no_graph(gpu, logit_diff()) == ""
    assert why_no_graph(gpu, UserMetric(torch.sum)) == "UserMetric looks at values on the host"
    assert why_no_graph(gpu, KL()) == "KL looks at values on the host"
    assert why_no_graph(torch.device("cpu"), logit_diff()) == "tensors are on cpu"


def test_decisions_are_read_back_in_the_order_in_which_they_were_taken():
    tape, mul, taken = Tape(), Products(), []
    mul.tape = tape
    assert [mul.fixed(lambda: taken.append(n) or n) for n in (3, 5)] == [3, 5]  # noqa: B023
    tape.rewind()
    assert [mul.fixed(lambda: taken.append(n) or n) for n in (7, 8)] == [3, 5]  # noqa: B023
    assert taken == [3, 5]


def test_both_forms_of_a_norm_s_difference_are_the_one_that_is_needed():
    x, d = (torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    d = d * torch.tensor([1e-6, 1e-3, 0.1, 1.0, 10.0, 1000.0], dtype=torch.float64)[:, None]
    rows, scale = delta_norm.standardised(x, 1e-5, True)
    once = delta_norm.changed(rows, scale, d, None, 1e-5, True)
    assert torch.equal(once, delta_norm.changed(rows, scale, d, None, 1e-5, True, both=True))
    near = d[:2] * 1e-3  # no row needs the plain form
    assert torch.equal(
        delta_norm.changed(rows[:2], scale[:2], near, None, 1e-5, True),
        delta_norm.changed(rows[:2], scale[:2], near, None, 1e-5, True, both=True),
    )


def test_keys_that_are_rare_or_unknown_run_at_once():
    replays = Replays(Products(), ["a"] * LEAST + ["b"], RecordedGraph)
    assert replays.often == {"a"}
    seen = []
    replays.run("b", torch.tensor([4]), lambda given: seen.append(given.tolist()))
    assert seen == [[4]]
    assert not replays.shapes


def test_padding_rows_of_a_chunk_stay_out(monkeypatch):
    decoder, given = runs("preset", "all", n=12)
    mask = torch.ones_like(given["clean"], dtype=torch.bool)
    mask[::2, -1] = False  # every chunk has a shorter prompt
    plain, replayed = same(monkeypatch, decoder, given | {"mask": mask})
    assert gap(plain, replayed) < 1e-12 * plain.effect.abs().max()
