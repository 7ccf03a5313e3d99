"""Fixtures: a run with one checkpoint, and a way to plant any bytes in it under hashes that match."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from interp.config import RunConfig
from interp.jsonfile import sealed, unsealed
from interp.run import Run, Store


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Durability is the subject of tests/reliability; here fsync would only cost time."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


@pytest.fixture
def run(store: Store) -> Run:
    run = store.create("tiny", RunConfig(task="parity"))
    with run.writer() as writer:
        writer.environment({})
        writer.metric({"step": 0})
        writer.save(0, model={"w": torch.ones(2)}, optim={"m": torch.ones(2)}, state={"a": 1})
        writer.analysis("detect", {"p": 1.0}, {"curve": np.ones(2)})
    return run


@pytest.fixture
def checkpoint(run: Run) -> Path:
    return run.path / "checkpoints" / "step-00000000"


@pytest.fixture
def plant(checkpoint: Path) -> Callable[[str, bytes], None]:
    """Replace a checkpoint file and make the manifest agree, as an attacker who knows the format would."""

    def planted(name: str, data: bytes) -> None:
        (checkpoint / name).write_bytes(data)
        manifest = checkpoint / "MANIFEST.json"
        body = unsealed(manifest.read_bytes(), "manifest")
        body["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest.write_bytes(sealed(body, "manifest", indent=None))

    return planted
