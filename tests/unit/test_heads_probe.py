"""Prompts of head scans: blocks without a common token, special tokens left out, padding moved, clear refusals."""

import pytest
import torch

from circuits.heads.probe import MOST_TOKENS, Vocabulary, narrowed, pairs_probe, repeat_probe
from circuits.heads.scan import scan
from circuits.heads.targets import target_first, target_mass
from interp.errors import DetectorError, UsageError
from interp.pairs.base import Pairs
from interp.registry import load
from interp.rng import generator
from tests.unit.small_decoders import FAMILIES, small_decoder


def probe_of(decoder, vocabulary=None, n=5, block=None):
    """A repeat probe with a fixed seed."""
    return repeat_probe(decoder, vocabulary or Vocabulary(), n, block, generator(0, "test"))


def test_second_block_repeats_the_first_and_shares_no_token_with_the_other_one():
    decoder = small_decoder("preset", d_vocab=40, n_ctx=21)
    probe = probe_of(decoder, Vocabulary(bos=7, special=(0, 1)))
    assert (probe.start, probe.block, probe.tokens.shape) == (1, 10, (10, 21))
    assert bool((probe.tokens[:, 0] == 7).all())
    for clean, broken in zip(probe.clean, probe.broken, strict=True):
        first, second, other = clean[1:11], clean[11:], broken[1:11]
        assert torch.equal(first, second)
        assert torch.equal(broken[11:], second)
        assert len({*first.tolist(), *other.tolist()}) == 20
    assert not {0, 1, 7} & set(probe.tokens[:, 1:].flatten().tolist())


def test_random_prompts_of_a_large_vocabulary_use_few_tokens():
    decoder = small_decoder("preset", d_vocab=3000, n_ctx=50)
    probe = probe_of(decoder, Vocabulary(usable=range(1000, 2500)), n=100)
    used = probe.tokens.unique()
    assert (probe.block, len(used)) == (20, MOST_TOKENS)
    assert (int(used.min()) >= 1000, int(used.max()) < 2500) == (True, True)


@pytest.mark.parametrize(
    ("vocabulary", "block", "error", "says"),
    [
        (Vocabulary(usable=range(5)), None, DetectorError, "5 usable token ids and a context of 9"),
        (Vocabulary(bos=7), None, UsageError, "token id 7 is outside the model's vocabulary of 7"),
        (Vocabulary(usable=(0, -1)), None, UsageError, "token id -1"),
        (Vocabulary(), 4, UsageError, "block 4: expected 3 to 3"),
    ],
)
def test_prompts_that_do_not_fit_the_model_are_refused(vocabulary, block, error, says):
    with pytest.raises(error, match=says):
        probe_of(small_decoder("preset"), vocabulary, block=block)


def padded_pairs() -> Pairs:
    """Two prompts of lengths 4 and 3, padded on the left, of one unit each."""
    clean = torch.tensor([[1, 2, 3, 4], [0, 5, 6, 1]])
    mask = torch.tensor([[True] * 4, [False, True, True, True]])
    return Pairs(
        clean=clean,
        corrupted=clean,
        mask=mask,
        position=torch.tensor([[3], [3]]),
        answers=torch.tensor([[[1]], [[2]]]),
        wrong=torch.tensor([[[2]], [[3]]]),
        unit=torch.tensor([4, 9]),
        d_vocab=7,
        spans=({}, {}),
        group=("", ""),
        part=("", ""),
    )


def test_padding_of_given_prompts_is_moved_to_the_right():
    probe = pairs_probe(padded_pairs())
    assert probe.tokens[0].tolist() == [1, 2, 3, 4]
    assert probe.tokens[1, :3].tolist() == [5, 6, 1]
    assert probe.real.tolist() == [[True] * 4, [True, True, True, False]]
    assert probe.queries.tolist() == [[3], [2]]
    assert (probe.n_units, len(probe.broken)) == (2, 0)


def test_prompts_of_one_unit_are_averaged():
    pairs = padded_pairs()
    probe = pairs_probe(Pairs(**{**vars(pairs), "unit": torch.tensor([4, 4])}))
    assert probe.by_unit(torch.tensor([[1.0, 2.0], [3.0, 6.0]])).tolist() == [[2.0, 4.0]]


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_of_attention_do_not_depend_on_the_part_of_the_vocabulary_that_is_kept(name):
    """Float64, error below 1e-10: a scan of the narrowed decoder has the attention of the whole one."""
    decoder = small_decoder(name, d_vocab=300)
    probe = probe_of(decoder, Vocabulary(usable=range(3, 60, 7)))
    small, tokens = narrowed(decoder, probe, list(range(60)), generator(0, "part"))
    assert len(small.W_E) == 60
    kinds = [load("detector", name) for name in ("induction", "previous_token", "duplicate_token")]
    part, whole = scan(small, tokens, probe, kinds), scan(decoder, probe.tokens, probe, kinds)
    for kind in kinds:
        assert (part.found[kind.name].scores - whole.found[kind.name].scores).abs().max() < 1e-10
        assert torch.equal(part.found[kind.name].rates, whole.found[kind.name].rates)


def test_mass_and_rate_of_a_pattern_written_by_hand():
    pattern = torch.zeros(1, 1, 4, 4)
    pattern[0, 0, 2] = torch.tensor([0.5, 0.2, 0.3, 0.0])  # first place and own place do not count
    pattern[0, 0, 3] = torch.tensor([0.1, 0.4, 0.3, 0.2])
    queries, keys = torch.tensor([2, 3]), torch.tensor([1, 2])
    assert float(target_mass(pattern, queries, keys)) == pytest.approx((0.2 + 0.3) / 2)
    assert float(target_first(pattern, queries, keys)) == 0.5
