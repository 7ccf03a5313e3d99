"""Predicted floating-point operations of a chunk, term by term as the sweep will spend them."""

from dataclasses import dataclass

from interp.decoder import Decoder, Layer

SPREADING = ("k", "v", "resid_pre")  # sites whose patch reaches other rows within its own block


@dataclass(frozen=True)
class ChunkShape:
    """What decides the cost of a chunk.

    Attributes:
        positions: where patches are, all before `stop`; the first is the first row of the span.
        read: those of them that the metric reads in some prompt.
        out_rows: rows of the last block; as many as the span where the metric reads all of it.
        whole_states: whether softmax states are computed once for all chunks.
    """

    prompts: int
    positions: tuple[int, ...]
    read: tuple[int, ...]
    stop: int
    out_rows: int
    components: int
    layers: tuple[int, ...]
    whole_states: bool

    @property
    def span(self) -> int:
        """Rows that branches may change."""
        return self.stop - self.positions[0]


def chunk_flops(decoder: Decoder, site: str, shape: ChunkShape, metric_width: int) -> int:
    """2 per multiply-add of all products of a chunk.

    Args:
        metric_width: numbers that the metric reads of a row: 1 for a direction, d_vocab for whole logits.
    """
    total, one, full, last = 0, 0, 0, len(decoder.layers) - 1
    if site == "resid_pre" and 0 in shape.layers:
        one = len(shape.positions)
    for number, layer in enumerate(decoder.layers):
        rows = shape.out_rows if number == last else shape.span
        whole = rows == shape.span
        spread, mid, post = _beginning(site, shape, number, last)
        total += _full_attention(layer, shape, full, rows) + _one_attention(layer, shape, one, rows, whole)
        total += _entry(site, layer, shape, spread + mid + post, rows, whole)
        carried = full + one + spread
        total += _mlp(layer, shape.prompts * carried * rows)
        if not layer.parallel:
            total += _mlp(layer, shape.prompts * mid)
        full, one = carried, mid + post
    at_end = full * shape.out_rows + one
    return total + 2 * shape.prompts * at_end * decoder.d_model * metric_width


def states_flops(decoder: Decoder, prompts: int, n_pos: int, layers: int) -> int:
    """Softmax states of every row, in so many layers."""
    heads, _, d_head = decoder.layers[0].attn.W_Q.shape
    return layers * 4 * prompts * n_pos * n_pos * heads * d_head


def _beginning(site: str, shape: ChunkShape, number: int, last: int) -> tuple[int, int, int]:
    """Branches that begin in a layer as many rows, between attention and MLP, and after the block."""
    entering = number + 1 if site == "resid_pre" else number
    if entering not in shape.layers or entering > last:
        return 0, 0, 0
    positions = shape.positions if site in SPREADING or entering != last else shape.read
    count = shape.components * len(positions)
    if site in ("k", "v"):
        return count, 0, 0
    return (0, count, 0) if site in ("z", "q", "attn_out", "resid_mid") else (0, 0, count)


def _full_attention(layer: Layer, shape: ChunkShape, branches: int, rows: int) -> int:
    cases, attn = shape.prompts * branches, layer.attn
    keys = 2 * cases * shape.span * (attn.W_K.numel() + attn.W_V.numel())
    queries = 2 * cases * rows * (attn.W_Q.numel() + attn.W_O.numel())
    return keys + queries + 4 * cases * rows * _width(layer) * shape.stop


def _one_attention(layer: Layer, shape: ChunkShape, branches: int, rows: int, whole: bool) -> int:
    if not branches:
        return 0
    attn, cases = layer.attn, shape.prompts * branches
    per_position = branches // len(shape.positions) if len(shape.positions) <= branches else 1
    reached = shape.prompts * (branches if whole else per_position * len(shape.read))
    total = 2 * cases * (attn.W_K.numel() + attn.W_V.numel())
    total += _update(layer, shape, branches, rows, 3, whole)
    total += 2 * reached * attn.W_Q.numel() + 4 * reached * _width(layer) * (max(shape.positions) + 1)
    return total + 2 * cases * rows * attn.W_O.numel()


def _update(layer: Layer, shape: ChunkShape, branches: int, rows: int, products: int, whole: bool) -> int:
    """One-column updates, and the states they read unless these are kept from elsewhere."""
    kept = shape.whole_states and whole
    state = 0 if kept else 4 * shape.prompts * rows * _width(layer) * shape.stop
    return state + 2 * shape.prompts * rows * _width(layer) * products * branches


def _entry(site: str, layer: Layer, shape: ChunkShape, branches: int, rows: int, whole: bool) -> int:
    """What turns new values into differences of the stream."""
    if not branches:
        return 0
    cases, attn = shape.prompts * branches, layer.attn
    if site == "z":
        return 2 * cases * attn.W_O[0].numel()
    if site == "q":
        return 4 * cases * _width(layer) * (max(shape.positions) + 1) + 2 * cases * attn.W_O.numel()
    if site in ("k", "v"):
        products = 3 if site == "k" else 1
        return _update(layer, shape, branches, rows, products, whole) + 2 * cases * rows * attn.W_O.numel()
    return 0


def _mlp(layer: Layer, rows: int) -> int:
    if layer.mlp is None:
        return 0
    return 2 * rows * sum(w.numel() for w in (layer.mlp.W_in, layer.mlp.W_gate, layer.mlp.W_out) if w is not None)


def _width(layer: Layer) -> int:
    return layer.attn.W_Q.shape[0] * layer.attn.W_Q.shape[2]
