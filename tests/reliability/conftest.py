"""Fixtures: a store in a temporary folder and a run in it that has one file of every kind."""

from pathlib import Path

import numpy as np
import pytest
import torch

from interp.config import RunConfig
from interp.run import Run, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


@pytest.fixture
def run(store: Store) -> Run:
    return store.create("tiny", RunConfig(task="parity", task_params={"max_length": 4}))


@pytest.fixture
def filled(run: Run) -> Run:
    with run.writer() as writer:
        writer.status(state="running")
        writer.environment({"torch": "2.13.0", "threads": 1})
        for step in range(4):
            writer.metric({"step": step, "loss": 1.0 / (step + 1), "accuracy": {"4": 0.5}})
        writer.event({"step": 2, "event": "evaluated"})
        writer.event({"step": 3, "event": "solved"})
        writer.save(
            3,
            model={"embed.W_E": torch.arange(6.0).reshape(3, 2), "ln.w": torch.ones(2)},
            optim={"embed.W_E.exp_avg": torch.zeros(3, 2), "rng.torch": torch.arange(16, dtype=torch.uint8)},
            state={"solved_in_a_row": 1, "loss": 0.25},
        )
        writer.analysis("detect", {"verdict": "none", "p": 0.5}, {"curve": np.arange(4.0)})
        writer.status(state="done", step=3)
    return run
