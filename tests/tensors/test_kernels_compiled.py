"""Every kernel compiles for sm_80, sm_90 and gfx942 without a GPU, spills nothing and fits the shared memory."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest

from kernels.aot import TARGETS, Resources, judged, main, show
from kernels.dispatch import load, names
from kernels.lazy import ARCHITECTURES, Config
from tests.tensors.comparing import CASES, ROOT, example

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
FIRST = ("one_column", "suffix_attention")  # the kernels whose tiles differ most between targets


def rows(tmp_path, *options: str) -> list[dict]:
    """Rows that the command prints, compiled anew."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "kernels.aot", "--json", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(done.stdout)


def check(found: list[dict], ops: list[str], targets: list[str]) -> None:
    """Every case is there that launches anything, none with a fault, matrix units used where there is a product."""
    empty = {(op, case) for op, case in CASES if 0 in launch(op, case, "sm_90").grid}
    wanted = {(op, case, target) for op, case in CASES for target in targets if op in ops and (op, case) not in empty}
    assert {(row["op"], row["case"], row["target"]) for row in found} == wanted
    for row in found:
        assert not row["faults"] and row["spill_bytes"] == 0, row
        assert row["shared_bytes"] <= {"sm_80": 163, "sm_90": 227, "gfx942": 64}[row["target"]] * 1024, row
        assert 0 < row["registers"] <= (512 if row["target"] == "gfx942" else 255), row
        assert (row["matrix_instructions"] > 0) == (row["op"] in ("suffix_attention", "delta_gemm", "kl")), row


def launch(op: str, case: str, target: str):
    """What a case would start on a target."""
    return load(op).prepare(*example(op, case), arch=target)


def test_dispatch_and_compiler_know_the_same_architectures():
    assert set(TARGETS) == set(ARCHITECTURES)


def test_kernels_for_sm_90_need_no_more_than_there_is(tmp_path):
    check(rows(tmp_path), names(), ["sm_90"])


@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
def test_attention_kernels_for_other_targets_need_no_more_than_there_is(tmp_path, target):
    check(rows(tmp_path, "--target", target, *(word for op in FIRST for word in ("--op", op))), list(FIRST), [target])


@pytest.mark.slow
def test_all_kernels_for_all_targets_need_no_more_than_there_is(tmp_path):
    check(rows(tmp_path, "--target", "all"), names(), list(TARGETS))


@pytest.mark.parametrize(
    ("target", "sizes", "fault"),
    [
        ("gfx942", {"BM": 16, "BN": 32, "BLOCK_D": 128}, "bytes of shared memory, 65536 available"),
        ("sm_90", {"BM": 32, "BN": 16, "BLOCK_D": 128}, "bytes spilled"),
    ],
    ids=["shared memory", "spills"],
)
def test_gate_fails_tiles_that_are_too_large(target, sizes, fault):
    planned = launch("suffix_attention", "d_head 128, one kv head", target)
    row = judged("suffix_attention", "", target, replace(planned, config=Config(sizes, num_warps=4)))
    assert len(row.faults) == 1 and fault in row.faults[0]


def test_gate_fails_a_product_that_misses_the_matrix_units():
    planned = launch("delta_gemm", "bf16 operands", "sm_90")
    row = judged("delta_gemm", "", "sm_90", replace(planned, constants={**planned.constants, "UPCAST": True}))
    assert row.faults == ("no matrix instruction",)


def test_table_marks_what_breaks_a_limit_and_the_command_fails(monkeypatch, capsys):
    row = Resources("kl", "a case", "sm_90", "bm=16 warps=4", 255, 28, 1024, 3, ("28 bytes spilled",))
    show(
        [
            row,
            replace(row, case="another", spill_bytes=0, faults=()),
            replace(row, case="third", spill_bytes=0, faults=()),
        ]
    )
    printed = capsys.readouterr().out
    assert "kl, a case, sm_90: 28 bytes spilled" in printed
    assert "another, and 1 more" in printed
    monkeypatch.setattr("kernels.aot.table", lambda targets, ops: iter([row]))
    assert main(["--json"]) == 1
    monkeypatch.setattr("kernels.aot.table", lambda targets, ops: iter([]))
    assert main(["--json"]) == 0
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main(["--json"]) == 1
    assert "error: TRITON_INTERPRET=1 is set" in capsys.readouterr().err
