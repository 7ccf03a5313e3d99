"""A store with everything that the views of patching, circuit, lens and embedding read, made once for all tests."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interp import jobs
from interp.cli import main
from interp.registry import load_group
from interp.run import Store
from interp.worker import Warm
from interp.worker_client import GROUP
from tests.truth.exported import exported

LAST = 13750  # of the trained model; the other checkpoint, 0, has a tenth of its weights and so knows nothing
LINES = (
    ["patch", "solved", "--length", "4", "--n", "6", "--checkpoint", "0"],
    ["patch", "solved", "--length", "4", "--n", "6"],
    ["circuit", "solved", "--checkpoints", "all", "--controls", "19", "--reruns", "0", "--length", "3", "--n", "32"],
    ["probe", "solved", "--length", "4", "--n", "16"],
)


@pytest.fixture(scope="session")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the run `solved`: a trained model with patches, circuits, lens and embeddings. Read only."""
    folder = tmp_path_factory.getbasetemp() / "analysed" / "runs"
    if folder.exists():  # each file that imports this fixture has its own copy of it
        return folder
    (trained,) = exported("polynomial-d32-s1")
    model, _, _ = trained.load()
    with Store(folder).create("solved", trained.config).writer() as writer:
        for step, share in ((0, 0.1), (trained.step, 1.0)):
            weights = {name: value * share for name, value in model.state_dict().items()}
            writer.save(step, model=weights, optim={}, state={})
    for line in LINES:
        assert main([*line, "--store", str(folder)]) == 0
    return folder


@pytest.fixture
def solved_store(analysed: Path, tmp_path: Path) -> Store:
    """A copy that a test may change."""
    shutil.copytree(analysed, tmp_path / "runs")
    return Store(tmp_path / "runs")


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Questions to the worker are answered here, in this process, by the same functions; returns what was asked."""
    asked: list[tuple[str, dict[str, Any]]] = []
    handlers: dict[str, Callable] = load_group(GROUP)

    def ask(store: Store, name: str, request: dict[str, Any], timeout: float = 30.0) -> dict[str, Any]:
        asked.append((name, request))
        return handlers[name](Warm(store), request)

    monkeypatch.setattr(jobs, "ask", ask)
    return asked


def hostile(store: Store, prefix: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the payload of every stored analysis whose key begins so, and store it again with its arrays."""
    run = store.run("solved")
    for key in run.analyses():
        if key.startswith(prefix):
            payload, arrays = run.analysis(key), run.analysis_arrays(key)
            change(payload)
            run.write_analysis(key, payload, arrays)
