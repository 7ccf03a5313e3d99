"""How the edges of a call are cut into chunks that fit a budget, and what they will cost, before any is run."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from circuits.engine.cost import Work, states_flops
from circuits.engine.edge_cost import EdgeWork, PooledWork, Receiver, Wiring
from circuits.engine.plan import EdgeChunk, Plan, Room, forward_flops, recorded_bytes
from circuits.engine.runs import Runs
from circuits.engine.shapes import shape_of
from circuits.graph import EdgeGraph

Resolve = Literal["position", "query", "pooled"]


@dataclass(frozen=True)
class Edges:
    """The edges of one call, checked.

    Attributes:
        asked: which of them are wanted.
    """

    runs: Runs
    graph: EdgeGraph
    asked: Bool[Tensor, "sender receiver"]
    resolve: Resolve

    @cached_property
    def wiring(self) -> Wiring:
        """The graph by layer."""
        return Wiring(self.runs.decoder, self.graph)

    @cached_property
    def read(self) -> list[bool]:
        """Of every position, whether the metric reads it in some prompt."""
        return self.runs.read.any(0).tolist()

    @cached_property
    def stop(self) -> int:
        """One past the last position that the metric reads."""
        return 1 + max(place for place, is_read in enumerate(self.read) if is_read)

    @cached_property
    def first(self) -> int:
        """First position where a sender can differ."""
        return 0 if self.runs.other is None else int(self.runs.prompts.first_difference.min())

    @cached_property
    def senders(self) -> list[tuple[int, ...]]:
        """Of each receiver, the senders that are asked for."""
        return [tuple(i for i, is_asked in enumerate(column) if is_asked) for column in self.asked.T.tolist()]

    @cached_property
    def ran(self) -> Bool[Tensor, "sender receiver *place"]:
        """Which effects are run: those that are asked for, where sender and receiver can reach the metric."""
        device, last = self.asked.device, len(self.runs.decoder.layers) - 1
        place = torch.arange(len(self.read), device=device)
        here = (place >= self.first) & (place < self.stop)  # [pos]
        if self.resolve == "pooled":
            return self.asked & bool(here.any())
        read = torch.tensor(self.read, device=device)
        kinds: list[Tensor] = []
        for receiver in self.wiring.receivers:
            late = receiver.kind == "logits" or (receiver.layer == last and not receiver.spreads)
            kinds.append(here & read if late else here)
            if self.resolve == "query":
                kinds[-1] = self._by_query(receiver, kinds[-1], here, read)
        places = torch.stack(kinds)  # [receiver *place]
        return self.asked[(..., *(None,) * (places.dim() - 1))] & places

    def _by_query(
        self, receiver: Receiver, own: Bool[Tensor, "pos"], here: Bool[Tensor, "pos"], read: Bool[Tensor, "pos"]
    ) -> Bool[Tensor, "pos query"]:
        if not receiver.spreads:
            return own.diag()
        query = here & read if receiver.layer == len(self.runs.decoder.layers) - 1 else here
        return (here[:, None] & query).triu()


def rows_of(receiver: Receiver, n_layers: int, suffix: int, out_rows: int, by_query: bool) -> int:
    """Rows that the branches of one sender and position need at most, when every row of the suffix may change."""
    if receiver.kind == "logits":
        return 1
    reached = out_rows if receiver.layer == n_layers - 1 else suffix
    if receiver.spreads and by_query:
        return reached * _rows_of_one(receiver.layer, n_layers, suffix, out_rows)
    return reached if receiver.spreads else _rows_of_one(receiver.layer, n_layers, suffix, out_rows)


def _rows_of_one(layer: int, n_layers: int, suffix: int, out_rows: int) -> int:
    """Rows that a branch of one row in this layer grows to."""
    return {n_layers - 1: 1, n_layers - 2: out_rows}.get(layer, suffix)


@dataclass(frozen=True)
class Cutter:
    """Cuts positions x receivers x senders so that no chunk has more than `max_rows` rows at once, if one can be had.

    Attributes:
        rows: rows of one sender and position into a receiver, for a suffix of so many rows.
        senders: of each receiver, those that are asked for.
    """

    rows: Callable[[int, int], int]
    senders: Sequence[tuple[int, ...]]
    max_rows: int

    def cost(self, receivers: Sequence[int], suffix: int) -> int:
        """Rows of all senders of some receivers at one position."""
        return sum(len(self.senders[receiver]) * self.rows(receiver, suffix) for receiver in receivers)

    def chunks(self, receivers: Sequence[int], positions: Sequence[int], stop: int) -> Iterator[EdgeChunk]:
        """The chunks, in order of their positions."""
        index, used = 0, self.used(receivers)
        while index < len(positions):
            suffix = stop - positions[index]
            whole = self.cost(receivers, suffix)
            if whole <= self.max_rows:
                count = max(1, self.max_rows // max(1, whole))
                yield EdgeChunk(tuple(positions[index : index + count]), tuple(receivers), used)
                index += count
                continue
            for group, senders in self.groups(receivers, suffix):
                yield EdgeChunk((positions[index],), group, senders)
            index += 1

    def groups(self, receivers: Sequence[int], suffix: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Receivers and senders that fit together at one position; the senders of one receiver are parted at need."""
        group: list[int] = []
        for receiver in receivers:
            if group and self.cost([*group, receiver], suffix) > self.max_rows:
                yield tuple(group), self.used(group)
                group = []
            senders, size = self.senders[receiver], max(1, self.max_rows // self.rows(receiver, suffix))
            if len(senders) <= size:
                group.append(receiver)
                continue
            for first in range(0, len(senders), size):
                yield (receiver,), senders[first : first + size]
        if group:
            yield tuple(group), self.used(group)

    def used(self, receivers: Sequence[int]) -> tuple[int, ...]:
        """Senders that some of the receivers want."""
        return tuple(sorted(set().union(*(self.senders[receiver] for receiver in receivers))))


def cut(edges: Edges, max_rows: int) -> tuple[list[EdgeChunk], int]:
    """All chunks of a call, and the most rows of one of them.

    Args:
        max_rows: rows of one prompt that a chunk may have.
    """
    runs, n_layers = edges.runs, len(edges.runs.decoder.layers)
    wanted = [receiver for receiver, senders in enumerate(edges.senders) if senders]
    positions, out_rows = range(edges.first, edges.stop), int(runs.read.sum(1).max())
    if edges.resolve == "pooled":
        cutter = Cutter(lambda receiver, suffix: suffix, edges.senders, max_rows)
        pooled = [
            replace(chunk, positions=tuple(positions)) for chunk in cutter.chunks(wanted, positions[:1], edges.stop)
        ]
        return pooled, max((_pooled_rows(edges, chunk) for chunk in pooled), default=0)

    def rows(receiver: int, suffix: int) -> int:
        found = edges.wiring.receivers[receiver]
        return rows_of(found, n_layers, suffix, min(out_rows, suffix), edges.resolve == "query")

    cutter = Cutter(rows, edges.senders, max_rows)
    # Receivers whose branches stay few rows run at many positions at once, apart from those that need whole suffixes.
    short = [receiver for receiver in wanted if rows(receiver, edges.stop) <= max(1, out_rows)]
    long = [receiver for receiver in wanted if receiver not in short]
    chunks = [chunk for some in (short, long) if some for chunk in cutter.chunks(some, positions, edges.stop)]

    def rows_in(chunk: EdgeChunk) -> int:
        suffix, senders = edges.stop - chunk.positions[0], set(chunk.senders)
        each = ((len(senders.intersection(edges.senders[r])), rows(r, suffix)) for r in chunk.receivers)
        return len(chunk.positions) * sum(count * size for count, size in each)

    return chunks, max(map(rows_in, chunks), default=0)


def _pooled_rows(edges: Edges, chunk: EdgeChunk) -> int:
    senders = set(chunk.senders)
    return len(chunk.positions) * sum(len(senders.intersection(edges.senders[r])) for r in chunk.receivers)


def plan_of(edges: Edges) -> Plan:
    """How a call will be cut into chunks, and what it will cost."""
    runs = edges.runs
    final, n_layers = runs.base.final, len(runs.decoder.layers)
    n_prompts, n_pos = final.shape[:2]
    room = Room.of(runs.decoder, final, runs.given.max_bytes)
    chunks, most = cut(edges, max(1, room.rows // n_prompts))
    table, flops, used = runs.read.tolist(), runs.recording_flops, set()
    shapes, asked = {}, edges.asked.cpu()
    kept_states = len(chunks) > 1 and edges.resolve != "pooled"
    for chunk in chunks:
        start = chunk.positions[0]
        if start not in shapes:
            shapes[start] = shape_of(runs, table, start, kept_states)
        counts = asked[list(chunk.senders)][:, list(chunk.receivers)].sum(0).tolist()
        kind = PooledWork if edges.resolve == "pooled" else EdgeWork
        parts = (edges.wiring, chunk, counts, Work(runs.decoder, shapes[start]), edges.read, edges.resolve == "query")
        work = kind(*parts).count()
        flops, used = flops + work.flops, used | work.states
    branches = int(edges.ran.sum())
    recorded = recorded_bytes(final, 1 if runs.other is None else 2, n_layers)
    return Plan(
        chunks=tuple(chunks),
        patches=branches * n_prompts,
        rows=most * n_prompts,
        flops=flops + states_flops(runs.decoder, n_prompts, n_pos, len(used)),
        bytes=most * n_prompts * room.per_row + recorded,
        naive_flops=branches * n_prompts * forward_flops(runs.decoder, n_pos),
        budget=room.budget,
        branches=branches,
    )
