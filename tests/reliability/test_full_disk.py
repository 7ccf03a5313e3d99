"""R8: a full disk is one typed error; nothing half-written stays and what was there still loads."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from interp.errors import StoreError, StoreFull
from interp.files import disk_errors, write_all
from interp.run import Run, Store

BIG = {"w": torch.arange(20_000, dtype=torch.float32)}


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes inside the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def everything(run: Run) -> dict[str, bytes]:
    files = [path for path in run.path.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(run.path)): path.read_bytes() for path in files}


@pytest.mark.parametrize("count", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_file_size_limit_during_a_save_leaves_the_store_as_it_was(filled: Run, count: int):
    with filled.writer() as writer:
        writer.metric({"step": 4})
        before = everything(filled)
        for size in torch.linspace(0, 80_000, count).int().tolist():
            with file_size_limit(size), pytest.raises(StoreFull, match="step-00000009"):
                writer.save(9, model=BIG, optim={}, state={})
            assert everything(filled) == before
        assert filled.latest_verified()[0].step == 3
        writer.status(state="failed", message="disk full")
        writer.save(9, model=BIG, optim={}, state={})
    assert filled.checkpoint(9).model["w"].equal(BIG["w"])
    assert filled.status().state == "failed"


def test_row_that_does_not_fit_leaves_no_torn_line(filled: Run):
    path = filled.path / "metrics.jsonl"
    with filled.writer() as writer:
        for extra in (0, 1, 20):
            size = path.stat().st_size
            with file_size_limit(size + extra), pytest.raises(StoreFull, match=r"metrics\.jsonl"):
                writer.metric({"step": 4, "loss": 0.125})
            assert path.stat().st_size == size
        writer.metric({"step": 4, "loss": 0.125})
    assert filled.metrics()[-1] == {"step": 4, "loss": 0.125}


WRITES: dict[str, Callable[[Run], None]] = {
    "status.json": lambda run: _with_writer(run, lambda writer: writer.status(state="failed")),
    "env.json": lambda run: _with_writer(run, lambda writer: writer.environment({"torch": "x"})),
    "metrics.jsonl": lambda run: _with_writer(run, lambda writer: writer.truncate_metrics(1)),
    "detect.json": lambda run: run.write_analysis("detect", {"verdict": "candidate"}),
}


def _with_writer(run: Run, write: Callable) -> None:
    with run.writer() as writer:
        write(writer)


@pytest.mark.parametrize("name", WRITES)
def test_replacing_a_file_on_a_full_disk_keeps_the_old_one(filled: Run, name: str):
    before = everything(filled)
    with file_size_limit(16), pytest.raises(StoreFull, match=name.replace(".", r"\.")):
        WRITES[name](filled)
    assert everything(filled) == before


def test_creating_a_run_on_a_full_disk_leaves_no_run(store: Store, run: Run):
    with file_size_limit(16), pytest.raises(StoreFull, match="another"):
        store.create("another", run.config)
    assert sorted(path.name for path in store.root.iterdir()) == ["tiny"]


def test_dev_full_is_reported_as_full_by_the_writing_loop():
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(StoreFull, match="No space left"), disk_errors("/dev/full"):
            write_all(fd, b"x" * 10)
    finally:
        os.close(fd)


def test_checkpoint_written_to_dev_full_leaves_nothing(filled: Run, monkeypatch: pytest.MonkeyPatch):
    before, real = everything(filled), os.write
    full = os.open("/dev/full", os.O_WRONLY)
    with filled.writer() as writer:
        monkeypatch.setattr(os, "write", lambda fd, data: real(full, data))
        with pytest.raises(StoreFull):
            writer.save(9, model=BIG, optim={}, state={})
        with pytest.raises(StoreFull):
            writer.metric({"step": 4})
        monkeypatch.undo()
    os.close(full)
    assert everything(filled) == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir", "open"])
def test_failure_of_any_system_call_in_a_save_is_typed_and_leaves_nothing(
    filled: Run, monkeypatch: pytest.MonkeyPatch, call: str, code: int
):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    before = everything(filled)
    with filled.writer() as writer:
        monkeypatch.setattr(os, call, refuse)
        with pytest.raises(StoreError) as caught:
            writer.save(9, model=BIG, optim={}, state={})
        monkeypatch.undo()
    assert isinstance(caught.value, StoreFull) == (code != errno.EIO)
    assert everything(filled) == before
