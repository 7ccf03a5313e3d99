"""Break one term of the engine at a time: the comparison with forwards must see each."""

import dataclasses

import pytest
import torch

from circuits import patching
from circuits.engine import edges, sweep, wave
from circuits.engine.rows import Chosen
from circuits.patch_edges import patch_edges
from circuits.patching import patch_heads
from tests.unit.small_decoders import logit_diff, prompts, small_decoder
from tests.unit.test_patching import largest_error

COLUMN, OWN = sweep.column_update, sweep.own_row
ATTENTION, ROWS_TO_READ = wave._grouped_attention, sweep.rows_to_read


def no_key_change(attn, state, base, rows, p, dk, dv, mul):
    return COLUMN(attn, state, base, rows, p, torch.zeros_like(dk), dv, mul)


def no_value_change(attn, state, base, rows, p, dk, dv, mul):
    return COLUMN(attn, state, base, rows, p, dk, torch.zeros_like(dv), mul)


def no_query_change(attn, base, p, dq, dk, dv, mul):
    return OWN(attn, base, p, torch.zeros_like(dq), dk, dv, mul)


def frozen_scale(x, scale, delta, w, eps, centred):
    delta = delta - delta.mean(-1, keepdim=True) if centred else delta
    return delta * scale if w is None else delta * scale * w


def mask_one_later(q, k, v, visible, group, scale):
    return ATTENTION(q, k, v, visible.roll(1, -1) | visible, group, scale)


def rows_from_the_next(read, span):
    rows = ROWS_TO_READ(read, span)
    return dataclasses.replace(rows, index=rows.index - 1) if isinstance(rows, Chosen) else rows


def linear_mlp(layer, base, rows, delta, mul, onto):
    return onto.add_(delta)


BROKEN = {
    "the changed key is left out": (sweep, "column_update", no_key_change),
    "the changed value is left out": (sweep, "column_update", no_value_change),
    "the row's own query is left out": (sweep, "own_row", no_query_change),
    "the scale of a norm is frozen": (wave, "changed", frozen_scale),
    "attention sees one key too many": (wave, "_grouped_attention", mask_one_later),
    "the MLP is taken as the identity": (sweep, "mlp_delta", linear_mlp),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_term_is_seen_by_the_comparison(name, monkeypatch):
    module, attribute, wrong = BROKEN[name]
    decoder, (clean, corrupted) = small_decoder("preset", n_layers=4), prompts(length=5, same=1)
    runs = {"clean": clean, "corrupted": corrupted, "metric": logit_diff(positions="all"), "precision": "fp64"}
    assert largest_error(patch_heads(decoder, **runs)) < 1e-10
    monkeypatch.setattr(module, attribute, wrong)
    assert largest_error(patch_heads(decoder, **runs)) > 1e-6


def test_a_wrong_output_row_is_seen_by_the_comparison(monkeypatch):
    decoder, (clean, corrupted) = small_decoder("preset", n_layers=3), prompts(length=5, same=1)
    runs = {"clean": clean, "corrupted": corrupted, "metric": logit_diff(), "precision": "fp64"}
    monkeypatch.setattr(patching, "rows_to_read", rows_from_the_next)
    assert largest_error(patch_heads(decoder, **runs)) > 1e-6


def test_edges_that_are_not_renormalised_on_the_way_are_not_the_same(monkeypatch):
    decoder, (clean, corrupted) = small_decoder("normed residual", n_layers=3), prompts(length=5, same=1)
    runs = {"clean": clean, "corrupted": corrupted, "metric": logit_diff(positions="all"), "precision": "fp64"}
    right = patch_edges(decoder, **runs, senders=["embed"], receivers=["logits"]).effect
    monkeypatch.setattr(edges, "norm_delta", lambda norm, base, rows, delta, mul: delta)
    wrong = patch_edges(decoder, **runs, senders=["embed"], receivers=["logits"]).effect
    assert (wrong - right).abs().max() > 1e-6


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9])
def test_a_patched_attention_sink_keeps_its_digits_in_float32(gap):
    """Key 0 takes all but `gap` of every row's attention; patching it away leaves the others exact."""
    decoder = small_decoder("no norm, relu", n_layers=2, n_heads=1)
    sink = decoder.layers[1].attn
    direction = torch.zeros(8, 8, dtype=torch.float64)
    direction[0, 0] = 1.0
    attn = dataclasses.replace(sink, W_Q=0 * sink.W_Q, W_K=sink.W_K.clone(), b_Q=torch.zeros(1, 8).double())
    strength = float(torch.log(torch.tensor(1 / gap))) * 4
    attn.b_Q[0, 0] = strength
    attn.W_K[0] = 0.01 * attn.W_K[0]
    attn.W_K[0][:, 0] = 0
    attn.W_K[0][0, 0] = 1.0
    layers = (decoder.layers[0], dataclasses.replace(decoder.layers[1], attn=attn))
    W_E = decoder.W_E.clone()
    W_E[:, 0] = 0
    W_E[6, 0] = 1.0  # token 6 is the sink; the first prompt position holds it in the corrupted run only
    decoder = dataclasses.replace(decoder, layers=layers, W_E=W_E)
    clean, corrupted = prompts(n=2, length=6, same=0)
    clean, corrupted = clean % 6, corrupted % 6
    corrupted[:, 0] = 6
    runs = {"clean": clean, "corrupted": corrupted, "metric": logit_diff(positions="all"), "site": "resid_pre"}
    exact = patch_heads(decoder, **runs, layers=[1], precision="fp64").effect
    single = patch_heads(decoder.to(torch.float32), **runs, layers=[1]).effect
    assert bool(single.isfinite().all())
    assert (single - exact).norm() <= 1e-5 * exact.norm()
