"""The whole engine on kernels, run by Triton's interpreter on CPU tensors, errs no more than twice the torch path."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CASES = [("preset", "z", "last"), ("preset", "z", "all"), ("grouped", "k", "all"), ("rms swiglu rotary", "z", "all")]
MORE = [("no norm, relu", "z", "all"), ("parallel", "v", "last"), ("normed residual", "resid_pre", "all")]


def interpreted(cases: list) -> list[dict]:
    """What tests/tensors/run_engine.py prints with every kernel forced to the interpreter."""
    environment = os.environ | {"KERNELS_IMPL": "interpret", "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.tensors.run_engine", json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def check(found: dict, floor: float = 2e-6) -> None:
    assert found["kernels"] <= 2 * found["torch"] + floor * found["effect"]
    assert found["effect"] > 1e-3
    assert "interpret" in found["backend"] and "interpret" not in found["plain"]


@pytest.mark.parametrize("cases", [CASES[:2], CASES[2:]], ids=["layer norm", "grouped and gated"])
def test_engine_on_interpreted_kernels_is_as_exact_as_on_torch(cases):
    for found in interpreted(cases):
        check(found)
        assert "one_column: interpret" in found["backend"]
        assert "suffix_attention: interpret" in found["backend"]


def test_divergences_come_from_their_kernel_without_logits():
    (found,) = interpreted([("preset", "z", "all", "KL")])
    check(found)
    assert "kl: interpret" in found["backend"]


@pytest.mark.slow
def test_engine_on_interpreted_kernels_covers_the_other_families():
    for found in interpreted(MORE):
        check(found)
