"""The first study on a GPU, step by step: prints what it measures, and fails where the premise of the kernels does.

    pytest -m gpu -s tests/tensors/test_study_gpu.py

Steps 1 and 3 to 6 of the patching note; step 2, correctness of the compiled kernels, is `test_kernels_gpu.py`.
"""

import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks._patching_cases import CASES, GPT2, Problem, random_problem
from benchmarks._patching_lean import Lean, both_runs, full_forwards
from circuits.patching import patch_heads
from interp.rng import generator
from kernels import one_column, suffix_attention
from tests.tensors.comparing import cast

pytestmark = pytest.mark.gpu
ROUNDS = 20


def seconds(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median time on the device, after three runs that warm up."""
    for _ in range(3):
        work()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def problem(n_pos: int, device: torch.device) -> Problem:
    """The shape of GPT-2 small with random weights, on the device."""
    case = next(case for case in CASES if case.name == "gpt2-20-last")
    made = random_problem(replace(case, n_pos=n_pos))
    decoder = made.decoder.to(device)
    names = ("clean", "corrupted", "correct", "wrong")
    moved = {name: getattr(made, name).to(device) for name in names}
    return replace(made, model=decoder, decoder=decoder, **moved)


def bandwidth(device: torch.device) -> float:
    """Bytes per second of a copy, read and written."""
    x = torch.empty(1 << 28, device=device)
    y = torch.empty_like(x)
    return 2 * x.numel() * 4 / seconds(lambda: y.copy_(x))


def test_step_1_ceilings_of_copies_and_products(device):
    print(f"copy: {bandwidth(device) / 1e12:.2f} TB/s")
    rows, n_in, n_out = 1 << 15, GPT2.d_model, GPT2.d_mlp
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("fp32", torch.float32, False),
    ):
        a, b = (torch.randn(*size, device=device, dtype=dtype) for size in ((rows, n_in), (n_in, n_out)))
        before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, tf32
        took = seconds(lambda a=a, b=b: a @ b)
        torch.backends.cuda.matmul.allow_tf32 = before
        print(f"product {rows} x {n_in} x {n_out}, {name}: {2 * rows * n_in * n_out / took / 1e12:.0f} TFLOP/s")
        assert took > 0


def test_step_3_share_of_the_bandwidth_that_the_one_column_update_reaches(device):
    case = one_column.Case(n_pos=512, heads=12, kv_heads=12, d_head=64, n_patches=512)
    arguments = tuple(cast(x, None, device) for x in one_column.example(case, generator(0, "study")))
    out = one_column.launch(*arguments)
    took = seconds(lambda: one_column.launch(*arguments))
    share = out.numel() * 4 / took / (bandwidth(device) / 2)
    print(f"one-column update: {took * 1e6:.0f} us, writes at {share:.0%} of what a copy writes (target 80 %)")
    assert out.isfinite().all()


def test_step_3_suffix_attention_beside_flex_attention(device):
    first, length, branches, heads, d_head = 32, 32, 256, 12, 64
    case = suffix_attention.Case(
        ((0, first, first + length, branches, None),), n_pos=64, heads=heads, kv_heads=heads, d_head=d_head
    )
    given = suffix_attention.example(case, generator(0, "study"))
    there = tuple(x if isinstance(x, suffix_attention.Groups) else cast(x, None, device) for x in given)
    q, k, v, o, _, d_q, d_k, d_v, scale = there
    ours = suffix_attention.launch(*there)

    def packed(base: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        rows = delta.unflatten(0, (branches, length)) + base[0, first:]  # [branch row head d_head]
        return torch.cat((base[0, :first], rows.flatten(0, 1))).transpose(0, 1)[None]  # [1 head key d_head]

    def visible(batch, head, query, key):
        row = key - first
        own = (row >= 0) & (row // length == query // length) & (row % length <= query % length)
        return (key < first) | own

    keys, values = packed(k, d_k), packed(v, d_v)
    queries = (d_q.unflatten(0, (branches, length)) + q[0, first:]).flatten(0, 1).transpose(0, 1)[None]
    mask = create_block_mask(visible, None, None, queries.shape[2], keys.shape[2], device=device)
    flex = torch.compile(flex_attention)
    theirs = flex(queries, keys, values, block_mask=mask, scale=scale)[0].transpose(0, 1)
    theirs = theirs - o[0, first:].repeat(branches, 1, 1)
    took, flex_took = (
        seconds(work)
        for work in (
            lambda: suffix_attention.launch(*there),
            lambda: flex(queries, packed(k, d_k), packed(v, d_v), block_mask=mask, scale=scale),
        )
    )
    print(f"suffix attention {took * 1e6:.0f} us, FlexAttention over copied keys {flex_took * 1e6:.0f} us")
    assert (ours - theirs).abs().max() < 1e-2 * theirs.abs().max()


@pytest.mark.parametrize("n_pos", [20, 64])
def test_step_4_engine_against_batched_forwards_of_the_shape_of_gpt2(device, n_pos):
    one = problem(n_pos, device)
    lean, n = Lean(one.decoder), 128
    draw = torch.randint(one.n_patches, (n,), generator=generator(0, "study"))
    patches = torch.stack((draw // (12 * n_pos), draw // n_pos % 12, draw % n_pos), 1)
    given = {"clean": one.clean, "corrupted": one.corrupted, "metric": one.metric}
    with torch.no_grad():
        runs = both_runs(one, lean)
        forwards = {
            size: seconds(lambda size=size: full_forwards(one, lean, runs, patches, size), 3) / n for size in (32, 128)
        }
        result = patch_heads(one.model, **given)
        took = seconds(lambda: patch_heads(one.model, **given), 3)
        toy = min(forwards.values()) * one.n_patches / took
    print(f"{n_pos} positions: engine {took:.3f} s, {toy:.1f} times the best batched fp32 forwards; {result.backend}")
    print(f"  {result.graph}")
    assert result.verify(8).l2_error < 1e-3
    if n_pos == 64:
        assert toy > 4, "the note's falsifier: below 4 times the best batched fp32 forwards, the story must change"


def test_step_5_error_of_coarse_products_on_the_device(device):
    one = problem(20, device)
    given = {"clean": one.clean, "corrupted": one.corrupted, "metric": one.metric, "positions": [4, 18]}
    truth = patch_heads(one.model, **given, precision="fp64", backend="torch")
    there = truth.reason == 0
    medians = {}
    for precision in ("fp32", "tf32", "bf16"):
        found = patch_heads(one.model, **given, precision=precision).effect.double()
        relative = ((found - truth.effect) / truth.effect)[there].abs()
        medians[precision] = float(relative.median())
    print("median relative error of an effect: " + ", ".join(f"{name} {m:.1e}" for name, m in medians.items()))
    assert medians["fp32"] <= medians["tf32"] <= medians["bf16"]
    assert medians["bf16"] < 0.01, "the note's falsifier: above 1 %, the story must change"


def test_step_6_profile_of_the_kernels(device, tmp_path):
    if shutil.which("ncu") is None:
        pytest.skip("ncu is not installed")  # part of the CUDA toolkit, not of the driver
    command = ["ncu", "--target-processes", "all", "--set", "basic", "-k", "regex:one_column|suffix_attention"]
    command += [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-k", "d_head", "tests/tensors/test_kernels_gpu.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout[-8000:])
    assert done.returncode == 0, done.stderr[-2000:]
