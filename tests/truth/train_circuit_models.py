"""Trains the models with known circuits and writes their weights and ground truth to tests/truth/models/circuits.

    python -m tests.truth.train_circuit_models [--families siit_either wired_match] [--folder FOLDER]

By interchange (siit_*): the loss is the cross-entropy of the task, plus that of runs in which edges outside the causal
graph carry a donor's outputs (strict), plus that of such runs in which one node's output is the donor's as well,
against the answer that the causal graph then gives. Without the strict edges in the last term a node may act past the
graph: one model in three then did. With an edge mask (wired_*): every sender has its own coordinates, and readers
have zero weights for those they have no edge from. Weights are rounded to float16 before anything is measured. Models
that do not solve their task, or do not follow their graph, are not kept.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Generator, Tensor

from circuits.problem import Problem
from interp.rng import generator
from tests.truth.causal_tasks import Causal
from tests.truth.circuit_training import Batch, Loss, Model, Size, block_masks, fresh, run, train
from tests.truth.edge_truth import by_subsets, leak
from tests.truth.trained_circuits import FOLDER, as_decoder, prompts, tasks

SOLVED = 0.97
FOLLOWS = 0.95  # share of donor runs answered as the graph says
LARGEST_TOTAL = 3_000_000
BATCH = 64
PLANS = {  # kind: steps, models, at most kept
    "siit": (900, 2, 2),
    "wired": (600, 5, 3),
    "induction": (1000, 4, 4),
}
MASK_EDGES = (7, 11)  # fewest and most edges of a random mask


def data(task: Causal, stream: Generator, n: int) -> tuple[Tensor, Tensor]:
    """Prompts and their answers."""
    tokens = task.draw(stream, n)
    return tokens, task.answer(tokens)


def plain_loss(size: Size) -> Loss:
    """Cross-entropy of the task."""
    return lambda model, batch: F.cross_entropy(run(model, size, batch["tokens"])[0], batch["answers"])


def interchange_loss(size: Size) -> Loss:
    """Cross-entropy of the task, with donors outside the causal graph, and with one node from the donor too."""

    def loss(model: Model, batch: Batch) -> Tensor:
        tokens = batch["tokens"]
        base, _ = run(model, size, tokens)
        _, outputs = run(model, size, batch["donors"])
        strict, _ = run(model, size, tokens, batch["kept"], outputs)
        swapped, _ = run(model, size, tokens, batch["kept"], outputs, batch["node"])
        total = F.cross_entropy(base, batch["answers"]) + F.cross_entropy(strict, batch["answers"])
        return total + F.cross_entropy(swapped, batch["expected"])

    return loss


def interchange_batch(task: Causal, stream: Generator) -> Batch:
    """Prompts, donors, a node to swap, and edges to keep: half of the time some edges outside the graph too."""
    size, (tokens, answers) = task.size, data(task, stream, BATCH)
    donors = task.draw(stream, BATCH)
    node = list(task.swapped)[int(torch.randint(len(task.swapped), (1,), generator=stream))]
    share = torch.rand(1, generator=stream) * (torch.rand(1, generator=stream) < 0.5)
    true, every = size.mask(task.edges), size.mask(size.all_edges)
    more = (torch.rand(true.shape, generator=stream) < share).float() * every
    return {
        "tokens": tokens,
        "answers": answers,
        "donors": donors,
        "kept": torch.maximum(true, more),
        "node": size.senders.index(node),
        "expected": task.swapped[node](tokens, donors),
    }


def random_mask(size: Size, stream: Generator) -> tuple[str, ...]:
    """A random set of edges, all of them on paths from the embedding to the logits."""
    while True:
        edges = [edge for edge in size.all_edges if float(torch.rand(1, generator=stream)) < 0.35]
        edges = on_paths(edges)
        if MASK_EDGES[0] <= len(edges) <= MASK_EDGES[1]:
            return tuple(edges)


def on_paths(edges: list[str]) -> list[str]:
    """The edges that lie on a path from the embedding to the logits."""
    split = [edge.split("->") for edge in edges]
    while True:
        reached = {"embed"} | {node for _, node in split}
        leading = {"logits"} | {sender for sender, _ in split}
        kept = [(sender, node) for sender, node in split if sender in reached and node in leading]
        if len(kept) == len(split):
            return [f"{sender}->{node}" for sender, node in split]
        split = kept


def train_family(task: Causal) -> list[tuple[int, tuple[str, ...], Model]]:
    """Seed, edge mask and rounded weights of the models of a family that solve the task."""
    kind = task.name.partition("_")[0]
    steps, n_models, most = PLANS[kind]
    stream = generator(0, task.name, "batches")
    masks = [
        random_mask(task.size, generator(seed, task.name, "mask")) if kind == "wired" else ()
        for seed in range(n_models)
    ]
    factors = [block_masks(task.size, mask, 4) for mask in masks] if kind == "wired" else None
    loss = interchange_loss(task.size) if kind == "siit" else plain_loss(task.size)

    def batch() -> Batch:
        if kind == "siit":
            return interchange_batch(task, stream)
        return dict(zip(("tokens", "answers"), data(task, stream, BATCH), strict=True))

    models = [fresh(task.size, generator(seed, task.name, "weights")) for seed in range(n_models)]
    found = []
    for seed, model in enumerate(train(models, loss, batch, steps, factors=factors)):
        rounded = {name: value.half().float() for name, value in model.items()}
        if solves(rounded, task) and len(found) < most:
            found.append((seed, masks[seed], rounded))
    return found


def solves(model: Model, task: Causal) -> bool:
    """Whether a model does its task and, where there is a graph, follows it."""
    if accuracy(model, task) < SOLVED:
        return False
    strict, swaps = interchange_accuracy(model, task) if task.edges else (1.0, {})
    return min(strict, *swaps.values(), 1.0) >= FOLLOWS


@torch.no_grad()
def accuracy(model: Model, task: Causal) -> float:
    """Share of 512 new prompts answered right."""
    tokens, answers = data(task, generator(1, task.name, "test"), 512)
    return float((run(model, task.size, tokens)[0].argmax(-1) == answers).float().mean())


@torch.no_grad()
def interchange_accuracy(model: Model, task: Causal) -> tuple[float, dict[str, float]]:
    """Accuracy with donors on all edges outside the graph, and with each node's output from the donor."""
    stream, size = generator(2, task.name, "test"), task.size
    (tokens, answers), donors = data(task, stream, 512), task.draw(stream, 512)
    _, outputs = run(model, size, donors)

    def right(logits: Tensor, expected: Tensor) -> float:
        return float((logits.argmax(-1) == expected).float().mean())

    strict = right(run(model, size, tokens, size.mask(task.edges), outputs)[0], answers)
    swaps = {
        node: right(
            run(model, size, tokens, size.mask(task.edges), outputs, size.senders.index(node))[0],
            expected(tokens, donors),
        )
        for node, expected in task.swapped.items()
    }
    return strict, swaps


