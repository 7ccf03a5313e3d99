"""Live display of a training on stderr: step, loss, accuracy, tracked scores and time left."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from interp.console import err, note

if TYPE_CHECKING:
    from interp.train import Progress

PLAIN_SECONDS = 10.0


class Smoothed:
    """The batch loss jumps from step to step; what is shown is its mean over the steps since the last line."""

    def __init__(self) -> None:
        self._total, self._trained, self._said = 0.0, 0, ""

    def words(self, update: "Progress") -> str:
        """The mean with its number of steps; as it was last said where no step came since, and empty before any."""
        steps = update.trained - self._trained
        if steps:
            mean = (update.total_loss - self._total) / steps
            self._said = f"loss {mean:.3f} (mean of {steps} step{'s' * (steps > 1)})"
            self._total, self._trained = update.total_loss, update.trained
        return self._said


def line(update: "Progress", loss: str) -> str:
    """One snapshot as text: loss, accuracy at the worst length, then the tracked scores."""
    parts = [loss] if loss else []
    if update.accuracy:
        parts.append(f"accuracy {min(update.accuracy.values()):.3f}")
    parts += [f"{name} {value:.2f}" for name, value in update.scores.items()]
    return "  ".join([*parts, update.message]).rstrip()


@contextmanager
def training_display(name: str) -> "Iterator[Callable[[Progress], None]]":
    """A function that shows each update: a live bar on a terminal, a line every 10 s elsewhere."""
    if not err().is_terminal:
        yield _plain(name)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}", markup=False),
    )
    with Progress(*columns, console=err(), refresh_per_second=4) as bar:
        task, smoothed = bar.add_task(name, total=None, shown=""), Smoothed()

        def show(update: "Progress") -> None:
            shown = line(update, smoothed.words(update))
            bar.update(task, total=update.steps, completed=update.step, shown=shown)

        yield show


def _plain(name: str) -> "Callable[[Progress], None]":
    """Lines at least 10 s apart, for logs; the last update is always shown."""
    last, smoothed = time.monotonic(), Smoothed()

    def show(update: "Progress") -> None:
        nonlocal last
        if update.message or time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            note(f"{name}: step {update.step} of {update.steps}  {line(update, smoothed.words(update))}")

    return show


@contextmanager
def counting_display(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """A function to call with one line of text for each thing that is done."""
    done = 0

    def show(text: str) -> None:
        nonlocal done
        done += 1
        note(f"{what} {done} of {total}: {text}")

    yield show
