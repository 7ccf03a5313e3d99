"""Computes lens and embedding analyses at the checkpoints of a run, and stores each under what gave it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from interp.decoder import Decoder, decoder_of
from interp.errors import TaskError, UnknownName, UsageError
from interp.evaluate import step_positions
from interp.provenance import code_version
from interp.rng import generator
from interp.run import Run
from interp.tasks.base import Task
from interp.train import load_model
from probes.geometry import trajectory
from probes.lens import answered_from, lens
from probes.stored import EMBEDDING, EXAMPLE_ARRAYS, FORMAT, LENS, LENS_ARRAYS, probe_key

Tell = Callable[[str, int, int], None]
DEFAULT_LENGTH = 8
KINDS = ("lens", "embedding")


@dataclass(frozen=True)
class LensProbes:
    """Which held-out sequences the lens looks at; length None is 8, or the longest where that is shorter."""

    length: int | None = None
    n: int = 128
    seed: int = 0


def steps_of(run: Run, checkpoints: str) -> list[int]:
    """The steps that "all", "last" or a number means.

    Raises:
        UsageError, UnknownName: for another word, or a step without checkpoint.
    """
    known = [ref.step for ref in run.checkpoints()] or [ref.step for ref in run.checkpoints(rolling=True)]
    if not known:
        raise UsageError(f"run {run.name!r} has no checkpoint yet; train it first")
    if checkpoints in ("all", "last"):
        return known if checkpoints == "all" else known[-1:]
    if not checkpoints.isdecimal():
        raise UsageError(f"--checkpoints {checkpoints!r}: expected all, last, or a step such as {known[-1]}")
    if int(checkpoints) not in known:
        raise UnknownName(f"checkpoint of run {run.name!r}:", checkpoints, map(str, known))
    return [int(checkpoints)]


def lens_run(run: Run, steps: Sequence[int], probes: LensProbes, tell: Tell, fresh: bool = False) -> list[str]:
    """Store the lens at some checkpoints; what is stored already is kept. Returns the keys.

    Raises:
        TaskError: for a length that the task does not have, or that has no held-out sequences.
    """
    keys, tokens, about = [], None, {}
    for done, step in enumerate(steps):
        tell("lens", done, len(steps))
        checkpoint = run.checkpoint(step, optim=False)
        key = probe_key(LENS, [checkpoint.hash], ["lens", run.config.hash(), asdict(probes)])
        keys.append(key)
        if key in run.analyses() and not fresh:
            continue
        model, task, checkpoint = load_model(run, step)
        if tokens is None:
            length, tokens = _sequences(run, task, probes)
            about = _about(run, task) | {"length": length, "seed": probes.seed}
        at = {"step": step, "checkpoint": checkpoint.hash}
        _store_lens(run, key, decoder_of(model), task, about | at, tokens)
    tell("lens", len(steps), len(steps))
    return keys


def embedding_run(run: Run, steps: Sequence[int], tell: Tell, fresh: bool = False) -> str:
    """Store where token and position embeddings were at some checkpoints, in the plane of the last. Returns the key."""
    points: dict[str, list[torch.Tensor]] = {"tokens": [], "positions": []}
    hashes, task = [], None
    for done, step in enumerate(steps):
        tell("embedding", done, len(steps))
        model, task, checkpoint = load_model(run, step)
        decoder = decoder_of(model)
        hashes.append(checkpoint.hash)
        points["tokens"].append(decoder.W_E)
        points["positions"] += [] if decoder.W_pos is None else [decoder.W_pos]
    tell("embedding", len(steps), len(steps))
    key = probe_key(EMBEDDING, hashes, ["embedding", run.config.hash()])
    if key in run.analyses() and not fresh:
        return key
    arrays = {}
    for what, through in points.items():
        if through:
            path = trajectory(through)
            arrays |= {f"{what}.{name}": getattr(path, name).numpy() for name in ("places", "explained", "shares")}
    n_positions = len(points["positions"][0]) if points["positions"] else 0
    about = {
        **_about(run, task),
        "steps": list(steps),
        "checkpoints": hashes,
        "tokens": list(task.vocabulary.tokens),
        "positions": [str(place) for place in range(n_positions)],
        "fit": f"principal plane of step {steps[-1]}; signs by the farthest point",
    }
    run.write_analysis(key, {"format": FORMAT, "embedding": about}, arrays)
    return key


def position_names(task: Task, length: int) -> list[str]:
    """BoS, x1.., EoI, s1.. and EoS: a name for each position of a sequence."""
    layout = task.layout(length)
    names = {place: f"x{i}" for i, place in enumerate(layout.inputs, 1)}
    names |= {place: f"s{i}" for i, place in enumerate(layout.states, 1)}
    names |= {0: "BoS", layout.eoi: "EoI"}
    return [names.get(place, "EoS") for place in range(layout.n_pos)]


def _sequences(run: Run, task: Task, probes: LensProbes) -> tuple[int, torch.Tensor]:
    """Length and held-out sequences."""
    length = min(DEFAULT_LENGTH, max(task.lengths)) if probes.length is None else probes.length
    task.layout(length)
    held_out = task.split(run.config.seed, run.config.data).test[length]
    if len(held_out) < 2:
        raise TaskError(f"{task.name}: length {length} has {len(held_out)} held-out sequences; choose a longer length")
    order = torch.randperm(len(held_out), generator=generator(probes.seed, "lens prompts", length))
    return length, held_out[order[: probes.n]]


def _store_lens(run: Run, key: str, decoder: Decoder, task: Task, about: dict[str, Any], tokens: torch.Tensor) -> None:
    """Compute and write the lens of one checkpoint."""
    length = about["length"]
    found = lens(decoder, tokens, generator(about["seed"], "lens intervals"))
    scored = torch.zeros(tokens.shape[1] - 1, dtype=torch.bool)
    scored[step_positions(task, length)] = True
    depth = answered_from(found.first, scored)
    names = position_names(task, length)
    about = about | {
        "n": len(tokens),
        "prompts": f"{len(tokens)} held-out sequences of length {length}",
        "depths": list(found.depths),
        "positions": names[:-1],
        "answers": names[1:],
        "scored": scored.tolist(),
        "answered_from": None if depth is None else found.depths[depth],
        "vocabulary": list(task.vocabulary.tokens),
        "examples": [task.vocabulary.names(row) for row in tokens[: len(found.top)]],
    }
    arrays = {name: getattr(found, name).numpy() for name in LENS_ARRAYS + EXAMPLE_ARRAYS}
    run.write_analysis(key, {"format": FORMAT, "lens": about}, arrays)


def _about(run: Run, task: Task) -> dict[str, Any]:
    """What every stored analysis says of where it comes from."""
    return {
        "run": run.name,
        "task": task.name,
        "config_hash": run.config.hash(),
        "code_version": code_version(),
        "saved": datetime.now(UTC).isoformat(timespec="microseconds"),
    }
