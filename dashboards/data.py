"""What views read from run folders, as pure functions: no Streamlit, no torch."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from circuits.detectors.base import Detection, Emergence
from circuits.emergence import emergence, emergence_point
from circuits.stored import CIRCUIT
from interp.config import canonical_json, validated
from interp.errors import InterpError, StoreError
from interp.files import opened
from interp.registry import names as registered
from interp.run import CONFIG, STATUS, Run, Store
from interp.run_summary import final_accuracy, lowest

METRICS = "metrics.jsonl"
TAIL = 1 << 16
ACTIVE = "running"


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


class RunRow(NamedTuple):
    """One line of the list of runs; `accuracy` is that of the worst length at the newest evaluation."""

    run: str
    state: str
    task: str | None
    seed: int | None
    step: int | None
    steps: int | None
    accuracy: float | None
    updated: str | None
    message: str


def run_rows(store: Store, names: Sequence[str]) -> list[RunRow]:
    """Every named run in short, each read again only when one of its files has changed."""
    rows = []
    for name in names:
        path = store.root / name
        row = _run_row(str(store.root), name, stamp(path / CONFIG), stamp(path / STATUS), stamp(path / METRICS))
        if row.state == ACTIVE and Store(store.root).run(name).status().state != ACTIVE:
            row = row._replace(state="died")
        rows.append(row)
    return rows


@lru_cache(maxsize=4096)
def _run_row(root: str, name: str, config: Stamp, status: Stamp, metrics: Stamp) -> RunRow:
    """The row of one run; the stamps are the key. A damaged run is shown with its error and hides no other."""
    try:
        run = Store(root).run(name)
        settings, now = run.config, run.status()
        accuracy = _last_accuracy(run.path / METRICS)
    except InterpError as error:
        return RunRow(name, "damaged", None, None, None, None, None, None, str(error))
    state = ACTIVE if now.state == "died" else now.state  # who is alive is asked anew each time
    updated = f"{now.updated:%Y-%m-%d %H:%M:%S}" if now.updated else None
    return RunRow(
        name, state, settings.task, settings.seed, now.step, settings.train.steps, accuracy, updated, now.message
    )


def _last_accuracy(path: Path) -> float | None:
    """Accuracy at the worst length at the newest evaluation; None before the first one."""
    try:
        for row in newest_rows(path):
            if accuracy := final_accuracy([row]):
                return lowest(accuracy)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise StoreError(f"{path}: a row has another form than this version writes; the file is damaged") from None
    return None


def newest_rows(path: Path, most: int = TAIL) -> Iterator[dict[str, Any]]:
    """The last complete rows of a metrics file, newest first, for a list that shows many runs.

    The chain of check sums is not followed, which would mean reading the whole file; opening the run follows it.

    Raises:
        StoreError: at a line that is not JSON.
    """
    if not os.path.lexists(path):
        return
    with opened(path, 1 << 30) as (fd, size):
        data = os.pread(fd, most, max(0, size - most))
    for line in reversed(data.split(b"\n")[0 if size <= most else 1 : -1]):
        try:
            row = json.loads(line)
        except ValueError:
            raise StoreError(f"{path}: a line is not valid JSON; the file is damaged") from None
        yield row


def loss_rows(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """(step, kind, loss) of the training batch, and of held-out sequences averaged over lengths."""
    rows = []
    for row in metrics:
        if row.get("loss") is not None:
            rows.append({"step": row["step"], "loss": row["loss"], "kind": "training batch"})
        if held_out := row.get("test_loss"):
            mean = sum(held_out.values()) / len(held_out)
            rows.append({"step": row["step"], "loss": mean, "kind": "held out, mean over lengths"})
    return rows


def accuracy_rows(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """(step, length, accuracy) of whole held-out sequences, the final scores included."""
    rows = []
    for row in metrics:
        found = row.get("accuracy") or {length: score["sequence"] for length, score in (row.get("final") or {}).items()}
        rows += [{"step": row["step"], "length": int(length), "accuracy": value} for length, value in found.items()]
    return sorted(rows, key=lambda one: (one["step"], one["length"]))


def tracked_rows(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """(step, score, value) of the scores followed while training."""
    return [
        {"step": row["step"], "score": name, "value": value}
        for row in metrics
        for name, value in (row.get("scores") or {}).items()
    ]


class Followed(NamedTuple):
    """The stored detections of one detector with the same options, one per step, and how the verdict came about."""

    detector: str
    detections: tuple[Detection, ...]
    emergence: Emergence | None
    versions: tuple[str, ...] = ()


def followed(run: Run) -> Followed | None:
    """The stored detections with equal options that cover most checkpoints; None if there are none.

    At each step the one that was written last counts; `versions` tells whether different code made them.

    Raises:
        StoreError: if one is damaged; the message names it.
    """
    detectors = set(registered("detector"))
    keys = [key for key in run.analyses() if key.rpartition("-")[0] in detectors]
    keys.sort(key=lambda key: stamp(run.path / "analysis" / f"{key}.json").mtime_ns)
    families: dict[bytes, dict[int, Detection]] = {}
    for key in keys:
        found = stored_detection(run, key)
        family = canonical_json([found.detector, found.options, found.seed])
        steps = families.pop(family, {})  # put back last, so that among equals the newest wins
        families[family] = {**steps, found.step: found}
    if not families:
        return None
    best = max(reversed(families.values()), key=len)
    chosen = tuple(found for _, found in sorted(best.items()))
    versions = tuple(dict.fromkeys(found.code_version for found in chosen))
    return Followed(chosen[0].detector, chosen, _emergence(run, chosen), versions)


def stored_detection(run: Run, key: str) -> Detection:
    """One stored detection; StoreError if it is damaged."""
    where = f"{run.path}/analysis/{key}.json"
    try:
        return validated(Detection, run.analysis(key)["detection"], where)
    except KeyError:
        raise StoreError(f"{where}: expected the key 'detection'; run the detection again") from None


def _emergence(run: Run, chosen: Sequence[Detection]) -> Emergence | None:
    """Emergence over the checkpoints that were looked at; None for a single one."""
    if len(chosen) < 2:
        return None
    losses = {row["step"]: row.get("loss") for row in run.metrics() if "loss" in row}
    return emergence([emergence_point(found, losses.get(found.step)) for found in chosen])


def score_rows(found: Followed, length: int) -> list[dict[str, Any]]:
    """(step, head, role, mass with its interval, n, verdict) at one length, for heads that ever led in their role."""
    leaders = {(row.role, row.component) for one in found.detections for row in one.null}
    return [
        {
            "step": one.step,
            "head": row.component,
            "role": row.role,
            "mass": row.mass.value,
            "low": row.mass.low,
            "high": row.mass.high,
            "n": row.mass.n,
            "verdict": one.verdict,
        }
        for one in found.detections
        for row in one.statistics
        if row.length == length and (row.role, row.component) in leaders
    ]


def lengths_of(found: Followed) -> list[int]:
    """Lengths for which every detection has statistics."""
    seen = [{row.length for row in one.statistics} for one in found.detections]
    return sorted(set.intersection(*seen)) if seen else []


def verdict_rows(found: Followed) -> list[dict[str, Any]]:
    """(step, verdict, p, interchange accuracy) at every checkpoint that was looked at."""
    points = found.emergence.points if found.emergence else [emergence_point(one, None) for one in found.detections]
    return [
        {
            "step": point.step,
            "verdict": point.verdict,
            "p_value": point.p_value,
            "clock": f"{point.clock_head} {point.clock:.2f}",
            "reading": f"{point.reading_head} {point.reading:.2f}",
            "interchange": point.causal,
            "lowest accuracy": point.min_accuracy,
        }
        for point in points
    ]


def report_files(run: Run) -> dict[str, Path]:
    """Files of the run's own report that exist, by name."""
    return _files(run, "report.html", "report.json", "report.md")


