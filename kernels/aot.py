"""Compiles every case of every kernel without a GPU: `python -m kernels.aot` prints what each needs."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import load, names
from kernels.lazy import Launch, launch_options

# Triton's backend, architecture and warp size of each target, and the shared memory (LDS) of one program in KiB.
TARGETS = {"sm_80": ("cuda 80 32", 163), "sm_90": ("cuda 90 32", 227), "gfx942": ("hip gfx942 64", 64)}
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32", torch.int64: "i64"}
MATRIX = re.compile(r"\b(?:wgmma\.mma_async|mma\.sync|v_mfma_\w+)\b")
MULTIPLE_OF_16 = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel needs; `faults` are the limits it breaks."""

    op: str
    case: str
    target: str
    config: str
    registers: int
    spill_bytes: int  # per thread, in the stack frame or scratch memory
    shared_bytes: int
    matrix_instructions: int
    faults: tuple[str, ...]


def signature(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list]]:
    """Argument types, constants and divisibilities, as Triton itself would specialise this launch."""
    kinds, constants, attributes = {}, {}, {}
    for index, name in enumerate(launch.kernel.jitted().arg_names):
        value = launch.constexprs.get(name, launch.arguments.get(name))
        if name in launch.constexprs or (isinstance(value, int) and value == 1):
            kinds[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            kinds[name] = f"*{TYPES[value.dtype]}"
        else:
            kinds[name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, Tensor) or (kinds[name] == "i32" and value % 16 == 0):
            attributes[(index,)] = MULTIPLE_OF_16
    return kinds, constants, attributes


def compiled(launch: Launch, target: str) -> Any:
    """Triton's compiled kernel for an architecture that need not be present."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    backend, arch, warp = TARGETS[target][0].split()
    kinds, constants, attributes = signature(launch)
    source = ASTSource(launch.kernel.jitted(), kinds, constants, attributes)
    chip = GPUTarget(backend, int(arch) if arch.isdigit() else arch, int(warp))
    return triton.compile(source, target=chip, options=launch_options(launch.config))


def counted(kernel: Any) -> tuple[int, int, int]:
    """Registers, spilled bytes and matrix instructions, read from what the compiler produced."""
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        number = {key: int(value) for key, value in re.findall(r"\.(\w+_count|\w+_size):\s+(\d+)", text)}
        spilled = max(
            number["private_segment_fixed_size"], 4 * (number["vgpr_spill_count"] + number["sgpr_spill_count"])
        )
        return number["vgpr_count"] + number.get("agpr_count", 0), spilled, len(MATRIX.findall(text))
    registers, stack = _usage(kernel.asm["cubin"])
    return registers, stack, len(MATRIX.findall(kernel.asm["ptx"]))


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a CUDA binary, by the cuobjdump that comes with Triton."""
    program = Path(find_spec("triton").origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([program, "-res-usage", file.name], capture_output=True, text=True, check=True)
    used = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout)
    if used is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {done.stdout[:200]!r}")
    return int(used[1]), int(used[2])


def judged(op: str, case: str, target: str, launch: Launch) -> Resources:
    """Compile one case and hold it against the limits: no spills, and shared memory that the device has."""
    kernel = compiled(launch, target)
    registers, spilled, matrix = counted(kernel)
    shared, limit = kernel.metadata.shared, TARGETS[target][1] * 1024
    faults = [f"{spilled} bytes spilled"] if spilled else []
    faults += [f"{shared} bytes of shared memory, {limit} available"] if shared > limit else []
    faults += ["no matrix instruction"] if "PRECISION" in launch.constexprs and not matrix else []
    sizes = " ".join(f"{name.lower()}={size}" for name, size in launch.config.sizes.items())
    config = f"{sizes} warps={launch.config.num_warps}"
    return Resources(op, case, target, config, registers, spilled, shared, matrix, tuple(faults))


def table(targets: list[str], ops: list[str]) -> Iterator[Resources]:
    """Resources of every case that launches anything; equal specialisations are compiled once."""
    seen: dict[str, Resources] = {}
    for op in ops:
        module = load(op)
        for target in targets:
            for case, sizes in module.CASES.items():
                launch = module.prepare(*module.example(sizes, torch.Generator().manual_seed(0)), arch=target)
                if 0 in launch.grid:
                    continue
                key = f"{op} {target} {launch.config} {signature(launch)}"
                if key not in seen:
                    seen[key] = judged(op, case, target, launch)
                yield replace(seen[key], case=case)


def show(rows: list[Resources]) -> None:
    """Print the table, cases that need the same in one line, and each broken limit below it."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(title="Kernels compiled ahead of time")
    for name in ("op", "case", "target", "config"):
        grid.add_column(name, no_wrap=True)
    for name in ("registers", "spilled bytes", "shared bytes", "matrix instr."):
        grid.add_column(name, justify="right", no_wrap=True)
    for row, n in Counter(replace(row, case="") for row in rows).items():
        case = next(one.case for one in rows if replace(one, case="") == row)
        cells = astuple(replace(row, case=case if n == 1 else f"{case}, and {n - 1} more"))
        grid.add_row(*map(str, cells[: len(grid.columns)]), style="red" if row.faults else None)
    console = Console(width=None if Console().is_terminal else 180)
    console.print(grid)
    for row in rows:
        for fault in row.faults:
            console.print(f"[red]{row.op}, {row.case}, {row.target}: {fault}")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 where every kernel keeps the limits, 1 where one does not or Triton is missing."""
    parser = argparse.ArgumentParser(prog="python -m kernels.aot", description="Compile every kernel without a GPU.")
    parser.add_argument("--target", action="append", choices=[*TARGETS, "all"], help="repeatable; default: sm_90")
    parser.add_argument("--op", action="append", choices=names(), help="repeatable; default: every kernel")
    parser.add_argument("--json", action="store_true", help="print rows as JSON instead of a table")
    chosen = parser.parse_args(arguments)
    if find_spec("triton") is None:
        print("error: triton is not installed; it exists for Linux only: pip install triton", file=sys.stderr)
        return 1
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("error: TRITON_INTERPRET=1 is set, and interpreted kernels are not compiled: unset it", file=sys.stderr)
        return 1
    targets = chosen.target or ["sm_90"]
    rows = list(table(list(TARGETS) if "all" in targets else targets, chosen.op or names()))
    if chosen.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        show(rows)
    return int(any(row.faults for row in rows))


if __name__ == "__main__":
    sys.exit(main())
