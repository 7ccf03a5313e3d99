"""Measures how strongly untrained models attend to the reading and clock targets, for the page on the detector.

Run: python -m benchmarks.untrained_attention [--models 2000]
Writes benchmarks/results/untrained_attention.json. Models are the preset's shape of the polynomial task with 1 or 8
heads per layer; three quarters of them have sharpened QK, as in the detector's null.
"""

import argparse
import json
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.detectors._iteration_scan import ROLES, cells, scan_sequences, scanned_maxima
from interp.provenance import code_version
from interp.registry import load
from interp.rng import generator
from interp.tasks._load import build_task, model_config_for
from interp.tasks.base import preset_of
from probes.intervals import share
from probes.null import NullScan, null_scan

SHORT = (1, 2, 4)
BAR = 0.5


def quantiles(null: NullScan) -> dict[str, dict[str, float]]:
    """99 % quantile over models of the largest mass, as the detector averages it and for the best single length."""
    columns = torch.quantile(null.maxima[:, :6].double(), 0.99, dim=0).tolist()
    roles = (*ROLES, "joint")
    return {
        "mean over lengths": dict(zip(roles, columns[:3], strict=True)),
        "best single length": dict(zip(roles, columns[3:], strict=True)),
    }


def firing(null: NullScan) -> dict[str, dict[str, float]]:
    """Share of models with a head above the bar on the reading target, by length, with its 95 % interval."""
    rows = {}
    for column, length in enumerate(SHORT, 6):
        estimate = share(int((null.maxima[:, column] > BAR).sum()), null.n)
        rows[str(length)] = {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}
    return rows


def best_head(
    patterns: Float[Tensor, "twin layer batch head q_pos k_pos"], targets: list[tuple[int, int]]
) -> Float[Tensor, "twin"]:
    """Largest mean mass of any head on the targets."""
    queries, keys = (torch.tensor(side) for side in zip(*targets, strict=True))
    return patterns[..., queries, keys].mean(-1).mean(2).flatten(1).amax(1)


def measure(heads: int, models: int) -> dict:
    """Both tables for one number of heads per layer."""
    preset = preset_of(load("task", "polynomial"))
    task = build_task("polynomial", preset.task_params)
    split = task.split(0, preset.data).test
    probe = scan_sequences(task, split)
    short = {length: split[length][:8] for length in SHORT}

    def scan(patterns: dict[int, Tensor]) -> Float[Tensor, "twin column"]:
        own = {length: patterns[length] for length in probe}
        mean = scanned_maxima(cells(task, own))
        single = torch.stack([scanned_maxima(cells(task, {n: p})) for n, p in own.items()]).amax(0)
        near = [best_head(patterns[n], task.attention_targets(n)["reading"]) for n in SHORT]
        return torch.cat([mean, single, torch.stack(near, 1)], 1)

    cfg = model_config_for(preset.model.model_copy(update={"n_heads": heads}), task)
    null = null_scan(cfg, probe | short, scan, n=models, generator=generator(0, "untrained attention", heads))
    return {
        "heads": heads,
        "models": null.n,
        "sharp": null.n_sharp,
        "quantile_99": quantiles(null),
        "above": firing(null),
    }


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = {
        "format": 1,
        "command": "python -m benchmarks.untrained_attention",
        "code_version": code_version(),
        "bar": BAR,
        "cases": [measure(heads, arguments.models) for heads in (1, 8)],
    }
    (Path(__file__).parent / "results" / "untrained_attention.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
