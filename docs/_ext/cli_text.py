"""The text of the options page: every command with its arguments and options, read from the program itself."""

import re
from collections.abc import Iterator
from typing import Any


def leaves(command: Any, name: str = "interp") -> Iterator[tuple[str, Any]]:
    """(full name, command) of every command that is not a group."""
    inner = getattr(command, "commands", None)
    if not inner:
        yield name, command
        return
    for word in inner:
        yield from leaves(inner[word], f"{name} {word}")


def options_text(command: Any) -> str:
    """MyST source: one section per command."""
    return "\n".join(section(name, leaf) for name, leaf in leaves(command))


def section(name: str, command: Any) -> str:
    """Heading, what the command does, and a table of its arguments and options."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join([name, *(argument_name(p) for p in arguments), "[OPTIONS]"])
    rows = [f"| {signature(p)} | {default(p)} | {cell(p.help or '')} |" for p in command.params if p.name != "help"]
    table = ["| argument or option | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join([f"## `{name}`", "", command.help.strip(), "", "```text", usage, "```", "", *table])


def argument_name(parameter: Any) -> str:
    """An argument in capitals, with an ellipsis where it can be repeated."""
    return parameter.name.upper() + ("..." if parameter.nargs == -1 else "")


def signature(parameter: Any) -> str:
    """All spellings of a parameter, with the kind of its value."""
    if parameter.param_type_name == "argument":
        return f"`{argument_name(parameter)}`"
    spelt = ", ".join(f"`{word}`" for word in (*parameter.opts, *parameter.secondary_opts))
    return spelt if parameter.is_flag else f"{spelt} {parameter.metavar or parameter.name.upper()}"


def default(parameter: Any) -> str:
    """The default as code; empty where there is none or it is a flag that is off."""
    value = parameter.default
    return "" if value is None or value is False or callable(value) else f"`{value}`"


def cell(text: str) -> str:
    """Help text that fits into one cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")
