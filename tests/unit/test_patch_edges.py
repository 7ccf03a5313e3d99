"""Every edge of small decoders equals a forward in which that one receiver's input was changed by hand, in float64."""

import pytest
import torch

from circuits.engine.record import Record, record
from circuits.metrics import LogitDiff
from circuits.patch_edges import patch_edges
from circuits.patching_reference import decoder_logits_patched
from interp.decoder import Decoder, attend, normed, project
from interp.errors import UnknownName, UsageError
from tests.unit.small_decoders import FAMILIES, logit_diff, prompts, small_decoder


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of tiny products: a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def written(decoder: Decoder, sender: str, base: Record, source: Record) -> tuple[int, bool, torch.Tensor]:
    """(layer, whether it enters before the MLP, difference of the stream) of a sender."""
    if sender == "embed":
        return 0, False, source.layers[0].pre - base.layers[0].pre
    layer = int(sender[1:].split(".")[0])
    if sender[0] == "M":
        return layer + 1, False, source.layers[layer].mlp_out - base.layers[layer].mlp_out
    head = int(sender.split(".H")[1])
    change = (source.layers[layer].z - base.layers[layer].z)[:, :, head]
    return layer, True, change @ decoder.layers[layer].attn.W_O[head]


def carried(decoder: Decoder, base: Record, sender: str, source: Record, to: int, before_mlp: bool) -> torch.Tensor:
    """The sender's difference where layer `to` reads it, attention and MLP outputs on the way frozen."""
    layer, at_mid, delta = written(decoder, sender, base, source)
    for number in range(layer, to + 1):
        if number == to and not before_mlp:
            break
        block, run = decoder.layers[number], base.layers[number] if number < len(decoder.layers) else None
        if block.adds_to_normed and not (at_mid and number == layer):
            delta = normed(block.ln1, run.pre + delta) - run.normed_pre
    return delta


def slot_value(decoder: Decoder, base: Record, layer: int, kind: str, delta: torch.Tensor) -> torch.Tensor:
    """q, k or v before rotary positions when the stream changes by delta."""
    attn, block = decoder.layers[layer].attn, decoder.layers[layer]
    weight, bias = getattr(attn, f"W_{kind.upper()}"), getattr(attn, f"b_{kind.upper()}")
    return project(normed(block.ln1, base.layers[layer].pre + delta), weight, bias)


def only_at(delta: torch.Tensor, pos: int | slice) -> torch.Tensor:
    kept = torch.zeros_like(delta)
    kept[:, pos] = delta[:, pos]
    return kept


def one_edge(
    decoder: Decoder, tokens, base: Record, source: Record, sender: str, receiver: str, pos: int | slice
) -> torch.Tensor:
    """Logits with the receiver's input changed by one sender at one position, or at all of a slice."""
    if receiver == "logits":
        delta = carried(decoder, base, sender, source, len(decoder.layers), False)
        return decoder.logits(base.final + only_at(delta, pos))
    layer = int(receiver[1:].split(".")[0])
    block = decoder.layers[layer]
    if receiver[0] == "M":
        reads = base.layers[layer].pre if block.parallel else base.layers[layer].mid
        delta = only_at(carried(decoder, base, sender, source, layer, not block.parallel), pos)
        post = block.mlp.post(normed(block.ln2, reads + delta))
        return decoder_logits_patched(decoder, tokens, lambda s, n, x: post if (s, n) == ("mlp_post", layer) else x)
    kind, head = receiver[-1], int(receiver.split(".")[1].strip("HKV"))
    value = slot_value(decoder, base, layer, kind, only_at(carried(decoder, base, sender, source, layer, False), pos))

    def edit(site, number, x):
        if (site, number) != (kind, layer):
            return x
        changed = x.clone()
        changed[:, pos, head] = value[:, pos, head]
        return changed

    return decoder_logits_patched(decoder, tokens, edit)


def metric_of(metric: LogitDiff, logits: torch.Tensor) -> torch.Tensor:
    n = torch.arange(len(logits))
    wanted = logits[n, :, metric.correct] - logits[n, :, metric.wrong]  # [batch pos]
    return wanted.mean(1) if metric.positions == "all" else wanted[:, -1]


def largest_error(decoder: Decoder, metric: LogitDiff, length: int = 5) -> tuple[float, float]:
    """Over every edge and position, and the largest effect."""
    clean, corrupted = prompts(length=length, same=1)
    result = patch_edges(decoder, clean=clean, corrupted=corrupted, metric=metric, precision="fp64")
    base, source = record(decoder, corrupted), record(decoder, clean)
    before, errors = metric_of(metric, decoder_logits_patched(decoder, corrupted)), []
    for sender, receiver in result.graph.edges:
        names = result.graph.senders[sender], result.graph.receivers[receiver]
        for pos in range(length):
            logits = one_edge(decoder, corrupted, base, source, *names, pos)
            expected = metric_of(metric, logits) - before
            errors.append((result.effect[:, sender, receiver, pos] - expected).abs().max())
    assert not bool(result.effect[:, ~result.graph.exists].any())
    return float(torch.stack(errors).max()), float(result.effect.abs().max())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("positions", ["last", "all"])
def test_every_edge_equals_a_forward_with_one_changed_input(name, positions):
    error, largest = largest_error(small_decoder(name), logit_diff(positions=positions))
    assert error < 1e-10
    assert largest > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_edge_of_three_layers_equals_a_forward(name):
    error, _ = largest_error(small_decoder(name, n_layers=3), logit_diff(positions="all"))
    assert error < 1e-10


