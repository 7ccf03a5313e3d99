"""Patching heatmaps that a run already holds: written by `interp patch`, read without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp.errors import StoreError
from interp.run import Run

if TYPE_CHECKING:
    import numpy as np

PATCH = "patch-"  # how the keys begin
ABOUT = {"step": int, "checkpoint": str, "by": str, "pairs": str, "length": int, "ablation": str, "metric": str}
DRAWN = {"saved": str, "components": list, "places": dict, "reasons": list, "metric": str, "pairs": str}
SHOWN = ("value", "low", "high", "skipped")


@dataclass(frozen=True, eq=False)
class StoredPatches:
    """The patches of one checkpoint under one setting.

    Attributes:
        about: what `interp patch --json` prints, without the files.
        drawn: names of components, of positions by step of the task, and of the reasons; words for a legend.
    """

    key: str
    about: Mapping[str, Any]
    drawn: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Training step of the checkpoint."""
        return self.about["step"]

    @property
    def ts(self) -> list[int]:
        """Steps of the task that were patched."""
        return sorted(int(t) for t in self.drawn["places"])

    @property
    def setting(self) -> tuple[str, ...]:
        """What must agree for two checkpoints to be frames of one picture."""
        names = ("by", "site", "pairs", "length", "ablation", "direction", "metric")
        sizes = ",".join(str(one.get("n")) for one in self.about.get("steps", []))
        components = ",".join(map(str, self.drawn["components"]))
        return (*(str(self.about.get(name)) for name in names), ",".join(map(str, self.ts)), sizes, components)

    def n(self, t: int) -> int:
        """Prompts behind one effect at a step of the task."""
        return next((int(one["n"]) for one in self.about["steps"] if one["t"] == t), 0)

    def places(self, t: int) -> list[str]:
        """Names of the positions at a step of the task."""
        return [str(name) for name in self.drawn["places"][str(t)]]

    def arrays(self, run: Run) -> dict[str, "np.ndarray"]:
        """value, low, high and skipped (0, or the number of its reason) as `<name>.t<t>`, [component place].

        Raises:
            StoreError: if they are damaged, or not of the shape that the names give.
        """
        found, rows = run.analysis_arrays(self.key), len(self.drawn["components"])
        for t in self.ts:
            for name in SHOWN:
                wanted = (rows, len(self.places(t)))
                if f"{name}.t{t}" not in found or found[f"{name}.t{t}"].shape != wanted:
                    raise StoreError(f"{run.name}/analysis/{self.key}: {name}.t{t}: expected shape {wanted}; {AGAIN}")
        return found


AGAIN = "run `interp patch` again"


def stored_patches(run: Run) -> list[StoredPatches]:
    """All stored heatmaps of a run, the newest last; those of an older version, which hold no names, are left out.

    Raises:
        StoreError: if one of them is damaged; the message names the file.
    """
    found = [_read(run, key) for key in run.analyses() if key.startswith(PATCH)]
    return sorted((one for one in found if one is not None), key=lambda one: (one.drawn["saved"], one.key))


def through_training(found: list[StoredPatches], setting: tuple[str, ...]) -> list[StoredPatches]:
    """Those of one setting by checkpoint, the newest of each."""
    by_step = {one.step: one for one in found if one.setting == setting}
    return [by_step[step] for step in sorted(by_step)]


def _read(run: Run, key: str) -> StoredPatches | None:
    payload, where = run.analysis(key), f"{run.name}/analysis/{key}.json"
    if "drawn" not in payload:
        return None
    for name, fields in (("patch", ABOUT), ("drawn", DRAWN)):
        part = payload.get(name)
        if not isinstance(part, dict):
            raise StoreError(f"{where}: {name}: expected an object; {AGAIN}")
        wrong = [field for field, kind in fields.items() if type(part.get(field)) is not kind]
        if wrong:
            raise StoreError(f"{where}: {name}.{wrong[0]}: expected {fields[wrong[0]].__name__}; {AGAIN}")
    steps = payload["patch"].get("steps")
    if not isinstance(steps, list) or not all(isinstance(one, dict) and {"t", "n"} <= one.keys() for one in steps):
        raise StoreError(f"{where}: patch.steps: expected a list with t and n; {AGAIN}")
    if not all(name.isdecimal() and isinstance(row, list) for name, row in payload["drawn"]["places"].items()):
        raise StoreError(f"{where}: drawn.places: expected names by step of the task; {AGAIN}")
    return StoredPatches(key, payload["patch"], payload["drawn"])
