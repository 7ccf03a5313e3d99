"""Head types: found where they were planted or trained, called candidates where they do nothing, absent elsewhere."""

import pytest
import torch

from circuits.heads.detect import HeadOptions, detect_heads
from circuits.heads.probe import Vocabulary
from interp.config import ModelConfig
from interp.model import Transformer
from interp.rng import generator
from tests.truth.hand_heads import BOS, copy_head, duplicate_head, fixed_offset, induction_pair, repeats_right, without

FEW = HeadOptions(n_null=100, n_sequences=32)


def found(model, types=None, **given) -> dict:
    """Head type to confirmed heads and candidates."""
    detections = detect_heads(model, types, options=FEW, **given)
    return {one.detector: (one.heads, one.candidates) for one in detections}


@pytest.mark.parametrize("seed", range(3))
def test_planted_induction_pair_is_found_and_nothing_else(seed):
    decoder = induction_pair(seed)
    assert repeats_right(decoder) == 1
    assert found(decoder) == {
        "copying": (["L1.H2"], []),  # an induction head copies what it looks at
        "duplicate_token": ([], []),
        "induction": (["L1.H2"], []),
        "previous_token": (["L0.H1"], []),
    }


@pytest.mark.parametrize("seed", range(3))
def test_planted_duplicate_token_head_is_found_and_nothing_else(seed):
    vocabulary = Vocabulary(bos=BOS)
    assert found(duplicate_head(seed), vocabulary=vocabulary) == {
        "copying": ([], []),
        "duplicate_token": (["L0.H3"], []),
        "induction": ([], []),
        "previous_token": ([], []),
    }


@pytest.mark.parametrize("seed", range(3))
def test_planted_copy_head_is_found_and_is_also_a_previous_token_head(seed):
    assert found(copy_head(seed)) == {
        "copying": (["L1.H0"], []),
        "duplicate_token": ([], []),
        "induction": ([], []),
        "previous_token": (["L1.H0"], []),
    }


def test_a_head_that_looks_right_and_writes_nothing_is_a_candidate_that_failed():
    detection = detect_heads(without(induction_pair(), 1, 2, "W_O"), ["induction"], options=FEW)[0]
    assert (detection.verdict, detection.heads, detection.candidates) == ("candidate", [], ["L1.H2"])
    assert [(check.tested, check.passed) for check in detection.causal] == [(True, False)] * 2
    assert all(check.effect.value == 0 for check in detection.causal)


def test_a_head_whose_output_does_not_move_is_not_tested():
    detection = detect_heads(without(induction_pair(), 1, 2, "W_V"), ["induction"], options=FEW)[0]
    assert (detection.verdict, detection.candidates) == ("candidate", ["L1.H2"])
    assert [(check.tested, check.passed) for check in detection.causal] == [(False, None)] * 2
    assert all("did not move" in check.note for check in detection.causal)


def test_a_previous_token_head_without_use_is_a_candidate():
    unread = without(induction_pair(), 1, 2, "W_V")  # the head that reads what L0.H1 writes is dead
    detection = detect_heads(unread, ["previous_token"], options=FEW)[0]
    assert (detection.verdict, detection.candidates) == ("candidate", ["L0.H1"])
    repeats, other = detection.causal
    assert (repeats.tested, repeats.passed, repeats.effect) == (False, None, None)
    assert "does not predict repeated tokens" in repeats.note
    assert (other.tested, other.passed) == (True, False)


@pytest.mark.parametrize(("kind", "back"), [("induction", 5), ("duplicate_token", 6)])
def test_a_head_that_looks_a_fixed_number_of_places_back_is_stopped_by_the_prompts_without_a_repeat(kind, back):
    options = HeadOptions(n_null=100, n_sequences=32, block=6)
    (detection,) = detect_heads(fixed_offset(back), [kind], options=options)
    row = next(row for row in detection.scores if row.component == "L1.H2")
    assert row.score.value > 0.99
    assert row.rate == 1
    assert row.p_twins < 0.01
    assert row.p_prompts > 0.05
    assert detection.verdict == "none"


