"""What each edge method runs: at which activations gradients are taken, and how they are averaged."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import torch
from torch import Tensor

from circuits.gradients.cost import backward_flops, forward_flops, logit_flops, score_flops
from circuits.gradients.edges import Difference, score_edges
from circuits.gradients.reads import Reads, add_reads, read_gradients
from circuits.gradients.run import (
    Batch,
    Given,
    LayerTrace,
    Writes,
    logit_rows,
    metric_total,
    require_finite,
    run_blocks,
    spread,
    writes_of,
)
from circuits.metrics import UserMetric

STEPS_AT_ONCE = 8  # gradients of so many steps are added up before they are contracted, which bounds the memory


@dataclass(frozen=True)
class Scored:
    """One batch, scored into a table of its own: what differed, and what it took."""

    difference: Difference
    forwards: int
    backwards: int
    flops: float


def eap(batch: Batch, out: Tensor, max_bytes: int) -> Scored:
    """Corrupted minus clean, times the gradient at the clean run."""
    corrupted = run_without_gradients(batch, batch.corrupted, "corrupted")
    with torch.no_grad():
        embed = batch.decoder.embed(batch.clean)
    traces = run_with_gradients(batch, embed)
    clean = writes_of(embed, traces)
    require_finite(clean.final, batch, "clean")
    reads = read_gradients(batch, metric_total(batch, traces[-1].post, None), traces)
    del traces
    with torch.no_grad():
        diff = difference(batch, corrupted, clean)
        score_edges(batch.decoder, diff, reads, out, max_bytes)
    flops = 2 * forward_flops(batch) + backward_flops(batch) + 2 * logit_flops(batch) + score_flops(batch)
    return Scored(diff, 2, 1, flops)


def eap_ig_inputs(batch: Batch, out: Tensor, max_bytes: int, steps: int) -> Scored:
    """Gradients at corrupted + k/steps (clean - corrupted) of the embedding, for k = 0 .. steps - 1."""
    clean = run_without_gradients(batch, batch.clean, "clean")
    base = base_logits(batch, clean)
    with torch.no_grad():
        start = batch.decoder.embed(batch.corrupted)

    def traced(k: int) -> list[LayerTrace]:
        return run_with_gradients(batch, start + (k / steps) * (clean.embed - start))

    def reads(traces: list[LayerTrace]) -> Reads:
        return read_gradients(batch, metric_total(batch, traces[-1].post, base), traces)

    traces = traced(0)  # the corrupted run itself
    corrupted = writes_of(start, traces)
    require_finite(corrupted.final, batch, "corrupted")
    diff, first = difference(batch, corrupted, clean), reads(traces)
    del traces
    rest = (reads(traced(k)) for k in range(1, steps))
    groups = score_steps(batch, diff, chain([first], rest), out, max_bytes)
    out /= steps
    one = forward_flops(batch) + backward_flops(batch) + 2 * logit_flops(batch)
    return Scored(diff, steps + 1, steps, forward_flops(batch) + steps * one + groups * score_flops(batch))


def eap_ig_activations(batch: Batch, out: Tensor, max_bytes: int, steps: int) -> Scored:
    """Gradients of the clean run with one node's output at corrupted + k/steps (clean - corrupted), k = 1 .. steps.

    The nodes are the embedding, each layer's whole attention and each MLP; the average is over nodes and steps.
    """
    corrupted = run_without_gradients(batch, batch.corrupted, "corrupted")
    with torch.no_grad():
        embed = batch.decoder.embed(batch.clean)
    traces = run_with_gradients(batch, embed)
    clean = writes_of(embed, traces)
    require_finite(clean.final, batch, "clean")
    base, diff = base_logits(batch, clean), difference(batch, corrupted, clean)
    count, flops = 0, 2 * forward_flops(batch)

    def reads() -> Iterator[Reads]:
        nonlocal count, flops
        for first, run in runs_with_one_node_between(batch, traces, corrupted, clean, steps):
            count += 1
            flops += forward_flops(batch, first) + backward_flops(batch) + 2 * logit_flops(batch)
            yield read_gradients(batch, metric_total(batch, run[-1].post, base), run, keep_graph=True)

    groups = score_steps(batch, diff, reads(), out, max_bytes)
    out /= count
    return Scored(diff, count + 2, count, flops + groups * score_flops(batch))


def runs_with_one_node_between(
    batch: Batch, traces: list[LayerTrace], corrupted: Writes, clean: Writes, steps: int
) -> Iterator[tuple[int, list[LayerTrace]]]:
    """(first layer run again, run) for each node and step; blocks before the node are those of the clean run."""
    for k in range(1, steps + 1):
        yield 0, run_with_gradients(batch, torch.lerp(corrupted.embed, clean.embed, k / steps))
    for layer in range(len(traces)):
        for name in ("attn_out", "mlp_out"):
            old, new = getattr(corrupted, name)[layer], getattr(clean, name)[layer]
            for k in range(1, steps + 1) if old is not None else ():
                given = Given(layer, **{name: torch.lerp(old, new, k / steps)})
                yield layer, [*traces[:layer], *run_blocks(batch, traces[layer].x, layer, given)]


def score_steps(batch: Batch, diff: Difference, steps: Iterable[Reads], out: Tensor, max_bytes: int) -> int:
    """Add the scores of all steps to `out`, some at a time; says how many times they were contracted.

    Where a norm sits in the residual stream itself, differences change on their way with each step's own Jacobian.
    """
    at_once = 1 if any(layer.adds_to_normed for layer in batch.decoder.layers) else STEPS_AT_ONCE
    steps, groups = iter(steps), 0
    for total in steps:
        for step in islice(steps, at_once - 1):
            total = add_reads(total, step)
        with torch.no_grad():
            score_edges(batch.decoder, diff, total, out, max_bytes)
        groups += 1
    return groups


def run_without_gradients(batch: Batch, tokens: Tensor, name: str) -> Writes:
    """What the run of these tokens writes."""
    with torch.no_grad():
        embed = batch.decoder.embed(tokens)
        writes = writes_of(embed, run_blocks(batch, embed))
    require_finite(writes.final, batch, name)
    return writes


def run_with_gradients(batch: Batch, embed: Tensor) -> list[LayerTrace]:
    """The blocks of a run from its embedding, with their graph."""
    return list(run_blocks(batch, embed.detach().requires_grad_()))


def base_logits(batch: Batch, clean: Writes) -> Tensor | None:
    """Logits of the clean run where the metric reads; none for a user metric."""
    with torch.no_grad():
        return None if isinstance(batch.metric, UserMetric) else logit_rows(batch, clean.final)


def difference(batch: Batch, corrupted: Writes, clean: Writes) -> Difference:
    """Corrupted minus clean of what every sender writes; 0 on padding, and where the last block was not computed."""
    last, n_pos = len(clean.z) - 1, batch.clean.shape[1]

    def between(a: Tensor | None, b: Tensor | None, index: int) -> Tensor | None:
        if a is None or b is None:
            return None
        whole = spread(a - b, batch.at if index == last else None, n_pos)
        return whole if batch.real is None else whole * batch.real.view(*batch.real.shape, *[1] * (whole.dim() - 2))

    z = tuple(between(a, b, index) for index, (a, b) in enumerate(zip(corrupted.z, clean.z, strict=True)))
    outs = enumerate(zip(corrupted.mlp_out, clean.mlp_out, strict=True))
    return Difference(
        between(corrupted.embed, clean.embed, -1), z, tuple(between(a, b, index) for index, (a, b) in outs)
    )
