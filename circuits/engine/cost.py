"""Predicted floating-point operations of a chunk, term by term as the sweep will spend them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from interp.decoder import Decoder, Layer

SPREADING = ("k", "v", "resid_pre")  # sites whose patch reaches other rows within its own block


@dataclass(frozen=True)
class SweepShape:
    """What decides the cost of carrying branches to the metric.

    Attributes:
        start, stop: first row of the span, and one past its last.
        out_rows: rows of the last block; as many as the span where the metric reads all of it (`whole`).
        kept_states: whether softmax states are computed once for all chunks.
        width: numbers that the metric reads of a row: 1 for a direction, d_vocab for whole logits.
        scored: rows of all prompts together whose metric is computed for a branch of many rows.
    """

    prompts: int
    start: int
    stop: int
    out_rows: int
    whole: bool
    kept_states: bool
    width: int
    scored: int

    @property
    def span(self) -> int:
        """Rows that branches may change."""
        return self.stop - self.start


@dataclass(frozen=True)
class Single:
    """Branches of one changed row: how many, and the largest of their positions.

    Attributes:
        read: those of them whose row the metric reads in some prompt; `last_read` is the largest of their positions.
    """

    count: int = 0
    last: int = 0
    read: int = 0
    last_read: int = 0

    @classmethod
    def at(cls, positions: Sequence[int], read: Sequence[bool]) -> "Single":
        """One branch at each of some positions; `read` tells of every position whether the metric reads it."""
        some = [p for p in positions if read[p]]
        return cls(len(positions), max(positions, default=0), len(some), max(some, default=0))

    def __add__(self, other: "Single") -> "Single":
        return Single(
            self.count + other.count,
            max(self.last, other.last),
            self.read + other.read,
            max(self.last_read, other.last_read),
        )

    def times(self, count: int) -> "Single":
        """So many branches where there was one."""
        return Single(self.count * count, self.last, self.read * count, self.last_read) if count else Single()

    @property
    def only_read(self) -> "Single":
        """Those whose row the metric reads."""
        return Single(self.read, self.last_read, self.read, self.last_read)


NONE = Single()


@dataclass(frozen=True)
class Begins:
    """Branches that begin in a layer, by where they join as in `circuits.engine.sweep.Joining`."""

    mid: Single = NONE
    spread: int = 0
    post: Single = NONE
    spread_post: int = 0


@dataclass
class Work:
    """Counts what one chunk spends, 2 per multiply-add.

    Attributes:
        states: layers whose softmax states are read as kept for all chunks; they are not counted here.
        branches: how many began.
    """

    decoder: Decoder
    shape: SweepShape
    flops: int = 0
    branches: int = 0
    states: set[int] = field(default_factory=set)

    def rows(self, number: int) -> int:
        """Rows that a layer carries on."""
        return self.shape.out_rows if number == len(self.decoder.layers) - 1 else self.shape.span

    def is_whole(self, number: int) -> bool:
        """Whether these are all rows of the span."""
        return self.shape.whole or number < len(self.decoder.layers) - 1

    def sweep(self, begins: Callable[[int], Begins], embedded: Single = NONE) -> None:
        """Branches that begin where `begins` says (and, of one row, at the embedding) and are carried to the metric."""
        one, full, last = embedded, 0, len(self.decoder.layers) - 1
        self.branches += embedded.count
        for number, layer in enumerate(self.decoder.layers):
            rows, joining = self.rows(number), begins(number)
            self.branches += joining.mid.count + joining.spread + joining.post.count + joining.spread_post
            mid, spread = joining.mid, joining.spread
            if number == last and rows == 1 and not layer.parallel:
                mid, spread = NONE, spread + mid.count
            self._attention_of_full(layer, full, rows)
            self._attention_of_one(number, one)
            carried = spread + full + one.count
            self.mlp(layer, (full + one.count if layer.parallel else carried) * rows)
            if not layer.parallel:
                self.mlp(layer, mid.count)
            full, one = carried + joining.spread_post, mid + joining.post
        self.score(full, one.count)

    def score(self, full: int, one: int) -> None:
        """What branches of many rows, and of one, do to the metric."""
        self.flops += (
            2 * (full * self.shape.scored + self.shape.prompts * one) * self.decoder.d_model * self.shape.width
        )

    def mlp(self, layer: Layer, rows: int) -> None:
        """The MLP of so many rows of every prompt."""
        if layer.mlp is not None:
            weights = (layer.mlp.W_in, layer.mlp.W_gate, layer.mlp.W_out)
            self.product(rows, sum(w.numel() for w in weights if w is not None))

    def product(self, rows: int, numel: int) -> None:
        """The product of so many rows of every prompt with a weight of so many numbers."""
        self.flops += 2 * self.shape.prompts * rows * numel

    def scores(self, layer: Layer, queries: int, keys: int) -> None:
        """Attention of so many queries of every prompt, of all heads, to keys and values."""
        self.flops += 4 * self.shape.prompts * queries * keys * heads_width(layer)

    def update(self, number: int, branches: int, products: int, all_rows: bool = False) -> None:
        """One-column updates at a layer's rows (or those of the span), and the states that they read."""
        layer = self.decoder.layers[number]
        rows, whole = (self.shape.span, True) if all_rows else (self.rows(number), self.is_whole(number))
        if self.shape.kept_states and whole:
            self.states.add(number)
        else:
            self.scores(layer, rows, self.shape.stop)
        self.flops += 2 * self.shape.prompts * rows * heads_width(layer) * products * branches

    def own_rows(self, layer: Layer, some: Single) -> None:
        """New queries at the branches' own rows, and their attention."""
        self.product(some.count, layer.attn.W_Q.numel())
        self.scores(layer, some.count, some.last + 1)

    def _attention_of_full(self, layer: Layer, branches: int, rows: int) -> None:
        attn = layer.attn
        self.product(branches * self.shape.span, attn.W_K.numel() + attn.W_V.numel())
        self.product(branches * rows, attn.W_Q.numel() + attn.W_O.numel())
        self.scores(layer, branches * rows, self.shape.stop)

    def _attention_of_one(self, number: int, one: Single) -> None:
        if not one.count:
            return
        layer = self.decoder.layers[number]
        self.product(one.count, layer.attn.W_K.numel() + layer.attn.W_V.numel())
        self.update(number, one.count, 3)
        self.own_rows(layer, one if self.is_whole(number) else one.only_read)
        self.product(one.count * self.rows(number), layer.attn.W_O.numel())


