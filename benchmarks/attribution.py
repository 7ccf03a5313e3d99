"""Cost of gradient scores of all edges, in plain forward passes of the same model, and the memory they take.

Run: python -m benchmarks.attribution [--rounds 9] [--edges 12] [--out benchmarks/results/attribution.json]
Random weights, one thread. The unit is the faster of two plain forward passes with logits at every position: the
step-by-step formulas of the decoder, and the model itself; ratios to the formulas stand beside. Both and every method
take turns in each round; a ratio is the median over rounds. Nothing is reported unless the scores of random edges equal
those of one edge at a time. Memory is the growth of the peak resident set during one call, in a process of its own.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from circuits.attribution import eap, eap_ig
from circuits.attribution_reference import edge_scores
from circuits.attribution_result import EdgeScores
from circuits.metrics import LogitDiff
from interp.config import ModelConfig
from interp.decoder import Decoder, decoder_of, forward
from interp.model import Transformer
from interp.rng import generator

STEPS = 5
TOLERANCE = 1e-6  # of the largest score, where the one-by-one scores in the same dtype are not further off themselves
COMMON = {"bias": True, "norm_bias": True}
SHAPES = {
    "toy": {"n_layers": 2, "n_heads": 4, "d_model": 128, "d_vocab": 64, "n_ctx": 64, "batch": 32},
    "gpt2": {"n_layers": 12, "n_heads": 12, "d_model": 768, "d_vocab": 50257, "n_ctx": 16, "batch": 8},
}
BARS = {"toy": {"eap": 4, "eap_ig": 16}, "gpt2": {"eap": 8, "eap_ig": 24}}
MEMORY_BAR_GIB = 0.45  # a quarter of the 1.78 GiB of the EAP-IG repository
METHODS: dict[str, Callable[..., EdgeScores]] = {
    "eap": eap,
    "eap_ig": lambda *inputs: eap_ig(*inputs, steps=STEPS),
}


def case_of(name: str) -> tuple[Transformer, Tensor, Tensor]:
    """Model with random weights, biases and norms; clean and corrupted prompts."""
    shape = SHAPES[name]
    cfg = ModelConfig(**{key: value for key, value in shape.items() if key != "batch"}, **COMMON)
    model = Transformer(cfg, seed=0).eval()
    stream = generator(0, "benchmark", name)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if not key.rsplit(".", 1)[1].startswith("W_"):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream))
    clean, corrupted = (torch.randint(cfg.d_vocab, (shape["batch"], cfg.n_ctx), generator=stream) for _ in range(2))
    return model, clean, corrupted


def metric_of(n_prompts: int, d_vocab: int, positions: str) -> LogitDiff:
    """Logit difference of random tokens."""
    stream = generator(0, "benchmark", "metric")
    correct, wrong = (torch.randint(d_vocab, (n_prompts,), generator=stream) for _ in range(2))
    return LogitDiff(correct, wrong, positions)


def agreement(decoder: Decoder, clean: Tensor, corrupted: Tensor, positions: str, n_edges: int) -> dict[str, float]:
    """Largest errors of scores against one edge at a time in float64, relative to the largest score.

    Raises:
        SystemExit: if float64 scores differ, or float32 ones by more than the one-by-one scores in float32 do.
    """
    exact = decoder.to(torch.float64)
    metric = metric_of(len(clean), len(decoder.W_E), positions)
    errors = {}
    for name, method in METHODS.items():
        steps = {"eap": ("eap", 1), "eap_ig": ("inputs", STEPS)}[name]
        fast = method(exact, clean, corrupted, metric)
        order = torch.randperm(len(fast.graph.edges), generator=generator(0, "benchmark", "edges")).tolist()
        edges = [fast.graph.name(*fast.graph.edges[index]) for index in order[:n_edges]]
        one_by_one = edge_scores(exact, clean, corrupted, metric, edges, *steps).sum(1)
        largest = one_by_one.abs().max()

        def error(scores: Tensor, truth: Tensor = one_by_one, scale: Tensor = largest) -> float:
            return float((scores.double() - truth).abs().max() / scale)

        single = method(decoder, clean, corrupted, metric)
        errors[f"{name} float64"] = error(torch.stack([fast[edge] for edge in edges], -1))
        errors[f"{name} float32"] = error(torch.stack([single[edge] for edge in edges], -1))
        errors[f"{name} float32, one by one"] = error(
            edge_scores(decoder, clean, corrupted, metric, edges, *steps).sum(1)
        )
        allowed = max(TOLERANCE, 2 * errors[f"{name} float32, one by one"])
        if errors[f"{name} float64"] > 1e-10 or errors[f"{name} float32"] > allowed:
            raise SystemExit(f"scores differ from one edge at a time, no time is reported: {errors}")
    return errors


def times(model: Transformer, decoder: Decoder, clean: Tensor, corrupted: Tensor, positions: str, rounds: int) -> dict:
    """Seconds of CPU of every contender in every round; the order turns by one each round."""
    metric = metric_of(len(clean), len(decoder.W_E), positions)
    contenders: dict[str, Callable[[], object]] = {
        "forward, formulas": torch.no_grad()(lambda: forward(decoder, clean)),
        "forward, model": torch.no_grad()(lambda: model(clean)),
        "eap": lambda: METHODS["eap"](decoder, clean, corrupted, metric),
        "eap_ig": lambda: METHODS["eap_ig"](decoder, clean, corrupted, metric),
    }
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(-1, rounds):
        names = list(contenders)
        for name in names[turn % 4 :] + names[: turn % 4]:
            start = time.process_time()
            contenders[name]()
            if turn >= 0:
                spent[name].append(time.process_time() - start)
    return spent


def measure(name: str, positions: str, rounds: int, n_edges: int) -> dict:
    """One line of the table: errors first, then ratios."""
    model, clean, corrupted = case_of(name)
    decoder = decoder_of(model)
    errors = agreement(decoder, clean, corrupted, positions, n_edges)
    print(f"{name}, metric at {positions}: " + ", ".join(f"{key} {value:.1e}" for key, value in errors.items()))
    spent = times(model, decoder, clean, corrupted, positions, rounds)
    forwards = [statistics.median(spent[key]) for key in ("forward, formulas", "forward, model")]
    units = {"faster": spent["forward, formulas" if forwards[0] < forwards[1] else "forward, model"]}
    units["formulas"] = spent["forward, formulas"]
    record: dict = {"positions": positions, "shape": SHAPES[name], "errors": errors, "rounds": rounds}
    for method in METHODS:
        ratios = {key: [a / b for a, b in zip(spent[method], unit, strict=True)] for key, unit in units.items()}
        scores = METHODS[method](decoder, clean, corrupted, metric_of(len(clean), len(decoder.W_E), positions))
        record[method] = {
            "forwards": round(statistics.median(ratios["faster"]), 3),
            "forwards_quartiles": [round(q, 3) for q in statistics.quantiles(ratios["faster"], n=4)[::2]],
            "forwards_by_formulas": round(statistics.median(ratios["formulas"]), 3),
            "by_flops": round(scores.work.forward_equivalents, 3),
            "bar": BARS[name][method],
            "edges": len(scores.graph.edges),
        }
    record["milliseconds"] = {key: round(1e3 * statistics.median(value), 2) for key, value in spent.items()}
    for method in METHODS:
        row = record[method]
        print(
            f"  {method}: {row['forwards']:.2f} plain forwards of the faster kind, "
            f"{row['forwards_by_formulas']:.2f} of the decoder's formulas (bar {row['bar']}); {row['edges']:,} edges"
        )
    return record


def status(key: str) -> float:
    """A size from /proc/self/status in GiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 2**20
    raise SystemExit(f"/proc/self/status has no {key}")


