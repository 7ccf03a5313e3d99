"""Circuit discovery against its bars: share kept, size, random circuits, models without behaviour, time and memory.

Run: python -m benchmarks.discovery PART [--store runs] [--runs poly1 polynomial-s0 ...]
Parts: polynomial, heads (solved runs trained with `--set model.n_heads=4`), untrained, shuffled, gpt2, qwen. Each part
is one process with one thread, writes its rows to benchmarks/results/discovery.json and leaves the others there as they
are. Nothing is written unless circuits' runs equal their definition: the found circuit one prompt, head and query at a
time in float64; for large models the runs of all edges and of none equal the clean and the corrupted forward, and the
engine's effects of edges equal runs without them. Seconds are processor seconds; memory is the peak resident set of the
process.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._discovery_models import (
    gpt2_decoder,
    large_subject,
    own_pairs,
    polynomial,
    shuffled,
    subject_of,
    trained_on,
    write_qwen,
)
from circuits.circuit import Circuit
from circuits.controls import FINEST, LEVELS, random_paths
from circuits.discovery import circuit_of, discover, edges_of_graph
from circuits.discovery_result import DiscoveryFile
from circuits.engine.record import record
from circuits.faithfulness import share_kept
from circuits.find import Settings, find_circuit
from circuits.judge import judged
from circuits.masked_reference import run_circuit, written
from circuits.problem import Problem
from circuits.search.base import Search
from circuits.search.exact import both_directions
from circuits.subject import Prompts, Subject, of_run
from interp.decoder import forward
from interp.errors import UsageError
from interp.provenance import environment
from interp.rng import generator
from interp.run import Run, Store

OUT = Path(__file__).parent / "results" / "discovery.json"
RUNS = ("polynomial-s0", "polynomial-s2", "polynomial-s3", "polynomial-s4", "poly1")
LENGTHS = (8, 16)
HEADS = ("L0.H0", "L1.H0")  # the clock head and the reading head
BARS = {"kept": 0.95, "live share": 0.4, "random share of the circuit": 0.5, "seconds": 60.0, "gpt2 seconds": 600.0}
TOLERANCE = 1e-4  # of the clean metric's size, float32 against float64
SHUFFLED_STEPS = 400
TOP = 200  # edges of the largest model that are scored exactly
CHECKED = 4  # of these, compared with runs of circuits
N_MODELS = 20


def agreement(problem: Problem, circuit: Circuit) -> float:
    """Largest error of the circuit's metric on two held-out prompts against its definition, relative to the metric.

    Raises:
        SystemExit: above the tolerance: then no figure means anything.
    """
    part = problem.parts["evaluate"]
    pairs, runs, decoder = part.pairs.subset([0, 1]), part.runs, problem.decoder.to(torch.float64)
    other = record(decoder, pairs.corrupted)
    ablated = [written(decoder, other, i) for i in range(2)]
    n_pos, kept = pairs.clean.shape[1], circuit.kept.double()
    kept = kept if kept.dim() == 4 else kept[..., None, None].expand(*kept.shape, n_pos, n_pos)
    logits = run_circuit(decoder, pairs.clean, ablated, kept)  # [prompt pos d_vocab]
    rows = runs.rows
    mine = rows.prompt < 2
    read = logits[rows.prompt[mine], rows.pos[mine]]
    expected = read.gather(1, pairs.answers[:, :, 0].flatten()[:, None])[:, 0]
    got = runs.run(circuit.kept[None].float())[0][mine]
    found = got.gather(1, pairs.answers[:, :, 0].flatten()[:, None])[:, 0]
    error = float((found - expected).abs().max()) / float(read.abs().max())
    if error > TOLERANCE:
        raise SystemExit(f"a circuit's run is off by {error:.2g} of its logits; nothing is reported")
    return error


def summary(found: DiscoveryFile, spent: float) -> dict[str, Any]:
    """The figures of one discovery."""
    kept = None if found.faithfulness is None else found.faithfulness.retained
    rows = {"verdict": found.verdict, "headline": found.headline, "seconds": round(spent, 2), "stages": found.timing}
    rows |= {"n_kept": found.n_kept, "n_live": found.n_live, "n_edges": found.n_edges}
    if kept is None:
        return rows
    named = {one.name: {"mean": one.mean, "largest": one.largest, "shared": one.shared, "n": one.n, "what": one.what}
             for one in found.controls}  # fmt: skip
    return rows | {
        "share_of_live": found.n_kept / found.n_live,
        "share_of_all": found.n_kept / found.n_edges,
        "kept": {"value": kept.value, "low": kept.low, "high": kept.high, "n": kept.n},
        "nodes": found.nodes,
        "cmd": found.faithfulness.cmd,
        "cpr": found.faithfulness.cpr,
        "controls": named,
        "overlap_of_reruns": None if found.stability is None else found.stability.overlap.model_dump(),
        "curve": [[point.size, round(point.faithfulness, 4)] for point in found.faithfulness.curve],
        "notes": found.notes,
    }


def levels(problem: Problem, circuit: Circuit) -> dict[str, Any]:
    """Matched random circuits at every level of matching: the finer, the more they are the circuit itself."""
    runs, rows = problem.parts["evaluate"].runs, {}
    for level in LEVELS:
        control = random_paths(runs, problem.live, circuit.kept, 100, generator(0, level), level)
        shares = share_kept(runs.values(torch.stack(control.circuits)), runs.clean, runs.ablated)
        rows[level] = {"mean": float(shares.mean()), "largest": float(shares.max()), "shared": control.shared}
    return rows


def of_polynomial(run: Run, whole: bool) -> dict[str, Any]:
    """Discovery on a solved run: by position at both lengths, and without positions.

    Args:
        whole: rerun whole searches, and try every level of matching at length 8.
    """
    rows: dict[str, Any] = {"step": run.checkpoint(None, optim=False).step}
    for length, by_position in ((8, True), (16, True), (8, False)):
        name = f"length {length}" if by_position else "without positions"
        rows[name] = of_length(run, length, by_position, whole)
    return rows


def of_length(run: Run, length: int, by_position: bool, whole: bool) -> dict[str, Any]:
    """Discovery on a run at one length."""
    started = time.process_time()
    subject = of_run(run, None, Prompts(length=length))
    problem = subject.problem("resample", by_position)
    found, circuit = discover(subject, problem, Settings(reruns=5 if whole else 0))
    row = summary(found, time.process_time() - started)
    if circuit is not None:
        row["error"] = agreement(problem, circuit)
        row["both_heads"] = all(head in circuit.nodes for head in HEADS)
        row["levels"] = levels(problem, circuit) if whole and by_position and length == 8 else None
    print(run.name, length, by_position, found.headline, f"{row['seconds']:.1f} s", flush=True)
    return row


def within_no_half(row: dict[str, Any], control: str) -> bool:
    """Whether every circuit of a control keeps less than half of what the found one keeps."""
    return row["controls"][control]["largest"] < BARS["random share of the circuit"] * row["kept"]["value"]


def bars_of(runs: dict[str, Any]) -> dict[str, bool]:
    """Which bars hold in every run."""
    at = [row[f"length {length}"] for row in runs.values() for length in LENGTHS]
    return {
        "keeps 95 %": all(row["kept"]["value"] >= BARS["kept"] for row in at),
        "at most 40 % of live edges": all(row["share_of_live"] <= BARS["live share"] for row in at),
        "no matched random circuit within half": all(within_no_half(row, "random paths") for row in at),
        "nor one of the same types, which holds most of the circuit": all(
            within_no_half(row, "same types") for row in at
        ),
        "both heads": all(row["both_heads"] for row in at),
        "60 s, with five searches on resampled prompts in the last run": all(
            row[name]["seconds"] <= BARS["seconds"] for row in runs.values() for name in row if name != "step"
        ),
    }


def polynomial_part(arguments: argparse.Namespace) -> dict[str, Any]:
    """Solved runs, written as they come; whole searches are rerun on the last only."""
    store, rows = Store(arguments.store), {}
    for name in arguments.runs:
        rows[name] = of_polynomial(store.run(name), name == arguments.runs[-1])
        write(arguments, {"runs": rows, "bars": bars_of(rows)})
    return {"runs": rows, "bars": bars_of(rows)}


def heads_part(arguments: argparse.Namespace) -> dict[str, Any]:
    """Solved runs with several heads per layer: there matching every type may leave a choice."""
    store, rows = Store(arguments.store), {}
    for name in arguments.runs:
        rows[name] = {"length 8": of_length(store.run(name), 8, True, False)}
    at = [row["length 8"] for row in rows.values()]
    bars = {
        "keeps 95 %": all(row["kept"]["value"] >= BARS["kept"] for row in at),
        "at most 40 % of live edges": all(row["share_of_live"] <= BARS["live share"] for row in at),
        "no matched random circuit within half": all(within_no_half(row, "random paths") for row in at),
    }
    finest = [FINEST in row["controls"]["random paths"]["what"] for row in at]
    return {"runs": rows, "bars": bars, "of which with all types matched": sum(finest)}


def untrained_part(arguments: argparse.Namespace) -> dict[str, Any]:
    """Untrained models: there is nothing to explain."""
    verdicts = []
    for seed in range(N_MODELS):
        subject = subject_of(*polynomial(seed), f"untrained {seed}")
        found, _ = discover(subject, subject.problem("resample", False), Settings(reruns=0))
        verdicts.append(found.verdict)
        print(seed, found.headline, flush=True)
    return {"verdicts": verdicts, "bars": {"no behaviour in all": set(verdicts) == {"no behaviour to explain"}}}


def beyond_controls(problem: Problem, settings: Settings) -> dict[str, Any]:
    """What discovery would say without its gate: the share that the best circuit keeps, and random ones."""
    found = find_circuit(problem, settings, look_for_interactions=False)
    if not found.kept.any():
        return {"circuit": False, "why": "nothing keeps the share that is asked for"}
    try:
        judgement = judged(problem, found, settings, lambda what, done, of: None, edges_of_graph(problem))
    except UsageError as error:
        return {"circuit": False, "why": str(error)}
    kept, random = judgement.faithfulness.retained, judgement.controls[0].largest
    beyond = kept.value >= settings.target and kept.low > random
    return {"circuit": beyond, "kept": kept.value, "low": kept.low, "largest random": random}


def shuffled_part(arguments: argparse.Namespace) -> dict[str, Any]:
    """Models trained on states of other sequences: the verdict, and what exact scores would find without the gate."""
    rows, settings = [], Settings(reruns=0)
    ungated = Settings(method="exact", reruns=0)
    for seed in range(N_MODELS):
        model, task, split = polynomial(seed)
        loss = trained_on(model, task, shuffled(task, split, seed), SHUFFLED_STEPS, seed)
        subject = subject_of(model, task, split, f"shuffled {seed}")
        problem = subject.problem("resample", False)
        found, _ = discover(subject, problem, settings)
        rows.append({"loss": loss, "verdict": found.verdict, "without gate": beyond_controls(problem, ungated)})
        print(seed, rows[-1], flush=True)
    return {
        "steps": SHUFFLED_STEPS,
        "models": rows,
        "bars": {"no circuit in all": all(row["verdict"] != "circuit" for row in rows)},
        "circuits without gate": sum(row["without gate"]["circuit"] for row in rows),
    }


def same_forwards(problem: Problem) -> float:
    """Largest difference of the runs of all edges and of none from plain forwards, relative to the logits.

    Raises:
        SystemExit: above the tolerance.
    """
    part = problem.parts["evaluate"]
    pairs, runs, worst = part.pairs, part.runs, 0.0
    every = torch.ones(1, *runs.graph.exists.shape)
    for tokens, kept in ((pairs.clean, every), (pairs.corrupted, 0 * every)):
        with torch.no_grad():
            plain = forward(problem.decoder, tokens)[runs.rows.prompt, runs.rows.pos]
            worst = max(worst, float((runs.run(kept)[0] - plain).abs().max() / plain.abs().max()))
    if worst > TOLERANCE:
        raise SystemExit(f"runs are off by {worst:.2g} of the logits; nothing is reported")
    return worst


def same_effects(problem: Problem, edges: Tensor, noised: Tensor) -> float:
    """Largest difference of the engine's effects of some edges from runs of circuits without them, relative.

    Raises:
        SystemExit: above the tolerance.
    """
    runs, live = problem.parts["score"].runs, problem.live
    kept = live.flatten().repeat(len(edges), 1)
    kept[torch.arange(len(edges)), edges] = False
    lost = (runs.clean - runs.values(kept.view(-1, *live.shape))).mean(1)
    error = float((lost - noised).abs().max() / runs.clean.abs().max())
    if error > TOLERANCE:
        raise SystemExit(f"effects of edges are off by {error:.2g} of the metric; nothing is reported")
    return error


def whole(subject: Subject, settings: Settings, tell: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Search, faithfulness curve, controls and intervals of a large model; its gate cannot pass with so few prompts."""
    started, stages = time.process_time(), {}
    problem = subject.problem("resample", False)
    found = find_circuit(problem, settings, tell)
    stages["search"] = time.process_time() - started
    circuit = circuit_of(subject, problem, settings, found)
    row: dict[str, Any] = {"n_live": circuit.n_live, "n_kept": circuit.n_kept, "notes": list(found.notes)}
    row["rankings"] = {name: one.method for name, one in found.rankings.items()}
    if circuit.n_kept:
        judgement = judged(problem, found, settings, tell, edges_of_graph(problem))
        row["kept"] = judgement.faithfulness.retained.model_dump()
        row["random"] = [one.model_dump(exclude={"circuits"}) for one in judgement.controls]
        row |= {"cmd": judgement.faithfulness.cmd, "cpr": judgement.faithfulness.cpr}
    stages["all"] = time.process_time() - started
    return row | {"seconds": stages, "error": same_forwards(problem)}


