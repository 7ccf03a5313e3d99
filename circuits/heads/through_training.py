"""Head types at one checkpoint or at all of them, stored under what gave them, so that a stopped call goes on."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from circuits.detect import source_hash
from circuits.detectors.base import HeadDetection
from circuits.heads.course import HeadsTrajectory, course
from circuits.heads.detect import HeadOptions, HeadOrigin, Nulls, Tell, detect_heads
from circuits.heads.opened import pairs_of, vocabulary_of
from circuits.interchange.files import name_of_files
from circuits.through_training import Failed, discover_all
from interp.adapters.opened import Opened
from interp.adapters.run_folder import is_run, run_of
from interp.config import canonical_json, validated
from interp.errors import InterpError, StoreError, UsageError
from interp.jsonfile import read_sealed, write_sealed
from interp.pairs.base import Pairs
from interp.run import Run

HEADS = "heads-"  # how keys and names of files begin
FORMAT = 1
MAX_BYTES = 64 << 20  # of one file


@dataclass(frozen=True)
class HeadsRequest:
    """What is asked of each checkpoint.

    Attributes:
        types: names of head types; None for all.
        bos: as in `vocabulary_of`.
        pairs: a file of prompt pairs, for copying.
        folder: where results about a model that is no run of ours are kept; None keeps nothing.
        fresh: compute again, even what is stored.
    """

    types: tuple[str, ...] | None
    bos: str
    pairs: Path | None
    options: HeadOptions
    folder: Path | None = None
    fresh: bool = False


@dataclass(frozen=True)
class Looked:
    """What one checkpoint gave, with where it came from."""

    model: str
    kind: str
    fingerprint: str
    step: int | None
    detections: list[HeadDetection]


def look(opened: Opened, request: HeadsRequest, tell: Tell, nulls: Nulls | None = None) -> Looked:
    """One checkpoint, from the run or the folder where the same weights, prompts, options and code gave it before.

    Args:
        nulls: keeps null models between checkpoints of one shape.

    Raises:
        UnknownName, DetectorError, UsageError: as `detect_heads`.
        StoreError: for a stored result that is damaged.
    """
    pairs = None if request.pairs is None else pairs_of(request.pairs, opened)
    shelf = _shelf(opened, request, pairs)
    found = None if request.fresh else shelf.read()
    if found is None:
        found = detect_heads(
            opened.decoder,
            request.types,
            vocabulary=vocabulary_of(opened, request.bos),
            pairs=pairs,
            origin=HeadOrigin(opened.name, opened.fingerprint, opened.step),
            options=request.options,
            nulls=nulls,
            tell=tell,
        )
        shelf.write(found)
    return Looked(opened.name, opened.kind, opened.fingerprint, opened.step, found)


def follow_heads(
    steps: Sequence[int], open_at: Callable[[int], Opened], request: HeadsRequest, tell: Tell
) -> tuple[list[Looked | None], HeadsTrajectory]:
    """Every checkpoint in turn, and what came about; null models are made once, as they depend on the shape alone.

    Args:
        open_at: reads the checkpoint of a step.

    Returns:
        One for each step, None where it failed; the trajectory says why.

    Raises:
        Interrupted: the user stopped; what is done is kept.
        UsageError: for a request that every checkpoint refuses for the same reason.
        InterpError: if every checkpoint failed.
    """
    nulls: Nulls = {}
    outcomes: list[Any] = discover_all(
        lambda step: look(open_at(step), request, tell, nulls),
        steps,
        1,
        lambda done, of: tell("checkpoints", done, of),
    )
    failed = {step: one.reason for step, one in zip(steps, outcomes, strict=True) if isinstance(one, Failed)}
    if len(failed) == len(steps):
        reasons = "; ".join(dict.fromkeys(failed.values()))
        raise InterpError(f"none of the {len(steps)} checkpoints could be looked at: {reasons:.400}")
    found = [None if isinstance(one, Failed) else one for one in outcomes]
    return found, course(steps, [None if one is None else one.detections for one in found], failed)


@dataclass(frozen=True)
class _Shelf:
    """Where one result is kept: in a run, as a file of a folder, or nowhere.

    Attributes:
        about: what is stored beside the detections.
    """

    run: Run | None
    file: Path | None
    key: str
    about: dict[str, Any]

    def read(self) -> list[HeadDetection] | None:
        """What is stored; None where nothing is.

        Raises:
            StoreError: for a file that is damaged, or newer than this program.
        """
        if self.run is not None and self.key in self.run.analyses():
            body, where = self.run.analysis(self.key), f"{self.run.name}/analysis/{self.key}.json"
        elif self.file is not None and self.file.exists():
            body, where = read_sealed(self.file, newest=FORMAT, limit=MAX_BYTES), str(self.file)
        else:
            return None
        rows = body.get("detections")
        if body.get("format") != FORMAT or not isinstance(rows, list):
            raise StoreError(f"{where}: expected format {FORMAT} with detections; run `interp heads` with --fresh")
        return [validated(HeadDetection, row, f"{where}: detections") for row in rows]

    def write(self, found: Sequence[HeadDetection]) -> None:
        """Keep a result, if there is a place for it.

        Raises:
            StoreError: if it cannot be written.
        """
        saved = datetime.now(UTC).isoformat(timespec="microseconds")
        body = {"format": FORMAT, "saved": saved, **self.about}
        body["detections"] = [one.model_dump(mode="json") for one in found]
        if self.run is not None:
            self.run.write_analysis(self.key, body)
        elif self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_sealed(self.file, body, limit=MAX_BYTES)


def _shelf(opened: Opened, request: HeadsRequest, pairs: Pairs | None) -> _Shelf:
    """The place of a result: in its run, else in the folder of the request."""
    about = {
        "model": opened.name,
        "step": opened.step,
        "fingerprint": opened.fingerprint,
        "types": None if request.types is None else list(request.types),
        "bos": request.bos,
        "pairs": None if pairs is None else pairs.fingerprint(),
        "options": asdict(request.options),
    }
    key = hashlib.sha256(canonical_json([about, source_hash()])).hexdigest()[:20]
    run = run_of(opened.path) if is_run(opened.path) else None
    if run is not None or request.folder is None:
        return _Shelf(run, None, f"{HEADS}{key}", about)
    if request.folder.exists() and not request.folder.is_dir():
        raise UsageError(f"-o {request.folder}: is a file; give a folder")
    at = "" if opened.step is None else f"-step-{opened.step}"
    return _Shelf(None, request.folder / f"{HEADS}{name_of_files(opened.name)}{at}-{key}.json", key, about)
