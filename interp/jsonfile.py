"""JSON files that carry their own sha256, so that any damage is noticed; size, depth and count are capped."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from interp.config import canonical_json
from interp.errors import StoreError
from interp.files import read_bytes, replace

MAX_BYTES = 2 << 20
MAX_DEPTH = 64
MAX_VALUES = 250_000
STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)


def require_plain(value: Any, where: str, depth: int = 0) -> None:
    """Refuse what JSON would change or lose: keys that are not strings, NaN, infinity, foreign types.

    Raises:
        StoreError: naming `where` with the dotted key.
    """
    if depth > MAX_DEPTH:
        raise StoreError(f"{where}: nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise StoreError(f"{where}: key {key!r} is not a string; JSON would turn it into one")
            require_plain(inner, f"{where}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            require_plain(inner, f"{where}[{index}]", depth + 1)
    elif isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise StoreError(f"{where}: {value} is not finite, and JSON has no such number; write null or a string")
    elif not isinstance(value, str | int | None):
        raise StoreError(f"{where}: {type(value).__name__} is not JSON; convert it to a plain number, text or list")


def encode(value: Any, where: str, *, limit: int = MAX_BYTES, indent: int | None = None) -> bytes:
    """JSON bytes that `decode` accepts and returns as the same value.

    Args:
        where: file and key for the error message.
        limit: largest number of bytes.
        indent: spaces per level for files people read; None: canonical bytes.

    Raises:
        StoreError: if the value is not plain JSON, or too large.
    """
    require_plain(value, where)
    try:
        if indent is None:
            data = canonical_json(value)
        else:
            data = json.dumps(value, sort_keys=True, indent=indent, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise StoreError(f"{where}: cannot be written as JSON ({error})") from None
    _require_small(data, where, limit)
    return data


def decode(data: bytes, where: str, *, limit: int = MAX_BYTES) -> Any:
    """Parse JSON after checking its size, depth and number of values.

    Raises:
        StoreError: for anything that is not JSON, or too large; the message starts with `where`.
    """
    try:
        return parsed(data, where, limit=limit)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{where}: not valid JSON ({str(error)[:120]}); the file is damaged") from None


def parsed(data: bytes, where: str, *, limit: int = MAX_BYTES) -> Any:
    """As `decode`, for files that people write: the caller says what is wrong.

    Raises:
        StoreError: if it is too large or nested too deeply.
        ValueError, RecursionError: for anything that is not JSON, as `json.loads` gives them.
    """
    _require_small(data, where, limit)
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth(data) > MAX_DEPTH:
        raise StoreError(f"{where}: nested deeper than {MAX_DEPTH} levels")
    return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)


def _require_small(data: bytes, where: str, limit: int) -> None:
    if len(data) > limit:
        raise StoreError(f"{where}: {len(data)} bytes of JSON, at most {limit} are accepted; keep arrays as tensors")
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_VALUES:
        raise StoreError(f"{where}: more than {MAX_VALUES} values; keep arrays as tensors")


def _depth(data: bytes) -> int:
    deepest = depth = 0
    for byte in STRINGS.sub(b"", data):
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def digest_of(body: dict[str, Any]) -> str:
    """sha256 over the canonical JSON of everything but the `sha256` key itself."""
    return hashlib.sha256(canonical_json({key: body[key] for key in body if key != "sha256"})).hexdigest()


def sealed(body: dict[str, Any], where: str, *, limit: int = MAX_BYTES, indent: int | None = 1) -> bytes:
    """Bytes of a JSON object with its own `sha256` added.

    Raises:
        StoreError: if the body is not plain JSON.
    """
    if "sha256" in body:
        raise StoreError(f"{where}: the key 'sha256' is kept for the file's own check sum")
    plain = decode(encode(body, where, limit=limit), where, limit=limit)
    return encode({**plain, "sha256": digest_of(plain)}, where, limit=limit, indent=indent) + b"\n"


def unsealed(data: bytes, where: str, *, limit: int = MAX_BYTES) -> dict[str, Any]:
    """The body of a sealed JSON object, its check sum verified and taken out.

    Raises:
        StoreError: if the bytes are not JSON, or do not match their check sum.
    """
    body = decode(data, where, limit=limit)
    if not isinstance(body, dict):
        raise StoreError(f"{where}: expected a JSON object, found {type(body).__name__}")
    stated = body.pop("sha256", None)
    try:
        actual = digest_of(body)
    except ValueError as error:
        raise StoreError(f"{where}: not valid JSON ({error}); the file is damaged") from None
    if stated != actual:
        raise StoreError(f"{where}: does not match its own check sum; the file is damaged or was edited")
    return body


def require_format(body: dict[str, Any], newest: int, where: str) -> None:
    """Refuse a file written in a format this version does not read.

    Raises:
        StoreError: naming the format found and the newest one known.
    """
    found = body.get("format")
    if type(found) is not int or not 1 <= found <= newest:
        raise StoreError(f"{where}: format {found!r}, this version reads 1 to {newest}; a newer version may read it")


def write_sealed(path: Path, body: dict[str, Any], *, limit: int = MAX_BYTES) -> None:
    """Replace a JSON file in one step; see `sealed` and `interp.files.replace` for what is refused."""
    replace(path, sealed(body, str(path), limit=limit))


def read_sealed(path: Path, *, newest: int = 1, limit: int = MAX_BYTES) -> dict[str, Any]:
    """Read a JSON file, verify its check sum and its format number.

    Raises:
        StoreError: for any damage; the message names the file.
    """
    body = unsealed(read_bytes(path, limit), str(path), limit=limit)
    require_format(body, newest, str(path))
    return body
