"""Stores for the tests of the dashboard (empty, normal, hostile, corrupted), and views run by AppTest."""

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from streamlit import config
from streamlit.testing.v1 import AppTest

from circuits.detect import detect_run
from circuits.detectors.iteration_head import Options
from dashboards.launch import STORE, TOKEN
from interp.config import RunConfig
from interp.registry import load
from interp.run import Run, Store
from interp.run_config import assemble
from interp.tasks.base import preset_of
from interp.train import train

SETTINGS = [
    "train.steps=60", "train.checkpoint_first=8", "train.checkpoint_ratio=2.0", "train.eval_every=10",
    "train.track_every=10", "train.track_move=5.0", "train.stop_accuracy=1.0", "train.stop_patience=50",
    "data.per_length=32", "task_params.max_length=5", "model.n_heads=2", "model.d_model=16",
]  # fmt: skip
LIGHT = Options(n_null=99, per_step=4, per_length=16, accuracy_sequences=16)
SCRIPT = "from dashboards.router import main\nmain({view!r})\n"
HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script> [a](javascript:alert(3)) :red[x] $\\sum$ `c`"


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Durability is the subject of tests/reliability; here fsync would only cost time."""
    patch = pytest.MonkeyPatch()
    patch.setattr(os, "fsync", lambda fd: None)
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def own_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Workers that views start have their sockets in a folder of this session, and end with it."""
    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("run")
    patch.setenv("XDG_RUNTIME_DIR", str(folder))
    yield
    patch.undo()
    for path in folder.rglob("*.sock"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, suppress(ConnectionRefusedError):
            connection.connect(str(path))
            connection.sendall(b'{"name": "ping", "request": {}}\n')
            os.kill(json.loads(connection.recv(1 << 16))["answer"]["pid"], signal.SIGKILL)


def tiny_config(seed: int = 0) -> RunConfig:
    """Parity of at most 5 bits, 2 layers of 2 heads, 60 steps, checkpoints at 0 8 16 32 60."""
    return assemble(preset_of(load("task", "parity")), assignments=SETTINGS, seed=seed)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two tiny trained runs, `tiny` and `other`; `tiny` with detections at every checkpoint. Read only."""
    store = Store(tmp_path_factory.mktemp("trained") / "runs")
    for name, seed in (("other", 1), ("tiny", 0)):
        run = train(tiny_config(seed), store, name)
    detect_run(run, every_checkpoint=True, options=LIGHT)
    return store.root


@pytest.fixture
def normal_store(trained: Path, tmp_path: Path) -> Store:
    """A copy of the trained store that a test may change."""
    shutil.copytree(trained, tmp_path / "runs")
    return Store(tmp_path / "runs")


@pytest.fixture
def empty_store(tmp_path: Path) -> Store:
    """A store without a run; its folder does not even exist."""
    return Store(tmp_path / "runs")


@pytest.fixture
def hostile_store(normal_store: Store) -> Store:
    """The trained store, with markup in the status message, events and metrics of `tiny`."""
    with normal_store.run("tiny").writer() as writer:
        writer.status(message=HOSTILE)
        writer.event({"step": 0, "event": HOSTILE, "note": HOSTILE})
        writer.metric({"step": 60, "scores": {HOSTILE: 0.5}})
    return normal_store


@pytest.fixture(params=["config.json", "status.json", "metrics.jsonl", "checkpoints", "analysis"])
def corrupted_store(request: pytest.FixtureRequest, normal_store: Store) -> Store:
    """The trained store with one part of `tiny` damaged; `other` is whole."""
    damage(normal_store.run("tiny"), request.param)
    return normal_store


def damage(run: Run, part: str) -> None:
    """Overwrite a file of the run, or the largest files of one of its folders, with bytes that are no format."""
    path = run.path / part
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        file.write_bytes(b"\x00\xff not a file of ours {" + file.read_bytes()[:20])


@pytest.fixture
def view(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """view(store, "runs", step=8): the whole app after one run, opened at that view and address."""

    def opened(store: Store, name: str, **parameters: object) -> AppTest:
        config.set_option("server.address", "127.0.0.1")  # as dashboards/.streamlit/config.toml says it
        monkeypatch.setenv(STORE, str(store.root))
        monkeypatch.delenv(TOKEN, raising=False)
        app = AppTest.from_string(SCRIPT.format(view=name), default_timeout=30)
        for key, value in parameters.items():
            app.query_params[key] = str(value)
        return app.run()

    return opened
