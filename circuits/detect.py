"""Run a detector on the checkpoints of a run folder; results are stored under the run and found again by content."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from circuits.detectors.base import Detection, Emergence, HeadDetector
from circuits.detectors.iteration_head import Options, Origin
from circuits.emergence import emergence, emergence_point
from interp.config import canonical_json, validated
from interp.errors import DetectorError, UnknownName
from interp.provenance import code_version
from interp.registry import load
from interp.run import Run
from interp.train import load_model
from probes.null import NullScan

Tell = Callable[[str, int, int], None]  # (what, done, of)

SOURCES = ("circuits", "probes", "interp", "kernels")


@dataclass(frozen=True)
class RunDetection:
    """The last checkpoint's detection and, where all checkpoints were scanned, how it came about."""

    detection: Detection
    emergence: Emergence | None


@cache
def source_hash() -> str:
    """sha256 over the Python sources a detection depends on, so that edited code never finds old results."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((root / folder).rglob("*.py")):
            if "report" not in path.parts and not path.name.startswith("cli"):
                digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def analysis_key(detector: str, checkpoint: str, config_hash: str, options: Options, gated: bool = False) -> str:
    """Key of a stored detection: checkpoint weights, probe set (task, data, seed, sizes) and code."""
    parts = [detector, checkpoint, config_hash, asdict(options), gated, source_hash()]
    return f"{detector}-{hashlib.sha256(canonical_json(parts)).hexdigest()[:20]}"


def checkpoint_options(options: Options, checkpoints: int) -> Options:
    """Options for one of several checkpoints: enough null models for the family, fewer sequences."""
    n_null = max(options.n_null, 101 * checkpoints)
    light = {"per_step": min(options.per_step, 4), "per_length": min(options.per_length, 32), "accuracy_sequences": 64}
    return Options(**{**asdict(options), **light, "n_null": n_null, "checkpoints": checkpoints})


class RunScanner:
    """Detects on one run's checkpoints, building the data split and each null once."""

    def __init__(self, run: Run, detector: str, tell: Tell | None = None, fresh: bool = False):
        self.run, self.name = run, detector
        self.detector = load("detector", detector)
        if isinstance(self.detector, HeadDetector):
            raise DetectorError(
                f"detector {detector!r} scores single heads on random tokens, not a task; "
                f"use `interp heads RUN --types {detector}`"
            )
        self.tell = tell or (lambda what, done, of: None)
        self.fresh = fresh
        self.config_hash = run.config.hash()
        self._sequences = None
        self._nulls: dict[int, NullScan] = {}

    def at(self, step: int | None, options: Options, *, causal_if_attending: bool = False) -> Detection:
        """Detection at one checkpoint, from the store when the same weights, probes and code gave it before."""
        checkpoint = self.run.checkpoint(step, optim=False)
        key = analysis_key(self.name, checkpoint.hash, self.config_hash, options, causal_if_attending)
        if not self.fresh and key in self.run.analyses():
            return validated(Detection, self.run.analysis(key)["detection"], f"{self.run.name}/analysis/{key}.json")
        model, task, checkpoint = load_model(self.run, checkpoint.step)
        if self._sequences is None:
            self._sequences = task.split(self.run.config.seed, self.run.config.data).test
        if options.n_null not in self._nulls:
            self._nulls[options.n_null] = self.detector.null(
                model, task, self._sequences, options, lambda done, of: self.tell("null models", done, of)
            )
        origin = Origin(self.run.name, checkpoint.step, checkpoint.hash, self.config_hash, code_version())
        found = self.detector.detect(
            model,
            task,
            sequences=self._sequences,
            origin=origin,
            options=options,
            null=self._nulls[options.n_null],
            causal_if_attending=causal_if_attending,
        )
        self.run.write_analysis(key, {"detection": found.model_dump(mode="json")})
        return found


def detect_run(
    run: Run,
    *,
    detector: str = "iteration_head",
    step: int | None = None,
    every_checkpoint: bool = False,
    options: Options | None = None,
    tell: Tell | None = None,
    fresh: bool = False,
) -> RunDetection:
    """Detect at one checkpoint (the newest by default), and over all of them where asked.

    Raises:
        UnknownName: no such detector or checkpoint.
        DetectorError: the detector does not apply to this task.
    """
    options = options or Options()
    scanner = RunScanner(run, detector, tell, fresh)
    steps = [ref.step for ref in run.checkpoints()]
    if step is not None and step not in [ref.step for ref in run.checkpoints(rolling=True)]:
        raise UnknownName(f"checkpoint of run {run.name!r}:", str(step), map(str, steps))
    final = scanner.at(step, options)
    if not every_checkpoint:
        return RunDetection(final, None)
    if not steps:
        raise DetectorError(f"{run.name}: no checkpoints to follow; train the run first")
    light = checkpoint_options(options, len(steps))
    losses = {row["step"]: row.get("loss") for row in run.metrics() if "loss" in row}
    points = []
    for index, at in enumerate(steps):
        scanner.tell("checkpoints", index, len(steps))
        points.append(emergence_point(scanner.at(at, light, causal_if_attending=True), losses.get(at)))
    scanner.tell("checkpoints", len(steps), len(steps))
    followed = emergence(points)
    if points[-1].step == final.step and points[-1].verdict != final.verdict:
        note = (
            f"With fewer pairs and the correction for {len(steps)} checkpoints the last one is {points[-1].verdict!r} "
            f"on this curve; the full detection says {final.verdict!r}."
        )
        followed = followed.model_copy(update={"note": f"{followed.note} {note}".strip()})
    return RunDetection(final, followed)
