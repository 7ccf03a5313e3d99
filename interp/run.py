"""The store of runs: everything on disk about one training, read by anybody and written by one process at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import AwareDatetime, Field

from interp.analysis import list_analyses, read_analysis, read_arrays, write_analysis
from interp.checkpoint_folders import CheckpointRef, folder_name, list_checkpoints
from interp.config import Frozen, RunConfig, validated
from interp.errors import CheckpointError, ConfigError, RunExists, StoreError, UnknownName
from interp.files import (
    discard,
    disk_errors,
    remove_folder,
    require_folder,
    sweep,
    sync_folder,
    temporary_beside,
    write_new,
)
from interp.jsonfile import read_sealed, sealed, write_sealed
from interp.jsonlines import LineLog, read_rows
from interp.lock import held, holder
from interp.names import check_name, is_name

if TYPE_CHECKING:  # torch is loaded only by what reads or writes tensors, so that listing runs stays quick
    import numpy as np
    from torch import Tensor

    from interp.checkpoint import Checkpoint

CONFIG, STATUS, ENVIRONMENT, LOCK = "config.json", "status.json", "env.json", "lock"
CHECKPOINTS, ANALYSIS = "checkpoints", "analysis"
LEFTOVER_SECONDS = 3600.0


class RunStatus(Frozen):
    """What a run is doing; `died` is never stored, it is seen when a running run has lost its writer."""

    format: Literal[1] = 1
    state: Literal["created", "running", "done", "interrupted", "diverged", "failed", "died"] = "created"
    step: int = Field(0, ge=0)
    pid: int | None = None
    message: str = ""
    started: AwareDatetime | None = None
    updated: AwareDatetime | None = None


def _checked(cls: type[Frozen], body: dict[str, Any], path: Path) -> Any:
    try:
        return validated(cls, body, str(path))
    except ConfigError as error:
        raise StoreError(str(error)) from None


@dataclass(frozen=True)
class Run:
    """One run folder. Reading needs no lock; writing goes through `writer()`."""

    name: str
    path: Path

    @cached_property
    def config(self) -> RunConfig:
        """The configuration the run was created with.

        Raises:
            StoreError: if config.json is damaged; the message names it.
        """
        return _checked(RunConfig, read_sealed(self.path / CONFIG), self.path / CONFIG)

    def status(self) -> RunStatus:
        """What the run is doing now; state `died` when it says running but its writer is gone.

        Raises:
            StoreError: if status.json is damaged; the message names it.
        """
        stored: RunStatus = _checked(RunStatus, read_sealed(self.path / STATUS), self.path / STATUS)
        if stored.state == "running" and holder(self.path / LOCK) not in (stored.pid, 0):
            again: RunStatus = _checked(RunStatus, read_sealed(self.path / STATUS), self.path / STATUS)
            return again.model_copy(update={"state": "died"}) if again == stored else again
        return stored

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl; StoreError names file and line where it is damaged."""
        return read_rows(self.path / "metrics.jsonl", "metrics")

    def events(self) -> list[dict[str, Any]]:
        """Rows of events.jsonl; StoreError names file and line where it is damaged."""
        return read_rows(self.path / "events.jsonl", "events")

    def environment(self) -> dict[str, Any]:
        """Versions, threads and device of the machine that trained; empty before they are recorded.

        Raises:
            StoreError: if env.json is damaged; the message names it.
        """
        if not os.path.lexists(self.path / ENVIRONMENT):
            return {}
        environment = read_sealed(self.path / ENVIRONMENT).get("environment")
        if not isinstance(environment, dict):
            raise StoreError(f"{self.path / ENVIRONMENT}: expected the key 'environment' with an object")
        return environment

    def checkpoints(self, *, rolling: bool = False) -> list[CheckpointRef]:
        """Committed checkpoints by step, not yet verified; the rolling one only on request."""
        return [ref for ref in list_checkpoints(self.path / CHECKPOINTS) if rolling or not ref.rolling]

    def latest_verified(self, *, optim: bool = True) -> tuple["Checkpoint", list[Path]]:
        """The newest checkpoint that verifies, and the damaged newer ones that were skipped.

        Raises:
            CheckpointError: if none verifies; the message names the newest damaged file.
        """
        from interp.checkpoint import read_checkpoint

        skipped: dict[Path, str] = {}
        while True:
            refs = [ref for ref in self.checkpoints(rolling=True) if ref.path not in skipped]
            if not refs:
                reason = next(iter(skipped.values()), "there is none")
                where = self.path / CHECKPOINTS
                raise CheckpointError(f"{where}: no checkpoint to load ({reason}); remove the run and train it again")
            newest = refs[-1]
            try:
                return read_checkpoint(newest.path, optim=optim), list(skipped)
            except CheckpointError as error:
                if newest.path.exists():  # else its writer has just replaced it by a newer rolling one: look again
                    skipped[newest.path] = str(error)

    def checkpoint(self, step: int | None = None, *, optim: bool = True) -> "Checkpoint":
        """The checkpoint of a step, or the newest that verifies.

        Raises:
            UnknownName: if there is none of that step.
            CheckpointError: if it is damaged.
        """
        from interp.checkpoint import read_checkpoint

        if step is None:
            return self.latest_verified(optim=optim)[0]
        known = {ref.step: ref for ref in self.checkpoints(rolling=True)}
        if step not in known:
            raise UnknownName(f"checkpoint of run {self.name!r}:", str(step), map(str, known))
        return read_checkpoint(known[step].path, optim=optim)

    def analyses(self) -> list[str]:
        """Keys of the stored analyses."""
        return list_analyses(self.path / ANALYSIS)

    def analysis(self, key: str) -> dict[str, Any]:
        """A stored analysis; UnknownName if there is none of that key, StoreError if it is damaged."""
        return read_analysis(self.path / ANALYSIS, key)

    def analysis_arrays(self, key: str) -> dict[str, "np.ndarray"]:
        """Arrays stored with an analysis, empty if it has none; StoreError if they are damaged."""
        return read_arrays(self.path / ANALYSIS, key)

    def write_analysis(self, key: str, payload: dict[str, Any], arrays: dict[str, "np.ndarray"] | None = None) -> None:
        """Store an analysis in one step; allowed beside a running writer, as it touches nothing else."""
        write_analysis(self.path / ANALYSIS, key, payload, arrays or {})

    @contextmanager
    def writer(self) -> Iterator["RunWriter"]:
        """The one writer of this run, for the length of a `with` block; sweeps what an interrupted one left.

        Raises:
            RunLocked: if another one is active; the message names its pid.
        """
        require_folder(self.path)
        with held(self.path / LOCK):
            for folder in (self.path / CHECKPOINTS, self.path / ANALYSIS):
                with disk_errors(folder):
                    folder.mkdir(exist_ok=True)
                require_folder(folder)
            sweep(self.path)
            sweep(self.path / CHECKPOINTS)
            sweep(self.path / ANALYSIS, older_than=LEFTOVER_SECONDS)
            writer = RunWriter(self)
            try:
                yield writer
            finally:
                writer.close()


