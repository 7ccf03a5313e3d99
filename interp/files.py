"""Files on disk that are whole or absent: exclusive writes, fsync, atomic rename, and reads that follow no link."""

import errno
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from interp.errors import StoreError, StoreFull

TEMPORARY = ".tmp-"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
CHUNK = 1 << 22


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal into one line that names the file.

    Raises:
        StoreFull: for a full disk, a quota or a file-size limit.
        StoreError: for every other OSError.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in FULL:
            raise StoreFull(
                f"{path}: cannot be written ({reason}); nothing half-written is left, earlier checkpoints are intact; "
                "free some space or raise the limit, then resume"
            ) from None
        raise StoreError(f"{path}: {reason}") from None


def temporary_beside(path: Path) -> Path:
    """A fresh hidden name in the folder of `path`, so that a rename never crosses a file system."""
    return path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"


def write_all(fd: int, data: bytes) -> None:
    """Write every byte, however many system calls that takes; raises OSError as the system gives it."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest[:CHUNK]) :]


def write_new(path: Path, data: bytes) -> None:
    """Create a file of mode 0644 that must not exist yet, write it and fsync it; an OSError leaves no file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    written = False
    try:
        os.fchmod(fd, 0o644)
        write_all(fd, data)
        os.fsync(fd)
        written = True
    finally:
        os.close(fd)
        if not written:
            path.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """fsync a folder, which makes the names in it durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace(path: Path, data: bytes) -> None:
    """Replace a file in one step: readers see the old bytes or the new ones, also after a power cut.

    Raises:
        StoreFull: if there is no room; the old file stays.
        StoreError: for any other refusal.
    """
    temporary = temporary_beside(path)
    with disk_errors(path):
        write_new(temporary, data)
        try:
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def require_folder(path: Path) -> Path:
    """The same path, if it is a folder and not a link to one.

    Raises:
        StoreError: otherwise; the message names the path.
    """
    with disk_errors(path):
        mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        raise StoreError(f"{path}: is a symbolic link, which a store does not follow; put the folder itself there")
    if not stat.S_ISDIR(mode):
        raise StoreError(f"{path}: expected a folder")
    return path


@contextmanager
def opened(path: Path, limit: int) -> Iterator[tuple[int, int]]:
    """Open a plain file for reading and give (descriptor, size); links, pipes and devices are refused.

    Args:
        limit: largest size in bytes that is accepted, checked before anything is read.

    Raises:
        StoreError: if the file is missing, not a plain file, or larger than `limit`.
    """
    with disk_errors(path):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise StoreError(f"{path}: is a symbolic link, which a store does not follow") from None
            raise
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise StoreError(f"{path}: expected a plain file")
        if found.st_size > limit:
            raise StoreError(f"{path}: {found.st_size} bytes, more than the {limit} expected at most")
        yield fd, found.st_size
    finally:
        os.close(fd)


def read_exactly(fd: int, size: int) -> bytes:
    """Up to `size` bytes from the descriptor's position; fewer only where the file ends."""
    pieces = []
    while size > 0:
        piece = os.read(fd, size)
        if not piece:
            break
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_bytes(path: Path, limit: int, *, head: int = 0, check: Callable[[bytes, int], None] | None = None) -> bytes:
    """All bytes of a plain file.

    Args:
        limit: largest size accepted, compared before reading.
        head: number of leading bytes that `check(bytes, file size)` may refuse before memory is taken for the file.

    Raises:
        StoreError: as `opened`, or if the file changes size while it is read.
    """
    with opened(path, limit) as (fd, size), disk_errors(path):
        if check is not None:
            check(os.pread(fd, head, 0), size)
        data = read_exactly(fd, size)
        if len(data) != size or os.read(fd, 1):
            raise StoreError(f"{path}: changed while it was read; try again")
    return data


def remove_folder(path: Path) -> None:
    """Take a folder away in one step, then delete it: it is never visible half-deleted."""
    hidden = temporary_beside(path)
    with disk_errors(path):
        os.rename(path, hidden)
        sync_folder(path.parent)
    discard(hidden)


def discard(path: Path) -> None:
    """Delete a temporary file or folder; what cannot be deleted now is swept at the next opening."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path, *, older_than: float = 0.0) -> int:
    """Delete leftovers of interrupted writes and return how many there were.

    Args:
        older_than: spare those touched within this many seconds; 0 where a lock proves that nobody else writes.
    """
    if not folder.is_dir():
        return 0
    with disk_errors(folder):
        leftovers = [folder / name for name in os.listdir(folder) if name.startswith(TEMPORARY)]
        old = [path for path in leftovers if not older_than or _age(path) >= older_than]
        for path in old:
            discard(path)
    return len(old)


def _age(path: Path) -> float:
    """Seconds since a path was touched; 0 if another process has removed it meanwhile."""
    try:
        return time.time() - os.lstat(path).st_mtime
    except FileNotFoundError:
        return 0.0
