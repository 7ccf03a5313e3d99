"""Every kernel, in Triton's interpreter, is as exact as its torch reference; one wrong term is noticed."""

from importlib.util import find_spec

import pytest

from tests.tensors.comparing import CASES, DRAWN, interpreted

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

SEEDS = [(op, seed) for op in DRAWN for seed in range(5)]
PREFIX_KEY = "        key = tl.load(k + at, seen, 0.0).to(tl.float32)\n"
OWN_KEY = "key = tl.load(k + at, seen, 0.0).to(tl.float32) + tl.load(d_k"
OWN_VALUE = "value = tl.load(v + at, seen, 0.0).to(tl.float32) + tl.load(d_v"
SAME_BRANCH = "((r // length)[None, :] == branch[:, None]) & "
MUTATIONS = {
    "largest weight not left out": (
        "one_column",
        "sink, 1 - a about 1e-9",
        "is_top = top_row == p",
        "is_top = top_row < -9",
    ),
    "base value not gathered": ("one_column", "d_head 32", "toward = v_p[None, :] -", "toward = 0.0 -"),
    "difference by subtraction": ("one_column", "small differences", "near * y, tl.exp", "tl.exp(x) - 1.0, tl.exp"),
    "mask < for <=": ("suffix_attention", "first position", "j[None, :] <= pos", "j[None, :] < pos"),
    "branches see each other": ("suffix_attention", "metric rows only", SAME_BRANCH, ""),
    "base key not gathered": ("suffix_attention", "ragged groups of two prompts", OWN_KEY, "key = tl.load(d_k"),
    "base value left out": ("suffix_attention", "ragged groups of two prompts", OWN_VALUE, "value = tl.load(d_v"),
    "prefix of another prompt": (
        "suffix_attention",
        "ragged groups of two prompts",
        PREFIX_KEY,
        PREFIX_KEY.replace("k + at", "k + at - base * kv_heads * D"),
    ),
    "base row 0 for all": ("delta_norm", "LayerNorm", "base + base_row[:, None] * D", "base + 0 * base_row[:, None]"),
    "patch not applied": ("delta_norm", "LayerNorm with patches", "d += tl.load(patch", "d += 0.0 * tl.load(patch"),
    "frozen scale": ("delta_norm", "RMSNorm, ragged width", "x * change[:, None]", "x * 0.0"),
    "norm by subtraction": ("delta_norm", "small differences", "< 0.25 * scale\n", "< 0.0\n"),
    "direction of base row 0": (
        "norm_logit",
        "LayerNorm, one direction",
        "(base_row * n_directions + k)",
        "(base_row * 0 + k)",
    ),
    "base activation not gathered": ("delta_gemm", "gelu", "- act(before, ACTIVATION)", "- act(acc, ACTIVATION)"),
    "bits of bfloat16 multiplied": ("delta_gemm", "bf16 operands", "if UPCAST:", "if not UPCAST:"),
    "differences not centred": ("kl", "KL about 1e-9", "acc - mean_row[:, None]", "acc"),
    "probabilities of base row 0": (
        "kl",
        "odd vocabulary",
        "logits + base_row[:, None] *",
        "logits + 0 * base_row[:, None] *",
    ),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    """Errors of every case, and of every mutated kernel on its case, from one process."""
    jobs = {(op, case): {"op": op, "case": case} for op, case in CASES + SEEDS}
    jobs |= {name: {"op": op, "case": case, "old": old, "new": new} for name, (op, case, old, new) in MUTATIONS.items()}
    outcomes = interpreted(list(jobs.values()), tmp_path_factory.mktemp("mutants"))
    return dict(zip(jobs, outcomes, strict=True))


@pytest.mark.parametrize(("op", "case"), CASES + SEEDS, ids=str)
def test_interpreted_kernel_is_as_exact_as_the_reference(results, op, case):
    got = results[op, case]
    assert got["by"] == "interpret"
    assert got["error"] <= got["allowed"], got


@pytest.mark.parametrize("name", MUTATIONS)
def test_kernel_with_one_wrong_term_breaks_the_bound(results, name):
    op, case, _, _ = MUTATIONS[name]
    assert results[op, case]["error"] <= results[op, case]["allowed"]
    assert results[name]["error"] > 2 * results[name]["allowed"], results[name]
