"""R22: a run written by every released format stays readable, value for value, and can be written on."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from interp.errors import StoreError
from interp.jsonfile import write_sealed
from interp.run import Run, Store

GOLDEN = Path(__file__).with_name("golden")


@pytest.fixture
def golden() -> Run:
    return Store(GOLDEN).run("format-1")


def test_every_golden_run_is_listed():
    assert Store(GOLDEN).names() == ["format-1"]


def test_golden_json_files_hold_what_was_written(golden: Run):
    config = golden.config
    assert (config.task, config.task_params, config.seed) == ("parity", {"max_length": 4}, 3)
    assert (config.model.d_model, config.train.lr, config.train.betas) == (32, 2e-3, (0.9, 0.999))
    status = golden.status()
    assert (status.state, status.step, status.message) == ("done", 2, "golden")
    assert golden.environment() == {"torch": "2.13.0", "threads": 1}
    assert golden.events() == [{"step": 0, "event": "started"}]
    assert [(row["step"], row["loss"], row["accuracy"]) for row in golden.metrics()] == [
        (0, 1.0, {"4": 0.0}),
        (1, 0.5, {"4": 0.25}),
        (2, 1 / 3, {"4": 0.5}),
    ]


def test_golden_checkpoints_hold_what_was_written(golden: Run):
    assert [(ref.step, ref.rolling) for ref in golden.checkpoints(rolling=True)] == [(0, False), (1, False), (2, True)]
    for step in (0, 1, 2):
        checkpoint = golden.checkpoint(step)
        assert checkpoint.model["embed.W_E"].equal(torch.tensor([[0.0, 1.0], [-2.0, 0.1]]) + step)
        assert checkpoint.model["half"].equal(torch.tensor([1.5, -0.0], dtype=torch.bfloat16))
        assert checkpoint.model["empty"].shape == (0, 3)
        assert checkpoint.optim["embed.W_E.exp_avg"].equal(torch.full((2, 2), 0.5, dtype=torch.float64))
        assert (checkpoint.optim["step"].item(), checkpoint.optim["rng.torch"].tolist()) == (step, [0, 127, 255])
        assert checkpoint.state == {"loss": 1.0 / (step + 1), "note": "é ∂ \u2028", "scores": {}}
        folder = golden.path / "checkpoints" / f"{'rolling' if step == 2 else 'step'}-0000000{step}"
        assert checkpoint.hash == hashlib.sha256((folder / "MANIFEST.json").read_bytes()).hexdigest()


def test_golden_analysis_holds_what_was_written(golden: Run):
    assert golden.analyses() == ["detect"]
    assert golden.analysis("detect") == {"verdict": "none", "p": 0.5}
    arrays = {name: array.tolist() for name, array in golden.analysis_arrays("detect").items()}
    assert arrays == {"curve": [0.0, 0.25, 0.5], "mask": [[True, False]]}


def test_golden_run_can_be_resumed(tmp_path: Path):
    shutil.copytree(GOLDEN / "format-1", tmp_path / "format-1")
    run = Store(tmp_path).run("format-1")
    with run.writer() as writer:
        writer.truncate_metrics(1)
        writer.metric({"step": 2})
        writer.save(3, model={"w": torch.ones(1)}, optim={}, state={})
    assert [row["step"] for row in run.metrics()] == [0, 1, 2]
    assert [ref.step for ref in run.checkpoints(rolling=True)] == [0, 1, 3]


def test_file_of_a_newer_format_says_so(tmp_path: Path, golden: Run):
    write_sealed(tmp_path / "status.json", {"format": 2, "state": "done"})
    with pytest.raises(StoreError, match=r"status\.json: format 2, this version reads 1 to 1"):
        Run("newer", tmp_path).status()
