"""Node scores: differences of activations times gradients there, with the corrections of AtP*."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from circuits.gradients.cost import backward_flops, forward_flops, logit_flops
from circuits.gradients.run import (
    Batch,
    LayerTrace,
    gradients,
    metric_total,
    require_finite,
    run_blocks,
    spread,
    turned,
)
from interp.decoder import Attention

PATTERNS = 20  # tables of the size of an attention pattern that the exact softmax works with
SITES = ("z", "q", "k", "v", "mlp_out")


@dataclass(frozen=True)
class LayerValues:
    """Activations of one block, or the gradients there; like `LayerTrace`, some only at the positions read."""

    q: Float[Tensor, "batch q_pos head d_head"]
    k: Float[Tensor, "batch pos kv_head d_head"]
    v: Float[Tensor, "batch pos kv_head d_head"]
    z: Float[Tensor, "batch q_pos head d_head"]
    mlp_out: Float[Tensor, "batch q_pos d_model"] | None


@dataclass(frozen=True)
class NodeRun:
    """The embedding of one run and the values of its blocks, or gradients of the metric there."""

    embed: Float[Tensor, "batch pos d_model"]
    layers: tuple[LayerValues, ...]


@dataclass(frozen=True)
class ScoredNodes:
    """Scores of one batch by site, [batch, layer, *head, pos] and [batch, pos] for embed, and what they took."""

    scores: dict[str, Tensor]
    changed: dict[str, Tensor]  # by site, which nodes differ anywhere, flat over layers and heads
    backwards: int
    flops: float


def score_nodes(batch: Batch, qk_fix: bool, grad_drop: bool, max_bytes: int) -> ScoredNodes:
    """Attribution patching of every node, with the corrections asked for."""
    with torch.no_grad():
        embed = batch.decoder.embed(batch.corrupted)
        traces = list(run_blocks(batch, embed))
        require_finite(traces[-1].post, batch, "corrupted")
        corrupted = NodeRun(embed, tuple(layer_values(trace) for trace in traces))
        embed = batch.decoder.embed(batch.clean)
    embed = embed.detach().requires_grad_()
    traces = list(run_blocks(batch, embed))
    require_finite(traces[-1].post, batch, "clean")
    clean = NodeRun(embed.detach(), tuple(layer_values(trace) for trace in traces))
    total = metric_total(batch, traces[-1].post, None)
    drops = range(len(traces)) if grad_drop else (None,)
    effects = []
    for drop in drops:
        grads = node_gradients(total, embed, traces, drop)
        with torch.no_grad():
            effects.append(node_effects(batch, clean, corrupted, grads, max_bytes if qk_fix else None))
    if grad_drop:
        scores = {site: sum(one[site].abs() for one in effects) / (len(traces) - 1) for site in effects[0]}
    else:
        scores = effects[0]
    passes = len(effects) * (backward_flops(batch, to_embed=True) + logit_flops(batch))
    flops = 2 * forward_flops(batch) + logit_flops(batch) + passes
    return ScoredNodes(scores, changed_nodes(batch, clean, corrupted), len(effects), flops)


def layer_values(trace: LayerTrace) -> LayerValues:
    """What the nodes of a block computed, detached from the graph."""
    mlp_out = None if trace.mlp_out is None else trace.mlp_out.detach()
    return LayerValues(trace.q.detach(), trace.k.detach(), trace.v.detach(), trace.z.detach(), mlp_out)


def node_gradients(total: Tensor, embed: Tensor, traces: Sequence[LayerTrace], dropped: int | None) -> NodeRun:
    """One backward pass to every node; with `dropped`, nothing flows back through that layer's attention and MLP."""
    wanted = [x for trace in traces for x in (trace.q, trace.k, trace.v, trace.z, trace.mlp_out)]
    outputs = () if dropped is None else (traces[dropped].attn_out, traces[dropped].mlp_out)
    handles = [out.register_hook(torch.zeros_like) for out in outputs if out is not None]
    found = gradients(total, [embed, *wanted], keep_graph=dropped is not None)
    for handle in handles:
        handle.remove()
    return NodeRun(found[0], tuple(LayerValues(*found[start : start + 5]) for start in range(1, len(found), 5)))


def node_effects(
    batch: Batch, clean: NodeRun, corrupted: NodeRun, grads: NodeRun, max_bytes: int | None
) -> dict[str, Float[Tensor, "batch *layer_head pos"]]:
    """First-order effect of patching each node, by site; with `max_bytes` for it, queries and keys by exact softmax."""
    effects: dict[str, list[Tensor]] = {site: [] for site in SITES}
    for index, layer in enumerate(batch.decoder.layers):
        at = batch.at if index == len(clean.layers) - 1 else None
        a, b, g = clean.layers[index], corrupted.layers[index], grads.layers[index]
        for site in SITES:
            old, new, gradient = (getattr(values, site) for values in (a, b, g))
            if old is None:
                effects[site].append(clean.embed.new_zeros(clean.embed.shape[:2]))
                continue
            effect = ((new - old) * gradient).sum(-1)  # [batch q_pos *head]
            effects[site].append(whole(batch, effect, None if site in "kv" else at))
        if max_bytes is not None:
            q, k = softmax_effects(layer.attn, a, b, g.z, at, max_bytes)
            effects["q"][-1], effects["k"][-1] = whole(batch, q, at), whole(batch, k, None)
    stacked = {site: torch.stack(values, 1) for site, values in effects.items()}  # [batch layer pos *head]
    by_head = {site: x.transpose(2, 3) if x.dim() == 4 else x for site, x in stacked.items()}
    return {"embed": whole(batch, ((corrupted.embed - clean.embed) * grads.embed).sum(-1), None), **by_head}


