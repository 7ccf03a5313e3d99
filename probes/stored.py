"""Lens and embedding analyses that a run already holds: written by `interp probe`, read without torch."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.config import canonical_json
from interp.errors import StoreError
from interp.run import Run

if TYPE_CHECKING:
    import numpy as np

LENS, EMBEDDING = "lens-", "embedding-"  # how the keys begin
FORMAT = 1
SOURCES = ("probes", "interp/decoder.py", "interp/model.py", "interp/rng.py", "interp/tasks")
LENS_FIELDS = {
    "step": int,
    "checkpoint": str,
    "saved": str,
    "length": int,
    "n": int,
    "seed": int,
    "depths": list,
    "positions": list,
    "scored": list,
    "vocabulary": list,
    "examples": list,
}
EMBEDDING_FIELDS = {"steps": list, "saved": str, "tokens": list, "positions": list}
LENS_ARRAYS = ("probability", "low", "high", "rank", "first")
EXAMPLE_ARRAYS = ("top", "top_probability", "answer_probability", "answer_rank")


@cache
def source_hash() -> str:
    """sha256 over the sources these numbers depend on, so that edited code never finds old results."""
    root, digest = Path(__file__).resolve().parent.parent, hashlib.sha256()
    for name in SOURCES:
        found = [root / name] if name.endswith(".py") else sorted((root / name).rglob("*.py"))
        for path in found:
            if not path.name.startswith("cli"):
                digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def probe_key(prefix: str, checkpoints: Sequence[str], probes: Sequence[Any]) -> str:
    """Key of a stored analysis: checkpoints, probe set and code."""
    return prefix + hashlib.sha256(canonical_json([list(checkpoints), list(probes), source_hash()])).hexdigest()[:20]


@dataclass(frozen=True, eq=False)
class StoredLens:
    """The lens at one checkpoint; `about` says what it was computed on."""

    step: int
    key: str
    about: Mapping[str, Any]

    @property
    def probes(self) -> tuple[int, int, int]:
        """Length, number of prompts and seed: what must agree for two of them to be compared."""
        return self.about["length"], self.about["n"], self.about["seed"]

    def arrays(self, run: Run) -> dict[str, "np.ndarray"]:
        """Its arrays, see `probes.lens.Lens`.

        Raises:
            StoreError: if they are damaged or not of the shape that `about` says.
        """
        found, about = run.analysis_arrays(self.key), self.about
        shape = (len(about["depths"]), len(about["positions"]))
        example = (len(about["examples"]), *shape)
        for names, wanted in ((LENS_ARRAYS, shape), (EXAMPLE_ARRAYS, example)):
            for name in names:
                if name not in found or found[name].shape != wanted:
                    raise StoreError(f"{run.name}/analysis/{self.key}: {name}: expected shape {wanted}; {_again(run)}")
        return found


def stored_lens(run: Run) -> list[StoredLens]:
    """The lens at every checkpoint that has one, by step: those of the newest probe set, the newest of each step.

    Raises:
        StoreError: if one of them is damaged; the message names the file.
    """
    found = [_lens(run, key) for key in run.analyses() if key.startswith(LENS)]
    newest = sorted(found, key=lambda one: (one.about["saved"], one.key))
    by_step = {one.step: one for one in newest if one.probes == newest[-1].probes}
    return [by_step[step] for step in sorted(by_step)]


@dataclass(frozen=True, eq=False)
class StoredEmbedding:
    """Embeddings through training in one plane.

    Attributes:
        tokens, positions: [step point axis]; positions are None for a model without learned ones.
        explained: share of the variance of the last checkpoint along each axis, by "tokens" and "positions".
        shares: the same of every checkpoint, [step axis].
    """

    steps: tuple[int, ...]
    about: Mapping[str, Any]
    places: Mapping[str, "np.ndarray"]
    explained: Mapping[str, "np.ndarray"]
    shares: Mapping[str, "np.ndarray"]

    def labels(self, what: str) -> list[str]:
        """Names of the points of "tokens" or "positions"."""
        return [str(name) for name in self.about[what]]


def stored_embedding(run: Run, key: str | None = None) -> StoredEmbedding | None:
    """The trajectory of a key, or the newest stored one; None where `interp probe` was never run.

    Raises:
        StoreError: if it is damaged.
    """
    keys = [one for one in run.analyses() if one.startswith(EMBEDDING)] if key is None else [key]
    found = [(one, payload(run, one, "embedding", EMBEDDING_FIELDS)) for one in keys]
    if not found:
        return None
    key, about = max(found, key=lambda pair: (pair[1]["saved"], pair[0]))
    arrays, steps = run.analysis_arrays(key), tuple(about["steps"])
    kinds = [what for what in ("tokens", "positions") if about[what]]
    for what in kinds:
        wanted = {f"{what}.places": (len(steps), len(about[what]), 2), f"{what}.explained": (2,)}
        wanted[f"{what}.shares"] = (len(steps), 2)
        for name, shape in wanted.items():
            if name not in arrays or arrays[name].shape != shape:
                raise StoreError(f"{run.name}/analysis/{key}: {name}: expected shape {shape}; {_again(run)}")
    parts = [{what: arrays[f"{what}.{part}"] for what in kinds} for part in ("places", "explained", "shares")]
    return StoredEmbedding(steps, about, *parts)


def _lens(run: Run, key: str) -> StoredLens:
    about = payload(run, key, "lens", LENS_FIELDS)
    if len(about["scored"]) != len(about["positions"]):
        raise StoreError(f"{run.name}/analysis/{key}.json: scored: expected one entry per position; {_again(run)}")
    return StoredLens(about["step"], key, about)


def payload(run: Run, key: str, name: str, fields: Mapping[str, type]) -> dict[str, Any]:
    """A payload whose keys have the right kind.

    Raises:
        StoreError: naming the file and the key that is wrong.
    """
    payload, where = run.analysis(key), f"{run.name}/analysis/{key}.json"
    if payload.get("format") != FORMAT:
        raise StoreError(f"{where}: format {payload.get('format')!r:.20}, this program reads {FORMAT}; update it")
    about = payload.get(name)
    if not isinstance(about, dict):
        raise StoreError(f"{where}: {name}: expected an object; {_again(run)}")
    wrong = [field for field, kind in fields.items() if type(about.get(field)) is not kind]
    if wrong:
        raise StoreError(f"{where}: {wrong[0]}: expected {fields[wrong[0]].__name__}; {_again(run)}")
    return about


def _again(run: Run) -> str:
    return f"run `interp probe {run.name} --fresh`"
