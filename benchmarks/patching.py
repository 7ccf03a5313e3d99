"""Exact patching side by side with the tools and loops that people use, on one thread, printed only when correct.

    python -m benchmarks.patching [--quick] [--case NAME ...] [--run STORE/NAME] [--out results]

Every case patches each head's output at each position (denoising: clean values into the corrupted run). First the
engine's effects are compared with float64 forwards, on random weights and on weights with outlier channels; no ratio
is printed unless the engine is at least as close as a hooked fp32 loop. Then engine and baselines take turns in one
process. Full forwards are timed on 32 random patches (batches of 128: on 128) and scaled to the whole table; their two
preparing runs count once. Ratios are of processor time, median over the rounds. "Best" is the fastest of
TransformerLens' loop, lean loops and lean batches of 8, 32 and 128, with logits at all positions; batches that resume
at the patched layer and unembed only what the metric reads stand beside, without a bar.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from benchmarks._patching_cases import (
    CASES,
    QUICK,
    Case,
    Problem,
    random_problem,
    run_name,
    trained_problem,
    with_outliers,
)
from benchmarks._patching_gate import Check, checked_patches, errors, exact_effects
from benchmarks._patching_lean import Lean, Patches, both_runs, full_forwards, resumed
from benchmarks._patching_peers import peers
from benchmarks._patching_plot import plot
from benchmarks._patching_table import correctness_lines, table
from benchmarks._patching_timing import (
    Entrant,
    Memory,
    Turn,
    median_cpu,
    once,
    ratios,
    rounds_of_turns,
    with_memory,
)
from circuits.patching import patch_heads
from interp.errors import InterpError
from interp.provenance import environment, package_version
from interp.rng import generator

RESULTS = Path(__file__).parent / "results"
BATCHES = (8, 32, 128)
SAMPLE = 32
WIDTH = 110  # of the table in a file or a pipe
COUNTED = ("transformer_lens", "hooks", "loop", *(f"batch-{size}" for size in BATCHES))  # what "best" is chosen from
MEANING = {
    "engine": "circuits.patching.patch_heads, with both of its runs",
    "transformer_lens": "get_act_patch_attn_head_out_by_pos, only head outputs cached; over TransformerLens' native "
    "model for toys, else over a bridge around Hugging Face's GPT-2",
    "hooks": "run_with_hooks of interp.model.Transformer, one patch per forward",
    "loop": "plain fused forward, one patch each; the hooked loop of the checks",
    "batch": "the same with 8, 32 or 128 patches stacked",
    "resumed": "batches that resume at the patched layer, over all heads at 1, 4 or 16 positions, with the base run's "
    "keys and values before them, unembedding what the metric reads",
    "nnsight": "one trace per patch over Hugging Face's GPT-2",
    "pyvene": "one intervention per patch over Hugging Face's GPT-2; the source runs again each time",
}
PEER_PACKAGES = ("transformers", "nnsight", "pyvene")


def engine(problem: Problem, positions: list[int] | None = None) -> Entrant:
    """`patch_heads` with both of its runs; whole table, or some positions of it."""

    def run(_: None, patches: Patches) -> Float[Tensor, "pair patch"]:
        result = patch_heads(
            problem.model,
            clean=problem.clean,
            corrupted=problem.corrupted,
            metric=problem.metric,
            positions=positions,
        )
        layer, head, pos = patches.T
        place = {at: index for index, at in enumerate(result.positions)}
        return result.effect[:, layer, head, torch.tensor([place[at] for at in pos.tolist()])]

    return Entrant("engine", lambda: None, run, whole=True)


def loops(problem: Problem, batches: tuple[int, ...]) -> list[Entrant]:
    """Lean full forwards with one patch each, and with `batches` of them."""
    lean = Lean(problem.decoder)

    def entrant(batch: int) -> Entrant:
        return Entrant(
            "loop" if batch == 1 else f"batch-{batch}",
            lambda: both_runs(problem, lean),
            lambda runs, patches: full_forwards(problem, lean, runs, patches, batch),
            sample=max(SAMPLE, batch),
        )

    return [entrant(batch) for batch in (1, *batches)]


def resuming(problem: Problem) -> list[Entrant]:
    """Batches that resume at the patched layer, for each group size; for a single prompt pair."""
    if problem.case.pairs > 1:
        return []
    lean = Lean(problem.decoder)

    def entrant(group: int) -> Entrant:
        def run(_: None, patches: Patches) -> Float[Tensor, "pair patch"]:
            layer, head, pos = patches.T
            return resumed(problem, lean, group)[:, layer, head, pos]

        return Entrant(f"resumed-{group}", lambda: None, run, whole=True)

    return [entrant(group) for group in problem.case.groups]


def random_patches(problem: Problem, count: int) -> Patches:
    """Patches (layer, head, position) drawn from the whole table, without repeats while it lasts."""
    draw, sizes = generator(0, "timed patches"), (len(problem.decoder.layers), problem.decoder.n_heads)
    order = torch.randperm(problem.n_patches, generator=draw)
    chosen = order.repeat(-(-count // len(order)))[:count]
    n_pos = problem.clean.shape[1]
    return torch.stack((chosen // (sizes[1] * n_pos), chosen // n_pos % sizes[1], chosen % n_pos), 1)


def check(weights: str, problem: Problem, effects: dict[str, Tensor], alive: Patches, dead: Patches) -> Check:
    """Compare what the entrants found for the checked patches with float64."""
    exact = exact_effects(problem, torch.cat((alive, dead)))  # [pair patch]
    exact, zero = exact[:, : len(alive)], exact[:, len(alive) :]
    largest = float(exact.abs().max())
    zero_share = float(zero.abs().max()) / largest if zero.numel() else 0.0
    found = {name: errors(effect, exact) for name, effect in effects.items()}
    return Check(weights, exact.numel(), largest, zero_share, found)


def outlier_check(problem: Problem, alive: Patches, dead: Patches) -> Check:
    """The engine and the lean loop on weights with outlier channels, and other prompts."""
    weights, alive = with_outliers(problem.decoder), alive[:SAMPLE]
    hard = problem.with_prompts(problem.case.outlier_pairs, seed=1).with_weights(weights)
    entrants = [engine(hard, sorted(set(alive[:, 2].tolist()))), *loops(hard, ())]
    effects = {entrant.name: once(entrant, alive, hard.n_patches)[0] for entrant in entrants}
    return check("outlier", hard, effects, alive, dead)


@torch.no_grad()
def measure(problem: Problem, trained: bool = False) -> dict[str, Any]:
    """Check, then time, one case; a record without times if a check fails."""
    case = problem.case
    alive, dead = checked_patches(problem, case.checked)
    first, memory = with_memory(lambda: once(engine(problem), alive, problem.n_patches))
    entrants, skipped = [engine(problem), *loops(problem, BATCHES if case.peers else ()), *resuming(problem)], {}
    if case.peers:
        others, skipped = peers(problem)
        entrants += others
    effects, turns = {"engine": first[0]}, {"engine": [first[1]]}
    for entrant in entrants[1:]:
        effects[entrant.name], turn = once(entrant, alive, problem.n_patches)
        turns[entrant.name] = [turn]
    checks = [check("trained" if trained else "random", problem, effects, alive, dead)]
    if not trained:
        checks.append(outlier_check(problem, alive, dead))
    record = described(problem, checks, skipped, memory)
    if any(one.failures for one in checks):
        return record
    if case.rounds > 1:
        patches = {entrant.name: random_patches(problem, entrant.sample) for entrant in entrants}
        turns = rounds_of_turns(entrants, patches, problem.n_patches, case.rounds)
    record |= times(case, turns, {entrant.name: entrant for entrant in entrants})
    if case.most_bytes is not None:
        passed = memory.peak <= case.most_bytes
        record["bars"]["memory"] = {"bytes": memory.peak, "at_most": case.most_bytes, "passed": passed}
    return record


def described(problem: Problem, checks: list[Check], skipped: dict[str, str], memory: Memory) -> dict[str, Any]:
    """What was measured, and whether it is correct."""
    case = problem.case
    weights = sum(w.numel() * w.element_size() for w in distinct_weights(problem))
    return {
        "name": case.name,
        "shape": asdict(case.shape) | {"pos": case.n_pos, "pairs": case.pairs},
        "metric": f"logit difference, {case.read}",
        "equal_before": case.equal_before,
        "patches": problem.n_patches * case.pairs,
        "model_bytes": weights,
        "memory_growth_bytes": memory.growth,
        "memory_peak_bytes": memory.peak,
        "checks": [one.record() for one in checks],
        "lines": [str(one) for one in checks],
        "skipped": skipped,
    }


def distinct_weights(problem: Problem) -> list[Tensor]:
    """Every tensor of the decoder, tied ones once."""
    found: dict[int, Tensor] = {}

    def collect(part: Any) -> Any:
        for value in vars(part).values() if hasattr(part, "__dataclass_fields__") else ():
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Tensor):
                    found[item.data_ptr()] = item
                else:
                    collect(item)

    collect(problem.decoder)
    return list(found.values())


def times(case: Case, turns: dict[str, list[Turn]], entrants: dict[str, Entrant]) -> dict[str, Any]:
    """Seconds of everybody, and the engine's ratios with their bars."""
    seconds = {
        name: {
            "cpu_seconds": [round(turn.cpu, 6) for turn in rounds],
            "wall_seconds": [round(turn.wall, 6) for turn in rounds],
            "median_cpu_seconds": round(median_cpu(rounds), 6),
            "scaled_from": None if entrants[name].whole else f"{entrants[name].sample} patches",
        }
        for name, rounds in turns.items()
    }
    best = min((name for name in COUNTED if name in turns), key=lambda name: median_cpu(turns[name]))
    resumed_best = min(
        (name for name in turns if name.startswith("resumed")), key=lambda name: median_cpu(turns[name]), default=None
    )
    found = {name: ratio(turns[name], turns["engine"]) for name in turns if name != "engine"}
    bars = {"transformer_lens": case.over_lens, "best": case.over_best}
    found["best"] = found[best]
    return {
        "rounds": len(turns["engine"]),
        "seconds": seconds,
        "best": best,
        "swept": case.peers,
        "resumed": resumed_best,
        "ratios": found,
        "bars": {
            name: {"at_least": bar, "passed": found[name]["median"] >= bar}
            for name, bar in bars.items()
            if bar is not None and name in found
        },
    }


