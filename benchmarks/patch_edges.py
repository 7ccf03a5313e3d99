"""Exact edges against one hooked forward per edge, on one thread; a ratio is printed only when the effects agree.

    python -m benchmarks.patch_edges [--rounds 9]

Two layers, d_model 128, 4 heads, 64 positions, random weights, metric at the last position. Engine and loop take turns
in one process. The loop edits one receiver's query, key or value through a hook of our own Transformer; it is timed on
32 random edges and scaled to all of them. Times are processor time of the process.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from circuits.metrics import LogitDiff
from circuits.patch_edges import EdgeResult, patch_edges
from interp.config import ModelConfig
from interp.decoder import decoder_of, normed, project
from interp.model import Transformer
from interp.provenance import environment
from interp.rng import generator

RESULTS = Path(__file__).parent / "results" / "patch_edges.json"
LENGTH, VOCAB, SAMPLE = 64, 1000, 32
BOUND = 1e-9  # of the largest effect, in float64


class Loop:
    """One forward per edge L0.Hi -> L1.Hj.slot at one position, through a hook."""

    def __init__(self, model: Transformer, clean: Tensor, corrupted: Tensor):
        self.model, self.corrupted = model, corrupted
        self.decoder = decoder_of(model)
        names = ["blocks.0.attn.hook_z", "blocks.1.hook_resid_pre"]
        _, source = model.run_with_cache(clean, names_filter=names)
        _, self.base = model.run_with_cache(corrupted, names_filter=names)
        self.change = source[names[0]] - self.base[names[0]]  # [batch pos head d_head]
        self.before = self.metric(model(corrupted))

    @staticmethod
    def metric(logits: Tensor) -> Tensor:
        return logits[:, -1, 0] - logits[:, -1, 1]

    def effect(self, sender: int, kind: str, receiver: int, pos: int) -> Tensor:
        layer = self.decoder.layers[1]
        delta = self.change[:, pos, sender] @ self.decoder.layers[0].attn.W_O[sender]
        weight, bias = getattr(layer.attn, f"W_{kind.upper()}"), getattr(layer.attn, f"b_{kind.upper()}")
        value = project(normed(layer.ln1, self.base["blocks.1.hook_resid_pre"][:, pos] + delta), weight, bias)

        def edit(activation: Tensor, hook) -> Tensor:
            activation[:, pos, receiver] = value[:, receiver]
            return activation

        logits = self.model.run_with_hooks(self.corrupted, fwd_hooks=[(f"blocks.1.attn.hook_{kind}", edit)])
        return self.metric(logits) - self.before


def problem() -> tuple[Transformer, Tensor, Tensor]:
    """Random model and one pair of prompts that differ everywhere."""
    shape = {"n_layers": 2, "n_heads": 4, "d_model": 128, "d_vocab": VOCAB, "n_ctx": LENGTH}
    model = Transformer(ModelConfig(**shape, bias=True, norm_bias=True), seed=0).eval()
    tokens = torch.randint(VOCAB, (2, 1, LENGTH), generator=generator(0, "edges"))
    return model, tokens[0], tokens[1]


def engine(model: Transformer, clean: Tensor, corrupted: Tensor, whole: bool, precision: str = "fp32") -> EdgeResult:
    """All edges, or those from heads of layer 0 to queries, keys and values of layer 1."""
    senders = None if whole else [f"L0.H{h}" for h in range(4)]
    receivers = None if whole else [f"L1.H{h}.{kind}" for h in range(4) for kind in "qkv"]
    metric = LogitDiff(torch.tensor([0]), torch.tensor([1]))
    return patch_edges(
        model,
        clean=clean,
        corrupted=corrupted,
        metric=metric,
        senders=senders,
        receivers=receivers,
        precision=precision,
    )


def sample() -> list[tuple[int, str, int, int]]:
    """Random edges (sender, slot, receiver, position)."""
    stream = generator(1, "edges")
    drawn = torch.randint(1 << 20, (SAMPLE, 4), generator=stream).tolist()
    return [(a % 4, "qkv"[b % 3], c % 4, d % LENGTH if b % 3 else LENGTH - 1) for a, b, c, d in drawn]


def largest_error(model: Transformer, clean: Tensor, corrupted: Tensor) -> float:
    """Engine against the loop in float64 on the sampled edges, relative to the largest effect."""
    exact = Transformer(model.cfg).double().eval()
    exact.load_state_dict(model.state_dict())
    loop, found = Loop(exact, clean, corrupted), engine(exact, clean, corrupted, False, "fp64")
    errors = []
    for sender, kind, receiver, pos in sample():
        got = found.score(f"L0.H{sender}->L1.H{receiver}.{kind}")[:, pos]
        errors.append((got - loop.effect(sender, kind, receiver, pos)).abs().max())
    return float(torch.stack(errors).max() / found.effect.abs().max())


def measure(rounds: int) -> dict:
    """Times and ratios; the check comes first."""
    model, clean, corrupted = problem()
    error = largest_error(model, clean, corrupted)
    if not error < BOUND:
        raise SystemExit(f"the effects differ by {error:.1e} of the largest one: no ratio is given")
    loop = Loop(model, clean, corrupted)
    times: dict[str, list[float]] = {"forward": [], "heads": [], "all": []}
    counts = {}
    for _ in range(rounds + 1):  # the first round warms up
        started = time.process_time()
        for edge in sample():
            loop.effect(*edge)
        times["forward"].append((time.process_time() - started) / SAMPLE)
        for name in ("heads", "all"):
            started = time.process_time()
            result = engine(model, clean, corrupted, name == "all")
            times[name].append(time.process_time() - started)
            counts[name] = {"edges": int(result.asked.sum()) * LENGTH, "run": result.branches}
    forward = statistics.median(times["forward"][1:])
    cases = {
        name: {
            **counts[name],
            "engine_seconds": statistics.median(times[name][1:]),
            "ratio": statistics.median(
                counts[name]["edges"] * f / e for f, e in zip(times["forward"][1:], times[name][1:], strict=True)
            ),
            "ratio_over_edges_run": statistics.median(
                counts[name]["run"] * f / e for f, e in zip(times["forward"][1:], times[name][1:], strict=True)
            ),
        }
        for name in ("heads", "all")
    }
    return {"format": 1, "rounds": rounds, "error": error, "forward_seconds": forward, "cases": cases}


def main() -> None:
    """Print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        result = measure(arguments.rounds)
    RESULTS.write_text(json.dumps({**result, "environment": environment("cpu", 1)}, indent=1) + "\n")
    console = Console(width=110)
    console.print(f"engine and loop agree in float64 to {result['error']:.1e} of the largest effect, {SAMPLE} edges")
    table = Table("edges", "of them run", "engine, s", "one hooked forward, s", "times", "times, run edges only")
    for name, case in result["cases"].items():
        cells = (case["run"], f"{case['engine_seconds']:.4f}", f"{result['forward_seconds']:.5f}")
        ratios = (f"{case['ratio']:.0f}", f"{case['ratio_over_edges_run']:.0f}")
        table.add_row(f"{name}: {case['edges']}", *map(str, cells), *ratios)
    console.print(table)


if __name__ == "__main__":
    main()
