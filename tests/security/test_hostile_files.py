"""R6: no file of a run can make the reader execute anything.

This is the one place that uses pickle: it makes the hostile files, it never loads one.
"""

import hashlib
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from interp.errors import CheckpointError, StoreError
from interp.jsonfile import sealed
from interp.run import Run, Store


class Hostile:
    """Creates a file when unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


def torch_zip(value: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def npz(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def legacy_tar(payload: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))
    return buffer.getvalue()


def hostile_bytes(marker: Path) -> dict[str, bytes]:
    """Files that run code in a careless loader, by what they are."""
    bomb = Hostile(marker)
    pickles = {f"pickle protocol {protocol}": pickle.dumps(bomb, protocol) for protocol in range(6)}
    first = pickles["pickle protocol 2"]
    objects = np.array([bomb, None], dtype=object)
    return pickles | {
        "nested pickle": pickle.dumps({"w": [{"x": (bomb,)}]}),
        "torch zip": torch_zip({"w": bomb}),
        "torch zip with tensor": torch_zip({"w": torch.ones(2), "extra": bomb}),
        "torch legacy": torch_zip({"w": bomb}, _use_new_zipfile_serialization=False),
        "torch legacy tar": legacy_tar(first),
        "object npy": npy(objects),
        "object npz": npz("curve.npy", npy(objects)),
        "raw pickle in npz": npz("curve.npy", first),
        "pickle member in npz": npz("data.pkl", first),
        "traversing member in npz": npz("../../escape.npy", npy(objects)),
        "pickle after a safetensors length": len(first).to_bytes(8, "little") + first + bytes(8),
        "pickle inside a safetensors header": _header(b'{"__metadata__":{"p":["' + first.hex().encode() + b'"]}}'),
        "unknown dtype": _header(b'{"w":{"dtype":"OBJECT","shape":[1],"data_offsets":[0,8]}}') + bytes(8),
        "python literal": b"__import__('os').mkdir('" + str(marker).encode() + b"')",
        "yaml tag": b"!!python/object/apply:os.mkdir ['" + str(marker).encode() + b"']",
        "json class hint": b'{"py/reduce":[{"py/type":"os.mkdir"},{"py/tuple":["' + str(marker).encode() + b'"]}]}',
    }


def _header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


KINDS = sorted(hostile_bytes(Path("marker")))


@pytest.fixture(autouse=True)
def unsafe_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable that turns torch's safe default off; it must make no difference here."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")


def test_there_are_at_least_twenty_hostile_files():
    assert len(KINDS) >= 20


def test_the_hostile_pickle_would_run_code(tmp_path: Path):
    """Without this, the tests below could pass because the payload is a dud."""
    call, arguments = Hostile(tmp_path / "marker").__reduce__()
    call(*arguments)
    assert (tmp_path / "marker").exists()
    assert b"mkdir" in hostile_bytes(tmp_path / "marker")["pickle protocol 2"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["model.safetensors", "optim.safetensors", "state.json", "MANIFEST.json"])
def test_hostile_checkpoint_file_is_refused_by_name_and_runs_nothing(
    run: Run, checkpoint: Path, plant: Callable, tmp_path: Path, kind: str, file: str
):
    marker = tmp_path / "executed"
    data = hostile_bytes(marker)[kind]
    if file == "MANIFEST.json":
        (checkpoint / file).write_bytes(data)
    else:
        plant(file, data)
    with pytest.raises(CheckpointError, match=file.replace(".", r"\.")):
        run.checkpoint(0)
    assert not marker.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_run_file_is_refused_by_name_and_runs_nothing(run: Run, tmp_path: Path, kind: str):
    marker = tmp_path / "executed"
    data = hostile_bytes(marker)[kind] + b"\n"
    readers = {
        "config.json": lambda run: run.config,
        "status.json": Run.status,
        "env.json": Run.environment,
        "metrics.jsonl": Run.metrics,
        "analysis/detect.json": lambda run: run.analysis("detect"),
    }
    for file, read in readers.items():
        (run.path / file).write_bytes(data)
        with pytest.raises(StoreError, match=Path(file).name.replace(".", r"\.")):
            read(Run(run.name, run.path))
    assert not marker.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_arrays_under_a_matching_hash_are_refused(run: Run, tmp_path: Path, kind: str):
    marker = tmp_path / "executed"
    data = hostile_bytes(marker)[kind]
    digest = hashlib.sha256(data).hexdigest()
    folder = run.path / "analysis"
    body = {"format": 1, "key": "detect", "payload": {}, "arrays": {"bytes": len(data), "sha256": digest}}
    (folder / "detect.json").write_bytes(sealed(body, "detect"))
    (folder / f"detect.{digest[:16]}.npz").write_bytes(data)
    with pytest.raises(StoreError, match=r"detect\.[0-9a-f]{16}\.npz"):
        run.analysis_arrays("detect")
    assert not marker.exists()


def test_object_arrays_are_not_written_either(run: Run):
    with run.writer() as writer, pytest.raises(StoreError, match="'curve' holds Python objects"):
        writer.analysis("detect", {}, {"curve": np.array([object()], dtype=object)})


@pytest.mark.parametrize("file", ["model.safetensors", "optim.safetensors", "state.json", "MANIFEST.json"])
def test_links_in_a_checkpoint_are_not_followed(run: Run, checkpoint: Path, tmp_path: Path, file: str):
    outside = tmp_path / "outside"
    (checkpoint / file).rename(outside)
    (checkpoint / file).symlink_to(outside)
    with pytest.raises(CheckpointError, match=file.replace(".", r"\.")):
        run.checkpoint(0)


@pytest.mark.parametrize("file", ["config.json", "status.json", "env.json", "metrics.jsonl", "analysis/detect.json"])
def test_links_and_pipes_in_a_run_are_refused_without_waiting(run: Run, tmp_path: Path, file: str):
    def read(run: Run) -> None:
        _ = run.config, run.status(), run.environment(), run.metrics(), run.analysis("detect")

    path, outside = run.path / file, tmp_path / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(StoreError, match="symbolic link"):
        read(Run(run.name, run.path))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StoreError, match="plain file"):
        read(Run(run.name, run.path))


@pytest.mark.parametrize("folder", ["checkpoints", "analysis"])
def test_writer_does_not_follow_a_linked_folder_out_of_the_run(run: Run, tmp_path: Path, folder: str):
    outside = tmp_path / "outside"
    (run.path / folder).rename(outside)
    (run.path / folder).symlink_to(outside)
    before = sorted(outside.rglob("*"))
    with pytest.raises(StoreError, match=f"{folder}: is a symbolic link"), run.writer() as writer:
        writer.save(1, model={}, optim={}, state={})
    assert sorted(outside.rglob("*")) == before


def test_writer_does_not_append_through_a_link(run: Run, tmp_path: Path):
    outside = tmp_path / "outside.jsonl"
    (run.path / "metrics.jsonl").rename(outside)
    (run.path / "metrics.jsonl").symlink_to(outside)
    before = outside.read_bytes()
    with run.writer() as writer, pytest.raises(StoreError, match=r"metrics\.jsonl: is a symbolic link"):
        writer.metric({"step": 1})
    assert outside.read_bytes() == before


def test_unexpected_file_in_a_checkpoint_is_refused_by_name(run: Run, checkpoint: Path):
    (checkpoint / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: unexpected file"):
        run.checkpoint(0)


def test_checkpoint_folder_that_is_a_link_is_refused(run: Run, checkpoint: Path, tmp_path: Path):
    checkpoint.rename(tmp_path / "elsewhere")
    checkpoint.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="symbolic link"):
        run.checkpoint(0)


def test_checkpoint_renamed_to_another_step_is_refused(run: Run, checkpoint: Path):
    checkpoint.rename(checkpoint.with_name("step-00000007"))
    with pytest.raises(CheckpointError, match="is of step 0, but the folder is named step-00000007"):
        run.checkpoint(7)


def test_linked_run_is_neither_listed_nor_opened(store: Store, run: Run, tmp_path: Path):
    (store.root / "linked").symlink_to(run.path)
    assert store.names() == ["tiny"]
    with pytest.raises(StoreError, match="symbolic link"):
        store.run("linked")
