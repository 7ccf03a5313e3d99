"""Options of `interp circuit` that have no effect beside others: each is refused by its name, none is ignored."""

from dataclasses import dataclass
from pathlib import Path

import typer

from interp.errors import UsageError

TASK = {"length": "--length", "family": "--family", "n": "--n"}  # what a task's own prompts are made with
LIGHTENED = frozenset({"controls", "reruns"})  # fewer with many checkpoints, unless asked for


@dataclass(frozen=True)
class Given:
    """Names of the parameters that stand on the command line, and how many processes there are."""

    names: frozenset[str]
    workers: int = 1

    @classmethod
    def of(cls, context: typer.Context) -> "Given":
        """What the user wrote, not what is taken by itself."""
        sources = {name: context.get_parameter_source(name) for name in context.params}
        names = (name for name, source in sources.items() if source is not None and source.name != "DEFAULT")
        return cls(frozenset(names), context.params["workers"])

    @property
    def settings(self) -> frozenset[str]:
        """Settings that stay as they are given with many checkpoints."""
        return self.names & LIGHTENED


def require_used(given: Given, model: str, run: str | None, pairs: Path | None, checkpoints: str) -> None:
    """Refuse every option that would be ignored.

    Args:
        run: name of the run, None for another model.
        pairs: file of prompt pairs, None for those of a run's task.

    Raises:
        UsageError: naming the first such option and what to do instead.
    """
    for name, reason in _unused(given, model, run, pairs, checkpoints):
        if name in given.names:
            raise UsageError(reason)


def _unused(given: Given, model: str, run: str | None, pairs: Path | None, checkpoints: str) -> list[tuple[str, str]]:
    """(parameter, why it would be ignored)."""
    found = []
    if run is not None and pairs is None:
        found += [
            (
                "output",
                f"-o: what is found on a run's own task is kept in the run; interp report circuit {run} -o FOLDER "
                "and interp export write it out",
            ),
            ("bos", "--bos: is for --pairs; the prompts of a task begin with its own first token"),
        ]
    if pairs is not None:
        found += [
            (name, f"{option}: is for the prompts of a run's task; here --pairs {pairs} gives them")
            for name, option in TASK.items()
        ]
    if run is None or len(Path(model).parts) > 1:
        found.append(("store", f"--store: is for the name of a run, and {model} is a path"))
    if checkpoints != "all":
        found.append(
            ("workers", f"--workers: is for --checkpoints all; with --checkpoints {checkpoints} give --threads")
        )
    elif given.workers > 1:
        found.append(("threads", "--threads: is for one process; each of --workers has one thread"))
    return found
