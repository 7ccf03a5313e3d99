"""Trained models that lack the textbook heads, or have them silenced, are never called an iteration head."""

import pytest
import torch

from circuits.detectors.base import Detection
from circuits.detectors.iteration_head import DETECTOR, Options
from interp.errors import DetectorError
from interp.evaluate import teacher_forced
from tests.truth.exported import Exported, exported
from tests.truth.pattern_surgery import label_model

SMALL = Options(n_null=99, per_step=4, per_length=16, accuracy_sequences=128)
QUICK = (2, 4, 9, 12, 16)
KINDS = {
    "no chain of thought": "no-chain-of-thought-s*",
    "reversed order": "reversed-s*",
    "another offset": "shifted-s*",
    "solved without the head": "copy-scratch-s*",
}


def judged(entry: Exported, *, silence: str = "", thorough: bool = False) -> Detection:
    """Detection on a trained model, with its reading or clock head's OV set to zero first where asked."""
    model, task, held_out = entry.load()
    sequences = held_out if thorough else {length: held_out[length] for length in QUICK}
    if silence:
        heads = label_model(model, task, sequences)
        layer, head = map(int, getattr(heads, silence).removeprefix("L").split(".H"))
        with torch.no_grad():
            model.blocks[layer].attn.W_V[head] = 0
        answers = [teacher_forced(model, task, tokens, n).sequence.float().mean() for n, tokens in sequences.items()]
        assert min(answers) < 0.5, "silencing the head breaks the task"
    return DETECTOR.detect(model, task, sequences=sequences, options=Options() if thorough else SMALL)


def verdict(entry: Exported, *, thorough: bool) -> str:
    """What the detector says, "declined" where it refuses to look."""
    if entry.iterates:
        return judged(entry, thorough=thorough).verdict
    with pytest.raises(DetectorError, match="without chain of thought"):
        judged(entry, thorough=thorough)
    return "declined"


def trained_polynomials() -> list[Exported]:
    """Solved polynomial runs of the preset."""
    return [entry for entry in exported("polynomial-d32-s*") if entry.solved]


@pytest.mark.parametrize("role", ["reading", "clock"])
def test_a_right_pattern_with_its_values_zeroed_is_refused(role, without_carriers):
    found = judged(trained_polynomials()[0], silence=role)
    assert found.verdict in ("candidate", "not solved", "none")
    if role == "reading":  # its pattern is untouched, so that only the causal checks can refuse it
        assert found.verdict == "candidate"


@pytest.mark.parametrize("kind", KINDS)
def test_one_trained_hard_negative_of_each_kind_is_refused(kind, without_carriers):
    (first, *_) = exported(KINDS[kind])
    assert verdict(first, thorough=False) != "iteration head"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_hard_negative_is_refused(kind, without_carriers):
    models = exported(KINDS[kind])
    assert models, f"no model of {KINDS[kind]} in tests/truth/models: export the zoo again"
    verdicts = {entry.name: verdict(entry, thorough=True) for entry in models}
    assert "iteration head" not in verdicts.values(), verdicts
    solved = {verdicts[entry.name] for entry in models if entry.solved and entry.iterates}
    assert solved <= {"solved without the textbook head"}, verdicts


@pytest.mark.slow
@pytest.mark.parametrize("role", ["reading", "clock"])
def test_every_silenced_polynomial_is_refused(role, without_carriers):
    verdicts = {entry.name: judged(entry, silence=role).verdict for entry in trained_polynomials()}
    assert len(verdicts) >= 7
    assert "iteration head" not in verdicts.values(), verdicts
