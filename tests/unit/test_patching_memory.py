"""Patching a model of GPT-2-small shape at 256 positions stays within its memory, and its plan foretells the rest."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource, time, torch
torch.set_num_threads(1)
from circuits.metrics import LogitDiff
from circuits.patching import patch_heads, plan_heads
from interp.config import ModelConfig
from interp.model import Transformer

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

shape = dict(n_layers=12, n_heads=12, d_model=768, d_vocab=50257, n_ctx=256, bias=True, norm_bias=True)
model = Transformer(ModelConfig(**shape), seed=0).eval()
stream = torch.Generator().manual_seed(0)
clean, corrupted = (torch.randint(50257, (1, 256), generator=stream) for _ in range(2))
runs = dict(clean=clean, corrupted=corrupted, metric=LogitDiff(torch.tensor([1]), torch.tensor([2])))
with torch.no_grad():
    model(clean[:, :8])
loaded = peak()
everything = plan_heads(model, **runs)
few = plan_heads(model, **runs, positions=POSITIONS)
started = time.process_time()
result = patch_heads(model, **runs, positions=POSITIONS)
print(json.dumps({
    "grown": peak() - loaded, "seconds": time.process_time() - started, "predicted": few.seconds,
    "predicted_bytes": few.bytes, "all_seconds": everything.seconds, "all_bytes": everything.bytes,
    "all_patches": everything.patches, "flops": result.flops, "plan_flops": few.flops,
    "finite": bool(result.effect.isfinite().all()),
}))
"""


def measured(positions: list[int]) -> dict:
    """What the script prints in a process of its own."""
    code = SCRIPT.replace("POSITIONS", repr(positions))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def check(found: dict) -> None:
    assert found["finite"]
    assert found["grown"] < 2 << 30
    assert found["flops"] == pytest.approx(found["plan_flops"], rel=0.01)
    assert found["all_patches"] == 12 * 12 * 256 - 12 * 255
    assert found["all_seconds"] > found["predicted"]
    assert 0.2 < found["seconds"] / found["predicted"] < 5  # shared machines vary


def test_patches_at_the_last_positions_of_a_gpt2_shape_stay_within_2_gib():
    check(measured([254, 255]))


@pytest.mark.slow
def test_patches_at_8_positions_of_a_gpt2_shape_stay_within_2_gib():
    found = measured([8, 40, 80, 120, 160, 200, 240, 255])
    check(found)
    assert found["grown"] < 1.5 * found["predicted_bytes"] + (256 << 20)