def circuit_files(run: Run) -> dict[str, Path]:
    """Files of the page of the run's circuit that exist, by name."""
    return _files(run, "circuit.html", "circuit.svg", "circuit.json")


def _files(run: Run, *names: str) -> dict[str, Path]:
    folder = run.path / "report"
    return {name: folder / name for name in names if (folder / name).is_file()}


def newest_search(run: Run) -> int | None:
    """When a circuit search was stored last, in nanoseconds, from times of files alone; None where there is none."""
    keys = [key for key in run.analyses() if key.startswith(CIRCUIT)]
    return max((stamp(run.path / "analysis" / f"{key}.json").mtime_ns for key in keys), default=None)


def accuracy_at(metrics: Sequence[Mapping[str, Any]], step: int) -> tuple[int | None, dict[int, float]]:
    """Accuracy by length at the evaluation nearest to a step, with the step of that evaluation."""
    rows = accuracy_rows(metrics)
    if not rows:
        return None, {}
    at = closest(sorted({row["step"] for row in rows}), step)
    return at, {row["length"]: row["accuracy"] for row in rows if row["step"] == at}


def closest(steps: Sequence[int], step: int) -> int:
    """The step nearest to the one given, the earlier one where two are equally near."""
    return min(steps, key=lambda one: (abs(one - step), one))
