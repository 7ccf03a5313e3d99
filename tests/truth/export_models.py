"""Copies the final weights of the zoo runs of a store into tests/truth/models, small enough for the repository.

    python tests/truth/export_models.py STORE [--models FOLDER]

Weights are rounded to float16 and every accuracy in index.json is measured again after the rounding, on all held-out
sequences. Files of earlier exports that are not in the store stay; index.json always lists what is in the folder.
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save

from interp.config import RunConfig
from interp.evaluate import score_lengths
from interp.run import Run, Store
from interp.train import load_model

MODELS = Path(__file__).parent / "models"
INDEX = "index.json"
LARGEST_TOTAL = 6_000_000


def final_scores(run: Run) -> tuple[dict[str, torch.Tensor], dict]:
    """Rounded final weights of a run and its row of the index."""
    model, task, checkpoint = load_model(run)
    rounded = {name: value.half() for name, value in checkpoint.model.items()}
    model.load_state_dict({name: value.float() for name, value in rounded.items()})
    held_out = task.split(run.config.seed, run.config.data).test
    scores = score_lengths(model, task, held_out, free=True)
    config: RunConfig = run.config
    return rounded, {
        "run": run.name,
        "step": checkpoint.step,
        "checkpoint": checkpoint.hash,
        "config_hash": config.hash(),
        "config": config.model_dump(mode="json"),
        "lowest_sequence_accuracy": min(score.sequence for score in scores.values()),
        "accuracy": {
            str(length): {"n": s.n, "sequence": s.sequence, "step": s.step, "free_step": s.free_step}
            for length, s in scores.items()
        },
    }


def export(store: Store, folder: Path) -> list[dict]:
    """Write weights and index; returns the rows of the index.

    Raises:
        SystemExit: if the folder would grow beyond 6 MB; nothing is written then.
    """
    known = {row["run"]: row for row in read_index(folder)}
    files: dict[str, bytes] = {}
    for name in store.names():
        run = store.run(name)
        if run.status().state != "done" or (
            name in known and known[name]["checkpoint"] == run.checkpoint(optim=False).hash
        ):
            continue
        weights, row = final_scores(run)
        files[name] = save(weights)
        known[name] = row | {"bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}
        print(f"{name}: {len(files[name])} bytes, lowest accuracy {row['lowest_sequence_accuracy']:.3f}", flush=True)
    rows = [known[name] for name in sorted(known)]
    total = sum(row["bytes"] for row in rows)
    if total > LARGEST_TOTAL:
        raise SystemExit(f"{folder}: {total} bytes of weights, more than {LARGEST_TOTAL}; export fewer runs")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / f"{name}.safetensors").write_bytes(data)
    (folder / INDEX).write_text(json.dumps({"format": 1, "dtype": "float16", "models": rows}, indent=1) + "\n")
    return rows


def read_index(folder: Path) -> list[dict]:
    """Rows of an existing index; none where there is no index yet."""
    path = folder / INDEX
    return json.loads(path.read_text(encoding="utf-8"))["models"] if path.exists() else []


def main() -> None:
    """Export and say how much it came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--models", type=Path, default=MODELS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = export(Store(arguments.store), arguments.models)
    solved = sum(row["lowest_sequence_accuracy"] >= 0.99 for row in rows)
    print(f"{len(rows)} models, {solved} solved, {sum(row['bytes'] for row in rows)} bytes in {arguments.models}")


if __name__ == "__main__":
    main()
