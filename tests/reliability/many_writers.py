"""Child of test_many_writers.py: forks writers and readers over one store; prints one JSON object.

It is a process of its own so that forking happens where torch has no threads yet.
"""

import json
import os
import sys
import traceback
from pathlib import Path

import torch

from interp.config import RunConfig
from interp.run import Run, Store

WRITERS, READERS = 8, 2


def write(run: Run, rows: int) -> None:
    with run.writer() as writer:
        writer.status(state="running")
        for step in range(rows):
            writer.metric({"step": step, "note": "x" * (step * 37 % 500)})
            if step % 50 == 0:
                writer.save(step, model={"w": torch.full((64,), float(step))}, optim={}, state={}, rolling=True)
                writer.status(step=step)
        writer.status(state="done", step=rows)


def read(store: Store) -> None:
    """Read every run again and again until all are done; an error or a row out of order ends this process."""
    while True:
        states = []
        for name in store.names():
            run = store.run(name)
            steps = [row["step"] for row in run.metrics()]
            assert steps == list(range(len(steps))), (name, steps)
            status = run.status()
            assert status.state in ("created", "running", "done"), status
            states.append(status.state)
        if states.count("done") == WRITERS:
            return


def forked(action, *arguments) -> int:
    """Start `action` in a child and give its pid; the child's exit status is 0 only if it raised nothing."""
    child = os.fork()
    if child:
        return child
    try:
        action(*arguments)
        os._exit(0)
    finally:  # reached only when `action` raised
        traceback.print_exc()
        os._exit(1)


def main(root: str, rows: int) -> None:
    torch.set_num_threads(1)
    store = Store(Path(root))
    runs = [store.create(f"w{index}", RunConfig(task="parity", seed=index)) for index in range(WRITERS)]
    children = [forked(read, store) for _ in range(READERS)] + [forked(write, run, rows) for run in runs]
    failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
    print(json.dumps({"failed": failed, "rows": [len(run.metrics()) for run in runs]}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
