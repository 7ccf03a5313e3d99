"""Causal checks of heads: their numbers are those of plain forwards, and their controls and refusals are as stated."""

import pytest
import torch

from circuits.detectors.copying import Copying
from circuits.heads.checks import Setting, everyone, mean_ablation, other_previous_token, thinned, without_repeat
from circuits.heads.detect import HeadOptions, detect_heads
from circuits.heads.probe import Vocabulary, repeat_probe
from circuits.heads.scan import scan
from circuits.patching_reference import decoder_logits_patched
from interp.errors import UsageError
from interp.pairs.base import Pairs
from interp.rng import generator
from tests.truth.hand_heads import N_TOKENS, TOK, copy_head, duplicate_head, induction_pair, repeats_right
from tests.unit.small_decoders import FAMILIES, small_decoder


def setting_of(decoder, flagged=(), typed=()) -> Setting:
    """What checks need, for some heads that count as flagged."""
    probe = repeat_probe(decoder, Vocabulary(), 6, None, generator(0, "probe"))
    seen = scan(decoder, probe.tokens, probe, [Copying()])
    stream = generator(0, "intervals")
    return Setting(decoder, probe, seen.spent, seen.attended, frozenset(flagged), frozenset(typed), stream, "fp64")


def recorded_z(decoder, tokens):
    """z of each layer, by a plain forward."""
    kept = {}

    def keep(site, layer, activation):
        if site == "z":
            kept[layer] = activation
        return activation

    return decoder_logits_patched(decoder, tokens, keep), kept


def with_z(decoder, tokens, head, value, places):
    """Logits with one head's z replaced at some places, by a plain forward."""

    def edit(site, layer, activation):
        if (site, layer) != ("z", head[0]):
            return activation
        activation = activation.clone()
        activation[:, places, head[1]] = value
        return activation

    return decoder_logits_patched(decoder, tokens, edit)


@pytest.mark.parametrize("name", FAMILIES)
def test_mean_ablation_costs_what_plain_forwards_say(name):
    """Float64, error below 1e-10 of a nat."""
    decoder = small_decoder(name)
    setting = setting_of(decoder)
    tokens, places = setting.probe.clean, thinned(setting.probe.second[:-1])
    logits, z = recorded_z(decoder, tokens)
    for head in ((0, 1), (1, 0)):
        (check,) = mean_ablation(setting, [head], setting.repeated_token())
        mean = z[head[0]][:, :, head[1]].mean((0, 1))
        ablated = with_z(decoder, tokens, head, mean, slice(None))
        before, after = (
            one[:, places].log_softmax(-1).gather(-1, tokens[:, places + 1, None]).mean() for one in (logits, ablated)
        )
        assert abs(check.effect.value - float(before - after)) < 1e-10
        assert abs(check.base.value - float(before)) < 1e-10


@pytest.mark.parametrize("name", FAMILIES)
def test_taking_the_repeat_away_costs_the_divergence_that_plain_forwards_say(name):
    """Float64, error below 1e-10 of a nat."""
    decoder = small_decoder(name)
    setting = setting_of(decoder)
    probe = setting.probe
    logits, _ = recorded_z(decoder, probe.clean)
    _, other = recorded_z(decoder, probe.broken)
    head = (0, 1)
    (check,) = without_repeat(setting, [head], None)
    changed = with_z(decoder, probe.clean, head, other[0][:, probe.second, 1], probe.second)
    places = thinned(probe.second)
    p, q = (one[:, places].log_softmax(-1) for one in (logits, changed))
    assert abs(check.effect.value - float((p.exp() * (p - q)).sum(-1).mean())) < 1e-10


def test_only_the_previous_token_of_the_last_place_is_changed():
    decoder = copy_head()
    (check,) = other_previous_token(setting_of(decoder), [(1, 0)])
    assert (check.tested, check.passed) == (True, True)
    (check,) = other_previous_token(setting_of(duplicate_head()), [(0, 3)])
    assert check.moved < 1  # attends to the earlier occurrence or the first place, not to the previous one
    assert check.passed is not True


