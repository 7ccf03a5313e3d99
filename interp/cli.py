"""The `interp` command: mounts every sub-command and turns errors into one line with an exit code."""

import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points, version
from typing import Annotated

import typer

from interp.console import fail, say, warn
from interp.errors import InterpError

# What an entry point of the group `interp.commands` resolves to: command name -> function or group of commands.
# The module that holds it is imported for every `interp --help`, so it imports only typer at the top and everything
# heavy inside its functions. A function's docstring is its help text.
Commands = dict[str, Callable[..., None] | typer.Typer]

GROUP = "interp.commands"
TRACEBACK = "--traceback"
OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Every error meant for the user is one line on stderr; `--traceback` anywhere on the line, or INTERP_TRACEBACK=1,
    shows where it came from. Any other exception is a defect of ours and keeps its traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    own = given[: given.index("--")] if "--" in given else given
    wanted = TRACEBACK in own or os.environ.get("INTERP_TRACEBACK", "0") not in ("", "0")
    rest = [word for word in own if word != TRACEBACK] + given[len(own) :]
    try:
        result = typer.main.get_command(build_app())(args=rest, prog_name="interp", standalone_mode=False)
        sys.stdout.flush()
    except (InterpError, typer.TyperException, typer.Abort, KeyboardInterrupt, OSError) as error:
        if wanted:
            sys.excepthook(type(error), error, error.__traceback__)
        return report(error)
    return result if isinstance(result, int) else OK


def report(error: BaseException) -> int:
    """Print the one line for an expected error and return its exit code."""
    match error:
        case InterpError():
            fail(str(error))
            return error.exit_code
        case KeyboardInterrupt() | typer.Abort():
            fail("stopped by the user")
            return INTERRUPTED
        case BrokenPipeError():  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        case typer.TyperException():
            context, message = getattr(error, "ctx", None), error.format_message()
            if message:  # empty where the help of a group was shown instead
                fail(message + (f" (see: {context.command_path} --help)" if context else ""))
            return error.exit_code
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror or error}")
            return FAILED
    raise error


def build_app() -> typer.Typer:
    """The command with everything mounted: our own commands first, then those of the entry points."""
    from interp import cli_doctor, cli_jobs, cli_runs, cli_tasks, cli_train

    app = typer.Typer(
        name="interp",
        help="Follow circuits through training: train, detect, report.",
        no_args_is_help=False,
        invoke_without_command=True,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(root)
    own: Commands = {
        "doctor": cli_doctor.doctor,
        "tasks": cli_tasks.APP,
        "train": cli_train.train,
        "runs": cli_runs.APP,
        "jobs": cli_jobs.APP,
    }
    for name, command in (own | mounted(taken=set(own))).items():
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    traceback: Annotated[bool, typer.Option(TRACEBACK, help="Show where an error came from (any position).")] = False,
) -> None:
    """Follow circuits through training: train, detect, report."""
    if show_version:
        say(f"interp {version('interp-platform')}")
        raise typer.Exit(OK)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def mounted(taken: set[str]) -> Commands:
    """Commands of the entry points; one that cannot be loaded costs a warning, never the other commands.

    Args:
        taken: names that are already in use; an entry point cannot replace them.
    """
    commands: Commands = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            found = point.load()
        except (ImportError, AttributeError, SyntaxError) as error:
            warn(f"commands of {point.name} ({point.value}) are missing: {error}; run `interp doctor`")
            continue
        if not isinstance(found, dict):
            warn(f"commands of {point.name} ({point.value}) are missing: expected a dict of names and commands")
            continue
        for name in sorted(found.keys() & (taken | commands.keys())):
            warn(f"command {name!r} of {point.name} ({point.value}) is ignored: the name is already in use")
        commands |= {name: command for name, command in found.items() if name not in taken | commands.keys()}
    return commands
