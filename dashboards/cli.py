"""The command `interp dash`."""

from pathlib import Path
from typing import Annotated

import typer


def dash(
    run: Annotated[str | None, typer.Argument(help="Run to open, as listed by `interp runs ls`.")] = None,
    store: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("runs"),
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port; the first free one from 8501 if not given.")
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address, open nothing.")] = False,
    expose: Annotated[
        bool, typer.Option("--expose", help="Listen on every interface instead of this machine alone; needs a token.")
    ] = False,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="INTERP_DASH_TOKEN", show_envvar=True, help="Token that a browser must show, 16 characters or more."
        ),
    ] = None,
) -> None:
    """Open the dashboard: watch circuits emerge, ask what if, send a report."""
    from dashboards.launch import serve

    raise typer.Exit(serve(store, run, port=port, browser=not no_browser, expose=expose, token=token))


COMMANDS = {"dash": dash}
