"""Which names may become a file or folder: an allow-list, so that no name leaves its folder on any system."""

import re

from interp.errors import RunNameError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*", re.ASCII)
RESERVED = frozenset({"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)})


def check_name(name: str, kind: str = "run", *, longest: int = 64) -> str:
    """The name itself, if it is allowed.

    Raises:
        RunNameError: saying the rule.
    """
    rule = f"use 1 to {longest} of a-z 0-9 . _ - beginning with a letter or digit"
    if not isinstance(name, str) or len(name) > longest or not NAME.fullmatch(name):
        raise RunNameError(f"{kind} name {name!r:.80} is not allowed; {rule}")
    if ".." in name or name.endswith("."):
        raise RunNameError(f"{kind} name {name!r:.80} is not allowed: '..' and a final '.' are refused; {rule}")
    if name.split(".")[0] in RESERVED:
        raise RunNameError(f"{kind} name {name!r:.80} is not allowed: Windows keeps it for a device; {rule}")
    return name


def is_name(name: str) -> bool:
    """True if `check_name` accepts it as a run name."""
    try:
        check_name(name)
    except RunNameError:
        return False
    return True
