"""The run that an argument of a command names, or why what it names is none."""

import shlex
from pathlib import Path

from interp.errors import UnknownName, UsageError
from interp.run import Run, Store

TRAINED = "reads runs trained here; for a checkpoint on disk use interp circuit or interp heads"
NO_HUB = "models are read from disk and never looked up on a hub"


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run."""
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()


def given_run(store: Path, given: str, reads: str = f"this command {TRAINED}") -> Run:
    """The run of that name in the store, or at that path.

    Args:
        reads: what the command reads, and which one reads another model; said where a path is no run.

    Raises:
        UsageError: for a path that is no run.
        UnknownName: for a name that the store does not have.
        RunNameError: for a name outside the allowed alphabet.
    """
    path, shown = Path(given), f"{given:.200}"
    runs = Store(store)
    there = _exists(path)
    if len(path.parts) < 2 and (given in runs.names() or not there):
        return runs.run(given)
    if there and is_run(path):
        return Store(path.parent).run(path.name)
    if there:
        raise UsageError(f"{shown}: is no run; {reads}")
    raise UsageError(f"{shown}: no such run or folder; {reads}; {NO_HUB}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name that is too long
        return False


def model_named(store: Path, name: str) -> Run:
    """The run of that name where a path could stand too, and neither is there.

    Raises:
        UnknownName, UsageError: as `Store.run`, with the hint that no name is looked up elsewhere.
    """
    try:
        return Store(store).run(name)
    except UnknownName as error:
        raise UsageError(f"{error}; another model is given by its path: {NO_HUB}") from None


def dash_line(run: Run, store: Path) -> str:
    """The command that shows a run in the dashboard.

    Args:
        store: where its name was looked up; a run that was given as a path lies elsewhere.
    """
    where = store if Store(store).root == run.path.parent.resolve() else run.path.parent
    return shlex.join(["interp", "dash", run.name, *([] if str(where) == "runs" else ["--store", str(where)])])
