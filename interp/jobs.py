"""Jobs: `interp` commands in detached processes, and questions to a warm worker."""

import json
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field

from interp.config import Frozen, validated
from interp.errors import ConfigError, InterpError, JobError, StoreError, UnknownName
from interp.files import disk_errors, require_folder
from interp.jsonfile import read_sealed, write_sealed
from interp.names import check_name, is_name
from interp.processes import alive, ask_to_end, birth, detach, end_within, python_module
from interp.run import Store
from interp.worker_client import connected, exchange

JOBS, SPEC, STATUS, PROCESS, CANCEL, LOG = ".jobs", "job.json", "status.json", "process.json", "cancel", "log.txt"
GRACE = 10.0
STARTING_SECONDS = 60.0
LOG_TAIL = 1 << 16

State = Literal["starting", "running", "done", "cancelled", "failed", "died"]
ACTIVE = ("starting", "running")


class JobSpec(Frozen):
    """What a job runs: one `interp` command line, without the word `interp`."""

    format: Literal[1] = 1
    id: str
    kind: str = Field(description="first word of the command, such as train, detect or report")
    arguments: tuple[str, ...]
    run: str | None = Field(None, description="the run it writes into, if any")
    created: AwareDatetime


class JobStatus(Frozen):
    """What a job is doing. `died` is never stored: it is seen when an active job has lost its process."""

    format: Literal[1] = 1
    state: State = "starting"
    pid: int | None = None
    born: str | None = Field(None, description="start time of the process, which tells a reused pid apart")
    exit_code: int | None = None
    message: str = ""
    started: AwareDatetime | None = None
    ended: AwareDatetime | None = None
    cancelling: bool = Field(False, description="it was asked to stop and has not stopped yet")

    @property
    def active(self) -> bool:
        """It still has, or is about to get, a process."""
        return self.state in ACTIVE


@dataclass(frozen=True)
class Job:
    """One job folder `STORE/.jobs/ID/{job.json,status.json,process.json,log.txt}`; reading it needs no lock."""

    id: str
    path: Path

    @property
    def spec(self) -> JobSpec:
        """What was asked for; StoreError if the file is damaged."""
        return _checked(JobSpec, self.path / SPEC)

    def status(self) -> JobStatus:
        """What the job is doing now.

        Raises:
            StoreError: if status.json is damaged; the message names it.
        """
        stored: JobStatus = _checked(JobStatus, self.path / STATUS)
        if not stored.active:
            return stored
        cancelling = os.path.lexists(self.path / CANCEL)
        pid, born = _process(self.path)
        gone = not alive(pid, born) if pid else time.time() - self.spec.created.timestamp() > STARTING_SECONDS
        if gone:
            again: JobStatus = _checked(JobStatus, self.path / STATUS)  # it may have ended between the two looks
            if not again.active:
                return again
            state: State = "cancelled" if cancelling else "died"
            message = "stopped by the user" if cancelling else "its process is gone without a word; see its log"
            ended = datetime.fromtimestamp(os.lstat(self.path / (CANCEL if cancelling else STATUS)).st_mtime, UTC)
            seen = {"state": state, "message": message, "pid": pid, "born": born, "ended": ended}
            return again.model_copy(update=seen)
        return stored.model_copy(update={"pid": pid, "born": born, "cancelling": cancelling})

    def log(self, most: int = LOG_TAIL) -> str:
        """The last `most` bytes of what the job printed; empty before it printed anything."""
        if not os.path.lexists(self.path / LOG):
            return ""
        with disk_errors(self.path / LOG), open(self.path / LOG, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most))
            return file.read(most).decode("utf-8", errors="replace")

    def ask_to_stop(self) -> bool:
        """Ask the job to stop (TERM) and return at once; False if it has ended already.

        The wish is on disk before the signal is sent, so that every reader sees `cancelling` from now on.
        """
        if not self.status().active:
            return False
        with disk_errors(self.path / CANCEL):
            (self.path / CANCEL).touch()
        pid, born = _process(self.path)
        if pid and born:
            ask_to_end(pid, born)
        return True

    def cancel(self, grace: float = GRACE) -> JobStatus:
        """Ask the job to stop, kill it after `grace` seconds, and say how it ended; harmless if it has ended.

        A training stops between two steps and can be resumed.
        """
        if self.ask_to_stop():
            pid, born = _process(self.path)
            if pid and born:
                end_within(pid, born, grace)
        return self.status()


