"""Discoveries that a run already holds: written by `interp circuit`, read without computing anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from interp.config import validated
from interp.errors import StoreError
from interp.run import Run

if TYPE_CHECKING:  # torch is loaded by these, and a list of what is stored needs none
    from circuits.discovery_result import DiscoveryFile
    from circuits.trajectory import Trajectory

CIRCUIT, STORY = "circuit-", "circuitpath-"  # how the keys begin
FORMAT = 1
MAX_BYTES = 128 << 20  # of one file


@dataclass(frozen=True, eq=False)
class StoredCircuit:
    """One stored discovery; everything but `discovery` is plain data.

    Attributes:
        step: checkpoint that was looked at.
        key: of the analysis, stem of its file.
        checkpoint: sha256 of the checkpoint's manifest.
        saved: when it was computed, UTC, ISO 8601.
        request: `prompts` (length, n, family, seed), `ablation`, `by_position` and `settings` that gave it.
        data: the `DiscoveryFile` as JSON: `verdict`, `headline`, `n_kept`, `circuit`, ...
    """

    step: int
    key: str
    checkpoint: str
    saved: str
    request: dict[str, Any]
    data: dict[str, Any]

    @property
    def by_position(self) -> bool:
        """Whether edges have positions."""
        return bool(self.request.get("by_position"))

    @property
    def complete(self) -> bool:
        """Whether whole searches were rerun for stability; those of `--checkpoints all` leave that out."""
        return bool(self.request.get("settings", {}).get("reruns"))

    @property
    def discovery(self) -> "DiscoveryFile":
        """The full result.

        Raises:
            ConfigError: if it does not fit this version.
        """
        from circuits.discovery_result import DiscoveryFile

        return validated(DiscoveryFile, self.data, f"analysis/{self.key}.json: discovery")


def discovery_payload(
    step: int, checkpoint: str, request: dict[str, Any], discovery: "DiscoveryFile"
) -> dict[str, Any]:
    """What is stored under a key that begins with `circuit-`."""
    return {
        "format": FORMAT,
        "step": step,
        "checkpoint": checkpoint,
        "saved": datetime.now(UTC).isoformat(timespec="microseconds"),
        "request": request,
        "discovery": discovery.model_dump(mode="json"),
    }


def read_circuit(run: Run, key: str) -> StoredCircuit:
    """One stored discovery.

    Raises:
        UnknownName: if there is none of that key.
        StoreError: if it is damaged, or newer than this program.
    """
    payload = run.analysis(key)
    where = f"{run.name}/analysis/{key}.json"
    if payload.get("format") != FORMAT:
        raise StoreError(f"{where}: format {payload.get('format')!r:.20}, this program reads {FORMAT}; update it")
    kinds = {"step": int, "checkpoint": str, "saved": str, "request": dict, "discovery": dict}
    wrong = [name for name, kind in kinds.items() if type(payload.get(name)) is not kind]
    if wrong:
        raise StoreError(f"{where}: {wrong[0]}: expected {kinds[wrong[0]].__name__}; run `interp circuit` again")
    given = {name: payload[name] for name in ("step", "checkpoint", "saved", "request")}
    return StoredCircuit(key=key, data=payload["discovery"], **given)


def stored_circuits(run: Run) -> list[StoredCircuit]:
    """All stored discoveries of a run, by step and then by age: the newest of a step comes last."""
    found = [read_circuit(run, key) for key in run.analyses() if key.startswith(CIRCUIT)]
    return sorted(found, key=lambda one: (one.step, one.saved, one.key))


def newest_circuit(run: Run, step: int | None = None, by_position: bool | None = None) -> StoredCircuit | None:
    """The newest stored discovery: of the latest step that has one, or of one step.

    Args:
        by_position: only those with, or without, positions; None takes both.
    """
    found = [
        one
        for one in stored_circuits(run)
        if (step is None or one.step == step) and (by_position is None or one.by_position == by_position)
    ]
    return found[-1] if found else None


def choose(stored: Sequence[StoredCircuit], step: int | None, by_position: bool | None) -> StoredCircuit | None:
    """The newest of one step or of the latest that has one: the rule of `interp report circuit` and `interp export`.

    Where the same was also searched with whole searches on resampled prompts, that one is taken: it says how stable the
    circuit is.

    Args:
        stored: by step and then by age.
        by_position: only those with, or without, positions; None takes both.
    """
    fit = [one for one in stored if step in (None, one.step) and by_position in (None, one.by_position)]
    if not fit:
        return None
    alike = [one for one in fit if one.step == fit[-1].step and asked(one.request) == asked(fit[-1].request)]
    return next((one for one in reversed(alike) if one.complete), fit[-1])


def other_choice(stored: Sequence[StoredCircuit], main: StoredCircuit, step: int | None) -> str:
    """Which of two kinds was chosen and how to get the other; empty where only one kind is stored."""
    other = choose(stored, step, not main.by_position)
    if other is None:
        return ""
    kinds = [f"{'with' if one.by_position else 'without'} positions{_at(one.step)}" for one in (main, other)]
    option = "--positions" if other.by_position else "--no-positions"
    return f"this is the discovery {kinds[0]}; one {kinds[1]} is stored too: {option}"


def _at(step: int) -> str:
    return "" if step < 0 else f" at step {step:,}"


def asked(request: dict[str, Any]) -> tuple[Any, ...]:
    """What two discoveries share that were asked for in the same way: prompts, ablation, kind of edges, method."""
    settings = request.get("settings", {})
    chosen = tuple(settings.get(name) for name in ("method", "target", "seed"))
    prompts = tuple(sorted((request.get("prompts") or {}).items()))
    return (prompts, *(request.get(name) for name in ("pairs", "bos", "ablation", "by_position")), *chosen)


def trajectory_payload(steps: list[int], keys: list[str | None], story: "Trajectory") -> dict[str, Any]:
    """What is stored under a key that begins with `circuitpath-`; the key of a checkpoint that failed is null."""
    saved = datetime.now(UTC).isoformat(timespec="microseconds")
    return {
        "format": FORMAT,
        "steps": steps,
        "keys": keys,
        "saved": saved,
        "trajectory": story.model_dump(mode="json"),
    }


def newest_trajectory(run: Run) -> "Trajectory | None":
    """The newest story of a circuit through training, None where `--checkpoints all` was never run.

    One of format 1, which had another rule for births and deaths, is told again from the circuits it is made of.

    Raises:
        ConfigError, StoreError: if it is damaged or does not fit this version.
        UnknownName: if a circuit that it is made of is gone.
    """
    from circuits.trajectory import Trajectory, trajectory

    found = [(run.analysis(key), key) for key in run.analyses() if key.startswith(STORY)]
    if not found:
        return None
    newest, key = max(found, key=lambda pair: (str(pair[0].get("saved")), pair[1]))
    where = f"{run.name}/analysis/{key}.json"
    story = validated(Trajectory, newest.get("trajectory"), f"{where}: trajectory")
    if story.format > 1:
        return story
    steps, keys = newest.get("steps"), newest.get("keys")
    if not isinstance(steps, list) or not isinstance(keys, list) or len(steps) != len(keys):
        raise StoreError(f"{where}: expected steps, and a key for each; run `interp circuit --checkpoints all` again")
    return trajectory(steps, [read_circuit(run, str(one)).discovery for one in keys])
