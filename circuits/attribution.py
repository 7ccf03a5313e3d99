"""Gradient-based scores of edges and nodes: first-order estimates of what patching each of them would do."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.attribution_result import EdgeScores, NodeScores, NoEffect, Work
from circuits.gradients import paths
from circuits.gradients.cost import plain_flops
from circuits.gradients.edges import Difference
from circuits.gradients.nodes import ScoredNodes, score_nodes
from circuits.gradients.request import Request, batches, refuse_divergence, request
from circuits.gradients.run import Batch
from circuits.graph import EdgeGraph, edge_graph, node_names
from circuits.metrics import Metric, UserMetric
from interp.decoder import Decoder
from interp.errors import UsageError

UNCHANGED = "it writes the same in both runs wherever the metric can see it"
UNREAD = "the metric's gradient at what it reads is 0 wherever the runs differ"
NOT_FINITE = "metric: its gradient is not finite on these prompts, so there are no scores"
UNSEEN = "its difference meets no gradient: nothing that reads it matters to the metric"


def eap(
    model: Any,
    clean: Int[Tensor, "batch pos"],
    corrupted: Int[Tensor, "batch pos"],
    metric: Metric | UserMetric | Callable[[Tensor], Tensor],
    *,
    mask: Tensor | None = None,
    by_position: bool = False,
    max_bytes: int | None = None,
) -> EdgeScores:
    """Edge attribution patching: a first-order estimate of metric(edge patched) - metric(clean) for every edge.

    score[sender -> receiver] = (sender's output in the corrupted run - in the clean run) . d metric / d (residual
    stream that the receiver reads), the gradient taken at the clean run, with everything behind the receiver
    recomputed and the exact Jacobian of the norm in front of it, summed over positions. The base is the clean run, into
    which the corrupted sender is patched: the direction "noise" of `patch_edges`, whose pooled effects these scores
    approach for small differences. For the other direction exchange the two arguments. Where the stream itself is
    renormalised between sender and receiver (residual="normed"), the difference passes through the Jacobians of those
    norms, everything else that writes held fixed. Equal to `get_scores_eap` of the EAP-IG repository. Source: Syed,
    Rager and Conmy 2023, arXiv 2310.10348.

    Args:
        model: our Transformer, a Decoder, or an outside model that an adapter can write as one.
        clean, corrupted: prompts that agree position by position; rows of unequal length with `mask`.
        metric: one of `circuits.metrics`, or a differentiable function of logits [batch, pos, d_vocab] that gives
            [batch]. Accuracy has no gradient, and KL from the clean run none at the clean run: both are refused.
        mask: true where a token is real; padding on either side. Places of a metric count from the first token.
        by_position: keep scores [prompt, pos, sender, receiver] instead of their sum over positions.
        max_bytes: memory for kept activations and blocks of scores; None for a quarter of what is free.

    Raises:
        UsageError: naming the argument that is wrong.
        NotExpressible: for a model that cannot be written exactly as a Decoder.
    """
    with torch.inference_mode(False), torch.enable_grad():
        ask = request(model, clean, corrupted, metric, mask, max_bytes)
        refuse_divergence(ask.metric, "eap")
        return _edges(ask, by_position, "EAP, gradient at the clean run", paths.eap)


def eap_ig(
    model: Any,
    clean: Int[Tensor, "batch pos"],
    corrupted: Int[Tensor, "batch pos"],
    metric: Metric | UserMetric | Callable[[Tensor], Tensor],
    *,
    steps: int = 5,
    variant: Literal["inputs", "activations"] = "inputs",
    mask: Tensor | None = None,
    by_position: bool = False,
    max_bytes: int | None = None,
) -> EdgeScores:
    """EAP with integrated gradients: as `eap`, with the gradient averaged along a path between the two runs.

    Differences and their sign are those of `eap`: corrupted minus clean. For m steps the gradient is the mean of

    - "inputs": those of m runs whose embedding (after a norm, where one follows it) is
      corrupted + k/m (clean - corrupted), k = 0 .. m-1: the left Riemann sum from the corrupted end, with everything
      behind the embedding recomputed. The scores of the edges out of `embed` sum to metric(corrupted) - metric(clean)
      as m grows.
    - "activations": those of m runs of the clean prompt for each node, where that node's output is
      corrupted + k/m (clean - corrupted), k = 1 .. m, given as a constant. Nodes are the embedding, all heads of a
      layer together, and each MLP. The mean is over all nodes and steps, for every edge alike, so that a node's own
      incoming edges get a zero from the runs in which its output is given.

    Both equal the EAP-IG repository's `get_scores_eap_ig` and `get_scores_ig_activations`, unlike steps included.
    Source: Hanna, Pezzelle and Belinkov 2024, arXiv 2403.17806.

    Args:
        steps: m, at least 1. "inputs" takes m + 1 forward and m backward passes, "activations" m for each node.
        model, clean, corrupted, metric, mask, by_position, max_bytes: as for `eap`; KL from the clean run is allowed.

    Raises:
        UsageError: naming the argument that is wrong.
        NotExpressible: for a model that cannot be written exactly as a Decoder.
    """
    known = {"inputs": paths.eap_ig_inputs, "activations": paths.eap_ig_activations}
    if variant not in known:
        raise UsageError(f"variant: {variant!r}: expected 'inputs' or 'activations'")
    if not isinstance(steps, int) or steps < 1:
        raise UsageError(f"steps: {steps!r}: expected a whole number of at least 1")

    def run(batch: Batch, out: Tensor, budget: int) -> paths.Scored:
        return known[variant](batch, out, budget, steps)

    with torch.inference_mode(False), torch.enable_grad():
        ask = request(model, clean, corrupted, metric, mask, max_bytes)
        return _edges(ask, by_position, f"EAP-IG ({variant}), {steps} steps", run)


def attribution_patching(
    model: Any,
    clean: Int[Tensor, "batch pos"],
    corrupted: Int[Tensor, "batch pos"],
    metric: Metric | UserMetric | Callable[[Tensor], Tensor],
    *,
    qk_fix: bool = False,
    grad_drop: bool = False,
    mask: Tensor | None = None,
    max_bytes: int | None = None,
) -> NodeScores:
    """Attribution patching: a first-order estimate of metric(node patched) - metric(clean) for every node and position.

    score = (node in the corrupted run - in the clean run) . d metric / d node, the gradient taken at the clean run.
    Nodes are the embedding, each head's output z, query, key and value (keys and values once per group of heads that
    share them), and each MLP's output. Source: Nanda 2022, "Attribution patching".

    Args:
        qk_fix: for queries and keys, recompute the softmax exactly with the patched query or key, and be linear only
            behind it: sum of (patched - clean attention weight) . d metric / d attention weight. Cures scores near 0 of
            saturated heads.
        grad_drop: the mean over layers of |score| with no gradient through that layer's attention and MLP, divided by
            n_layers - 1 because the node's own layer gives 0. Cures scores near 0 by cancellation; has no sign and
            costs one backward pass per layer. Both corrections together are AtP*: Kramar et al. 2024, arXiv
            2403.00745.
        model, clean, corrupted, metric, mask, max_bytes: as for `eap`.

    Raises:
        UsageError: naming the argument that is wrong, also grad_drop with a single layer.
        NotExpressible: for a model that cannot be written exactly as a Decoder.
    """
    with torch.inference_mode(False), torch.enable_grad():
        ask = request(model, clean, corrupted, metric, mask, max_bytes)
        refuse_divergence(ask.metric, "attribution_patching")
        n_layers = len(ask.decoder.layers)
        if grad_drop and n_layers < 2:
            raise UsageError("grad_drop: a model of one layer has no other layer to drop; leave it out")
        method = "attribution patching" + ", QK fix" * qk_fix + ", GradDrop" * grad_drop
        return _nodes(
            ask, method, [score_nodes(batch, qk_fix, grad_drop, ask.max_bytes // 2) for batch in batches(ask)]
        )


def _edges(
    ask: Request, by_position: bool, method: str, run: Callable[[Batch, Tensor, int], paths.Scored]
) -> EdgeScores:
    """Scores of all prompts, batch by batch, with what had no effect."""
    graph, (n_prompts, n_pos) = edge_graph(ask.decoder), ask.shape
    shape = (n_prompts, n_pos if by_position else 1, len(graph.senders), len(graph.receivers))
    scores = ask.decoder.W_E.new_zeros(shape)
    changed = torch.zeros(len(graph.senders), dtype=torch.bool)
    forwards = backwards = flops = 0
    for batch in batches(ask):
        out = scores[batch.start : batch.start + len(batch.clean)]
        done = run(batch, out, ask.max_bytes // 2)
        out *= graph.exists.to(out)
        unscored = (out == 0).flatten(0, 1).all(2).all(0).cpu()  # [sender]
        changed |= ~unscored
        if bool((unscored & ~changed).any()):
            changed |= changed_senders(ask.decoder, done.difference)
        forwards, backwards, flops = done.forwards, done.backwards, flops + done.flops
    if not bool(scores.isfinite().all()):
        raise UsageError(NOT_FINITE)
    scores = ask.in_columns(scores, 1) if by_position else scores[:, 0]
    work = Work(forwards, backwards, flops / plain_flops(ask.decoder, n_prompts, n_pos))
    return EdgeScores(scores, graph, method, (*same_prompts(ask), *silent_edges(graph, scores, changed)), work)


def changed_senders(decoder: Decoder, difference: Difference) -> Tensor:
    """Which senders write differently anywhere, [sender]."""
    changed = [bool(difference.embed.any())]
    for layer, z, mlp_out in zip(decoder.layers, difference.z, difference.mlp_out, strict=True):
        changed += [bool((z[:, :, head] @ w).any()) for head, w in enumerate(layer.attn.W_O)]
        changed += [] if mlp_out is None else [bool(mlp_out.any())]
    return torch.tensor(changed)


def same_prompts(ask: Request) -> list[NoEffect]:
    """Prompts whose clean and corrupted tokens agree."""
    same = (ask.prompts.first_difference == ask.prompts.lengths).nonzero()[:, 0].tolist()
    return [NoEffect(f"prompt {prompt}", "its clean and corrupted tokens are the same") for prompt in same]


def silent_edges(graph: EdgeGraph, scores: Tensor, changed: Tensor) -> list[NoEffect]:
    """Senders and receivers all of whose edges score exactly 0."""
    some = (scores != 0).flatten(0, -3).any(0).cpu()  # [sender receiver]
    found = [
        NoEffect(name, UNSEEN if changed[index] else UNCHANGED)
        for index, name in enumerate(graph.senders)
        if not (some[index].any() and changed[index])
    ]
    reached = (graph.exists & changed[:, None]).any(0)
    dead = reached & ~some.any(0)
    return found + [NoEffect(graph.receivers[index], UNREAD) for index in dead.nonzero()[:, 0].tolist()]


def _nodes(ask: Request, method: str, parts: list[ScoredNodes]) -> NodeScores:
    """Scores of all prompts from those of their batches, with what had no effect."""
    scores = {site: torch.cat([part.scores[site] for part in parts]) for site in parts[0].scores}
    if not all(bool(values.isfinite().all()) for values in scores.values()):
        raise UsageError(NOT_FINITE)
    names, silent = node_names(ask.decoder), same_prompts(ask)
    for site, values in scores.items():
        changed = torch.stack([part.changed[site] for part in parts]).any(0)
        some = (values != 0).any(0).any(-1).flatten().cpu()  # [node]
        for name, differs, scored in zip(names[site], changed.tolist(), some.tolist(), strict=True):
            if name and not scored:
                silent.append(NoEffect(name, UNSEEN if differs else UNCHANGED))
    work = Work(2, parts[0].backwards, sum(part.flops for part in parts) / plain_flops(ask.decoder, *ask.shape))
    placed = {site: ask.in_columns(values, values.dim() - 1) for site, values in scores.items()}
    return NodeScores(**placed, names=names, method=method, no_effect=tuple(silent), work=work)
