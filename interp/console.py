"""The terminal: results on stdout, progress and one-line errors on stderr, JSON as one object."""

import json
import os
import re
import sys
from typing import Any, TextIO

from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

PIPE_WIDTH = 160
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def out() -> Console:
    """Console for results. Rich honours NO_COLOR and COLUMNS, and drops styles when stdout is not a terminal."""
    return _console(sys.stdout)


def err() -> Console:
    """Console for progress, warnings and errors, so that stdout holds results only."""
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    """Text is never markup; what goes to a file or a pipe gets room for tables instead of 80 columns."""
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def one_line(text: str) -> str:
    """The text on one line with single spaces; see `visible`."""
    return visible(" ".join(text.split()))


def visible(text: str) -> str:
    """Control and direction characters shown as escapes, so that text from a file cannot steer the terminal."""
    return CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def fail(message: str) -> None:
    """Print `error: ...` as exactly one line on stderr."""
    _labelled("error", "bold red", message)


def warn(message: str) -> None:
    """Print `warning: ...` as exactly one line on stderr."""
    _labelled("warning", "yellow", message)


def note(message: str) -> None:
    """Print one plain line on stderr."""
    err().print(Text(visible(message)), soft_wrap=True)


def say(message: str) -> None:
    """Print one plain line of a result on stdout, never wrapped."""
    out().print(Text(visible(message)), soft_wrap=True)


def print_json(value: BaseModel) -> None:
    """Print one output as one JSON object on stdout; ASCII only, so that no terminal encoding can break it."""
    sys.stdout.write(json_text(value.model_dump(mode="json")) + "\n")
    sys.stdout.flush()


def json_text(value: Any) -> str:
    """Indented JSON, refusing NaN and infinity, which JSON does not have."""
    return json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False)


def _labelled(label: str, style: str, message: str) -> None:
    err().print(Text.assemble((f"{label}: ", style), one_line(message)), soft_wrap=True)
