"""Child of test_resume.py: trains, kills the training at random moments, resumes it, and tells what it left on disk.

Prints one JSON object. It is a process of its own so that forking happens where torch has no threads yet; the forks
start with everything imported, so that a kill falls into the training and not into the start of an interpreter.
"""

import hashlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # loaded by every optimiser; here once for all forks, like the trackers

import circuits.trackers  # noqa: F401
import interp.train as training
from interp.cli import main as command
from interp.config import RunConfig
from interp.run import Run, Store

CONFIG = RunConfig(
    task="polynomial",
    task_params={"modulus": 3, "max_length": 5},
    data={"per_length": 64},
    model={"d_model": 8, "dropout": 0.2, "embed_norm": True},
    train={
        "steps": 60,
        "batch_size": 4,
        "eval_every": 10,
        "track_every": 10,
        "eval_sequences": 16,
        "checkpoint_first": 4,
        "track_move": 0.02,
        "rolling_seconds": 0.02,
        "schedule": "cosine",
    },
)


def left_on_disk(run: Run) -> dict[str, str]:
    """sha256 of metrics.jsonl and of every file of every planned checkpoint; manifests of manifests, in effect."""
    files = [run.path / "metrics.jsonl"]
    files += [path for ref in run.checkpoints() for path in sorted(ref.path.iterdir())]
    return {str(path.relative_to(run.path)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def weights_and_metrics(run: Run) -> dict[str, str]:
    """The hashes that do not depend on how the configuration was spelled: defaults left out, or written out."""
    return {key: value for key, value in left_on_disk(run).items() if not key.endswith(("state.json", "MANIFEST.json"))}


def forked(action: Callable[[int], Any]) -> tuple[int, int]:
    """Start `action` in a fork; gives its pid and the reading end of a pipe whose writing end the action gets."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ready)
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
            code = action(told)
            os._exit(code if isinstance(code, int) else 0)
        finally:  # reached only when the action raised
            traceback.print_exc()
            os._exit(70)
    os.close(told)
    return child, ready


def finish(child: int, ready: int) -> int:
    """Wait for a fork and return its exit code, negative for a signal."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(ready)
    return code


def train(store: Store, name: str, at_step_1: bool = False) -> Callable[[int], Any]:
    """Train that run, or go on with it; a byte is sent at the start, or before the first update."""

    def action(told: int) -> None:
        real = training.update

        def update(loop: Any) -> None:
            training.update = real
            os.write(told, b".")
            real(loop)

        if at_step_1:
            training.update = update
        else:
            os.write(told, b".")
        training.train(CONFIG, store, name, resume=name in store.names())

    return action


def killed(store: Store, name: str, delay: float, at_step_1: bool) -> bool:
    """SIGKILL a training `delay` seconds after its byte; False if it was done before."""
    child, ready = forked(train(store, name, at_step_1))
    os.read(ready, 1)  # empty where a resumed run had nothing left to do
    select.select([], [], [], delay)
    os.kill(child, signal.SIGKILL)
    code = finish(child, ready)
    assert code in (0, -signal.SIGKILL), code
    return code != 0


def kill_and_resume(store: Store, trials: int, seed: int) -> dict[str, Any]:
    """Fresh runs, each killed once or twice at a random moment and then finished; one more is never disturbed.

    Two of three kills are timed from the first update, the third from the start of the process.
    """
    child, ready = forked(train(store, "whole", at_step_1=True))
    os.read(ready, 1)
    started = time.monotonic()
    assert finish(child, ready) == 0
    longest = time.monotonic() - started
    expected = left_on_disk(store.run("whole"))
    generator = torch.Generator().manual_seed(seed)
    result: dict[str, Any] = {"kills": 0, "mid_run": 0, "steps": [], "different": [], "unfinished": 0}
    for trial in range(20 * trials):
        if result["kills"] >= trials:
            break
        name = f"killed-{trial}"
        for _ in range(1 + trial % 2):
            delay = longest * torch.rand((), generator=generator).item()
            if killed(store, name, delay, at_step_1=result["kills"] % 3 != 2):
                result["kills"] += 1
                saved = store.run(name).checkpoints(rolling=True) if name in store.names() else []
                result["steps"].append(saved[-1].step if saved else -1)
                result["mid_run"] += bool(saved) and saved[-1].step < CONFIG.train.steps
        result["unfinished"] += finish(*forked(train(store, name))) != 0
        found = left_on_disk(store.run(name))
        result["different"] += [f"{name}: {key}" for key in expected | found if found.get(key) != expected.get(key)]
    return result


def interrupt_command(store: Store) -> dict[str, Any]:
    """`interp train`, stopped by SIGINT from outside after its fifth step, then resumed to the end."""
    line = ["train", "polynomial", "--name", "asked", "--store", str(store.root), "-q"]
    for section, values in CONFIG.model_dump(include={"task_params", "data", "model", "train"}).items():
        for key, value in values.items():
            line += ["--set", f"{section}.{key}={json.dumps(value)}"]
    fifth, reached = os.pipe()
    sent, go_on = os.pipe()
    update = training.update

    def wait_for_the_signal(loop: Any) -> None:
        if loop.step == 5:
            os.write(reached, b".")
            os.read(sent, 1)
        update(loop)

    def interrupted(told: int) -> int:
        training.update = wait_for_the_signal
        return command(line)

    child, ready = forked(interrupted)
    assert os.read(fifth, 1) == b"."
    os.kill(child, signal.SIGINT)
    os.write(go_on, b".")
    stopped = finish(child, ready)
    status = store.run("asked").status()
    resumed = finish(*forked(lambda told: command([*line, "--resume"])))
    asked, whole = (weights_and_metrics(store.run(name)) for name in ("asked", "whole"))
    return {"exit": stopped, "state": status.state, "step": status.step, "resumed": resumed, "same": asked == whole}


def main(root: str, trials: int, seed: int) -> None:
    torch.set_num_threads(1)
    os.fsync = lambda fd: None  # it is for power cuts; what a killed process has written stays written
    store = Store(Path(root))
    result: dict[str, Any] = kill_and_resume(store, trials, seed)
    result["command"] = interrupt_command(store)
    result["whole"] = left_on_disk(store.run("whole"))
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
