"""What became of a sweep over seeds: solved or not, cost, verdict and emergence of every run, with intervals.

    interp train polynomial --seeds 0-9 --jobs 2 --name polynomial --store sweep --json > sweep.json
    python -m benchmarks.seeds sweep.json

The first command trains; this one detects at every checkpoint and writes benchmarks/results/seeds-TASK.json. CPU
seconds of training are those the first command measured.
"""

import argparse
import json
from pathlib import Path

import torch

from circuits.detect import detect_run
from interp.provenance import code_version
from interp.run import Store
from probes.intervals import share

RESULTS = Path(__file__).parent / "results"
SOLVED = 0.99


def row(store: Store, trained: dict) -> dict:
    """One run: how its training ended and what the detector says of it."""
    run = store.run(trained["name"])
    found = detect_run(run, every_checkpoint=True)
    swaps = {check.role: check.effect.value for check in found.detection.causal if check.name == "interchange"}
    return {
        **{key: trained[key] for key in ("name", "seed", "state", "step", "accuracy", "solved", "cpu_seconds")},
        "first_solved_step": first_solved(run.metrics()),
        "verdict": found.detection.verdict,
        "heads": found.detection.heads,
        "interchange": {role: round(value, 4) for role, value in swaps.items()} if found.detection.heads else {},
        "emerged": found.emergence.emerged,
        "bracket": found.emergence.bracket,
        "missing": found.detection.missing,
    }


def first_solved(metrics: list[dict]) -> int | None:
    """Step of the first evaluation at which every length has 99 % of its sequences right."""
    for line in metrics:
        if line.get("accuracy") and min(line["accuracy"].values()) >= SOLVED:
            return line["step"]
    return None


def table(result: dict) -> str:
    """The runs as a Markdown table, one row per seed, with the counts below it."""
    lines = [
        "| seed | steps | first solved | CPU s | lowest accuracy | verdict | interchange (reading, clock) | emerged |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in result["runs"]:
        swaps = ", ".join(f"{one['interchange'][role]:.3f}" for role in ("reading", "clock") if one["interchange"])
        first, emerged = (one[key] if one[key] is not None else "-" for key in ("first_solved_step", "emerged"))
        lines.append(
            f"| {one['seed']} | {one['step']} | {first} | {one['cpu_seconds']:.0f} | {one['accuracy']:.3f} | "
            f"{one['verdict']} | {swaps or '-'} | {emerged} |"
        )
    counts = [
        f"{name}: {round(c['value'] * c['n'])} of {c['n']}, 95 % interval {c['low']:.2f} to {c['high']:.2f}"
        for name, c in result["counts"].items()
    ]
    return "\n".join(lines) + "\n\n" + "; ".join(counts) + "."


def main() -> None:
    """Detect in every run of the sweep and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="output of `interp train TASK --seeds ... --json`")
    parser.add_argument("--label", default=None, help="name of the result file; the task if not given")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sweep = json.loads(arguments.sweep.read_text())
    store = Store(sweep["store"])
    rows = []
    for trained in sweep["runs"]:
        rows.append(row(store, trained))
        print(json.dumps(rows[-1]), flush=True)
    solved = [one for one in rows if one["solved"]]
    found = [one for one in solved if one["verdict"] == "iteration head"]
    counts = {"solved": share(len(solved), len(rows)), "iteration head, of the solved": share(len(found), len(solved))}
    label = arguments.label or sweep["task"]
    result = {
        "format": 1,
        "task": sweep["task"],
        "code_version": code_version(),
        "threads": 1,
        "counts": {name: vars(estimate) for name, estimate in counts.items()},
        "runs": rows,
    }
    (RESULTS / f"seeds-{label}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
