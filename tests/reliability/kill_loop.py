"""Child of test_kill.py: kills a process that saves without pause, many times over one run, and checks what is left.

Prints one JSON object. It is a process of its own so that forking happens where torch has no threads yet.
"""

import json
import os
import select
import shutil
import signal
import sys
import traceback
from pathlib import Path

import torch

from interp.checkpoint import read_checkpoint
from interp.config import RunConfig
from interp.run import Run, Store

SIZE = 4096


def save_for_ever(run: Run, started: int) -> None:
    """Save step after step; every third one is rolling."""
    with run.writer() as writer:
        known = run.checkpoints(rolling=True)
        step = known[-1].step + 1 if known else 0
        writer.truncate_metrics(step - 1)
        os.write(started, b".")
        while True:
            writer.metric({"step": step, "loss": float(step)})
            values = {f"w{index}": torch.full((SIZE,), float(step)) for index in range(8)}
            writer.save(step, model=values, optim={"m": values["w0"] + 1}, state={"at": step}, rolling=step % 3 == 0)
            step += 1


def kill_once(run: Run, delay: float) -> None:
    """Start a saver, wait until it holds the lock, then `delay` seconds, and SIGKILL it."""
    ready, started = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            save_for_ever(run, started)
        finally:  # reached only when saving raised
            traceback.print_exc()
            os._exit(1)
    os.close(started)
    assert os.read(ready, 1) == b"."
    select.select([], [], [], delay)
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    os.close(ready)


def check(run: Run) -> dict[str, int]:
    """Read everything that is visible; raises at the first thing that is not whole."""
    found = run.checkpoints(rolling=True)
    for ref in found:
        checkpoint = read_checkpoint(ref.path)
        assert checkpoint.step == ref.step == checkpoint.state["at"]
        assert all(torch.equal(value, torch.full((SIZE,), float(ref.step))) for value in checkpoint.model.values())
        assert torch.equal(checkpoint.optim["m"], torch.full((SIZE,), ref.step + 1.0))
    assert len([ref for ref in found if ref.rolling]) <= 2  # the new one, and the old one not yet removed
    steps = [row["step"] for row in run.metrics()]
    assert steps == sorted(set(steps)), steps
    assert not found or steps[-1] >= found[-1].step, "a visible checkpoint whose metrics are missing"
    folder = run.path / "checkpoints"
    hidden = sum(path.name.startswith(".tmp-") for path in folder.iterdir())
    with run.writer():
        left = sum(".tmp-" in path.name for path in run.path.rglob("*"))
    for ref in found[:-2]:
        shutil.rmtree(ref.path)
    return {"visible": len(found), "hidden": hidden, "left": left}


def main(root: str, trials: int, seed: int) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    run = Store(Path(root)).create("killed", RunConfig(task="parity"))
    total = {"trials": trials, "visible": 0, "hidden": 0, "left": 0, "mid_save": 0}
    for _ in range(trials):
        kill_once(run, 0.06 * torch.rand((), generator=generator).item())
        result = check(run)
        total["mid_save"] += result["hidden"] > 0
        for key, value in result.items():
            total[key] += value
    print(json.dumps(total))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
