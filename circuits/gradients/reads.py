"""Gradients of the metric at everything that reads the residual stream, as one backward pass gives them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.gradients.run import Batch, LayerTrace, gradients, spread
from interp.decoder import Layer, Norm


@dataclass(frozen=True)
class SlotReads:
    """Gradients at what all queries, all keys or all values of a layer read, summed over the steps of a path.

    With y = x_hat w + b, x_hat = (x - mean) / s, and G the gradient at a head's q, k or v, the gradient at the
    residual stream x is (F G - x_hat (x_hat . F G) / d_model) / s, where F is w W, centred over d_model for a
    LayerNorm. Kept are G / s and, for each step, the coefficient (x_hat . F G) / (s d_model) that goes with its x_hat.
    """

    scaled: Float[Tensor, "batch pos head d_head"]
    radial: tuple[Float[Tensor, "batch pos head"], ...]


@dataclass(frozen=True)
class LayerReads:
    """Gradients at everything that reads in one block; `x_hat` is the normalised stream of each step.

    `mlp` is the gradient at the residual stream that the MLP's norm reads.
    """

    q: SlotReads
    k: SlotReads
    v: SlotReads
    x_hat: tuple[Float[Tensor, "batch pos d_model"], ...]
    mlp: Float[Tensor, "batch pos d_model"] | None


@dataclass(frozen=True)
class Reads:
    """Gradients at everything that reads; `x` are the residual streams before each block, kept for one step only."""

    layers: tuple[LayerReads, ...]
    final: Float[Tensor, "batch pos d_model"]
    x: tuple[Float[Tensor, "batch pos d_model"], ...] | None


def read_gradients(batch: Batch, total: Tensor, traces: Sequence[LayerTrace], keep_graph: bool = False) -> Reads:
    """One backward pass from the metric to everything that reads, with the norms' exact Jacobians at this run."""
    wanted = [tensor for trace in traces for tensor in (trace.q, trace.k, trace.v, trace.mlp_reads)]
    found = gradients(total, [*wanted, traces[-1].post], keep_graph)
    n_pos = traces[0].x.shape[1]
    reads = []
    for index, (layer, trace) in enumerate(zip(batch.decoder.layers, traces, strict=True)):
        at = batch.at if index == len(traces) - 1 else None
        q, k, v, mlp = found[4 * index : 4 * index + 4]
        mlp = None if layer.mlp is None else spread(mlp, at, n_pos)
        if q is None:
            reads.append(unread(layer, trace, mlp))
        else:
            values = (spread(trace.q.detach(), at, n_pos), trace.k.detach(), trace.v.detach())
            reads.append(layer_reads(layer, trace.x.detach(), values, (spread(q, at, n_pos), k, v), mlp))
    return Reads(tuple(reads), spread(found[-1], batch.at, n_pos), tuple(trace.x.detach() for trace in traces))


def layer_reads(
    layer: Layer, x: Tensor, values: tuple[Tensor, ...], grads: tuple[Tensor, ...], mlp: Tensor | None
) -> LayerReads:
    """`LayerReads` of one step from q, k, v and the gradients there."""
    attn, norm = layer.attn, layer.ln1
    if norm is None:
        return LayerReads(*(SlotReads(grad, ()) for grad in grads), (), mlp)
    x_hat, inverse = standardised(norm, x)
    projections = ((attn.W_Q, attn.b_Q), (attn.W_K, attn.b_K), (attn.W_V, attn.b_V))
    slots = []
    for value, grad, (weight, bias) in zip(values, grads, projections, strict=True):
        constant = constant_part(norm, weight, bias)  # [head d_head]
        scaled = grad * inverse[..., None]
        moving = value * scaled if constant is None else (value - constant).mul_(scaled)  # x_hat F, times G / s
        slots.append(SlotReads(scaled, (moving.sum(-1) / x.shape[-1],)))
    return LayerReads(*slots, (x_hat,), mlp)


def unread(layer: Layer, trace: LayerTrace, mlp: Tensor | None) -> LayerReads:
    """Zero gradients at q, k and v: the attention's output was given."""
    shape = trace.x.shape[:2]
    q, k, v = (trace.x.new_zeros(*shape, len(w), w.shape[-1]) for w in (layer.attn.W_Q, layer.attn.W_K, layer.attn.W_V))
    return LayerReads(SlotReads(q, ()), SlotReads(k, ()), SlotReads(v, ()), (), mlp)


def add_reads(total: Reads, step: Reads) -> Reads:
    """`total` with one more step in it; the memory of `total` is used again."""

    def slots(a: SlotReads, b: SlotReads) -> SlotReads:
        return SlotReads(a.scaled.add_(b.scaled), a.radial + b.radial)

    layers = tuple(
        LayerReads(
            q=slots(a.q, b.q),
            k=slots(a.k, b.k),
            v=slots(a.v, b.v),
            x_hat=a.x_hat + b.x_hat,
            mlp=None if a.mlp is None else a.mlp.add_(b.mlp),
        )
        for a, b in zip(total.layers, step.layers, strict=True)
    )
    return Reads(layers, total.final.add_(step.final), None)


def constant_part(norm: Norm, weight: Tensor, bias: Tensor | None) -> Float[Tensor, "head d_head"] | None:
    """The part of q, k or v that does not depend on the residual stream: from the biases of norm and projection."""
    if norm.b is None:
        return bias
    of_norm = torch.matmul(norm.b, weight)  # [head d_head]
    return of_norm if bias is None else of_norm + bias


def standardised(norm: Norm, x: Float[Tensor, "*row d_model"]) -> tuple[Float[Tensor, "*row d_model"], Tensor]:
    """x_hat, what the norm multiplies by w, and 1 / s [*row 1]."""
    if norm.centred:
        x_hat, _, inverse = torch.native_layer_norm(x, x.shape[-1:], None, None, norm.eps)
        return x_hat, inverse
    inverse = (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    return x * inverse, inverse


def pushed_forward(norm: Norm | None, x: Tensor, change: Float[Tensor, "*row d_model"]) -> Tensor:
    """Jacobian of the norm at x, times a change of x."""
    if norm is None:
        return change
    x_hat, inverse = standardised(norm, x)
    if norm.centred:
        change = change - change.mean(-1, keepdim=True)
    y = (change - x_hat * (x_hat * change).mean(-1, keepdim=True)) * inverse
    return y if norm.w is None else y * norm.w


def folded(norm: Norm | None, weight: Float[Tensor, "head d_model d_head"]) -> Float[Tensor, "head d_model d_head"]:
    """F: the projection with the norm's weight and centring moved into it."""
    if norm is not None and norm.w is not None:
        weight = weight * norm.w[:, None]
    if norm is not None and norm.centred:
        weight = weight - weight.mean(1, keepdim=True)
    return weight
