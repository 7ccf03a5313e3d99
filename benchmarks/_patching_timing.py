"""Turns on one thread: processor and wall time of engine and baselines, samples scaled to the whole table, memory."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from benchmarks._patching_lean import Patches

LEAST_SECONDS = 0.05  # a turn repeats what is faster than this and takes the median
MOST_REPEATS = 9
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Entrant:
    """One way to get the effects.

    Attributes:
        prepare: the runs that are needed once, whatever the number of patches.
        run: effects [pair, patch] of the patches, from what `prepare` gave.
        whole: `run` always computes every patch of the table and picks those asked for; else its time is scaled.
        sample: patches per turn, where it is scaled.
    """

    name: str
    prepare: Callable[[], Any]
    run: Callable[[Any, Patches], Float[Tensor, "pair patch"]]
    whole: bool = False
    sample: int = 32


@dataclass(frozen=True)
class Turn:
    """Seconds for the whole table, of the processor and of the clock."""

    cpu: float
    wall: float


def now() -> Turn:
    """Time so far, of this process and of the clock."""
    return Turn(time.process_time(), time.perf_counter())


def scaled(start: Turn, ready: Turn, end: Turn, n_sample: int, n_patches: int) -> Turn:
    """Seconds for all patches: preparation counts once, the sampled patches n_patches / n_sample times."""
    share = n_patches / n_sample
    return Turn(*(getattr(ready, k) - getattr(start, k) + share * (getattr(end, k) - getattr(ready, k)) for k in KINDS))


KINDS = ("cpu", "wall")


def once(entrant: Entrant, patches: Patches, n_patches: int) -> tuple[Float[Tensor, "pair patch"], Turn]:
    """Effects and time of one call."""
    start = now()
    state = entrant.prepare()
    ready = now()
    effects = entrant.run(state, patches)
    return effects, scaled(start, ready, now(), n_patches if entrant.whole else len(patches), n_patches)


def take_turn(entrant: Entrant, patches: Patches, n_patches: int) -> Turn:
    """Time of one turn: the median of several calls where one is short."""
    started, turns = time.process_time(), []
    while not turns or (time.process_time() - started < LEAST_SECONDS and len(turns) < MOST_REPEATS):
        turns.append(once(entrant, patches, n_patches)[1])
    return Turn(*(statistics.median(getattr(turn, kind) for turn in turns) for kind in KINDS))


def rounds_of_turns(
    entrants: Sequence[Entrant], patches: dict[str, Patches], n_patches: int, rounds: int
) -> dict[str, list[Turn]]:
    """Everybody in turn, in an order that flips every round, so that drift of a busy machine falls on all."""
    turns: dict[str, list[Turn]] = {entrant.name: [] for entrant in entrants}
    for number in range(rounds):
        for entrant in entrants if number % 2 == 0 else reversed(entrants):
            turns[entrant.name].append(take_turn(entrant, patches[entrant.name], n_patches))
    return turns


def ratios(slow: Sequence[Turn], fast: Sequence[Turn]) -> list[float]:
    """How many times less processor time the fast one took, round by round."""
    return [a.cpu / b.cpu for a, b in zip(slow, fast, strict=True)]


def median_cpu(turns: Sequence[Turn]) -> float:
    """Median processor seconds."""
    return statistics.median(turn.cpu for turn in turns)


@dataclass(frozen=True)
class Memory:
    """Resident memory in bytes: how far a piece of work went above its start, and the process's highest meanwhile."""

    growth: int
    peak: int


def with_memory(work: Callable[[], Any]) -> tuple[Any, Memory]:
    """What `work` gives, and the memory it took.

    Linux can reset the mark of the highest memory; elsewhere the mark of the whole process so far stands in.
    """
    if CLEAR.exists():
        CLEAR.write_text("5", encoding="ascii")
        before = _status("VmRSS:")
        result, peak = work(), _status("VmHWM:")
    else:
        before = _highest()
        result, peak = work(), _highest()
    return result, Memory(max(0, peak - before), peak)


def _highest() -> int:
    return (1 if sys.platform == "darwin" else 1024) * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(key: str) -> int:
    """Bytes of one line of the process's status."""
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    return 0
