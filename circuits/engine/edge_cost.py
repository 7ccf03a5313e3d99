"""Predicted floating-point operations of edges, term by term as the waves of senders and their sweeps spend them."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from circuits.engine.cost import NONE, Begins, Single, Work
from circuits.engine.plan import EdgeChunk
from circuits.graph import EdgeGraph
from interp.decoder import Decoder


@dataclass(frozen=True)
class Receiver:
    """What reads the stream: its layer (one past the last for the logits), and q, k, v, mlp or logits."""

    layer: int
    kind: str

    @classmethod
    def of(cls, name: str, n_layers: int) -> "Receiver":
        """The receiver by its name in the graph."""
        if name == "logits":
            return cls(n_layers, name)
        layer, _, kind = name[1:].partition(".")
        return cls(int(layer), kind[-1:] or "mlp")

    @property
    def spreads(self) -> bool:
        """Whether it is a key or a value, which later queries read."""
        return self.kind in ("k", "v")


@dataclass(frozen=True)
class Wiring:
    """The graph of a decoder, by layer."""

    decoder: Decoder
    graph: EdgeGraph

    @cached_property
    def receivers(self) -> tuple[Receiver, ...]:
        """Every receiver, as the graph lists them."""
        return tuple(Receiver.of(name, len(self.decoder.layers)) for name in self.graph.receivers)

    @cached_property
    def heads(self) -> tuple[range, ...]:
        """Senders that are the heads of each layer."""
        first, found = 1, []
        for layer in self.decoder.layers:
            found.append(range(first, first + len(layer.attn.W_Q)))
            first = found[-1].stop + (layer.mlp is not None)
        return tuple(found)


@dataclass
class EdgeWork:
    """Counts what one chunk of edges spends.

    Attributes:
        asked: for each receiver of the chunk, how many of its senders are asked for.
        read: of every position, whether the metric reads it in some prompt.
    """

    wiring: Wiring
    chunk: EdgeChunk
    asked: Sequence[int]
    work: Work
    read: Sequence[bool]
    by_query: bool = False
    by_layer: dict[tuple[int, str], list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for receiver, count in zip(self.chunk.receivers, self.asked, strict=True):
            found = self.wiring.receivers[receiver]
            self.by_layer.setdefault((found.layer, found.kind), []).append(count)
        self.positions = tuple(p for p in self.chunk.positions if p < self.work.shape.stop)
        self.here = Single.at(self.positions, self.read)

    def before(self, number: int) -> int:
        """Senders of the chunk that write before a layer; all of them for one past the last layer."""
        heads, senders = self.wiring.heads, self.chunk.senders
        return bisect_right(senders, heads[number].start - 1) if number < len(heads) else len(senders)

    def heads(self, number: int) -> int:
        """Heads of a layer that are senders of the chunk."""
        return bisect_right(self.chunk.senders, self.wiring.heads[number].stop - 1) - self.before(number)

    def reading(self, number: int) -> int:
        """Senders that the MLP of a layer reads."""
        return self.before(number) + (0 if self.wiring.decoder.layers[number].parallel else self.heads(number))

    def count(self) -> Work:
        """All of it."""
        work, last = self.work, len(self.wiring.decoder.layers) - 1
        work.sweep(lambda number: self._begins(number, self.here.only_read if number == last else self.here))
        direct = self.here.only_read.times(sum(self.by_layer.get((last + 1, "logits"), ())))
        work.branches += direct.count
        work.score(0, direct.count)
        return work

    def _begins(self, number: int, own: Single) -> Begins:
        layer, work, before = self.wiring.decoder.layers[number], self.work, self.before(number)
        queries, spread, last = self._queries(number, own), 0, len(self.wiring.decoder.layers) - 1
        for kind, products in (("k", 3), ("v", 1)):
            receivers = self.by_layer.get((number, kind), [])
            if not receivers or not before:
                continue
            branches, weight = before * len(self.positions), layer.attn.W_K.numel()
            work.product(branches, weight)
            work.update(number, branches, products, self.by_query)
            rows = work.shape.span if self.by_query else work.rows(number)
            work.product(branches * rows * len(receivers), layer.attn.group * layer.attn.W_O[0].numel())
            if self.by_query:
                each = self.queries_of_all.only_read if number == last else self.queries_of_all
                queries = queries + each.times(sum(receivers))
            else:
                spread += sum(receivers) * len(self.positions)
        heads = self.heads(number)
        work.product(len(self.positions) * heads, layer.attn.W_O[0].numel())
        receivers, reading, post = self.by_layer.get((number, "mlp"), []), self.reading(number), NONE
        if receivers and reading:
            work.mlp(layer, reading * own.count)
            post = own.times(sum(receivers))
        return Begins(spread=spread, post=post + queries) if layer.parallel else Begins(queries, spread, post)

    def _queries(self, number: int, own: Single) -> Single:
        """Branches of queries, which change at their own row alone."""
        receivers, layer = self.by_layer.get((number, "q"), []), self.wiring.decoder.layers[number]
        branches = own.times(self.before(number))
        if not receivers or not branches.count:
            return NONE
        self.work.own_rows(layer, branches)
        self.work.product(branches.count, layer.attn.W_O.numel())
        return own.times(sum(receivers))

    @cached_property
    def queries_of_all(self) -> Single:
        """One branch for each position of the chunk and each query from there on, whose row is the query's."""
        each = [
            Single.at([query], self.read).times(bisect_right(self.positions, query))
            for query in range(self.work.shape.start, self.work.shape.stop)
        ]
        return sum(each, NONE)


@dataclass
class PooledWork(EdgeWork):
    """Counts what one chunk of edges spends whose senders are patched at all positions at once."""

    def count(self) -> Work:
        """All of it."""
        self.work.sweep(self._joining)
        direct = sum(self.by_layer.get((len(self.wiring.decoder.layers), "logits"), ()))
        self.work.branches += direct
        self.work.score(direct, 0)
        return self.work

    def _joining(self, number: int) -> Begins:
        layer, work, before = self.wiring.decoder.layers[number], self.work, self.before(number)
        rows, span, attn = work.rows(number), work.shape.span, self.wiring.decoder.layers[number].attn
        spread, heads = 0, self.heads(number)
        for kind in "qkv":
            receivers = self.by_layer.get((number, kind), [])
            if not receivers or not before:
                continue
            weight, changed = (attn.W_Q, rows) if kind == "q" else (attn.W_K, span)
            work.product(before * changed, weight.numel())
            work.scores(layer, before * rows, work.shape.stop)
            size = 1 if kind == "q" else attn.group
            work.product(before * rows * len(receivers), size * attn.W_O[0].numel())
            spread += sum(receivers)
        work.product(span * heads, attn.W_O[0].numel())
        receivers, reading = self.by_layer.get((number, "mlp"), []), self.reading(number)
        if not receivers or not reading:
            return Begins(spread=spread)
        work.mlp(layer, reading * rows)
        return Begins(spread=spread, spread_post=sum(receivers))
