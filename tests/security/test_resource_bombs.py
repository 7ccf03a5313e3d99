"""R7: a small or crafted file cannot make the reader take much time or memory."""

import hashlib
import io
import json
import os
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from interp.errors import StoreError
from interp.jsonfile import sealed
from interp.run import Run

SECONDS, EXTRA_BYTES = 1.0, 64 << 20


def memory(field: str) -> int:
    """Bytes of resident memory now (VmRSS) or at its peak (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


@contextmanager
def refused(match: str) -> Iterator[None]:
    """The block raises StoreError within a second of CPU time and 64 MB of extra peak memory."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, start = memory("VmRSS"), time.process_time()
    with pytest.raises(StoreError, match=match):
        yield
    assert time.process_time() - start < SECONDS
    assert memory("VmHWM") - before < EXTRA_BYTES


def test_the_memory_gauge_sees_a_large_allocation():
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    assert len(bytearray(b"x") * (2 * EXTRA_BYTES)) == 2 * EXTRA_BYTES
    assert memory("VmHWM") - before > EXTRA_BYTES


def tensors(header: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def one(dtype: str, shape: list[int], end: int) -> bytes:
    return json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}).encode()


TENSOR_BOMBS = {
    "header of 2^62 bytes": tensors(b"{}", 1 << 62),
    "header of 2^64 - 1 bytes": tensors(b"{}", (1 << 64) - 1),
    "shape 2^40 x 2^40": tensors(one("F32", [1 << 40, 1 << 40], 8), None, bytes(8)),
    "shape that overflows to 0": tensors(one("F32", [1 << 32, 1 << 32], 0)),
    "offsets past the end": tensors(one("F32", [1 << 30], 4 << 30), None, bytes(8)),
    "deep header": tensors(b"[" * 100_000 + b"]" * 100_000),
    "empty": b"",
    "seven bytes": bytes(7),
}


@pytest.mark.parametrize("kind", TENSOR_BOMBS)
def test_tensor_bomb_is_refused_at_once(run: Run, plant: Callable, kind: str):
    plant("model.safetensors", TENSOR_BOMBS[kind])
    with refused(r"model\.safetensors"):
        run.checkpoint(0)


def test_header_with_a_million_tensors_is_refused_before_it_is_read(run: Run, plant: Callable):
    entry = b'"%07d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
    header = b"{" + b"".join(entry % index for index in range(1_000_000))[:-1] + b"}"
    plant("model.safetensors", tensors(header))
    del header
    with refused(r"model\.safetensors: not a safetensors file"):
        run.checkpoint(0)


def make_sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "MANIFEST.json"])
def test_sparse_terabyte_is_refused_by_its_size(run: Run, checkpoint: Path, file: str):
    make_sparse(checkpoint / file, 1 << 40)
    with refused(file.replace(".", r"\.")):
        run.checkpoint(0)


def test_sparse_file_whose_size_the_manifest_confirms_is_still_not_read(run: Run, checkpoint: Path, plant: Callable):
    plant("model.safetensors", b"")
    manifest = checkpoint / "MANIFEST.json"
    body = json.loads(manifest.read_bytes())
    body["files"]["model.safetensors"]["bytes"] = 1 << 40
    del body["sha256"]
    manifest.write_bytes(sealed(body, "manifest", indent=None))
    make_sparse(checkpoint / "model.safetensors", 1 << 40)
    with refused(r"model\.safetensors"):
        run.checkpoint(0)


JSON_BOMBS = {
    "deep lists": b"[" * 200_000 + b"]" * 200_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "unclosed depth": b"[" * 1_000_000,
    "escapes without an end": b'"' + b'\\"' * 500_000 + b"[" * 100,
    "a million values": b"[" + b"0," * 1_000_000 + b"0]",
    "huge integer": b'{"format":' + b"9" * 1_000_000 + b"}",
    "huge exponent": b'{"format":1,"state":1e999999999}',
    "not a number": b'{"format":NaN}',
    "lone surrogate": b'{"format":"\\ud800"}',
    "not UTF-8": b'{"format":"\xff"}',
    "UTF-16": '{"format":1}'.encode("utf-16"),
    "no object": b"[1]",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", JSON_BOMBS)
def test_json_bomb_is_refused_at_once_in_every_file(run: Run, checkpoint: Path, plant: Callable, kind: str):
    for file, read in {
        "config.json": lambda run: run.config,
        "status.json": Run.status,
        "env.json": Run.environment,
        "analysis/detect.json": lambda run: run.analysis("detect"),
    }.items():
        (run.path / file).write_bytes(JSON_BOMBS[kind])
        with refused(Path(file).name.replace(".", r"\.")):
            read(Run(run.name, run.path))
    plant("state.json", JSON_BOMBS[kind])
    with refused(r"state\.json"):
        run.checkpoint(0)
    (checkpoint / "MANIFEST.json").write_bytes(JSON_BOMBS[kind])
    with refused(r"MANIFEST\.json"):
        run.checkpoint(0)


def test_json_lines_without_line_ends_are_refused_at_once(run: Run):
    make_sparse(run.path / "metrics.jsonl", 200 << 20)
    with refused(r"metrics\.jsonl: line 1: longer than"):
        run.metrics()
    make_sparse(run.path / "events.jsonl", 1 << 40)
    with refused(r"events\.jsonl"):
        run.events()


def plant_arrays(run: Run, data: bytes) -> None:
    digest = hashlib.sha256(data).hexdigest()
    body = {"format": 1, "key": "detect", "payload": {}, "arrays": {"bytes": len(data), "sha256": digest}}
    (run.path / "analysis" / "detect.json").write_bytes(sealed(body, "detect"))
    (run.path / "analysis" / f"detect.{digest[:16]}.npz").write_bytes(data)


def npz(data: bytes, compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("curve.npy", data)
    return buffer.getvalue()


def npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


ARRAY_BOMBS = {
    "compressed zeros": lambda: npz(npy_header((1 << 22,)) + bytes(8 << 22), zipfile.ZIP_DEFLATED),
    "shape without bytes": lambda: npz(npy_header((1 << 40,)), zipfile.ZIP_STORED),
    "shape that overflows": lambda: npz(npy_header((1 << 61, 8)), zipfile.ZIP_STORED),
    "negative shape": lambda: npz(npy_header((-1, -8)) + bytes(64), zipfile.ZIP_STORED),
    "fifty thousand members": lambda: many_members(50_000),
}


def many_members(count: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index in range(count):
            archive.writestr(zipfile.ZipInfo(f"{index}.npy"), b"")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ARRAY_BOMBS)
def test_array_bomb_is_refused_at_once(run: Run, kind: str):
    plant_arrays(run, ARRAY_BOMBS[kind]())
    with refused(r"\.npz"):
        run.analysis_arrays("detect")


def test_too_large_values_are_refused_when_written(run: Run):
    with run.writer() as writer:
        with refused("keep arrays as tensors"):
            writer.save(1, model={}, optim={}, state={"history": [0] * 300_000})
        with refused("nested deeper"):
            deep: list = []
            for _ in range(100):
                deep = [deep]
            writer.metric({"step": 1, "deep": deep})
    assert os.listdir(run.path / "checkpoints") == ["step-00000000"]
