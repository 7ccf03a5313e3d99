"""R1: a process killed while saving leaves only whole checkpoints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("trials", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_every_visible_checkpoint_verifies_after_sigkill(tmp_path: Path, trials: int):
    script = Path(__file__).with_name("kill_loop.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "runs"), str(trials), "7"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    total = json.loads(done.stdout)
    assert total["left"] == 0, "temporary folders survived the next opening"
    assert total["visible"] >= trials / 2, total
    assert total["mid_save"] >= trials / 4, "too few kills fell inside a save for the test to mean anything"