def test_a_copying_pattern_with_negative_sign_is_no_copy_head():
    decoder = copy_head()
    decoder.layers[1].attn.W_O[0] *= -1
    detection = detect_heads(decoder, ["copying"], options=FEW)[0]
    assert detection.verdict == "none"
    row = next(row for row in detection.scores if row.component == "L1.H0")
    assert row.score.high < 0
    assert row.copying < -0.99


def test_untrained_models_have_no_head_of_any_type():
    """At level .05 over heads and types; the twins, most of which are sharper, make this conservative."""
    cfg = ModelConfig(n_layers=2, n_heads=4, d_model=32, d_vocab=30, n_ctx=40)
    nulls, flagged, confirmed = {}, 0, 0
    for seed in range(60):
        model = Transformer(cfg, seed=seed).eval()
        detections = detect_heads(model, options=HeadOptions(n_null=100, n_sequences=16), nulls=nulls)
        flagged += any(one.verdict != "none" for one in detections)
        confirmed += sum(len(one.heads) for one in detections)
    assert len(nulls) == 1
    assert (flagged, confirmed) == (0, 0)


def test_untrained_models_with_sharp_attention_reach_the_level_no_more_often_than_it_says():
    """These are drawn like the twins, so p alone is on trial: 6 of 40 is the 99 % binomial bound at level .05."""
    cfg = ModelConfig(n_layers=2, n_heads=4, d_model=32, d_vocab=30, n_ctx=40)
    nulls, reached, flagged = {}, 0, 0
    for seed in range(40):
        model = Transformer(cfg, seed=seed).eval()
        with torch.no_grad():
            for block in model.blocks:
                block.attn.W_Q *= (1, 10, 30, 100)[seed % 4]
        options = HeadOptions(n_null=100, n_sequences=16, causal=False)
        detections = detect_heads(model, options=options, nulls=nulls)
        reached += any(row.p_value <= 0.05 for one in detections for row in one.scores)
        flagged += any(one.verdict != "none" for one in detections)
    assert reached <= 6
    assert flagged <= reached


def repeats(stream: torch.Generator, n: int = 64, tokens: int = 16, length: int = 20):
    """Cycles of 4 to 9 different random tokens, and where the next token is known."""
    rows = torch.rand(n, tokens, generator=stream).argsort(1)
    period = torch.randint(4, 10, (n, 1), generator=stream)
    place = torch.arange(length)[None]
    return rows.gather(1, place % period), (place >= period)[:, 1:]


@pytest.fixture(scope="module", params=[0, 1])
def trained(request) -> Transformer:
    """A two-layer attention-only model with rotary positions, trained on repeats for 400 steps."""
    cfg = ModelConfig(n_layers=2, n_heads=2, d_model=48, d_vocab=16, n_ctx=20, attn_only=True, positions="rotary")
    model, stream = Transformer(cfg, seed=request.param), generator(request.param, "repeats")
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(400):
        tokens, known = repeats(stream)
        loss = torch.nn.functional.cross_entropy(model(tokens)[:, :-1][known], tokens[:, 1:][known])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.05
    return model.eval()


def test_a_model_trained_on_repeats_has_previous_token_and_induction_heads(trained):
    types = found(trained)
    induction, previous = types["induction"][0], types["previous_token"][0]
    assert induction
    assert previous
    assert all(head.startswith("L1.") for head in induction)
    assert all(head.startswith("L0.") for head in previous)
    assert types["duplicate_token"] == ([], [])
    assert set(types["copying"][0]) == set(induction)


def test_the_null_depends_on_the_shape_and_the_prompts_alone(trained):
    nulls = {}
    detect_heads(trained, options=FEW, nulls=nulls)
    (first,) = nulls
    cfg = trained.cfg.model_copy(update={"n_heads": 4})
    detect_heads(Transformer(trained.cfg, seed=7).eval(), options=FEW, nulls=nulls)
    assert list(nulls) == [first]
    detect_heads(Transformer(cfg, seed=7).eval(), options=FEW, nulls=nulls)
    assert len(nulls) == 2