def ratio(slow: list[Turn], fast: list[Turn]) -> dict[str, float]:
    """Median over the rounds, with the smallest and largest."""
    found = ratios(slow, fast)
    values = {"median": statistics.median(found), "lowest": min(found), "highest": max(found)}
    return {name: float(f"{value:.4g}") for name, value in values.items()}


def measured(name: str, fresh: bool = True) -> dict[str, Any]:
    """One case by its name, on one thread; memory counts only in a process that has not run another case before."""
    torch.set_num_threads(1)
    record = measure(random_problem(next(case for case in CASES if case.name == name)))
    return record if fresh else record | {"memory_growth_bytes": None, "memory_peak_bytes": None}


def records(names: list[str], run: Path | None, fresh: bool):
    """The records of the cases as they come, each in a process of its own if `fresh`, then that of a trained run."""
    if fresh:
        context = get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
            yield from pool.map(measured, names)
    else:
        yield from (measured(name, name == names[0]) for name in names)
    if run is not None:
        yield measure(trained_problem(run), trained=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], help="only this one")
    parser.add_argument("--run", type=Path, metavar="STORE/NAME", help="also the weights of a trained run")
    parser.add_argument("--out", type=Path, help="folder for patching.json and patching.svg (full run: results)")
    parser.add_argument("--resume", action="store_true", help="keep the cases that this code has in the folder already")
    parser.add_argument("--merge", action="store_true", help="keep the folder's other cases, whatever code they are of")
    return parser.parse_args()


