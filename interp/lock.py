"""One writer per run: an flock that the kernel frees when its holder dies, with the holder's pid inside the file."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interp.errors import RunLocked, StoreError
from interp.files import disk_errors, opened, read_exactly, write_all

ATTEMPTS = 200


def _try(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _acquire(fd: int) -> bool:
    """Take the exclusive lock; a reader that is only asking (shared lock, microseconds) is waited for."""
    for _ in range(ATTEMPTS):
        if _try(fd, fcntl.LOCK_EX):
            return True
        if not _try(fd, fcntl.LOCK_SH):
            return False
        fcntl.flock(fd, fcntl.LOCK_UN)
        time.sleep(0.001 * (1 + os.getpid() % 7))
    return False


@contextmanager
def held(path: Path) -> Iterator[int]:
    """Hold the lock file at `path` and give its descriptor.

    Raises:
        RunLocked: if another process, or another writer in this one, holds it; names the pid.
        StoreError: if the lock file cannot be opened or its run was removed meanwhile.
    """
    with disk_errors(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        if not _acquire(fd):
            raise RunLocked(
                f"{path.parent}: is being written by pid {_pid(fd) or 'unknown'}; "
                "wait for it or stop it, or use another run name"
            )
        with disk_errors(path):
            if not os.path.exists(path) or os.stat(path).st_ino != os.fstat(fd).st_ino:
                raise StoreError(f"{path.parent}: was removed by another process")
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
            write_all(fd, f"{os.getpid()}\n".encode())
        yield fd
    finally:
        os.close(fd)


def _pid(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None


def holder(path: Path) -> int | None:
    """Pid of the process that holds the lock now; None: free. 0: held, but the pid is not readable.

    It asks with a shared lock for a moment, which a writer waits out, so asking disturbs nobody.
    """
    if not os.path.lexists(path):
        return None
    with opened(path, 1 << 10) as (fd, _):
        if _try(fd, fcntl.LOCK_SH):
            fcntl.flock(fd, fcntl.LOCK_UN)
            return None
        text = bytes(read_exactly(fd, 32)).strip()
        return int(text) if text.isdigit() else 0
