"""Edge scores one edge at a time, straight from their definition: the specification of the fast ones."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.metrics import Metric, UserMetric, metric_rows
from interp.decoder import Attention, Decoder, attend, normed

Point = tuple[Tensor, dict[str, Tensor]]  # where a gradient is taken: an embedding, and outputs that are given


def run_edge(
    decoder: Decoder,
    embed: Float[Tensor, "batch pos d_model"],
    given: dict[str, Tensor],
    edge: tuple[str, str] | None = None,
    shift: Tensor | float = 0.0,
) -> tuple[Float[Tensor, "batch pos d_vocab"], dict[str, Tensor]]:
    """Logits, and what every sender wrote, when `shift` is added to a sender's output for one receiver only.

    A second copy of the residual stream carries the shift from the sender on: it gets the same writes, passes the same
    norms, and is read by the edge's receiver alone.

    Args:
        embed: the residual stream before the first block.
        given: outputs used instead of computed ones: whole attention `A0`, MLP `M0`.
    """
    sender, receiver = edge or ("", "")
    written: dict[str, Tensor] = {"embed": embed}
    x, copy = embed, embed + shift * (sender == "embed")
    for index, layer in enumerate(decoder.layers):
        y, y_copy = normed(layer.ln1, x), normed(layer.ln1, copy)
        z = heads_of_edge(layer.attn, index, y, y_copy, receiver)
        outs = {f"L{index}.H{head}": z[:, :, head] @ w for head, w in enumerate(layer.attn.W_O)}
        attn_out = sum(outs.values()) if layer.attn.b_O is None else sum(outs.values()) + layer.attn.b_O
        attn_out = given.get(f"A{index}", attn_out)
        written |= {**outs, f"A{index}": attn_out}
        mid = (y if layer.adds_to_normed else x) + attn_out
        mid_copy = (y_copy if layer.adds_to_normed else copy) + attn_out + shift * (sender in outs)
        name = f"M{index}"
        reads = (copy if layer.parallel else mid_copy) if receiver == name else (x if layer.parallel else mid)
        x, copy = mid, mid_copy
        if layer.mlp is not None:
            mlp_out = given.get(name, layer.mlp(normed(layer.ln2, reads)))
            written[name] = mlp_out
            x, copy = mid + mlp_out, mid_copy + mlp_out + shift * (sender == name)
    return decoder.logits(copy if receiver == "logits" else x), written


def heads_of_edge(
    attn: Attention, index: int, y: Tensor, y_copy: Tensor, receiver: str
) -> Float[Tensor, "batch pos head d_head"]:
    """z of every head of a layer, with the copy of the normalised stream read where `receiver` is."""
    shared = "KV" if attn.group > 1 else "H"
    projected = {}
    for kind, weight, bias in (("q", attn.W_Q, attn.b_Q), ("k", attn.W_K, attn.b_K), ("v", attn.W_V, attn.b_V)):
        letter = "H" if kind == "q" else shared
        parts = [(y_copy if receiver == f"L{index}.{letter}{n}.{kind}" else y) @ w for n, w in enumerate(weight)]
        projected[kind] = torch.stack(parts, 2) if bias is None else torch.stack(parts, 2) + bias
    q, k, v = projected["q"], projected["k"], projected["v"]
    if attn.rotary is not None:
        place = torch.arange(y.shape[1], device=y.device)[None]
        q, k = attn.rotary(q, place), attn.rotary(k, place)
    return attend(attn, q, k, v)[0]


def metric_values(
    metric: Metric | UserMetric, logits: Tensor, base: Tensor, lengths: Int[Tensor, "batch"]
) -> Float[Tensor, "batch"]:
    """The metric of each prompt from full logits; `base` are those of the clean run."""
    if isinstance(metric, UserMetric):
        return metric.fn(logits)
    rows = metric_rows(metric, lengths)
    return rows.mean(metric.of_logits(logits[rows.prompt, rows.pos], rows, base[rows.prompt, rows.pos]))


def points_of(
    decoder: Decoder, clean: Tensor, corrupted: Tensor, method: str, steps: int = 1
) -> tuple[list[Point], dict[str, Tensor]]:
    """Where "eap", "inputs" or "activations" take gradients, and corrupted minus clean of what every sender writes."""
    embed, other = decoder.embed(clean), decoder.embed(corrupted)
    _, old = run_edge(decoder, embed, {})
    _, new = run_edge(decoder, other, {})
    changes = {name: new[name] - old[name] for name in old}
    if method == "eap":
        return [(embed, {})], changes
    if method == "inputs":
        return [(other + k / steps * (embed - other), {}) for k in range(steps)], changes
    alphas = [k / steps for k in range(1, steps + 1)]
    nodes = [name for name in old if name[0] in "AM"]
    mixed = [(other + a * (embed - other), {}) for a in alphas]
    mixed += [(embed, {name: new[name] + a * (old[name] - new[name])}) for name in nodes for a in alphas]
    return mixed, changes


def edge_scores(
    decoder: Decoder,
    clean: Int[Tensor, "batch pos"],
    corrupted: Int[Tensor, "batch pos"],
    metric: Metric | UserMetric,
    edges: Sequence[str],
    method: str = "eap",
    steps: int = 1,
    lengths: Int[Tensor, "batch"] | None = None,
) -> Float[Tensor, "batch pos edge"]:
    """d metric / d coefficient at 0, for a coefficient times the sender's difference added for the receiver alone.

    One coefficient for each prompt and position, averaged over the points of the method; two passes for each edge and
    point.
    """
    if lengths is None:
        lengths = torch.full(clean.shape[:1], clean.shape[1], device=clean.device)
    points, changes = points_of(decoder, clean, corrupted, method, steps)
    base = run_edge(decoder, decoder.embed(clean), {})[0]
    scores = []
    for edge in edges:
        sender, _, receiver = edge.partition("->")
        score = base.new_zeros(clean.shape)
        for embed, given in points:
            coefficient = base.new_zeros(*clean.shape, 1, requires_grad=True)
            logits, _ = run_edge(decoder, embed, given, (sender, receiver), coefficient * changes[sender])
            total = metric_values(metric, logits, base, lengths).sum()
            if total.requires_grad:
                score = score + torch.autograd.grad(total, coefficient)[0][..., 0] / len(points)
        scores.append(score)
    return torch.stack(scores, -1)