class RunWriter:
    """Writes into a run whose lock is held; made by `Run.writer()`."""

    def __init__(self, run: Run):
        self.run, self.path = run, run.path

    @cached_property
    def _metrics(self) -> LineLog:
        return LineLog(self.path / "metrics.jsonl", "metrics")

    @cached_property
    def _events(self) -> LineLog:
        return LineLog(self.path / "events.jsonl", "events")

    def metric(self, row: dict[str, Any]) -> None:
        """Append a row with a whole-number `step`; durable at the next checkpoint.

        Raises:
            StoreError: if the row has no step or a value that JSON cannot hold, such as NaN.
        """
        if type(row.get("step")) is not int:
            raise StoreError(f"{self.path / 'metrics.jsonl'}: a row needs a whole-number 'step', got {row!r:.80}")
        self._metrics.append(row)

    def event(self, row: dict[str, Any]) -> None:
        """Append an event; one with a `step` is cut by `truncate_metrics` like a metric."""
        if type(row.get("step", 0)) is not int:
            raise StoreError(f"{self.path / 'events.jsonl'}: 'step' is not a whole number in {row!r:.80}")
        self._events.append(row)

    def status(self, **changes: Any) -> RunStatus:
        """Change status.json in one step; `updated` is set, and `pid` and `started` when the run starts running.

        Raises:
            StoreError: for an unknown key or state.
        """
        path, now = self.path / STATUS, datetime.now(UTC)
        old = read_sealed(path) if os.path.lexists(path) else {}
        if changes.get("state") == "died":
            raise StoreError(f"{path}: state 'died' is observed, never stored; use 'failed'")
        if changes.get("state") == "running":
            changes = {"pid": os.getpid(), "started": old.get("started") or now, **changes}
        status: RunStatus = _checked(RunStatus, {**old, "updated": now, **changes}, path)
        write_sealed(path, status.model_dump(mode="json"))
        return status

    def environment(self, environment: dict[str, Any]) -> None:
        """Replace env.json in one step."""
        write_sealed(self.path / ENVIRONMENT, {"format": 1, "environment": environment})

    def save(
        self,
        step: int,
        *,
        model: dict[str, "Tensor"],
        optim: dict[str, "Tensor"],
        state: dict[str, Any],
        rolling: bool = False,
    ) -> CheckpointRef:
        """Make metrics and events durable, commit a checkpoint, then remove the rolling ones it replaces.

        Raises:
            StoreFull: if the disk is full; earlier checkpoints stay.
        """
        from interp.checkpoint import write_checkpoint

        for name in ("_metrics", "_events"):
            if name in self.__dict__:  # opened by this writer, so it may hold rows that are not yet durable
                getattr(self, name).sync()
        folder = self.path / CHECKPOINTS / folder_name(step, rolling=rolling)
        write_checkpoint(folder, step=step, model=model, optim=optim, state=state)
        for ref in self.run.checkpoints(rolling=True):
            if ref.rolling and ref.path != folder and (rolling or ref.step <= step):
                remove_folder(ref.path)
        return CheckpointRef(step, folder, rolling)

    def truncate_metrics(self, step: int) -> None:
        """Keep the metrics and events up to and including `step`, each file replaced in one step."""
        self._metrics.rewrite([row for row in self.run.metrics() if row["step"] <= step])
        self._events.rewrite([row for row in self.run.events() if row.get("step", 0) <= step])

    def analysis(self, key: str, payload: dict[str, Any], arrays: dict[str, "np.ndarray"] | None = None) -> None:
        """Store an analysis and its arrays under a key."""
        self.run.write_analysis(key, payload, arrays)

    def close(self) -> None:
        """Close the open files; called by `Run.writer()`."""
        for name in ("_metrics", "_events"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()


class Store:
    """A folder of runs; the folder names are the run names."""

    def __init__(self, root: Path | str):
        self.root = Path(root).expanduser().resolve()

    def names(self) -> list[str]:
        """Names of the runs, sorted; opens no file, so that a thousand runs list at once."""
        if not self.root.is_dir():
            return []
        with disk_errors(self.root), os.scandir(self.root) as entries:
            folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        return sorted(name for name in folders if is_name(name) and (self.root / name / CONFIG).exists())

    def run(self, name: str) -> Run:
        """An existing run.

        Raises:
            RunNameError: for a name outside the allowed alphabet.
            UnknownName: if there is no such run; suggests the nearest.
            StoreError: if the folder of that name is a link or is no run.
        """
        path = self.root / check_name(name)
        if not os.path.lexists(path):
            raise UnknownName("run", name, self.names())
        if not (require_folder(path) / CONFIG).exists():
            raise StoreError(f"{path / CONFIG}: missing; the folder is not a run")
        return Run(name, path)

    def create(self, name: str, config: RunConfig) -> Run:
        """A new run, whole or absent: config, status `created` and empty folders.

        Raises:
            RunExists: if the name is taken.
        """
        path = self.root / check_name(name)
        status = RunStatus(updated=datetime.now(UTC))
        with disk_errors(path):
            self.root.mkdir(parents=True, exist_ok=True)
            sweep(self.root, older_than=LEFTOVER_SECONDS)
            hidden = temporary_beside(path)
            try:
                for folder in (hidden, hidden / CHECKPOINTS, hidden / ANALYSIS):
                    folder.mkdir()
                for file, body in ((CONFIG, config), (STATUS, status)):
                    write_new(hidden / file, sealed(body.model_dump(mode="json"), str(path / file)))
                sync_folder(hidden)
                if os.path.lexists(path) or not _renamed(hidden, path):
                    raise RunExists(f"run {name!r} exists in {self.root}; choose another name, resume or remove it")
                sync_folder(self.root)
            finally:
                discard(hidden)
        return Run(name, path)

    def remove(self, name: str) -> None:
        """Delete a run; RunLocked while it is being written."""
        run = self.run(name)
        with held(run.path / LOCK):
            remove_folder(run.path)
        sweep(self.root, older_than=LEFTOVER_SECONDS)


def _renamed(source: Path, target: Path) -> bool:
    """Rename a folder; False if somebody else made the target first."""
    try:
        os.rename(source, target)
    except (FileExistsError, NotADirectoryError):
        return False
    except OSError:
        if os.path.lexists(target):
            return False
        raise
    return True
