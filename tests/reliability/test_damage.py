"""R5: damage to any file of a run gives one typed error that names the file, never another value."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.errors import StoreError
from interp.run import Run


def tensor_bytes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple]:
    return {key: (str(t.dtype), tuple(t.shape), t.numpy().tobytes()) for key, t in tensors.items()}


def read_saved(run: Run) -> tuple:
    checkpoint = run.checkpoint(3)
    return checkpoint.hash, checkpoint.state, tensor_bytes(checkpoint.model), tensor_bytes(checkpoint.optim)


READERS: dict[str, Callable[[Run], Any]] = {
    "config.json": lambda run: run.config,
    "status.json": lambda run: run.status(),
    "env.json": lambda run: run.environment(),
    "metrics.jsonl": lambda run: run.metrics(),
    "events.jsonl": lambda run: run.events(),
    "checkpoints/step-00000003/model.safetensors": read_saved,
    "checkpoints/step-00000003/optim.safetensors": read_saved,
    "checkpoints/step-00000003/state.json": read_saved,
    "checkpoints/step-00000003/MANIFEST.json": read_saved,
    "analysis/detect.json": lambda run: run.analysis("detect"),
    "analysis/detect.npz": lambda run: {key: value.tolist() for key, value in run.analysis_arrays("detect").items()},
}


def path_of(run: Run, file: str) -> Path:
    if file.endswith(".npz"):
        return next((run.path / "analysis").glob("detect.*.npz"))
    return run.path / file


def mutant(data: bytes, generator: torch.Generator) -> bytes:
    """One damaged copy: a flipped bit, a cut, a lost, doubled, moved, zeroed or random stretch."""

    def below(n: int) -> int:
        return int(torch.randint(max(n, 1), (), generator=generator))

    a, b = sorted((below(len(data)), below(len(data) + 1)))
    piece = data[a:b]
    kind = below(8)
    if kind <= 1:
        flipped = bytearray(data)
        flipped[a] ^= 1 << below(8)
        return bytes(flipped)
    if kind == 2:
        return data[:a]
    if kind == 3:
        return data[:a] + data[b:]
    if kind == 4:
        return data[:b] + piece + data[b:]
    if kind == 5:
        rest = data[:a] + data[b:]
        place = below(len(rest))
        return rest[:place] + piece + rest[place:]
    if kind == 6:
        return data[:a] + bytes(len(piece)) + data[b:]
    return data[:a] + bytes(below(256) for _ in range(min(len(piece), 16))) + data[b:]


def outcome(run: Run, file: str, clean: Any) -> str:
    """'refused', 'same' or 'prefix'; anything else fails the test."""
    try:
        value = READERS[file](Run(run.name, run.path))
    except StoreError as error:
        assert path_of(run, file).name in str(error), error
        assert "\n" not in str(error)
        return "refused"
    if value == clean:
        return "same"
    assert file.endswith(".jsonl") and value == clean[: len(value)], f"silently wrong: {value!r:.300}"
    return "prefix"


@pytest.mark.parametrize("mutants", [500, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_by_name_and_never_silently_wrong(filled: Run, mutants: int):
    generator = torch.Generator().manual_seed(11)
    counts = {"refused": 0, "same": 0, "prefix": 0}
    for file, read in READERS.items():
        path, clean = path_of(filled, file), read(filled)
        original = path.read_bytes()
        for _ in range(mutants // len(READERS) + 1):
            damaged = mutant(original, generator)
            path.write_bytes(damaged)
            result = outcome(filled, file, clean)
            assert result == "refused" or damaged == original or file.endswith((".json", ".jsonl"))
            assert result != "same" or "checkpoints" not in file or damaged == original
            counts[result] += 1
        path.write_bytes(original)
        assert read(filled) == clean
    assert sum(counts.values()) >= mutants
    assert counts["refused"] > 0.85 * mutants, counts


@pytest.mark.parametrize("file", [file for file in READERS if "checkpoints" in file or file.endswith(".npz")])
def test_files_of_another_run_or_step_are_refused(filled: Run, file: str):
    """A whole, valid file in the wrong place is damage too."""
    path = path_of(filled, file)
    with filled.writer() as writer:
        writer.save(4, model={"embed.W_E": torch.zeros(3, 2)}, optim={"m": torch.ones(1)}, state={"loss": 0.5})
        writer.analysis("other", {"p": 1.0}, {"curve": torch.ones(4).numpy()})
    donor = filled.path / file.replace("step-00000003", "step-00000004")
    donor = next((filled.path / "analysis").glob("other.*.npz")) if file.endswith(".npz") else donor
    shutil.copy(donor, path)
    with pytest.raises(StoreError, match=path.name.replace(".", r"\.")):
        READERS[file](filled)


def test_lost_lines_in_the_middle_of_metrics_are_noticed(filled: Run):
    path = filled.path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))
    with pytest.raises(StoreError, match=r"metrics\.jsonl: line 3"):
        filled.metrics()


def test_torn_last_line_is_not_read_and_is_cut_by_the_next_writer(filled: Run):
    path = filled.path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"loss":0.1,"step":4,"cr')
    assert [row["step"] for row in filled.metrics()] == [0, 1, 2, 3]
    with filled.writer() as writer:
        writer.metric({"step": 4})
    assert path.read_bytes().startswith(whole)
    assert [row["step"] for row in filled.metrics()] == [0, 1, 2, 3, 4]


def test_resuming_takes_the_newest_whole_checkpoint_and_names_the_skipped(filled: Run):
    with filled.writer() as writer:
        for step in (4, 5):
            writer.save(step, model={"w": torch.zeros(2)}, optim={}, state={}, rolling=step == 5)
    damaged = filled.path / "checkpoints" / "rolling-00000005"
    (damaged / "state.json").unlink()
    checkpoint, skipped = filled.latest_verified()
    assert (checkpoint.step, skipped) == (4, [damaged])
    for ref in filled.checkpoints():
        (ref.path / "MANIFEST.json").write_bytes(b"")
    with pytest.raises(StoreError, match=r"rolling-00000005/state\.json: missing"):
        filled.latest_verified()
