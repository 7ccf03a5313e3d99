"""Scores and null models of head scans against their definitions, written out."""

import dataclasses
import itertools

import pytest
import torch

from circuits.heads import twins
from circuits.heads.detect import detect_heads
from circuits.heads.probe import Vocabulary, repeat_probe
from circuits.heads.scan import p_values, sign_maxima
from circuits.heads.twins import TwinPlan, plan_twins, shape_of, twin_maxima
from circuits.heads.view import copying_score, views
from interp.decoder import attend, forward, normed, qkv
from interp.errors import UnknownName
from interp.registry import load
from interp.rng import generator
from probes.null import GAINS
from tests.truth.hand_heads import copy_head, induction_pair
from tests.unit.small_decoders import FAMILIES, small_decoder

KINDS = ("copying", "duplicate_token", "induction", "previous_token")


@pytest.mark.parametrize("name", FAMILIES)
def test_views_are_the_layers_of_the_forward_pass(name):
    """Float64, error below 1e-10: the last layer's pattern is that of the model's own last residual stream."""
    decoder = small_decoder(name)
    tokens = torch.randint(7, (2, 6), generator=generator(0, "tokens"))
    *_, last = views(decoder, tokens)
    cut = dataclasses.replace(
        decoder, layers=decoder.layers[:-1], ln_final=None, W_U=torch.eye(decoder.d_model).double()
    )
    stream = forward(dataclasses.replace(cut, b_U=None), tokens)
    _, pattern = attend(last.layer.attn, *qkv(last.layer, normed(last.layer.ln1, stream)))
    assert (last.pattern - pattern).abs().max() < 1e-10


@pytest.mark.parametrize("name", FAMILIES)
def test_copying_score_of_a_place_is_its_direct_logit_in_standard_deviations(name):
    """Float64, error below 1e-10, against logits of each head's write, centred and divided as the formula says."""
    decoder = small_decoder(name)
    tokens = torch.randint(7, (2, 6), generator=generator(0, "tokens"))
    norm = decoder.ln_final
    for view in views(decoder, tokens):
        found = view.raises(tokens)
        for row, head, place in itertools.product(range(2), range(decoder.n_heads), range(6)):
            attn = view.layer.attn
            write = view.v[row, place, head // attn.group] @ attn.W_O[head]
            if norm is not None:
                write = (write - write.mean()) * norm.w if norm.centred else write * norm.w
            logits = write @ decoder.W_U
            logits = logits - logits.mean()
            expected = logits[tokens[row, place]] / logits.square().mean().sqrt()
            assert (found[row, head, place] - expected).abs() < 1e-10


def test_eigenvalue_copying_score_is_one_for_a_head_that_copies_and_the_sign_follows_the_weights():
    decoder = copy_head()
    assert float(copying_score(decoder)[1, 0]) > 0.99
    decoder.layers[1].attn.W_O[0] *= -1
    assert float(copying_score(decoder)[1, 0]) < -0.99
    assert float(copying_score(induction_pair())[0, 1].abs()) < 0.9  # the previous token head writes no logits


def test_p_counts_ties_and_is_never_zero():
    observed = torch.tensor([[3.0, 2.0], [0.5, 9.0]])
    assert p_values(observed, torch.tensor([1.0, 2.0, 3.0])).tolist() == [[0.5, 0.75], [1.0, 0.25]]


def test_sign_draws_are_the_maxima_over_all_assignments_of_signs():
    """With three sequences there are eight assignments; each drawn maximum is one of theirs, and all occur."""
    contrast = torch.tensor([[[0.5, -0.25]], [[0.25, 0.125]], [[1.0, 2.0]]])
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)))
    every = (signs @ contrast.flatten(1) / 3).amax(1).double()
    drawn = sign_maxima(contrast, generator(0, "signs"))
    assert (drawn[:, None] - every).abs().min(1).values.max() < 1e-7
    assert (drawn[:, None] - every).abs().min(0).values.max() < 1e-7


def test_without_any_difference_every_p_is_one():
    contrast = torch.zeros(8, 2, 3)
    assert bool((p_values(contrast.mean(0), sign_maxima(contrast, generator(0, "signs"))) == 1).all())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("sharing", [1, 3])
def test_twins_of_every_family_give_one_maximum_each_in_the_range_of_the_score(name, sharing):
    decoder = small_decoder(name).to(torch.float32)
    probe = repeat_probe(decoder, Vocabulary(), 4, None, generator(0, "probe"))
    kinds = [load("detector", kind) for kind in KINDS]
    runs = [
        twin_maxima(decoder, probe.tokens, probe, kinds, TwinPlan(8, sharing), generator(3, "twins")) for _ in range(2)
    ]
    assert torch.equal(runs[0].maxima, runs[1].maxima)
    assert runs[0].gains.tolist() == list(GAINS) * 2
    assert len(runs[0].maxima.unique(dim=0)) == 8
    assert float(runs[0].maxima[:, 1:].min()) >= 0
    assert float(runs[0].maxima[:, 1:].max()) <= 1


def test_twins_depend_on_the_shape_and_never_on_the_weights():
    one, other = small_decoder("preset"), small_decoder("preset")
    other = dataclasses.replace(other, W_E=other.W_E + 1)
    assert shape_of(one) == shape_of(other)
    assert shape_of(one) != shape_of(small_decoder("preset", n_layers=3))
    assert shape_of(small_decoder("rms swiglu rotary")) != shape_of(
        small_decoder("rms swiglu rotary", rotary_base=50.0)
    )


def test_twins_share_streams_only_where_a_forward_is_dear():
    decoder = small_decoder("preset")
    probe = repeat_probe(decoder, Vocabulary(), 4, None, generator(0, "probe"))
    assert plan_twins(decoder, probe, None) == TwinPlan(None, 1)
    assert plan_twins(decoder, probe, 150) == TwinPlan(150, 1)
    for copies, sharing in ((10**5, 1), (10**6, 5), (10**8, 10)):
        many = dataclasses.replace(probe, tokens=probe.tokens[:1, :1].expand(copies, 9))
        assert plan_twins(decoder, many, None) == TwinPlan(None, sharing)


@pytest.mark.parametrize(("seconds", "n"), [(0.05, 400), (0.07, 400), (0.12, 200), (0.2, 100), (5.0, 100)])
def test_as_many_twins_are_made_as_their_time_allows(monkeypatch, seconds, n):
    """`seconds` is what each twin takes."""
    decoder = small_decoder("preset", n_layers=1)
    probe = repeat_probe(decoder, Vocabulary(), 2, 3, generator(0, "probe"))
    now, told = [0.0], []

    def group(*args):
        now[0] += seconds
        return torch.zeros(1, 1)

    monkeypatch.setattr(twins, "_group", group)
    monkeypatch.setattr(twins.time, "perf_counter", lambda: now[0])
    plan = plan_twins(decoder, probe, None)
    found = twin_maxima(decoder, probe.tokens, probe, [], plan, generator(0), lambda *one: told.append(one))
    assert (len(found.maxima), len(found.gains), told[-1]) == (n, n, (n, n))
    assert len(twin_maxima(decoder, probe.tokens, probe, [], TwinPlan(7, 1), generator(0)).maxima) == 7


def test_an_unknown_head_type_comes_with_the_nearest_known_one():
    with pytest.raises(UnknownName, match=r"unknown head type 'inductio'; did you mean 'induction'\?"):
        detect_heads(small_decoder("preset"), ["inductio"])
    with pytest.raises(UnknownName, match="unknown head type 'iteration_head'"):
        detect_heads(small_decoder("preset"), ["iteration_head"])
