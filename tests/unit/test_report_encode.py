"""The 8-bit encoding of attention patterns, and JSON that can stand inside a page."""

import base64
import json

import numpy as np
import pytest

from circuits.report.canvas.encode import MAX_ERROR, decode_pattern, encode_pattern, grid_data, inline_json
from circuits.report.canvas.sources import grid_script, heat_script


def test_hand_made_values_have_the_expected_bytes():
    pattern = np.array([[[[1.0, 0.0], [0.25, 0.01]]]])
    assert list(base64.b64decode(encode_pattern(pattern))) == [255, 0, 128, 26]  # 127.5 rounds to even


def test_every_probability_comes_back_within_the_stated_error():
    values = np.linspace(0, 1, 10_001).reshape(1, 1, 1, -1)
    gap = np.abs(decode_pattern(encode_pattern(values), values.shape) - values)
    assert gap.max() <= MAX_ERROR
    assert gap[values < 0.01].max() < 0.0004


def test_axes_keep_their_order():
    pattern = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5) / 120
    back = decode_pattern(encode_pattern(pattern), pattern.shape)
    assert np.abs(back - pattern).max() <= MAX_ERROR


@pytest.mark.parametrize("bad", [1.01, -0.01, float("nan"), float("inf")])
def test_what_is_no_probability_is_refused(bad):
    with pytest.raises(ValueError, match="must be finite and lie in"):
        encode_pattern(np.full((1, 1, 1, 1), bad))


def test_inline_json_cannot_end_its_script_element_and_reads_back_the_same():
    value = {"a": "</script><!--\u2028\u2029&amp;", "b": ["]]>", 1.5]}
    text = inline_json(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value


def test_grid_data_has_what_the_script_reads():
    data = grid_data([], n_layers=2, n_heads=1, steps=[0], roles={"L1.H0": "reading head"}, emerged=None)
    for name in data:
        assert f"{name}" in grid_script(), name


def test_the_script_never_turns_text_into_markup():
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert word not in grid_script() + heat_script()