def peak_growth(name: str, method: str) -> float:
    """GiB by which the peak resident set grows during one call, after a plain forward pass."""
    torch.set_num_threads(1)
    model, clean, corrupted = case_of(name)
    decoder = decoder_of(model)
    metric = metric_of(len(clean), len(decoder.W_E), "last")
    with torch.no_grad():
        model(clean)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    METHODS[method](decoder, clean, corrupted, metric)
    return status("VmHWM") - before


def memory(name: str, method: str) -> float:
    """`peak_growth` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.attribution", "--memory", name, method]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return float(done.stdout)


def main() -> None:
    """Measure every shape and write the JSON record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--edges", type=int, default=12, help="random edges compared with one edge at a time")
    parser.add_argument("--memory", nargs=2, metavar=("SHAPE", "METHOD"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "attribution.json")
    options = parser.parse_args()
    if options.memory:
        print(peak_growth(*options.memory))
        return
    if options.rounds < 5:
        parser.error("--rounds must be at least 5: the median of fewer is not stable enough to report")
    torch.set_num_threads(1)
    record: dict = {
        "format": 1,
        "benchmark": "attribution",
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__, "threads": 1},
        "cases": {},
        "peak_memory_growth_gib": {"bar": MEMORY_BAR_GIB},
    }
    for name in SHAPES:
        for positions in ("last", "all"):
            record["cases"][f"{name}, {positions}"] = measure(name, positions, options.rounds, options.edges)
    for method in METHODS:
        growth = memory("gpt2", method)
        record["peak_memory_growth_gib"][f"gpt2, {method}"] = round(growth, 3)
        print(f"gpt2, {method}: peak memory grows by {growth:.2f} GiB (bar {MEMORY_BAR_GIB} for eap)")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
