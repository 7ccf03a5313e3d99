"""A 16-bit checkpoint runs in float32, and what that changes in logits and metric is measured on its own prompts."""

import re

import pytest
import torch

from circuits.drift import drift_of_pairs
from circuits.subject import of_path
from interp.adapters.drift import drift_of
from interp.decoder import forward
from interp.pairs.jsonl import read_jsonl
from tests.unit.random_bridges import HUGGING_FACE, hugging_face

LINES = """{"clean": [1, 2, 3], "corrupted": [4, 2, 3], "answers": 5, "wrong": 6}
{"clean": [7, 8, 9, 3], "corrupted": [7, 1, 9, 3], "answers": 2, "wrong": 1}
{"clean": [9, 8], "corrupted": [3, 8], "answers": 4, "wrong": [7, 5]}
{"clean": [11, 2, 3], "corrupted": [4, 2, 3], "answers": 5, "wrong": 6}
"""


@pytest.fixture
def folder(tmp_path):
    """A bfloat16 Llama with four prompt pairs of unequal length."""
    hugging_face(*HUGGING_FACE["llama"], torch.bfloat16).save_pretrained(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text(LINES)
    return tmp_path


@torch.no_grad()
def test_the_drift_of_the_metric_is_the_difference_of_two_forwards(folder):
    subject = of_path(folder / "model", folder / "pairs.jsonl")
    stated = dict(subject.processing)
    assert (subject.dtype, stated["bos"], stated["padding_side"]) == ("bfloat16", "False", "right")
    held_out = subject.pairs.of_part("evaluate")
    moved = []
    for row in range(len(held_out)):
        tokens = held_out.clean[row][held_out.mask[row]][None]
        logits = [
            forward(subject.decoder.to(dtype), tokens)[0, -1].float() for dtype in (torch.float32, torch.bfloat16)
        ]
        wrong = held_out.wrong[row, 0][held_out.wrong[row, 0] >= 0]
        values = [one[held_out.answers[row, 0]].mean() - one[wrong].mean() for one in logits]
        moved.append(float(values[0] - values[1]))
    found = re.fullmatch(
        r"mean ([+-]\S+), largest (\S+), of a mean \S+ \(n=1, float32 minus bfloat16\)", stated["drift_of_metric"]
    )
    assert float(found[1]) == pytest.approx(sum(moved) / len(moved), rel=0.02) and float(found[2]) > 0
    assert re.match(r"median \S+, largest \S+, same top token \d+% \(n=1", stated["drift_of_logits"])


def test_padding_on_the_left_changes_no_drift(folder):
    subject = of_path(folder / "model", folder / "pairs.jsonl")
    left, right = (read_jsonl(folder / "pairs.jsonl", None, d_vocab=23, padding=side) for side in ("left", "right"))
    found = [drift_of_pairs(subject.decoder, "bfloat16", pairs) for pairs in (left, right)]
    assert found[0] == found[1] and set(found[0]) == {"drift_of_metric", "drift_of_logits"}


def test_weights_of_32_bits_do_not_drift(folder):
    decoder = of_path(folder / "model", folder / "pairs.jsonl").decoder
    pairs = read_jsonl(folder / "pairs.jsonl", None, d_vocab=23)
    assert drift_of_pairs(decoder, "float32", pairs) == {} and drift_of(decoder, "float32") is None
    assert drift_of(decoder, "bfloat16").typical > 0