def shown(what: str, done: int, of: int) -> None:
    """Progress as lines."""
    if done in (0, of):
        print(f"{time.process_time():8.1f} s  {peak_gib():5.2f} GiB  {what} {done} of {of}", flush=True)


def gpt2_part(arguments: argparse.Namespace) -> dict[str, Any]:
    """GPT-2-small shape, random weights, 8 prompt pairs of 20 tokens in all."""
    decoder = gpt2_decoder()
    pairs = own_pairs(decoder, {"score": 4, "choose": 2, "evaluate": 2}, 20, 8)
    row = whole(large_subject(decoder, pairs, "GPT-2-small shape"), Settings(reruns=0), shown)
    peak = peak_gib()
    bars = {"10 minutes": row["seconds"]["all"] <= BARS["gpt2 seconds"], "4 GB": peak * 2**30 <= 4e9}
    return row | {"peak_gib": peak, "bars": bars, "pairs": "8 pairs on which the random model behaves: 4, 2, 2"}


def qwen_part(arguments: argparse.Namespace) -> dict[str, Any]:
    """Qwen2.5-0.5B shape from a bfloat16 file: EAP-IG of inputs, then the top edges exactly in both directions."""
    from circuits.attribution import eap_ig
    from circuits.pruning import order_of
    from interp.adapters.opening import open_model

    with tempfile.TemporaryDirectory() as folder:
        n_parameters = write_qwen(Path(folder) / "qwen")
        started = time.process_time()
        opened = open_model(Path(folder) / "qwen")
    seconds = {"open": time.process_time() - started}
    pairs = own_pairs(opened.decoder, {"score": 4, "choose": 2, "evaluate": 2}, 20, 8)
    problem = large_subject(opened.decoder, pairs, "Qwen2.5-0.5B shape").problem("resample", False)
    part, started = problem.parts["score"], time.process_time()
    given = (problem.decoder, part.pairs.clean, part.pairs.corrupted, part.metric)
    scores = eap_ig(*given, steps=5, variant="inputs", max_bytes=problem.max_bytes).scores.mean(0)
    seconds["EAP-IG, inputs, 5 steps"] = time.process_time() - started
    order = order_of(scores, problem.live)[:TOP]
    started, names = time.process_time(), [part.runs.graph.name(*divmod(int(i), scores.shape[1])) for i in order]
    exact = both_directions(Search(problem, tell=shown), names)
    seconds[f"exact, top {TOP}, noising and denoising"] = time.process_time() - started
    noised, denoised = (exact[name].mean(0).flatten()[order] for name in ("noise", "denoise"))
    return {
        "parameters": n_parameters,
        "dtype": opened.dtype,
        "edges": int(problem.parts["score"].runs.graph.exists.sum()),
        "live": int(problem.live.sum()),
        "pairs": "8 pairs of 20 tokens, 4 of them scored",
        "correlation of EAP-IG": {
            "noising": correlation(-scores.flatten()[order], noised),
            "denoising": correlation(-scores.flatten()[order], denoised),
        },
        "error": max(same_forwards(problem), same_effects(problem, order[:CHECKED], noised[:CHECKED])),
        "seconds": seconds,
        "peak_gib": peak_gib(),
    }


def correlation(one: Tensor, two: Tensor) -> float:
    """Pearson's."""
    return float(torch.corrcoef(torch.stack((one.double(), two.double())))[0, 1])


def peak_gib() -> float:
    """Largest resident set of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


PARTS = {
    "polynomial": polynomial_part,
    "heads": heads_part,
    "untrained": untrained_part,
    "shuffled": shuffled_part,
    "gpt2": gpt2_part,
    "qwen": qwen_part,
}


def write(arguments: argparse.Namespace, part: dict[str, Any]) -> None:
    """Put one part into the file of results."""
    part = part | {"environment": environment("cpu", 1), "total_seconds": round(time.process_time(), 1)}
    known = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"format": 1, "bars": BARS}
    known[arguments.part] = part
    arguments.out.write_text(json.dumps(known, indent=1) + "\n")


def main() -> None:
    """Measure one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=tuple(PARTS))
    parser.add_argument("--store", type=Path, default=Path("runs"))
    parser.add_argument("--runs", nargs="+", default=list(RUNS), help="solved polynomial runs")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    part = PARTS[arguments.part](arguments)
    write(arguments, part)
    print(json.dumps(part.get("bars", {})))


if __name__ == "__main__":
    main()
