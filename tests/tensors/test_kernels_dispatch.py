"""Dispatch names what runs and why, warns once on a GPU that has to do without a kernel, and needs no Triton."""

import inspect
import os
import subprocess
import sys
import warnings

import pytest
import torch

from kernels import dispatch
from kernels.dispatch import Choice, chosen, load, names, run
from kernels.lazy import ARCHITECTURES
from tests.tensors.comparing import ROOT, example

WITHOUT_TRITON = "import sys; sys.modules['triton'] = None; "


def fresh(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, in the repository."""
    variables = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "KERNELS_IMPL")}
    variables |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)


@pytest.fixture
def gpu(monkeypatch):
    """Dispatch as on a GPU of the architecture given, without one: only the choice can be asked for."""

    def pretend(arch: str) -> None:
        class Device:
            type = "cuda"

        monkeypatch.setattr(dispatch, "tensors", lambda _: iter([type("OnGpu", (), {"device": Device})]))
        monkeypatch.setattr(dispatch, "architecture", lambda _: arch)
        monkeypatch.delenv("KERNELS_IMPL", raising=False)
        dispatch._warn.cache_clear()

    return pretend


def test_every_kernel_of_the_issue_is_listed_and_the_rest_is_not():
    assert names() == ["delta_gemm", "delta_norm", "kl", "norm_logit", "one_column", "suffix_attention"]


@pytest.mark.parametrize("op", names())
def test_every_kernel_file_keeps_the_contract_of_its_folder(op):
    module = load(op)
    assert "Memory traffic" in module.__doc__
    assert str(inspect.signature(module.launch)) == str(inspect.signature(module.reference))
    arguments = list(inspect.signature(module.reference).parameters)
    assert list(inspect.signature(module.prepare).parameters) == [*arguments, "arch"]
    assert len(module.CASES) == len(set(module.CASES.values()))


def test_unknown_kernels_are_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"unknown kernel 'delta_gem'; did you mean 'delta_gemm'\?"):
        load("delta_gem")
    with pytest.raises(ValueError, match="unknown kernel 'os'; known: delta_gemm, "):
        chosen("os")


def test_cpu_tensors_run_the_reference_and_the_result_says_so(monkeypatch):
    monkeypatch.delenv("KERNELS_IMPL", raising=False)
    arguments = example("norm_logit", "one row")
    ran = run("norm_logit", *arguments)
    assert (ran.by, ran.reason) == ("torch", "device cpu")
    assert torch.equal(ran.value, load("norm_logit").reference(*arguments))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_known_gpus_run_the_kernel_where_it_is_tested(gpu, arch):
    gpu(arch)
    for op in names():
        assert chosen(op, *example(op, next(iter(load(op).CASES)))) == Choice("triton", "tested configuration")


def test_gpu_without_its_kernel_is_warned_once_for_each_reason(gpu):
    gpu("sm_75")
    arguments = example("kl", "one row")
    with pytest.warns(
        UserWarning, match="kernels: kl runs as plain torch on the GPU: architecture sm_75, compiled for"
    ):
        assert chosen("kl", *arguments).by == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen("kl", *arguments).by == "torch"
    gpu("sm_90")
    with pytest.warns(UserWarning, match=r"dtype.* torch.float64"):
        assert chosen("kl", *(x.double() if x.is_floating_point() else x for x in arguments)).by == "torch"


@pytest.mark.parametrize("op", names())
def test_float64_and_half_precision_are_left_to_torch(op):
    arguments = example(op, next(iter(load(op).CASES)))
    for dtype in (torch.float64, torch.float16):
        assert "dtype" in load(op).untested(*(x.to(dtype) if torch.is_tensor(x) else x for x in arguments))


def test_forced_choices_that_cannot_run_say_why(monkeypatch):
    arguments = example("kl", "one row")
    monkeypatch.setenv("KERNELS_IMPL", "cuda")
    with pytest.raises(ValueError, match="KERNELS_IMPL='cuda': expected one of torch, triton, interpret"):
        chosen("kl", *arguments)
    monkeypatch.setenv("KERNELS_IMPL", "torch")
    assert chosen("kl", *arguments) == Choice("torch", "KERNELS_IMPL=torch")
    monkeypatch.setenv("KERNELS_IMPL", "triton")
    monkeypatch.setattr(dispatch, "find_spec", lambda _: "found")
    with pytest.raises(RuntimeError, match="KERNELS_IMPL=triton: tensors are on 'cpu', and kernels run on a GPU"):
        chosen("kl", *arguments)
    monkeypatch.setenv("KERNELS_IMPL", "interpret")
    monkeypatch.setitem(sys.modules, "triton", object())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="triton is already loaded; set TRITON_INTERPRET=1 before the start"):
        chosen("kl", *arguments)


def test_kernel_modules_and_references_load_no_triton():
    code = """
import sys
import torch
before = {name for name in sys.modules if name.split(".")[0] == "triton"}
from kernels.dispatch import load, names, run
for op in names():
    module = load(op)
    run(op, *module.example(next(iter(module.CASES.values())), torch.Generator()))
import kernels.aot
print({name for name in sys.modules if name.split(".")[0] == "triton"} - before)
"""
    done = fresh(code)
    assert done.stdout.strip() == "set()", done.stderr


def test_listing_kernels_reads_files_without_importing_them():
    done = fresh("import sys; from kernels.dispatch import names; names(); print('kernels.kl' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_everything_but_a_launch_works_where_triton_is_missing():
    code = WITHOUT_TRITON + "from tests.tensors.comparing import example; from kernels.dispatch import run; "
    done = fresh(code + "print(run('kl', *example('kl', 'one row')).by)")
    assert done.stdout.strip() == "torch", done.stderr
    done = fresh(code + "run('kl', *example('kl', 'one row'))", KERNELS_IMPL="interpret")
    assert "RuntimeError: KERNELS_IMPL=interpret: triton is not installed" in done.stderr
    done = fresh(WITHOUT_TRITON + "from kernels.aot import main; print('code', main([]))")
    assert (done.stdout.strip(), done.stderr.count("error: triton is not installed")) == ("code 1", 1)