def heads_width(layer: Layer) -> int:
    """Numbers in one row of z."""
    return layer.attn.W_Q.shape[0] * layer.attn.W_Q.shape[2]


def states_flops(decoder: Decoder, prompts: int, n_pos: int, layers: int) -> int:
    """Softmax states of every row, in so many layers."""
    return layers * 4 * prompts * n_pos * n_pos * heads_width(decoder.layers[0])


def chunk_work(
    decoder: Decoder, site: str, shape: SweepShape, layers: Sequence[int], components: int, here: Single
) -> Work:
    """What a chunk of single patches spends, as if every patch changed something.

    Args:
        here: one branch for each position of the chunk.
    """
    work, last = Work(decoder, shape), len(decoder.layers) - 1

    def begins(number: int) -> Begins:
        entering = number + 1 if site == "resid_pre" else number
        if entering not in layers or entering > last:
            return Begins()
        found = (here if site in SPREADING or entering != last else here.only_read).times(components)
        _enter(work, site, number, found)
        if site in ("k", "v"):
            return Begins(spread=found.count)
        before_mlp = site in ("z", "q", "attn_out", "resid_mid") and not decoder.layers[number].parallel
        return Begins(mid=found) if before_mlp else Begins(post=found)

    work.sweep(begins, here if site == "resid_pre" and 0 in layers else NONE)
    return work


def _enter(work: Work, site: str, number: int, found: Single) -> None:
    """What turns new values into differences of the stream."""
    layer = work.decoder.layers[number]
    if not found.count:
        return
    if site == "z":
        work.product(found.count, layer.attn.W_O[0].numel())
    elif site == "q":
        work.scores(layer, found.count, found.last + 1)
        work.product(found.count, layer.attn.W_O.numel())
    elif site in ("k", "v"):
        work.update(number, found.count, 3 if site == "k" else 1)
        work.product(found.count * work.rows(number), layer.attn.W_O.numel())
