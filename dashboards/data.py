"""What views read from run folders, as pure functions: no Streamlit, no torch."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from interp.run import STATUS, Store


class Stamp(NamedTuple):
    """What a cache is keyed by: the same path, time and size mean the same bytes; all 0 where there is no file."""

    path: str
    mtime_ns: int
    size: int


def stamp(path: Path) -> Stamp:
    """The stamp of a file as it is now."""
    try:
        found = os.lstat(path)
    except OSError:
        return Stamp(str(path), 0, 0)
    return Stamp(str(path), found.st_mtime_ns, found.st_size)


def newest_run(store: Store, names: Sequence[str]) -> str:
    """The run whose status changed last; looks at times only, so that a thousand runs cost milliseconds."""
    return max(names, key=lambda name: (stamp(store.root / name / STATUS).mtime_ns, name))
