"""R2: what is written is made durable before it becomes visible, and leftovers of a crash are swept."""

import os
from pathlib import Path

import pytest
import torch

from interp.checkpoint import write_checkpoint
from interp.errors import RunLocked
from interp.files import replace
from interp.run import Run, Store


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The fsync, rename and remove calls in order, each with the last part of its path; hidden names show as *."""
    seen: list[tuple[str, str]] = []
    real = {name: getattr(os, name) for name in ("open", "fsync", "rename", "replace")}
    opened: dict[int, str] = {}

    def short(path: object) -> str:
        name = Path(os.fspath(path)).name  # type: ignore[arg-type]
        return "*" if name.startswith(".tmp-") else name

    def spy_open(path, *args, **kwargs):
        fd = real["open"](path, *args, **kwargs)
        opened[fd] = short(path)
        return fd

    def spy_fsync(fd):
        seen.append(("fsync", opened[fd]))
        real["fsync"](fd)

    def spy_move(name):
        def move(source, target):
            seen.append(("rename", f"{short(source)} -> {short(target)}"))
            real[name](source, target)

        return move

    monkeypatch.setattr(os, "open", spy_open)
    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", spy_move("rename"))
    monkeypatch.setattr(os, "replace", spy_move("replace"))
    return seen


def save(folder: Path, step: int) -> None:
    write_checkpoint(folder, step=step, model={"w": torch.zeros(1)}, optim={}, state={})


FILES = ["model.safetensors", "optim.safetensors", "state.json", "MANIFEST.json"]


def test_checkpoint_is_synced_then_renamed_then_its_parent_is_synced(tmp_path: Path, calls: list):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    save(folder / "step-00000001", 1)
    expected = [("fsync", name) for name in FILES]
    assert calls == [*expected, ("fsync", "*"), ("rename", "* -> step-00000001"), ("fsync", "checkpoints")]


def test_replaced_checkpoint_steps_aside_only_after_the_new_one_is_durable(tmp_path: Path, calls: list):
    save(tmp_path / "step-00000001", 1)
    calls.clear()
    save(tmp_path / "step-00000001", 1)
    moves = [("rename", "step-00000001 -> *"), ("rename", "* -> step-00000001")]
    assert calls == [*[("fsync", name) for name in FILES], ("fsync", "*"), *moves, ("fsync", tmp_path.name)]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_json_file_is_synced_before_it_replaces_the_old_one(tmp_path: Path, calls: list):
    replace(tmp_path / "status.json", b"{}")
    assert calls == [("fsync", "*"), ("rename", "* -> status.json"), ("fsync", tmp_path.name)]


def test_metrics_are_durable_before_the_checkpoint_that_counts_on_them(run: Run, calls: list):
    with run.writer() as writer:
        writer.metric({"step": 1})
        calls.clear()
        writer.save(1, model={}, optim={}, state={})
    assert calls[0] == ("fsync", "metrics.jsonl")
    assert calls.index(("fsync", "metrics.jsonl")) < calls.index(("rename", "* -> step-00000001"))


def test_old_rolling_checkpoint_goes_only_after_the_new_one_is_committed(run: Run, calls: list):
    with run.writer() as writer:
        writer.save(1, model={}, optim={}, state={}, rolling=True)
        calls.clear()
        writer.save(2, model={}, optim={}, state={}, rolling=True)
        moves = [text for kind, text in calls if kind == "rename"]
        assert moves == ["* -> rolling-00000002", "rolling-00000001 -> *"]
        assert [ref.path.name for ref in run.checkpoints(rolling=True)] == ["rolling-00000002"]


def test_files_are_readable_by_the_group_whatever_the_umask(run: Run):
    before = os.umask(0o077)
    try:
        with run.writer() as writer:
            path = writer.save(1, model={"w": torch.zeros(1)}, optim={}, state={}).path
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in path.iterdir()} == {"0o644"}


def leave_leftovers(run: Run) -> list[Path]:
    paths = [run.path / ".tmp-1", run.path / "checkpoints" / ".tmp-2", run.path / "checkpoints" / ".tmp-3"]
    paths[0].write_bytes(b"half")
    for path in paths[1:]:
        path.mkdir()
        (path / "model.safetensors").write_bytes(b"half")
    return paths


def test_leftovers_are_swept_by_the_next_writer(run: Run):
    paths = leave_leftovers(run)
    assert run.checkpoints(rolling=True) == []
    with run.writer():
        assert [path for path in paths if path.exists()] == []


def test_leftovers_of_a_live_writer_are_left_alone(run: Run):
    with run.writer():
        paths = leave_leftovers(run)
        with pytest.raises(RunLocked), run.writer():
            pytest.fail("a second writer got in")
        assert all(path.exists() for path in paths)


def test_old_leftovers_of_an_interrupted_creation_are_swept(store: Store, run: Run):
    old, fresh = store.root / ".tmp-old", store.root / ".tmp-fresh"
    for path in (old, fresh):
        path.mkdir()
    os.utime(old, (0, 0))
    store.create("another", run.config)
    assert not old.exists() and fresh.exists()
    assert store.names() == ["another", "tiny"]