def main() -> int:
    """Measure, print the correctness lines and the table, and write JSON and plot."""
    options = parse()
    torch.set_num_threads(1)
    names = options.case or (list(QUICK) if options.quick else [case.name for case in CASES])
    out = options.out or (RESULTS if not (options.quick or options.case) else None)
    found = kept(out) if options.resume and out is not None else []
    done = {record["name"] for record in found}
    names, run = [name for name in names if name not in done], options.run
    run = None if run is not None and run_name(run) in done else run
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for record in records(names, run, fresh=not options.quick):
        found.append(record)
        console.print(*correctness_lines(record), sep="\n", highlight=False, soft_wrap=True)
        if out is not None:
            write(out, found, others(out, found) if options.merge else [])
    console.print(table(found))
    return int(any(not one["passed"] for record in found for one in record["checks"]))


def provenance() -> dict[str, Any]:
    """Code, packages and threads behind the numbers."""
    found = environment("cpu", torch.get_num_threads())
    found["packages"] |= {name: package_version(name) for name in PEER_PACKAGES}
    return found


def kept(folder: Path) -> list[dict[str, Any]]:
    """The cases of an earlier run of the same code and packages, if the folder has one."""
    path = folder / "patching.json"
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return document["cases"] if document.get("provenance") == provenance() else []


def others(folder: Path, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cases of the folder that are not among those found, each with the provenance that it was measured with."""
    path, names = folder / "patching.json", {case["name"] for case in found}
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"cases": [], "provenance": None}
    kept = [case for case in document["cases"] if case["name"] not in names]
    return [{"provenance": document["provenance"]} | case for case in kept]


def in_order(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cases in the order of CASES, then those of trained runs."""
    names = [case.name for case in CASES]
    return sorted(found, key=lambda case: names.index(case["name"]) if case["name"] in names else len(names))


def write(folder: Path, found: list[dict[str, Any]], kept: Sequence[dict[str, Any]] = ()) -> None:
    """The JSON record and the plot."""
    found = in_order([*found, *kept])
    document = {
        "format": 1,
        "benchmark": "patching",
        "provenance": provenance(),
        "entrants": MEANING,
        "sampling": f"full forwards timed on {SAMPLE} random patches (batches of 128: on 128) and scaled",
        "cases": found,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "patching.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (folder / "patching.svg").write_text(plot(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InterpError as error:
        sys.exit(f"error: {error}")
