"""Append-only JSON lines, each with a check sum chained to the line before; a torn last line is never read."""

import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interp.errors import StoreError, StoreFull
from interp.files import disk_errors, opened, replace
from interp.jsonfile import decode, encode

FORMAT = 1
MAX_LINE = 1 << 20
MAX_FILE = 1 << 30
CHECK = re.compile(rb',"crc":"([0-9a-f]{8})"\}\Z')


def line_of(row: dict[str, Any], previous: int, where: str) -> tuple[bytes, int]:
    """One line with its newline, and the check sum that seeds the next line.

    Raises:
        StoreError: if the row is empty, is not plain JSON or uses the key `crc`.
    """
    if not isinstance(row, dict) or not row or "crc" in row:
        raise StoreError(f"{where}: a row is a dictionary with at least one key and without 'crc', got {row!r:.80}")
    body = encode(row, where, limit=MAX_LINE - 32)[:-1]
    crc = zlib.crc32(body, previous)
    return body + b',"crc":"%08x"}\n' % crc, crc


def _header(kind: str, where: str) -> tuple[bytes, int]:
    return line_of({"format": FORMAT, "kind": kind}, 0, where)


def _parsed(line: bytes, previous: int, where: str) -> tuple[dict[str, Any], int]:
    found = CHECK.search(line)
    body = line[: found.start()] if found else b""
    crc = zlib.crc32(body, previous)
    if not found or int(found[1], 16) != crc:
        raise StoreError(f"{where}: does not match its check sum; the file is damaged or was edited")
    row = decode(body + b"}", where)
    if not isinstance(row, dict):
        raise StoreError(f"{where}: expected a JSON object")
    return row, crc


def _rows(path: Path, kind: str) -> Iterator[tuple[dict[str, Any], int, int]]:
    """(row, its check sum, offset after it) for the header and every complete line."""
    with opened(path, MAX_FILE) as (fd, _), disk_errors(path), os.fdopen(os.dup(fd), "rb") as file:
        offset = number = crc = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            where = f"{path}: line {number}"
            if not line.endswith(b"\n"):
                if len(line) > MAX_LINE:
                    raise StoreError(f"{where}: longer than {MAX_LINE} bytes")
                return  # a torn last line: its write never finished
            row, crc = _parsed(line[:-1], crc, where)
            if number == 1 and (row.get("format") != FORMAT or row.get("kind") != kind):
                raise StoreError(f"{where}: expected format {FORMAT} of kind {kind!r}, found {row!r:.80}")
            offset += len(line)
            yield row, crc, offset


def read_rows(path: Path, kind: str) -> list[dict[str, Any]]:
    """All complete rows in order; empty where the file does not exist yet.

    Raises:
        StoreError: naming file and line, for any damage before the last line.
    """
    if not os.path.lexists(path):
        return []
    return [row for row, _, _ in _rows(path, kind)][1:]


class LineLog:
    """The one open appender of a JSON-lines file; whoever holds the run's lock may have one."""

    def __init__(self, path: Path, kind: str):
        """Open or start the file; a torn last line is cut off.

        Raises:
            StoreError: if the file is damaged.
        """
        self.path, self.kind = path, kind
        self._open()

    def _open(self) -> None:
        path, torn = self.path, 0
        self._crc, self._size = 0, 0
        if os.path.lexists(path):
            for _, crc, end in _rows(path, self.kind):
                self._crc, self._size = crc, end
            torn = path.stat().st_size - self._size
        with disk_errors(path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o644)
            if torn:
                os.ftruncate(self._fd, self._size)
        if self._size == 0:
            self._write(*_header(self.kind, str(path)))

    def append(self, row: dict[str, Any]) -> None:
        """Add one row in one system call.

        Raises:
            StoreFull: if the disk is full; the file keeps the rows it had.
            StoreError: if the row is not plain JSON.
        """
        if os.fstat(self._fd).st_size != self._size:  # an interrupt fell between a write and its bookkeeping
            self.close()
            self._open()
        self._write(*line_of(row, self._crc, f"{self.path}: row"))

    def _write(self, line: bytes, crc: int) -> None:
        try:
            with disk_errors(self.path):
                written = os.write(self._fd, line)
                if written < len(line):  # the next byte meets the limit, which tells us its reason
                    os.write(self._fd, line[written:])
                    raise StoreFull(f"{self.path}: a row was written only in part; free some space, then resume")
        except StoreError:
            os.ftruncate(self._fd, self._size)
            raise
        self._crc, self._size = crc, self._size + len(line)

    def sync(self) -> None:
        """Make every row so far survive a power cut."""
        with disk_errors(self.path):
            os.fsync(self._fd)

    def rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Replace the whole file by these rows in one step.

        Raises:
            StoreFull: if there is no room; the old file stays and stays open.
        """
        line, crc = _header(self.kind, str(self.path))
        lines = [line]
        for row in rows:
            line, crc = line_of(row, crc, f"{self.path}: row")
            lines.append(line)
        replace(self.path, b"".join(lines))
        self.close()
        self._open()

    def close(self) -> None:
        """Close the file; nothing is buffered."""
        os.close(self._fd)