def test_controls_are_unflagged_heads_of_the_same_layer_without_another_type_first():
    decoder = induction_pair()
    controls, words = setting_of(decoder, flagged={(1, 2)}, typed={(1, 2), (1, 0)}).controls((1, 2))
    assert sorted(controls) == [(1, 1), (1, 3)]
    assert "same layer" in words
    controls, _ = setting_of(decoder, flagged={(1, 2)}, typed={(1, h) for h in range(4)}).controls((1, 2))
    assert sorted(controls) == [(1, 0), (1, 1), (1, 3)]
    controls, words = setting_of(decoder, flagged={(1, h) for h in range(4)}).controls((1, 2))
    assert (controls, words) == ([], "none: every head of the layer is flagged")


def test_controls_are_those_that_spend_as_much_attention():
    setting = setting_of(induction_pair(), flagged={(0, 0)})
    near = setting.controls((0, 0))[0]
    gap = {head: abs(float(setting.spent[0, head] - setting.spent[0, 0])) for head in (1, 2, 3)}
    assert [head for _, head in near] == sorted(gap, key=gap.get)
    assert len(everyone(setting, [(0, 0), (0, 0)])) == 4


def test_a_divergence_without_a_control_is_not_tested_and_a_loss_stands_alone():
    setting = setting_of(induction_pair(), flagged={(1, h) for h in range(4)})
    (divergence,) = without_repeat(setting, [(1, 2)], None)
    (loss,) = without_repeat(setting, [(1, 2)], setting.repeated_token())
    assert (divergence.tested, divergence.passed, divergence.control) == (False, None, None)
    assert "needs a control head" in divergence.note
    assert (loss.tested, loss.passed, loss.control) == (True, True, None)


def test_a_model_that_repeats_is_seen_to_do_so_and_another_is_not():
    assert repeats_right(induction_pair()) == 1
    assert setting_of(induction_pair()).predicts_repeats()
    assert not setting_of(copy_head()).predicts_repeats()


def test_no_more_heads_are_tested_than_asked_for_and_the_rest_are_candidates():
    options = HeadOptions(n_null=100, n_sequences=16, most_checked=0)
    (found,) = detect_heads(induction_pair(), ["induction"], options=options)
    assert (found.verdict, found.candidates, found.causal) == ("candidate", ["L1.H2"], [])
    assert any("1 of 1 flagged heads were not tested" in limit for limit in found.limits)


def names_pairs(n: int = 24, d_vocab: int = N_TOKENS) -> Pairs:
    """Prompts A B C D E read at the last place, where the token before it is the answer."""
    clean = torch.rand(n, d_vocab, generator=generator(0, "names")).argsort(1)[:, :5]
    return Pairs(
        clean=clean,
        corrupted=clean.roll(1, 0),
        mask=torch.ones_like(clean, dtype=torch.bool),
        position=torch.full((n, 1), 4),
        answers=clean[:, 3, None, None],
        wrong=clean[:, 2, None, None],
        unit=torch.arange(n),
        d_vocab=d_vocab,
        spans=({},) * n,
        group=("",) * n,
        part=("",) * n,
    )


def test_on_given_prompts_a_copy_head_is_read_where_the_answer_is():
    options = HeadOptions(n_null=100)
    found = detect_heads(copy_head(), ["copying", "previous_token"], pairs=names_pairs(), options=options)
    assert [(one.verdict, one.heads) for one in found] == [
        ("copy head", ["L1.H0"]),
        ("previous token head", ["L1.H0"]),
    ]
    assert found[0].prompts.startswith("the prompts given; 24 prompts of 5 tokens")
    assert "random tokens" in found[1].prompts


def test_given_prompts_with_tokens_that_the_model_does_not_have_are_refused():
    assert len(TOK) == N_TOKENS
    with pytest.raises(UsageError, match=f"token ids up to {N_TOKENS}, but this model has {N_TOKENS}"):
        detect_heads(copy_head(), ["copying"], pairs=names_pairs(d_vocab=N_TOKENS + 1))
