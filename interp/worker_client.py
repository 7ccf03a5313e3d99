"""The way to the warm worker of a store: its private socket, starting it where there is none, one question."""

import hashlib
import json
import os
import socket
import stat
import tempfile
import time
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from interp.errors import JobError
from interp.processes import detach, python_module
from interp.registry import roots
from interp.run import Store

GROUP = "interp.worker"
LONGEST_REQUEST, LONGEST_ANSWER = 1 << 20, 1 << 26
POLL_SECONDS = 0.05


def exchange(store: Store, line: bytes, timeout: float) -> dict[str, Any]:
    """Send one line to the worker, started if need be, and read its one line back.

    Raises:
        JobError: no answer in time, an answer too large, or the worker stopped.
    """
    if len(line) > LONGEST_REQUEST:
        raise JobError(f"a request of {len(line)} bytes; at most {LONGEST_REQUEST} are accepted")
    limit = time.monotonic() + timeout
    log = socket_path(store).with_suffix(".log")
    connection = connected(store, timeout)
    if connection is None:
        raise JobError(f"the worker did not start within {timeout:.0f} s; see {log}")
    with connection:
        try:
            connection.settimeout(max(0.01, limit - time.monotonic()))
            connection.sendall(line + b"\n")
            text = _line(connection, limit)
        except TimeoutError:
            raise JobError(f"no answer within {timeout:.0f} s; the worker goes on, ask again. Its log: {log}") from None
        except (ConnectionError, BrokenPipeError):
            text = b""
    if not text.endswith(b"\n"):
        raise JobError(f"the worker stopped before it answered; ask again to start a new one. Its log: {log}")
    return json.loads(text)


def connected(store: Store, timeout: float) -> socket.socket | None:
    """A connection to the worker; starts one where nobody listens, and waits for it for at most `timeout` seconds."""
    path, limit, started = socket_path(store), time.monotonic() + timeout, None
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
            return connection
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
        if started is None:
            started = detach(python_module("interp.worker", str(store.root), str(path)), path.with_suffix(".log"))
        if time.monotonic() >= limit:
            return None
        time.sleep(POLL_SECONDS)


def socket_path(store: Store) -> Path:
    """Where the worker of this store and this code listens, in a folder that only this user can enter.

    The folder is on a local disk: network file systems carry no sockets, and their paths may be too long for one.

    Raises:
        JobError: if somebody else owns that folder or can enter it.
    """
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    folder = (base if base.is_dir() else Path(tempfile.gettempdir())) / f"interp-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise JobError(f"{folder}: expected a folder of mode 0700 of this user; remove it, or set XDG_RUNTIME_DIR")
    key = hashlib.sha256(f"{store.root}\0{_code_stamp()}".encode()).hexdigest()[:24]
    return folder / f"{key}.sock"


def _code_stamp() -> str:
    """Newest change and number of the Python files a worker could have loaded: edited code gets a new worker."""
    packages = {"interp"} | {point.value.partition(":")[0].split(".")[0] for point in entry_points(group=GROUP)}
    times = []
    for package in sorted(packages):
        times += [path.stat().st_mtime_ns for root in roots(package) for path in root.rglob("*.py")]
    return f"{len(times)} {max(times, default=0)}"


def _line(connection: socket.socket, limit: float) -> bytes:
    """Bytes up to and with the first newline; shorter if the other side closed."""
    pieces, size = [], 0
    while size <= LONGEST_ANSWER:
        connection.settimeout(max(0.01, limit - time.monotonic()))
        piece = connection.recv(1 << 16)
        pieces.append(piece)
        size += len(piece)
        if not piece or piece.endswith(b"\n"):
            return b"".join(pieces)
    raise JobError(f"an answer of more than {LONGEST_ANSWER} bytes; ask for less")