def one_query(decoder: Decoder, base: Record, layer: int, kind: str, head: int, value, key: int, query: int):
    """z of a layer when one query alone sees another key or value."""
    run, attn = base.layers[layer], decoder.layers[layer].attn
    k, v = run.k.clone(), run.v.clone()
    position = torch.arange(run.pre.shape[1])[None]
    turned = attn.rotary(value, position) if kind == "k" and attn.rotary is not None else value
    (k if kind == "k" else v)[:, key, head] = turned[:, key, head]
    z, heads = run.z.clone(), slice(head * attn.group, (head + 1) * attn.group)
    z[:, query, heads] = attend(attn, run.q, k, v)[0][:, query, heads]
    return z


@pytest.mark.parametrize("name", ["preset", "grouped", "grouped parallel"])
@pytest.mark.parametrize("positions", ["last", "all"])
def test_key_and_value_edges_by_query_equal_a_forward_with_one_changed_score(name, positions):
    decoder, length, metric = small_decoder(name), 4, logit_diff(positions=positions)
    clean, corrupted = prompts(length=length, same=1)
    result = patch_edges(decoder, clean=clean, corrupted=corrupted, metric=metric, precision="fp64", resolve="query")
    base, source = record(decoder, corrupted), record(decoder, clean)
    before = metric_of(metric, decoder_logits_patched(decoder, corrupted))
    seen = 0
    for sender, receiver in result.graph.edges:
        name = result.graph.receivers[receiver]
        if name[-2:] not in (".k", ".v"):
            continue
        layer, head = int(name[1:].split(".")[0]), int(name.split(".")[1].strip("HKV"))
        delta = carried(decoder, base, result.graph.senders[sender], source, layer, False)
        value = slot_value(decoder, base, layer, name[-1], delta)
        for key in range(length):
            for query in range(length):
                z = one_query(decoder, base, layer, name[-1], head, value, key, query)
                logits = decoder_logits_patched(
                    decoder, corrupted, lambda s, n, x, z=z, layer=layer: z if (s, n) == ("z", layer) else x
                )
                expected = (metric_of(metric, logits) - before) * (query >= key)
                assert (result.effect[:, sender, receiver, key, query] - expected).abs().max() < 1e-10
                seen += 1
    assert seen > 50


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("positions", ["last", "all"])
def test_pooled_edges_equal_a_forward_with_the_whole_input_changed(name, positions):
    decoder, metric = small_decoder(name, n_layers=3), logit_diff(positions=positions)
    clean, corrupted = prompts(length=5, same=1)
    result = patch_edges(decoder, clean=clean, corrupted=corrupted, metric=metric, precision="fp64", resolve="pooled")
    base, source = record(decoder, corrupted), record(decoder, clean)
    before = metric_of(metric, decoder_logits_patched(decoder, corrupted))
    for sender, receiver in result.graph.edges:
        names = result.graph.senders[sender], result.graph.receivers[receiver]
        expected = metric_of(metric, one_edge(decoder, corrupted, base, source, *names, slice(None))) - before
        assert (result.effect[:, sender, receiver] - expected).abs().max() < 1e-10


def test_chosen_edges_and_small_budgets_change_no_number():
    decoder, metric = small_decoder("preset", n_layers=3), logit_diff(positions="all")
    clean, corrupted = prompts()
    runs = {"clean": clean, "corrupted": corrupted, "metric": metric, "precision": "fp64"}
    whole = patch_edges(decoder, **runs)
    tight = patch_edges(decoder, **runs, max_bytes=1)
    assert (tight.effect - whole.effect).abs().max() < 1e-12
    some = patch_edges(decoder, **runs, senders=["L0.H1"], receivers=["L2.H0.k", "M1", "logits"])
    assert (some.score("L0.H1->L2.H0.k") - whole.score("L0.H1->L2.H0.k")).abs().max() < 1e-12
    assert int(some.asked.sum()) == 3
    assert len(some.to_frame()) == 3 * 2 * 6


@pytest.mark.parametrize("direction", ["noise", "denoise"])
@pytest.mark.parametrize("name", ["preset", "grouped"])
def test_edges_by_name_have_the_effects_that_all_edges_have(name, direction):
    decoder, metric = small_decoder(name, n_layers=3), logit_diff(positions="all")
    clean, corrupted = prompts()
    runs = {"clean": clean, "corrupted": corrupted, "metric": metric, "precision": "fp64", "direction": direction}
    values = "L2.KV1.v" if name == "grouped" else "L2.H1.v"
    edges = ["embed->L1.H0.q", f"L0.H1->{values}", "M0->M2", "L1.H1->logits"]
    for resolve in ("pooled", "position", "query"):
        whole, some = (
            patch_edges(decoder, **runs, resolve=resolve),
            patch_edges(decoder, **runs, edges=edges, resolve=resolve),
        )
        assert int(some.asked.sum()) == 4 and some.branches < whole.branches
        assert not some.effect[:, ~some.asked].any()
        for edge in edges:
            assert some.score(edge).any() and (some.score(edge) - whole.score(edge)).abs().max() < 1e-12
    both = patch_edges(decoder, **runs, edges=edges, receivers=["M2"])
    assert int(both.asked.sum()) == 1 and both.score("M0->M2").any()


def test_unknown_nodes_and_resolutions_are_refused():
    decoder, (clean, corrupted) = small_decoder("preset"), prompts()
    runs = {"clean": clean, "corrupted": corrupted, "metric": logit_diff()}
    with pytest.raises(UnknownName, match=r"L0\.H1"):
        patch_edges(decoder, **runs, senders=["L0.H7"])
    with pytest.raises(UnknownName, match="M0->L0"):
        patch_edges(decoder, **runs, edges=["M0->L0.H0.q"])
    with pytest.raises(UsageError, match="resolve"):
        patch_edges(decoder, **runs, resolve="head")
