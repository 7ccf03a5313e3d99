"""Detached processes: start one that outlives its parent, tell whether it is still the same one, and end it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from interp.files import disk_errors

POLL_SECONDS = 0.02


def birth(pid: int) -> str | None:
    """When a process was started, in the system's own words; None if there is none or it only waits to be reaped.

    Together with the pid this names a process for good: a pid that was given to another process has another birth.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _birth_by_ps(pid)
    except (ProcessLookupError, PermissionError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _birth_by_ps(pid: int) -> str | None:
    """The same on systems without /proc."""
    done = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True)
    state, _, started = done.stdout.strip().partition(" ")
    return None if done.returncode or state.startswith("Z") or not started else started.strip()


def alive(pid: int | None, born: str | None) -> bool:
    """True if the process of that pid is the one that was born then."""
    return pid is not None and born is not None and birth(pid) == born


def detach(command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, without input, with both outputs appended to `log`.

    Closing the terminal, the browser or the parent stops nothing.
    """
    with disk_errors(log), open(log, "ab", buffering=0) as output:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        )


def python_module(module: str, *arguments: str) -> list[str]:
    """The command line that runs one of our modules; `-P` keeps the working directory off its path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def ask_to_end(pid: int, born: str) -> None:
    """Send TERM to the process group, if it is still the same process."""
    if alive(pid, born):
        _signal_group(pid, signal.SIGTERM)


def end_within(pid: int, born: str, grace: float) -> None:
    """Wait for a process that was asked to end, and kill its group once `grace` seconds have passed."""
    if not wait_gone(pid, born, grace) and alive(pid, born):
        _signal_group(pid, signal.SIGKILL)
        wait_gone(pid, born, grace)


def wait_gone(pid: int, born: str, seconds: float) -> bool:
    """True as soon as the process is gone; False if it is still there after so many seconds."""
    limit = time.monotonic() + seconds
    while alive(pid, born):
        if time.monotonic() >= limit:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _signal_group(pid: int, number: int) -> None:
    """Signal a session leader's whole group; nothing to do if it has just ended."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return
