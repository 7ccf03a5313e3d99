"""Progress on stderr, as bars on a terminal and as a line every 10 s elsewhere: of a training, and of counted work."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from interp.console import err, note

if TYPE_CHECKING:
    from interp.train import Progress

PLAIN_SECONDS = 10.0
Tell = Callable[[str, int, int], None]  # (what, done, of)


class Smoothed:
    """The batch loss jumps from step to step; what is shown is its mean over the steps since the last line."""

    def __init__(self) -> None:
        self._total, self._trained, self._said = 0.0, 0, ""

    def words(self, update: "Progress") -> str:
        """The mean with its number of steps; as it was last said where no step came since, and empty before any."""
        steps = update.trained - self._trained
        if steps:
            mean = (update.total_loss - self._total) / steps
            self._said = f"loss {mean:.3f} (mean of {steps:,} step{'s' * (steps > 1)})"
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
            note(f"{name}: step {update.step:,} of {update.steps:,}  {line(update, smoothed.words(update))}")

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


class Counted:
    """The counted work that is going on, the outermost first, as what -> (done, of).

    Work ends where it is complete, and with it what was begun after it; what was begun inside other work also ends
    where that goes on to its next piece.
    """

    def __init__(self) -> None:
        self.rows: dict[str, tuple[int, int]] = {}

    def update(self, what: str, done: int, of: int) -> list[str]:
        """Book one piece of news; names of the work that ended."""
        names = list(self.rows)
        inner = names[names.index(what) + 1 :] if what in self.rows else []
        ended = [*inner, *([what] if done >= of else [])]
        self.rows[what] = (done, of)
        for name in ended:
            self.rows.pop(name)
        return ended

    def words(self) -> str:
        """What is going on, in one line."""
        return "; ".join(f"{what} {done:,} of {of:,}" for what, (done, of) in self.rows.items())


@contextmanager
def counter() -> Iterator[Tell]:
    """A function that is told of counted work: bars that vanish when complete, or a line every 10 s; on stderr only."""
    if not err().is_terminal:
        yield _counted_lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err(), transient=True) as bar:
        counted, bars = Counted(), {}

        def tell(what: str, done: int, of: int) -> None:
            if what not in bars:
                bars[what] = bar.add_task(what, total=of)
            bar.update(bars[what], completed=done, total=of)
            for name in counted.update(what, done, of):
                bar.remove_task(bars.pop(name))

        yield tell


def _counted_lines() -> Tell:
    """Lines at least 10 s apart; work that is over before that says nothing."""
    last, counted = time.monotonic(), Counted()

    def tell(what: str, done: int, of: int) -> None:
        nonlocal last
        counted.update(what, done, of)
        if counted.rows and time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            note(counted.words())

    return tell
