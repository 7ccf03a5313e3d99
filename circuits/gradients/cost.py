"""Matrix products of gradient scores, counted from shapes: 2 FLOPs per multiply-add."""

from torch import Tensor

from circuits.engine.plan import layer_row_flops
from circuits.gradients.run import Batch
from circuits.graph import edge_graph
from circuits.metrics import UserMetric
from interp.decoder import Attention, Decoder, Layer

FLASH_BACKWARD = 2.5  # products of the fused attention's backward pass, over those of its forward pass


def plain_flops(decoder: Decoder, n_prompts: int, n_pos: int) -> int:
    """One forward pass with logits at every position."""
    rows = n_prompts * n_pos
    products = sum(layer_row_flops(layer) for layer in decoder.layers) + 2 * decoder.W_U.numel()
    return rows * products + sum(attention_flops(layer, n_prompts, n_pos, n_pos) for layer in decoder.layers)


def attention_flops(layer: Layer, n_prompts: int, n_queries: int, n_keys: int) -> int:
    """Scores and weighted sums of all heads, without making use of the causal mask."""
    heads, _, d_head = layer.attn.W_Q.shape
    return 4 * n_prompts * n_queries * n_keys * heads * d_head


def forward_flops(batch: Batch, first: int = 0) -> int:
    """Blocks from `first` on, the last one only where the metric reads."""
    return sum(sum(block_flops(batch, index)) for index in range(first, len(batch.decoder.layers)))


def backward_flops(batch: Batch, to_embed: bool = False) -> float:
    """From the residual stream behind the blocks back to the first q, k and v, or to the embedding."""
    total = 0.0
    for index, layer in enumerate(batch.decoder.layers):
        products, attention = block_flops(batch, index)
        total += products + FLASH_BACKWARD * attention
        if index == 0 and not to_embed:
            total -= 2 * batch.clean.numel() * (layer.attn.W_K.numel() + layer.attn.W_V.numel())
            total -= 2 * len(batch.clean) * n_queries(batch, index) * layer.attn.W_Q.numel()
    return total


def block_flops(batch: Batch, index: int) -> tuple[int, int]:
    """Weight products and attention of one block, forward."""
    n_prompts, n_pos = batch.clean.shape
    layer, queries = batch.decoder.layers[index], n_queries(batch, index)
    keys_values = 2 * (layer.attn.W_K.numel() + layer.attn.W_V.numel())
    products = n_prompts * (n_pos * keys_values + queries * (layer_row_flops(layer) - keys_values))
    return products, attention_flops(layer, n_prompts, queries, n_pos)


def n_queries(batch: Batch, index: int) -> int:
    """Positions at which a block is computed, but for its keys and values."""
    last = index == len(batch.decoder.layers) - 1
    return len(batch.at) if last and batch.at is not None else batch.clean.shape[1]


def logit_flops(batch: Batch) -> int:
    """Logits where the metric reads them."""
    rows = batch.clean.numel() if isinstance(batch.metric, UserMetric) else len(batch.rows.pos)
    return 2 * rows * batch.decoder.W_U.numel()


def score_flops(batch: Batch) -> int:
    """What heads write, gradients at what q, k and v read, and their contraction over d_model."""
    layers, graph = batch.decoder.layers, edge_graph(batch.decoder)
    weights = sum(w.numel() for layer in layers for w in attention_weights(layer.attn))
    pairs = int(graph.exists.sum()) + sum(layer.mlp is not None and not layer.parallel for layer in layers)
    return 2 * batch.clean.numel() * (weights + pairs * batch.decoder.d_model)


def attention_weights(attn: Attention) -> tuple[Tensor, ...]:
    """The four projections."""
    return attn.W_Q, attn.W_K, attn.W_V, attn.W_O
