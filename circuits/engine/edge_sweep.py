"""Runs the chunks of a call's edges: waves of senders give each sweep its branches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.engine.edge_plan import Edges
from circuits.engine.edges import EdgeWave, Wanted
from circuits.engine.edges_pooled import PooledWave, WantedPooled
from circuits.engine.finish import Scores
from circuits.engine.one_column import Queries
from circuits.engine.plan import EdgeChunk
from circuits.engine.record import Record
from circuits.engine.rows import OneRow, Rows, Span
from circuits.engine.runs import ablated
from circuits.engine.sweep import Branches, rows_to_read, sweep
from kernels.one_column import State


def run_edges(
    edges: Edges, chunks: Sequence[EdgeChunk], slots: Int[Tensor, "sender receiver pos query"], scores: Scores
) -> int:
    """Run every chunk; returns how many branches there were.

    Args:
        slots: where each result goes, -1 for edges that are not asked for; axes that are not resolved have one entry.
    """
    runs = edges.runs
    source = runs.other if runs.other is not None else ablated(runs)
    queries = Queries(runs.decoder.layers, runs.base, len(chunks) > 1, runs.mul)
    branches = 0
    for done, chunk in enumerate(chunks, 1):
        booked = Booked(edges, scores)
        if edges.resolve == "pooled":
            _run_pooled(edges, chunk, source, slots[:, :, 0, 0], booked)
        else:
            _run_chunk(edges, chunk, source, slots, booked, queries)
        branches += booked.count
        if (progress := runs.given.progress) is not None:
            progress(done, len(chunks))
    return branches


@dataclass
class Booked:
    """Hands branches to the scores, and counts them."""

    edges: Edges
    scores: Scores
    count: int = 0

    def __call__(self, branches: Branches, where: OneRow | Rows) -> None:
        base = self.edges.runs.base
        self.count += len(branches.p)
        prompts = torch.arange(len(base.final), device=base.final.device)
        self.scores.add(branches, where, base, prompts, self.edges.runs.mul)


def _run_chunk(
    edges: Edges,
    chunk: EdgeChunk,
    source: Record,
    slots: Int[Tensor, "sender receiver pos query"],
    finish: Booked,
    queries: Queries,
) -> None:
    runs, graph, stop = edges.runs, edges.graph, edges.stop
    base, device = runs.base, runs.base.final.device
    span = Span(chunk.positions[0], stop)
    wanted = Wanted(
        senders={graph.senders[i]: i for i in chunk.senders},
        receivers={graph.receivers[i]: i for i in chunk.receivers},
        slots=slots,
        positions=torch.tensor(chunk.positions, device=device),
        read=runs.read.any(0)[:stop],
    )

    def state(number: int, rows: Rows) -> State:
        return queries.at(number, None, base.layers[number], rows, stop)

    wave = EdgeWave(runs.decoder, base, source, wanted, state, runs.mul)
    sweep(runs.decoder, base, wave.joining, span, rows_to_read(runs.read, span), finish, state, runs.mul)
    if (direct := wave.logits()) is not None:
        finish(*direct)


def _run_pooled(
    edges: Edges, chunk: EdgeChunk, source: Record, slots: Int[Tensor, "sender receiver"], finish: Booked
) -> None:
    """Edges whose senders are patched at all positions at once."""
    runs, graph, span = edges.runs, edges.graph, Span(chunk.positions[0], edges.stop)
    out = rows_to_read(runs.read, span)
    wanted = WantedPooled(
        senders={graph.senders[i]: i for i in chunk.senders},
        receivers={graph.receivers[i]: i for i in chunk.receivers},
        slots=slots,
    )

    def state(number: int, rows: Rows) -> State:
        raise AssertionError("a pooled branch never has a single changed row")

    wave = PooledWave(runs.decoder, runs.base, source, wanted, span, out, runs.mul)
    sweep(runs.decoder, runs.base, wave.joining, span, out, finish, state, runs.mul)
    if (direct := wave.logits()) is not None:
        finish(direct, out)
