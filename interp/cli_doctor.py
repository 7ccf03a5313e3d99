"""The command `interp doctor`: the examination as a table or as JSON."""

from pathlib import Path
from typing import Annotated

import typer

from interp.console import out, print_json

MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "problem": ("PROBLEM", "bold red")}


def doctor(
    store: Annotated[Path, typer.Option(help="Run store to examine.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Examine the installation and the machine; each problem comes with its fix."""
    from rich.text import Text

    from interp.doctor import examine

    result = examine(store)
    if as_json:
        print_json(result)
        raise typer.Exit(0 if result.ok else 1)
    screen = out()
    for check in result.checks:
        mark, style = MARKS[check.status]
        screen.print(Text.assemble((f"{mark:<8}", style), f"{check.name:<14} {check.detail}"), soft_wrap=True)
        if check.fix:
            screen.print(Text(f"{'':<23} fix: {check.fix}"), soft_wrap=True)
    problems = sum(check.status == "problem" for check in result.checks)
    screen.print(Text("everything needed is here" if result.ok else f"problems: {problems}"))
    raise typer.Exit(0 if result.ok else 1)