def whole(batch: Batch, x: Shaped[Tensor, "batch q_pos *head"], at: Tensor | None) -> Shaped[Tensor, "batch pos *head"]:
    """x at every position: 0 on padding and where the last block was not computed."""
    spread_out = spread(x, at, batch.clean.shape[1])
    return spread_out if batch.real is None else spread_out * batch.real.view(*batch.real.shape, *[1] * (x.dim() - 2))


def changed_nodes(batch: Batch, clean: NodeRun, corrupted: NodeRun) -> dict[str, Tensor]:
    """By site, which nodes differ at any position of any prompt: flat over layers and heads."""
    found = {"embed": whole(batch, (clean.embed != corrupted.embed).any(-1), None).any()[None]}
    for site in SITES:
        parts = []
        for index, (a, b) in enumerate(zip(clean.layers, corrupted.layers, strict=True)):
            at = batch.at if index == len(clean.layers) - 1 and site not in "kv" else None
            old, new = getattr(a, site), getattr(b, site)
            differs = None if old is None else whole(batch, (old != new).any(-1), at).flatten(0, 1).any(0)
            parts.append(torch.zeros(1, dtype=torch.bool) if differs is None else differs.reshape(-1).cpu())
        found[site] = torch.cat(parts)
    return {site: flags.cpu() for site, flags in found.items()}


def softmax_effects(
    attn: Attention, clean: LayerValues, corrupted: LayerValues, z_gradient: Tensor, at: Tensor | None, max_bytes: int
) -> tuple[Float[Tensor, "batch q_pos head"], Float[Tensor, "batch pos kv_head"]]:
    """Effects of patching one query or one key, with the softmax recomputed exactly and linear only behind it.

    With attention a, its gradient g = d metric / d a and patched attention a', the effect is sum over keys (and, for a
    key, over the queries that see it) of (a' - a) g. A patched key changes one score per query by delta, so that
    (a' - a) g = (t - a) (g - m), with a that column's weight, m the mean of g over the other columns under their own
    softmax, and t = a e^delta / (1 - a + a e^delta). As many heads at once as `max_bytes` allows. Source: AtP*,
    arXiv 2403.00745, "QK fix".
    """
    q, k = (x.transpose(1, 2) for x in turned(attn, clean.q, clean.k, at))  # [batch head pos d_head]
    new_q, new_k = (x.transpose(1, 2) for x in turned(attn, corrupted.q, corrupted.k, at))
    place = torch.arange(k.shape[2], device=k.device)
    seen = place <= (place if at is None else at)[:, None]  # [q_pos k_pos]
    table = PATTERNS * len(q) * attn.group * seen.numel() * q.element_size()  # bytes for the heads of one key
    step, of_query, of_key = max(1, max_bytes // table), [], []
    for start in range(0, k.shape[1], step):
        keys, queries = slice(start, start + step), slice(start * attn.group, (start + step) * attn.group)
        v = clean.v.transpose(1, 2)[:, keys].repeat_interleave(attn.group, 1)
        gradient = z_gradient.transpose(1, 2)[:, queries] @ v.mT  # [batch head q_pos k_pos]
        old, new = (x[:, keys].repeat_interleave(attn.group, 1) for x in (k, new_k))
        base = (q[:, queries] @ old.mT * attn.scale).masked_fill(~seen, -torch.inf).log_softmax(-1)
        patched = (new_q[:, queries] @ old.mT * attn.scale).masked_fill(~seen, -torch.inf).softmax(-1)
        of_query.append(((patched - base.exp()) * gradient).sum(-1))  # [batch head q_pos]
        delta = (q[:, queries] @ (new - old).mT * attn.scale).masked_fill(~seen, 0)
        column = one_column(base, gradient, delta).sum(2)  # [batch head k_pos]
        of_key.append(column.unflatten(1, (-1, attn.group)).sum(2))
    return torch.cat(of_query, 1).transpose(1, 2), torch.cat(of_key, 1).transpose(1, 2)


def one_column(log_pattern: Tensor, gradient: Tensor, delta: Tensor) -> Float[Tensor, "*row k_pos"]:
    """(t - a) (g - m) for each column: what changing that column's score by `delta` does to its row.

    1 - a and m of the column with the largest weight, the only one that can be near 1, are summed over the others
    instead of found by subtraction; weights too small to be numbers count by their logarithms.
    """
    pattern = log_pattern.exp()
    largest = pattern.argmax(-1, keepdim=True)  # [batch head q_pos 1]
    others = log_pattern.scatter(-1, largest, -torch.inf)
    log_others = others.logsumexp(-1, keepdim=True)  # -inf in a row with one column
    log_rest = torch.log1p(-pattern).scatter(-1, largest, log_others)
    rest = log_rest.exp()
    weighted = pattern * gradient
    mean = (weighted.sum(-1, keepdim=True) - weighted) / rest.scatter(-1, largest, 1.0)
    shares = (others - log_others.clamp(min=torch.finfo(others.dtype).min)).exp()
    mean = mean.scatter(-1, largest, (shares * gradient).sum(-1, keepdim=True))
    # t - a = a (1 - a) (e^delta - 1) / (1 - a + a e^delta); above and below are divided by e^delta where it exceeds 1
    up, down = delta.clamp(min=0), delta.clamp(max=0)
    below = rest * (-up).exp() + pattern * down.exp()
    moved = pattern * rest * (torch.expm1(down) - torch.expm1(-up)) / below
    odds = log_pattern + delta - log_rest  # t = sigmoid of it
    moved = torch.where(pattern == 0, odds.sigmoid(), torch.where(rest == 0, -(-odds).sigmoid(), moved))
    return moved * (gradient - mean)