def start(store: Store, arguments: Sequence[str], *, run: str | None = None) -> Job:
    """Start one `interp` command detached: start(store, ["train", "parity", "--name", "p1"], run="p1").

    `--store` is added for the given store. The job outlives this process, the browser and the terminal.

    Args:
        arguments: the command line without `interp` and without `--store`.
        run: the run it writes into; a second active job on the same run is refused.

    Raises:
        JobError: if a job on that run is still active; the message names it.
        StoreError: if the store cannot be written.
    """
    if run is not None:
        check_name(run)
        for other in active_jobs(store):
            if other.spec.run == run:
                raise JobError(f"run {run!r} is being worked on by job {other.id}; wait for it or cancel it first")
    now = datetime.now(UTC)
    kind = arguments[0]
    name = f"{kind}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    path = store.root / JOBS / check_name(name, "job")
    with disk_errors(path):
        path.mkdir(parents=True)
    spec = JobSpec(id=name, kind=kind, arguments=(*arguments, "--store", str(store.root)), run=run, created=now)
    write_sealed(path / SPEC, spec.model_dump(mode="json"))
    write_sealed(path / STATUS, JobStatus(started=now).model_dump(mode="json"))
    process = detach(python_module("interp.job_process", str(path)), path / LOG)
    write_sealed(path / PROCESS, {"format": 1, "pid": process.pid, "born": birth(process.pid)})
    return Job(name, path)


def jobs(store: Store) -> list[Job]:
    """Every job of the store, newest first."""
    folder = store.root / JOBS
    if not folder.is_dir():
        return []
    with disk_errors(folder):
        names = [name for name in os.listdir(folder) if is_name(name) and (folder / name / STATUS).exists()]
    return [Job(name, folder / name) for name in sorted(names, key=_when, reverse=True)]


def active_jobs(store: Store) -> list[Job]:
    """Jobs that are starting or running; one that cannot be read is not counted as active."""
    return [one for one in jobs(store) if _is_active(one)]


def job(store: Store, name: str) -> Job:
    """One job by its id.

    Raises:
        RunNameError: for a name outside the allowed alphabet.
        UnknownName: if there is none of that id.
    """
    path = store.root / JOBS / check_name(name, "job")
    if not os.path.lexists(path):
        raise UnknownName("job", name, [one.id for one in jobs(store)])
    return Job(name, require_folder(path))


def ask(store: Store, name: str, request: dict[str, Any], timeout: float = 30.0) -> dict[str, Any]:
    """One question to the store's warm worker, which keeps torch and the models it has loaded.

    Starts the worker if there is none: the first answer takes a few seconds, the next ones only their own work.
    It ends by itself after 15 minutes without a question, and is started afresh when the code has changed.

    Args:
        name: an entry point of the group `interp.worker`: a function (interp.worker.Warm, request) -> answer.
        request: plain JSON, at most 1 MB.
        timeout: seconds until JobError; the worker then goes on and its next answer is quick.

    Returns:
        The function's answer: plain JSON.

    Raises:
        JobError: no answer in time, or the worker stopped; the message names its log.
        InterpError: what the function refused, in its own words.
    """
    try:
        line = json.dumps({"name": name, "request": request}, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise JobError(f"request {name!r} is not plain JSON: {error}") from None
    answer = exchange(store, line, timeout)
    if "error" in answer:
        raise InterpError(answer["error"])
    return answer["answer"]


def warm(store: Store) -> None:
    """Start the worker without waiting for it, so that the first question finds it ready; harmless if it is there."""
    connected(store, 0.0)


def _when(name: str) -> str:
    """The part of a job's id that sorts by time."""
    return name.partition("-")[2]


def _is_active(one: Job) -> bool:
    try:
        return one.status().active
    except StoreError:
        return False


def _process(path: Path) -> tuple[int | None, str | None]:
    """Pid and birth of the job's process; None before it is written."""
    if not os.path.lexists(path / PROCESS):
        return None, None
    body = read_sealed(path / PROCESS)
    pid, born = body.get("pid"), body.get("born")
    if type(pid) is not int or not isinstance(born, str | None):
        raise StoreError(f"{path / PROCESS}: expected a pid and its start time; the file is damaged")
    return pid, born


def _checked(cls: type[Frozen], path: Path) -> Any:
    try:
        return validated(cls, read_sealed(path), str(path))
    except ConfigError as error:
        raise StoreError(str(error)) from None
