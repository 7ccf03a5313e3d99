"""The process of one job: runs its command line and writes down how that went."""

import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from interp.cli import INTERRUPTED, OK, main
from interp.jobs import CANCEL, PROCESS, STATUS, Job, JobStatus
from interp.jsonfile import write_sealed
from interp.processes import birth


def run(path: Path) -> int:
    """Run the job in this folder: starting until torch is loaded, then running, then how it ended.

    TERM is a Ctrl-C: a training turns it into a stop between two steps, everything else stops at once. An exception
    that is a defect of ours leaves its traceback in the log and the state `failed`.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    job = Job(path.name, path)
    spec = job.spec
    begun = JobStatus(started=datetime.now(UTC))
    code: int | None = None
    try:
        write_sealed(path / PROCESS, {"format": 1, "pid": os.getpid(), "born": birth(os.getpid())})
        _load_torch()
        if (path / CANCEL).exists():  # asked for before there was a process to ask
            raise KeyboardInterrupt
        _write(path, begun.model_copy(update={"state": "running"}))
        print(f"$ interp {' '.join(spec.arguments)}", flush=True)
        code = main(list(spec.arguments))
    except KeyboardInterrupt:
        code = INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _write(path, begun.model_copy(update=_ending(path, code, sys.exc_info()[1])))
    return code


def _load_torch() -> None:
    """The slow part of every job, done before it is called running."""
    import interp.train  # noqa: F401


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _ending(path: Path, code: int | None, error: BaseException | None) -> dict[str, Any]:
    """State, code and message from the exit code, or from the exception that is on its way out."""
    asked = (path / CANCEL).exists()
    if code == OK:
        state, message = "done", ""
    elif code == INTERRUPTED or asked:
        state, message = "cancelled", "stopped by the user"
    elif error is not None:
        state, message = "failed", f"a defect, see its log: {type(error).__name__}: {error}"[:500]
    else:
        state, message = "failed", _last_line(path)
    return {"state": state, "exit_code": code, "message": message, "ended": datetime.now(UTC)}


def _last_line(path: Path) -> str:
    """The last error line of the log, which says what went wrong."""
    lines = [line for line in Job(path.name, path).log().splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it printed nothing"])[-1].removeprefix("error: ")[:500]


def _write(path: Path, status: JobStatus) -> None:
    write_sealed(path / STATUS, status.model_dump(mode="json"))


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
