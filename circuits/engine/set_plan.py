"""How sets of patches are cut into chunks that fit a budget, and what they will cost, before any is run."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from circuits.engine.cost import Work
from circuits.engine.plan import Plan, Room, SetChunk, forward_flops, recorded_bytes
from circuits.engine.runs import Runs
from circuits.engine.shapes import shape_of

READ_BY_ATTENTION = ("resid_pre", "q", "k", "v")
Place = tuple[str, int, int, int]  # site, layer, component, position


@dataclass(frozen=True)
class Sets:
    """The sets of one call, checked; `places` has every single place of each."""

    runs: Runs
    places: Sequence[Sequence[Place]]

    @cached_property
    def stop(self) -> int:
        """One past the last position that the metric reads."""
        return int(self.runs.read.any(0).nonzero().max()) + 1

    @cached_property
    def starts(self) -> list[int]:
        """First position of each set; `stop` for those that cannot reach the metric."""
        return [min((place[3] for place in places), default=self.stop) for places in self.places]

    @cached_property
    def order(self) -> list[int]:
        """Sets that can reach the metric, by their first position."""
        some = (index for index, start in enumerate(self.starts) if start < self.stop)
        return sorted(some, key=lambda index: self.starts[index])

    def kept(self, chunk: SetChunk) -> list[list[Place]]:
        """Places of each set of a chunk that can reach the metric."""
        return [[place for place in self.places[index] if place[3] < self.stop] for index in chunk.sets]


def plan_of(sets: Sets) -> Plan:
    """How a call will be cut into chunks, and what it will cost, as if every patch changed something."""
    runs, decoder, final = sets.runs, sets.runs.decoder, sets.runs.base.final
    n_prompts, n_pos = final.shape[:2]
    room, table = Room.of(decoder, final, runs.given.max_bytes), runs.read.tolist()
    chunks: list[SetChunk] = []
    most, flops, done = 0, runs.recording_flops, 0
    while done < len(sets.order):
        start = sets.starts[sets.order[done]]
        rows = (sets.stop - start) * n_prompts
        size = max(1, room.rows // rows)
        chunks.append(SetChunk(tuple(sets.order[done : done + size]), start))
        done += size
        most = max(most, len(chunks[-1].sets) * rows)
        work = Work(decoder, shape_of(runs, table, start, False))
        flops += counted(work, sets.kept(chunks[-1])).flops
    patches = len(sets.order) * n_prompts
    recorded = recorded_bytes(final, 1 if runs.other is None else 2, len(decoder.layers))
    return Plan(
        chunks=tuple(chunks),
        patches=patches,
        rows=most,
        flops=flops,
        bytes=most * room.per_row + recorded,
        naive_flops=patches * forward_flops(decoder, n_pos),
        budget=room.budget,
        branches=len(sets.order),
    )


def counted(work: Work, places: Sequence[Sequence[Place]]) -> Work:
    """What a chunk spends: from its first patched layer on, every set is carried densely."""
    layers = {place[1] for one in places for place in one}
    first = min(layers)
    reaches = any(place[1] == first and place[0] in READ_BY_ATTENTION for one in places for place in one)
    rows = len(places) * work.shape.span
    for number, layer in enumerate(work.decoder.layers[first:], first):
        attn = layer.attn
        work.product(rows, sum(weight.numel() for weight in (attn.W_Q, attn.W_K, attn.W_V, attn.W_O)))
        if number > first or reaches:
            work.scores(layer, rows, work.shape.stop)
        work.mlp(layer, rows)
    work.branches += len(places)
    work.score(len(places), 0)
    return work
