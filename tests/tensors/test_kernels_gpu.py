"""On a GPU, compiled kernels are as exact as the eager torch reference on the same device, tf32x3 products included."""

import pytest
import torch

from kernels.dispatch import load, run
from kernels.lazy import architecture
from kernels.suffix_attention import Groups
from tests.tensors.comparing import CASES, FLOOR, cast, example, flat, largest

pytestmark = pytest.mark.gpu

TF32 = 2.0**-10  # relative rounding of one tf32 operand pair


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """torch.empty is filled with NaN, so that a kernel that leaves something out is noticed."""
    empty = torch.empty

    def made(*size, **options):
        x = empty(*size, **options)
        return x.fill_(torch.nan) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", made)


@pytest.mark.parametrize(("op", "case"), CASES, ids=lambda part: part)
def test_compiled_kernel_is_as_exact_as_the_eager_reference(device, op, case, record_property):
    arguments = example(op, case)
    truth = flat(load(op).reference(*cast(arguments, torch.float64)))
    there = tuple(x if isinstance(x, Groups) else cast(x, None, device) for x in arguments)
    ran = run(op, *there)
    assert ran.by == "triton", ran.reason
    eager, error = largest(flat(load(op).reference(*there)) - truth), largest(flat(ran.value) - truth)
    record_property("error", error)
    record_property("eager", eager)
    single_tf32 = op == "delta_gemm" and "tf32" in arguments
    allowed = 2 * eager + (TF32 if single_tf32 else 2 * FLOOR) * largest(truth)
    print(f"{op}, {case}, {architecture(device)}: error {error:.2e}, eager {eager:.2e}, allowed {allowed:.2e}")
    assert error <= allowed
