"""The errors a user can meet, each with the exit code the command line gives it.

A message says what was wrong, where, what was expected and what to do, in one line.
"""

import difflib
from collections.abc import Iterable


class InterpError(Exception):
    """Base of every error meant for the user; the command prints it as one line and exits with `exit_code`."""

    exit_code = 1


class UsageError(InterpError):
    """The request itself is wrong: a bad name, option or value."""

    exit_code = 2


class Taken(UsageError):
    """A folder that is to be written to holds what belongs to something else."""


class ConfigError(UsageError):
    """A configuration key or value is not accepted."""


class UnknownName(UsageError):
    """A task, detector, run or other name that does not exist; the message suggests the nearest one."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        known = sorted(known, key=_order)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none yet'}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")
        self.kind, self.name, self.known = kind, name, tuple(known)


def _order(name: str) -> tuple[bool, int, str]:
    """Words by letters, then steps by size."""
    number = name.isascii() and name.isdecimal()
    return number, int(name) if number else 0, name


class RunNameError(UsageError):
    """A run name outside the allowed alphabet."""


class RunExists(UsageError):
    """A run of that name is already in the store."""


class StoreError(InterpError):
    """A run folder cannot be read or written."""


class StoreFull(StoreError):
    """The disk, a quota or a file-size limit stopped a write; nothing half-written is left behind."""


class RunLocked(StoreError):
    """Another process is writing to the run."""


class CheckpointError(StoreError):
    """A checkpoint is damaged, incomplete or of an unknown format; the message names the file."""


class Diverged(InterpError):
    """A tensor stopped being finite during training; the last good checkpoint is kept."""


class Interrupted(InterpError):
    """The user stopped a long command; what was done so far is kept."""

    exit_code = 130


class TaskError(UsageError):
    """A task was asked for something it cannot give, such as a length it does not have."""


class DetectorError(InterpError):
    """A detector cannot be applied to this run."""


class NotExpressible(InterpError):
    """A model's architecture cannot be written exactly as a `Decoder`; the message names each reason."""


class ReportError(InterpError):
    """A report is damaged, of an unknown format, or does not match what a rerun computes."""


class JobError(InterpError):
    """A job or the worker cannot do what was asked, or did not answer in time."""
