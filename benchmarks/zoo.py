"""Train the zoo of small models on which verdicts are scored, and record how often and at what cost each recipe solves.

    python -m benchmarks.zoo --store zoo [--only polynomial-d32] [--shard 0/2]

Runs that are already done are skipped, so the command can be stopped and repeated. The summary goes to
benchmarks/results/zoo.json with one row per run.
"""

import argparse
import fnmatch
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.seeds import first_solved
from interp.config import RunConfig, merged, parse_assignment, validated
from interp.errors import Diverged
from interp.registry import load
from interp.run import Run, Store
from interp.run_config import warm_base
from interp.train import train

RESULTS = Path(__file__).parent / "results" / "zoo.json"


@dataclass(frozen=True)
class Recipe:
    """One family of runs: a task preset with changes, over seeds; `init` names another recipe's seed-wise run."""

    name: str
    task: str
    seeds: tuple[int, ...]
    changes: tuple[str, ...] = ()
    init: str | None = None


WIDE = ("model.d_model=64", "train.lr=1e-3")
TRANSFER = (
    "train.steps=1000",
    "train.eval_every=125",
    "model.d_model=32",
    "model.embed_norm=true",
    "model.dropout=0.2",
)
SMALL_POLY = ("train.lr=2e-3", "train.batch_size=32")

RECIPES = (
    Recipe("polynomial-d32", "polynomial", tuple(range(10))),
    Recipe("parity-from-polynomial", "parity", (0, 1, 2, 3, 4, 5), init="polynomial-d32"),
    Recipe("copy-from-polynomial", "binary_copy", (0, 1, 2), init="polynomial-d32"),
    Recipe("copy-scratch", "binary_copy", (0, 1, 2)),
    Recipe("polynomial-d32-h2", "polynomial", (0, 1), ("model.n_heads=2",)),
    Recipe("polynomial-d64-h4", "polynomial", (0, 1), (*WIDE, "model.n_heads=4")),
    Recipe("polynomial-d64-h8", "polynomial", (0, 1), (*WIDE, "model.n_heads=8")),
    Recipe("polynomial-d64", "polynomial", (0, 1), WIDE),
    Recipe("polynomial-d32-3layers", "polynomial", (0,), ("model.n_layers=3",)),
    Recipe("reversed", "polynomial", (0,), ("task_params.order=reversed",)),
    Recipe("shifted", "polynomial", (0,), ("task_params.input_shift=1",)),
    Recipe("no-chain-of-thought", "polynomial", (0,), ("task_params.chain_of_thought=false", "train.steps=3000")),
    Recipe("parity-scratch", "parity", (0, 1, 2, 3, 4)),
    Recipe("polynomial-rotary", "polynomial", (0,), ("model.positions=rotary",)),
    Recipe("polynomial-normed", "polynomial", (0,), ("model.residual=normed", "model.embed_norm=false")),
)

BY_NAME = {recipe.name: recipe for recipe in RECIPES}


def configurations(recipe: Recipe) -> Iterator[tuple[str, RunConfig]]:
    """Run name and configuration for each seed of a recipe."""
    preset = load("task", recipe.task).preset()
    if recipe.init:
        preset = warm_base(preset, next(configurations(BY_NAME[recipe.init]))[1])
    for seed in recipe.seeds:
        values = merged(preset.model_dump(mode="json"), [parse_assignment(change) for change in recipe.changes])
        values |= {"seed": seed, "init": f"{recipe.init}-s{seed}" if recipe.init else None}
        yield f"{recipe.name}-s{seed}", validated(RunConfig, values, recipe.name)


def row(run: Run, cpu_seconds: float | None) -> dict:
    """One line of the summary, read from the run folder."""
    metrics = run.metrics()
    final = next((r["final"] for r in reversed(metrics) if "final" in r), {})
    lowest = min((score["sequence"] for score in final.values()), default=None)
    return {
        "run": run.name,
        "config_hash": run.config.hash(),
        "state": run.status().state,
        "steps": run.status().step,
        "first_solved_step": first_solved(metrics),
        "lowest_sequence_accuracy": lowest,
        "mean_sequence_accuracy": sum(s["sequence"] for s in final.values()) / len(final) if final else None,
        "cpu_seconds": cpu_seconds,
        "threads": run.config.train.threads,
    }


def main() -> None:
    """Train what is missing and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("zoo"))
    parser.add_argument("--only", default="*", help="recipe-name pattern")
    parser.add_argument("--shard", default="0/1", help="k/n: take every n-th run, starting at k")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    part, parts = map(int, arguments.shard.split("/"))
    store = Store(arguments.store)
    wanted = [c for r in RECIPES if fnmatch.fnmatch(r.name, arguments.only) for c in configurations(r)]
    for name, config in wanted[part::parts]:
        if name in store.names() and store.run(name).status().state == "done":
            continue
        started = time.process_time()
        try:
            run = train(config, store, name, resume=name in store.names())
        except Diverged as error:
            print(f"{name}: {error}", flush=True)
            continue
        result = row(run, round(time.process_time() - started, 1))
        (arguments.store / f"{name}.row.json").write_text(json.dumps(result))
        print(json.dumps(result), flush=True)
    costs = {
        path.name.removesuffix(".row.json"): json.loads(path.read_text()) for path in store.root.glob("*.row.json")
    }
    rows = [row(store.run(name), costs[name]["cpu_seconds"]) for name in store.names() if name in costs]
    arguments.results.parent.mkdir(exist_ok=True, parents=True)
    arguments.results.write_text(
        json.dumps({"format": 1, "command": "python -m benchmarks.zoo", "runs": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