def row(task: Causal, seed: int, mask: tuple[str, ...], model: Model) -> dict:
    """One row of the index: how well the model does and which of its edges matter."""
    with torch.no_grad():
        problem = Problem(as_decoder(model, task.size, task.name, seed), prompts(task))
        part = problem.parts["evaluate"]
        candidates = list(task.edges or mask or task.size.all_edges)
        truth = by_subsets(part, candidates)
        leaked = leak(part, candidates) if task.edges else 0.0
    strict, swaps = interchange_accuracy(model, task) if task.edges else (None, {})
    return {
        "name": f"{task.name}-s{seed}",
        "family": task.name,
        "seed": seed,
        "mask": list(mask),
        "true": list(truth.true),
        "open": list(truth.open),
        "accuracy": accuracy(model, task),
        "strict": strict,
        "swaps": swaps,
        "leak": leaked,
    }


def main() -> None:
    """Train, measure, write, and say how much it came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", default=list(tasks()))
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "index.json"
    known = json.loads(path.read_text(encoding="utf-8"))["models"] if path.exists() else []
    for family in arguments.families:
        started, task = time.process_time(), tasks()[family]
        known = [one for one in known if one["family"] != family]
        for old in arguments.folder.glob(f"{family}-s*.safetensors"):
            old.unlink()
        for seed, mask, model in train_family(task):
            data = save({name: value.half() for name, value in model.items()})
            found = row(task, seed, mask, model)
            found |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            (arguments.folder / f"{found['name']}.safetensors").write_bytes(data)
            known.append(found)
            said = f"{len(found['true'])} true and {len(found['open'])} open edges"
            print(f"{found['name']}: accuracy {found['accuracy']:.3f}, leak {found['leak']:.4f}, {said}", flush=True)
        print(f"{family}: {time.process_time() - started:.0f} s of processor time", flush=True)
        rows = sorted(known, key=lambda one: one["name"])
        path.write_text(json.dumps({"format": 1, "dtype": "float16", "models": rows}, indent=1) + "\n")
    total = sum(one["bytes"] for one in known)
    assert total <= LARGEST_TOTAL, f"{total} bytes of weights, more than {LARGEST_TOTAL}; keep fewer models"


if __name__ == "__main__":
    main()
