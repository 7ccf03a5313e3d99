"""Edge scores equal one derivative per edge, and what must hold of them besides."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from circuits.attribution import eap, eap_ig
from circuits.attribution_reference import edge_scores, metric_values, run_edge
from circuits.attribution_result import EdgeScores
from circuits.gradients import edges as gradient_edges
from circuits.gradients import reads as gradient_reads
from circuits.gradients.cost import FLASH_BACKWARD
from circuits.graph import edge_graph
from circuits.metrics import KL, LogitDiff, LogProb, UserMetric
from circuits.patch_edges import patch_edges
from interp.decoder import Decoder, decoder_of, forward
from interp.errors import UnknownName
from tests.unit.small_decoders import FAMILIES, logit_diff, prompts, small_decoder
from tests.unit.test_decoder import random_model

LIMIT = 1e-10  # of the largest score, in float64


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of tiny products: a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def names_of(decoder: Decoder) -> list[str]:
    graph = edge_graph(decoder)
    return [graph.name(*edge) for edge in graph.edges]


def error(found: EdgeScores, expected: torch.Tensor) -> float:
    """Largest error of all edges, positions and prompts, relative to the largest score."""
    sender, receiver = torch.tensor(found.graph.edges).T
    return float((found.scores[..., sender, receiver] - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("positions", ["last", "all"])
def test_every_edge_of_eap_is_the_derivative_of_adding_the_difference_there(name, positions):
    decoder, (clean, corrupted) = small_decoder(name), prompts()
    metric = logit_diff(positions=positions)
    expected = edge_scores(decoder, clean, corrupted, metric, names_of(decoder))
    assert (expected != 0).any(0).any(0).float().mean() > 0.8
    assert error(eap(decoder, clean, corrupted, metric, by_position=True), expected) < LIMIT
    assert error(eap(decoder, clean, corrupted, metric), expected.sum(1)) < LIMIT


@pytest.mark.parametrize("name", FAMILIES)
def test_every_edge_of_eap_ig_on_inputs_is_the_mean_of_derivatives_along_the_path(name):
    decoder, (clean, corrupted) = small_decoder(name), prompts(1, 4)
    metric = KL() if name in ("preset", "grouped") else logit_diff(1, "all")
    expected = edge_scores(decoder, clean, corrupted, metric, names_of(decoder), "inputs", 2)
    assert error(eap_ig(decoder, clean, corrupted, metric, steps=2, by_position=True), expected) < LIMIT


@pytest.mark.parametrize("name", ["normed residual", "grouped parallel", "attention only"])
def test_every_edge_of_eap_ig_on_activations_is_the_mean_over_nodes_and_steps(name):
    decoder, (clean, corrupted) = small_decoder(name), prompts(1, 4)
    metric = LogProb(torch.tensor([3]))
    expected = edge_scores(decoder, clean, corrupted, metric, names_of(decoder), "activations", 2)
    found = eap_ig(decoder, clean, corrupted, metric, steps=2, variant="activations", by_position=True)
    assert error(found, expected) < LIMIT


def test_steps_contracted_in_groups_are_those_of_one_by_one(monkeypatch):
    decoder, (clean, corrupted) = small_decoder("preset"), prompts()
    together = eap_ig(decoder, clean, corrupted, logit_diff(), steps=11)
    monkeypatch.setattr("circuits.gradients.paths.STEPS_AT_ONCE", 1)
    apart = eap_ig(decoder, clean, corrupted, logit_diff(), steps=11)
    assert (together.scores - apart.scores).abs().max() < LIMIT * apart.scores.abs().max()


@pytest.mark.parametrize("by_position", [False, True])
def test_memory_budget_changes_nothing_but_the_memory(by_position):
    decoder, (clean, corrupted) = small_decoder("grouped"), prompts(5)
    one = eap(decoder, clean, corrupted, logit_diff(5), by_position=by_position)
    for max_bytes in (1, 20_000, 200_000):
        cut = eap(decoder, clean, corrupted, logit_diff(5), by_position=by_position, max_bytes=max_bytes)
        assert (cut.scores - one.scores).abs().max() < LIMIT * one.scores.abs().max()
        assert cut.no_effect == one.no_effect


def test_scores_in_float32_are_as_accurate_as_one_edge_at_a_time_in_float32():
    model = random_model(n_layers=3, n_heads=4, d_model=64, d_vocab=20, n_ctx=16, bias=True, norm_bias=True)
    clean, corrupted = (torch.randint(20, (4, 16), generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    decoder, metric = decoder_of(model), logit_diff(4)
    edges = names_of(decoder)[::4]
    exact = edge_scores(decoder, clean, corrupted, metric, edges).sum(1)
    eager = edge_scores(decoder.to(torch.float32), clean, corrupted, metric, edges).sum(1)
    found = eap(decoder.to(torch.float32), clean, corrupted, metric)
    fast = torch.stack([found[edge] for edge in edges], -1)
    assert found.scores.dtype == torch.float32
    assert (fast - exact).norm() <= 2 * (eager - exact).norm()
    assert (fast - exact).abs().max() <= 2 * (eager - exact).abs().max()


def test_direct_edge_to_the_logits_is_the_product_written_out_by_hand():
    """Embedding rows (1, 2), (3, 5), attention and MLP absent from the answer: d logit = (3 - 1, 5 - 2) . (1, -1)."""
    model = random_model(norm="none", n_layers=1, n_heads=1, d_model=2, d_vocab=2, n_ctx=1, positions="none")
    decoder = decoder_of(model)
    values = {"W_E": torch.tensor([[1.0, 2.0], [3.0, 5.0]]), "W_U": torch.tensor([[1.0, 0.0], [-1.0, 0.0]])}
    decoder = dataclasses.replace(decoder, **{name: value.double() for name, value in values.items()})
    found = eap(decoder, torch.tensor([[0]]), torch.tensor([[1]]), LogitDiff(torch.tensor([0]), torch.tensor([1])))
    assert found["embed->logits"].tolist() == [-1.0]
    assert found["embed->L0.H0.k"].tolist() == [0.0]  # one key: its score cannot matter


def linear_model() -> Decoder:
    """No norm, uniform attention whatever the queries, an MLP far inside the linear part of relu."""
    model = random_model(norm="none", activation="relu", bias=True, positions="none", n_layers=2)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_Q.zero_()
            block.attn.b_Q.zero_()
            block.mlp.b_in.fill_(1e4)
    return decoder_of(model)


def test_eap_equals_exact_edge_patching_in_a_linear_model():
    decoder, (clean, corrupted) = linear_model(), prompts()
    for positions in ("last", "all"):
        metric = logit_diff(positions=positions)
        exact = patch_edges(
            decoder,
            clean=clean,
            corrupted=corrupted,
            metric=metric,
            resolve="pooled",
            direction="noise",
            precision="fp64",
        ).effect
        assert exact.abs().max() > 0.1
        for found in (eap(decoder, clean, corrupted, metric), eap_ig(decoder, clean, corrupted, metric, steps=3)):
            assert (found.scores - exact).abs().max() < 1e-9 * exact.abs().max()


def test_eap_is_the_limit_of_exact_edge_patching_for_small_differences():
    """With embeddings t apart the error falls as t squared, the scores as t."""
    decoder, (clean, corrupted) = small_decoder("preset"), prompts()
    middle = decoder.W_E.mean(0)
    off = []
    for t in (1e-2, 5e-3):
        close = dataclasses.replace(decoder, W_E=middle + t * (decoder.W_E - middle), ln_embed=None)
        settings = {"resolve": "pooled", "direction": "noise", "precision": "fp64"}
        exact = patch_edges(close, clean=clean, corrupted=corrupted, metric=logit_diff(), **settings).effect
        off.append(float((eap(close, clean, corrupted, logit_diff()).scores - exact).norm()))
        assert off[-1] < 0.1 * exact.norm()
    assert 3.5 < off[0] / off[1] < 4.5


@pytest.mark.parametrize("name", ["preset", "grouped", "parallel", "normed residual"])
def test_scores_out_of_the_embedding_add_up_to_the_whole_effect_as_steps_grow(name):
    """Completeness of integrated gradients; a left Riemann sum of n steps is off by C / n."""
    decoder, (clean, corrupted) = small_decoder(name), prompts(3)
    metric, lengths = LogProb(torch.tensor([1, 2, 3])), torch.full((3,), 6)
    logits = [run_edge(decoder, decoder.embed(tokens), {})[0] for tokens in (clean, corrupted)]
    before, after = (metric_values(metric, x, logits[0], lengths) for x in logits)
    off = []
    for steps in (64, 128):
        scores = eap_ig(decoder, clean, corrupted, metric, steps=steps).scores
        off.append(float((scores[:, 0].sum(-1) - (after - before)).norm()))
    assert off[1] < 0.2 * float((after - before).norm())
    assert 1.8 < off[0] / off[1] < 2.2


def test_equal_prompts_score_zero_and_the_result_says_so():
    decoder, (clean, corrupted) = small_decoder("preset"), prompts()
    found = eap(decoder, clean, clean, logit_diff())
    assert not found.scores.any()
    silent = {item.name for item in found.no_effect}
    assert silent == {"prompt 0", "prompt 1", *found.senders}
    assert "M1: it writes the same in both runs" in str(found)
    assert set(found.to_frame()["no_effect"]) == {found.no_effect[-1].reason}
    one_same = torch.cat((clean[:1], corrupted[1:]))
    assert [item.name for item in eap(decoder, clean, one_same, logit_diff()).no_effect] == ["prompt 0"]


def test_heads_that_write_nothing_and_readers_that_do_not_matter_are_listed():
    decoder, (clean, corrupted) = small_decoder("preset"), prompts()
    first, second = decoder.layers
    mute = dataclasses.replace(first.attn, W_O=first.attn.W_O * torch.tensor([1.0, 0.0])[:, None, None])
    blind = dataclasses.replace(second.attn, W_V=second.attn.W_V * torch.tensor([0.0, 1.0])[:, None, None])
    layers = (dataclasses.replace(first, attn=mute), dataclasses.replace(second, attn=blind))
    found = eap(dataclasses.replace(decoder, layers=layers), clean, corrupted, logit_diff())
    reasons = {item.name: item.reason for item in found.no_effect}
    slots = {f"{head}.{kind}" for head in ("L0.H1", "L1.H0") for kind in "qkv"}
    assert set(reasons) == {"L0.H1", "L1.H0", *slots}
    assert reasons["L0.H1"].startswith("it writes the same") and reasons["L1.H0.v"].startswith("the metric's gradient")
    table = found.to_frame()
    assert (table[table["sender"] == "L0.H1"]["score"] == 0).all()
    assert (table[(table["no_effect"] == "")]["score"] != 0).all()


def test_a_shared_key_scores_what_its_copies_score_together():
    decoder, (clean, corrupted) = small_decoder("grouped"), prompts()

    def copied(layer):
        kept = {n: getattr(layer.attn, n).repeat_interleave(2, 0) for n in ("W_K", "W_V", "b_K", "b_V")}
        return dataclasses.replace(layer, attn=dataclasses.replace(layer.attn, **kept))

    apart = dataclasses.replace(decoder, layers=tuple(copied(layer) for layer in decoder.layers))
    shared, copies = (eap(one, clean, corrupted, logit_diff()) for one in (decoder, apart))
    for kind in "kv":
        for group in range(2):
            both = sum(copies[f"L0.H1->L1.H{head}.{kind}"] for head in (2 * group, 2 * group + 1))
            assert (shared[f"L0.H1->L1.KV{group}.{kind}"] - both).abs().max() < LIMIT
    assert (shared["embed->L1.H3.q"] - copies["embed->L1.H3.q"]).abs().max() < LIMIT


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", [eap, eap_ig])
def test_padded_prompts_score_as_they_do_alone(side, method):
    decoder, (clean, corrupted), lengths = small_decoder("grouped"), prompts(3), (6, 3, 4)
    places = torch.arange(6)
    mask = torch.stack([places < n if side == "right" else places >= 6 - n for n in lengths])
    targets = torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([[0, 0], [1, 1], [2, 2]])
    positions = torch.tensor([[5, 1], [2, 0], [-1, 1]])  # from each prompt's first token
    found = method(decoder, clean, corrupted, LogitDiff(*targets, positions), mask=mask, by_position=True)
    for row, real in enumerate(mask):
        own = LogitDiff(*(target[row : row + 1] for target in targets), positions[row : row + 1])
        alone = method(decoder, clean[row : row + 1, real], corrupted[row : row + 1, real], own, by_position=True)
        assert (found.scores[row, real] - alone.scores[0]).abs().max() < LIMIT * alone.scores.abs().max()
        assert not found.scores[row, ~real].any()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_function_of_logits_scores_as_the_metric_that_it_computes(side):
    decoder, (clean, corrupted) = small_decoder("parallel"), prompts(2)
    mask = torch.ones_like(clean, dtype=torch.bool)
    mask[1, : 2 if side == "left" else None] = side != "left"
    mask[1, 4:] &= side == "left"
    column = torch.tensor([5, 5 if side == "left" else 3])

    def function(logits: torch.Tensor) -> torch.Tensor:
        row = logits[torch.arange(2), column]
        return row[:, 0] - row[torch.arange(2), torch.arange(2) + 3]

    known = LogitDiff(torch.tensor([0, 0]), torch.tensor([3, 4]))
    expected = eap(decoder, clean, corrupted, known, mask=mask, by_position=True).scores
    for metric in (function, UserMetric(function)):
        found = eap(decoder, clean, corrupted, metric, mask=mask, by_position=True)
        assert (found.scores - expected).abs().max() < LIMIT * expected.abs().max()


@pytest.mark.parametrize("part", ["folded", "radial", "pushed_forward", "exists"])
def test_leaving_out_one_term_is_noticed(part, monkeypatch):
    decoder, (clean, corrupted) = small_decoder("normed residual"), prompts()
    expected = edge_scores(decoder, clean, corrupted, logit_diff(), names_of(decoder)).sum(1)
    if part == "folded":
        monkeypatch.setattr(gradient_edges, "folded", lambda norm, weight: weight)
    elif part == "pushed_forward":
        monkeypatch.setattr(gradient_edges, "pushed_forward", lambda norm, x, change: change)
    elif part == "radial":
        plain = gradient_reads.standardised
        monkeypatch.setattr(gradient_reads, "standardised", lambda *a: (0 * plain(*a)[0], plain(*a)[1]))
    found = eap(decoder, clean, corrupted, logit_diff())
    if part == "exists":
        assert not found.scores[:, ~found.exists].any() and found.exists.sum() == len(names_of(decoder))
    else:
        assert error(found, expected) > 1e-3


def test_table_has_a_line_for_each_edge_prompt_and_position():
    decoder, (clean, corrupted) = small_decoder("preset"), prompts(3)
    found = eap(decoder, clean, corrupted, logit_diff(3), by_position=True)
    edges = names_of(decoder)
    mean, each = found.to_frame(), found.to_frame(by_prompt=True)
    assert len(mean) == 6 * len(edges) and len(each) == 3 * len(mean)
    assert set(mean["edge"]) == set(edges) and set(mean["prompts"]) == {3}
    line = each[(each["edge"] == "L0.H1->M1") & (each["prompt"] == 2) & (each["pos"] == 4)]
    assert line["score"].item() == found["L0.H1->M1"][2, 4].item()
    assert line[["sender", "receiver"]].values.tolist() == [["L0.H1", "M1"]]
    average = each.groupby(["edge", "pos"])["score"].mean()
    assert abs(mean.set_index(["edge", "pos"])["score"] - average).max() < 1e-12
    with pytest.raises(UnknownName, match=r"unknown edge 'M1->L0\.H1\.q'"):
        found["M1->L0.H1.q"]
    with pytest.raises(UnknownName, match=r"unknown sender 'L0\.H7'"):
        found["L0.H7->logits"]


@pytest.mark.parametrize("positions", ["last", "all"])
def test_work_is_what_the_counter_of_matrix_products_counts(positions):
    model = random_model(n_layers=2, n_heads=2, d_model=32, d_vocab=30, n_ctx=20).float()
    clean, corrupted = (torch.randint(30, (3, 20), generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    rules = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
    }
    decoder, metric = decoder_of(model), logit_diff(3, positions)

    def counted(run) -> int:
        with FlopCounterMode(display=False, custom_mapping=rules) as counter:
            run()
        return counter.get_total_flops()

    plain = counted(lambda: forward(decoder, clean))
    for method, passes in ((eap, (2, 1)), (lambda *inputs: eap_ig(*inputs, steps=3), (4, 3))):
        work = method(decoder, clean, corrupted, metric).work
        assert (work.forwards, work.backwards) == passes
        found = counted(lambda method=method: method(decoder, clean, corrupted, metric)) / plain
        assert 0.98 < work.forward_equivalents / found < 1.02


def attention_flops(query, key, value, *rest, out_shape=None, **named) -> int:
    batch, heads, n_queries, d_head = query
    return 4 * batch * heads * n_queries * key[2] * d_head


def attention_backward_flops(grad, query, key, value, *rest, out_shape=None, **named) -> int:
    return int(FLASH_BACKWARD * attention_flops(query, key, value))


def test_a_caller_without_gradients_and_weights_with_them_change_nothing():
    model, (clean, corrupted) = random_model(), prompts()
    expected = eap(model, clean, corrupted, logit_diff()).scores
    with torch.no_grad():
        assert torch.equal(eap(model, clean, corrupted, logit_diff()).scores, expected)
    with torch.inference_mode():
        assert torch.equal(eap(model, clean, corrupted, logit_diff()).scores, expected)
    learning = dataclasses.replace(decoder_of(model), W_U=model.unembed.W_U, W_E=model.embed.W_E)
    assert torch.equal(eap(learning, clean, corrupted, logit_diff()).scores, expected)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_half_precision_weights_are_scored_in_float32():
    decoder, (clean, corrupted) = small_decoder("preset").to(torch.bfloat16), prompts()
    found, wide = (eap(one, clean, corrupted, logit_diff()) for one in (decoder, decoder.to(torch.float32)))
    assert found.scores.dtype == torch.float32
    assert torch.equal(found.scores, wide.scores)
