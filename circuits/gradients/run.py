"""One forward pass that keeps what gradient scores need, with the metric's gradient at every place that reads."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from circuits.metrics import KL, Metric, Rows, UserMetric
from interp.decoder import ACTIVATIONS, MLP, Attention, Decoder, Layer, normed
from interp.errors import UsageError


@dataclass(frozen=True)
class LayerTrace:
    """What one block computed; q, k, v and z are None where the attention's output was given.

    In the last block all but x, k and v are computed only at the positions that the metric reads ("q_pos").
    """

    x: Float[Tensor, "batch pos d_model"]  # residual stream that ln1 reads
    q: Float[Tensor, "batch q_pos head d_head"] | None  # before rotary positions
    k: Float[Tensor, "batch pos kv_head d_head"] | None  # before rotary positions
    v: Float[Tensor, "batch pos kv_head d_head"] | None
    z: Float[Tensor, "batch q_pos head d_head"] | None
    attn_out: Float[Tensor, "batch q_pos d_model"]
    mlp_reads: Float[Tensor, "batch q_pos d_model"]  # residual stream as the MLP's norm reads it, a tensor of its own
    mlp_out: Float[Tensor, "batch q_pos d_model"] | None
    post: Float[Tensor, "batch q_pos d_model"]  # residual stream behind the block


@dataclass(frozen=True)
class Writes:
    """What the blocks of one run wrote, detached, and the residual stream behind them."""

    embed: Float[Tensor, "batch pos d_model"]
    z: tuple[Float[Tensor, "batch _ head d_head"], ...]
    attn_out: tuple[Float[Tensor, "batch _ d_model"], ...]
    mlp_out: tuple[Float[Tensor, "batch _ d_model"] | None, ...]
    final: Float[Tensor, "batch q_pos d_model"]


@dataclass(frozen=True)
class Given:
    """The output of one layer's whole attention or of its MLP, given instead of computed."""

    layer: int
    attn_out: Float[Tensor, "batch q_pos d_model"] | None = None
    mlp_out: Float[Tensor, "batch q_pos d_model"] | None = None


@dataclass(frozen=True)
class Batch:
    """Some of the prompts of a request, and the rows of them that the metric reads.

    `rows` counts prompts of the whole request, of which the first one here is `start`; `counts` are the rows of each
    of those. `at` are the positions that any row reads, None for all of them. Prompts begin at position 0; `shift`
    says how many columns of padding the caller had before them.
    """

    decoder: Decoder
    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]
    real: Bool[Tensor, "batch pos"] | None  # where a prompt has a token; None: everywhere
    metric: Metric | UserMetric
    rows: Rows
    counts: Int[Tensor, "prompt"]
    start: int
    shift: Int[Tensor, "batch"]
    at: Int[Tensor, "q_pos"] | None


def run_blocks(
    batch: Batch, x: Float[Tensor, "batch pos d_model"], first: int = 0, given: Given | None = None
) -> Iterator[LayerTrace]:
    """The blocks from `first` on, one by one, for the residual stream `x` that enters it."""
    layers = batch.decoder.layers
    for index in range(first, len(layers)):
        at = batch.at if index == len(layers) - 1 else None
        trace = run_block(layers[index], x, at, given if given is not None and given.layer == index else None)
        x = trace.post
        yield trace


def run_block(layer: Layer, x: Tensor, at: Tensor | None, given: Given | None) -> LayerTrace:
    """One block, at the positions `at` where stated."""
    y = normed(layer.ln1, x)
    q, k, v, z, attn_out = None, None, None, None, None
    if given is not None and given.attn_out is not None:
        attn_out = given.attn_out
    else:
        attn = layer.attn
        q, k, v = heads(taken(y, at), attn.W_Q, attn.b_Q), heads(y, attn.W_K, attn.b_K), heads(y, attn.W_V, attn.b_V)
        z = attend(attn, q, k, v, at)
        attn_out = linear(z.flatten(2), attn.W_O.flatten(0, 1), attn.b_O)  # [batch q_pos d_model]
    mid = taken(y if layer.adds_to_normed else x, at) + attn_out
    mlp_reads = taken(x, at) if layer.parallel else mid
    mlp_reads = mlp_reads.view_as(mlp_reads)
    mlp_out = None
    if given is not None and given.mlp_out is not None:
        mlp_out = given.mlp_out
    elif layer.mlp is not None:
        mlp_out = run_mlp(layer.mlp, normed(layer.ln2, mlp_reads))
    return LayerTrace(x, q, k, v, z, attn_out, mlp_reads, mlp_out, mid if mlp_out is None else mid + mlp_out)


def writes_of(embed: Tensor, traces: Iterable[LayerTrace]) -> Writes:
    """What a run wrote; everything else of its blocks is let go."""
    kept = [(trace.z, trace.attn_out, trace.mlp_out, trace.post) for trace in traces]
    z, attn_out, mlp_out, post = zip(*kept, strict=True)
    outs = tuple(None if x is None else x.detach() for x in mlp_out)
    return Writes(
        embed.detach(), tuple(x.detach() for x in z), tuple(x.detach() for x in attn_out), outs, post[-1].detach()
    )


def taken(x: Float[Tensor, "batch pos *rest"], at: Tensor | None) -> Float[Tensor, "batch q_pos *rest"]:
    """The positions `at` of x, or all of them."""
    return x if at is None else x.index_select(1, at)


def spread(x: Shaped[Tensor, "batch q_pos *rest"], at: Tensor | None, n_pos: int) -> Shaped[Tensor, "batch pos *rest"]:
    """x at the positions `at`, 0 elsewhere."""
    if at is None:
        return x
    return x.new_zeros(len(x), n_pos, *x.shape[2:]).index_copy_(1, at, x)


def heads(
    y: Float[Tensor, "batch pos d_model"], weight: Tensor, bias: Tensor | None
) -> Float[Tensor, "batch pos head d_head"]:
    """Queries, keys or values of every head, before rotary positions."""
    n_heads, d_model, d_head = weight.shape
    fused = weight.transpose(0, 1).reshape(d_model, n_heads * d_head)
    return linear(y, fused, None if bias is None else bias.flatten()).unflatten(-1, (n_heads, d_head))


def run_mlp(mlp: MLP, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    """The MLP's output for a normalised input."""
    inner, act = linear(x, mlp.W_in, mlp.b_in), ACTIVATIONS[mlp.activation]  # [batch pos d_mlp]
    post = act(inner) if mlp.W_gate is None else act(linear(x, mlp.W_gate, mlp.b_gate)) * inner
    return linear(post, mlp.W_out, mlp.b_out)


def linear(x: Float[Tensor, "batch pos n_in"], weight: Float[Tensor, "n_in n_out"], bias: Tensor | None) -> Tensor:
    """x W + b with the bias added inside the matrix product."""
    return F.linear(x, weight.mT, bias)


def turned(attn: Attention, q: Tensor, k: Tensor, at: Tensor | None) -> tuple[Tensor, Tensor]:
    """Queries (of the positions `at`) and keys after rotary positions."""
    if attn.rotary is None:
        return q, k
    position = torch.arange(k.shape[1], device=k.device)
    return attn.rotary(q, (position if at is None else at)[None]), attn.rotary(k, position[None])


def attend(
    attn: Attention, q: Tensor, k: Tensor, v: Tensor, at: Tensor | None
) -> Float[Tensor, "batch q_pos head d_head"]:
    """Causal attention of the queries at the positions `at` to all keys, by the fused kernel."""
    q, k = turned(attn, q, k, at)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [batch head pos d_head]
    if attn.group > 1:
        k, v = k.repeat_interleave(attn.group, 1), v.repeat_interleave(attn.group, 1)
    if at is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=attn.scale).transpose(1, 2)
    seen = torch.arange(k.shape[2], device=k.device) <= at[:, None]  # [q_pos k_pos]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=attn.scale).transpose(1, 2)


def logit_rows(batch: Batch, final: Float[Tensor, "batch q_pos d_model"]) -> Float[Tensor, "row d_vocab"]:
    """Logits at the rows that the metric reads."""
    pos = batch.rows.pos if batch.at is None else torch.searchsorted(batch.at, batch.rows.pos)
    index = (batch.rows.prompt - batch.start) * final.shape[1] + pos
    return batch.decoder.logits(final.flatten(0, 1).index_select(0, index))


def metric_total(
    batch: Batch, final: Float[Tensor, "batch q_pos d_model"], base: Float[Tensor, "row d_vocab"] | None
) -> Float[Tensor, ""]:
    """Sum over the prompts of the metric; `base` are the clean run's logits (its own, where None).

    Raises:
        UsageError: for a user function whose values are not one differentiable number per prompt.
    """
    if isinstance(batch.metric, UserMetric):
        return user_values(batch, final).sum()
    logits, rows = logit_rows(batch, final), batch.rows
    base = logits.detach() if base is None else base
    if isinstance(batch.metric, KL):  # the value of KL.of_logits in the form whose gradient cannot overflow
        values = (base.softmax(-1) * (base.log_softmax(-1) - logits.log_softmax(-1))).sum(-1)
    else:
        values = batch.metric.of_logits(logits, rows, base)
    return (values / batch.counts[rows.prompt]).sum()


def user_values(batch: Batch, final: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch"]:
    """A user metric's number for each prompt, from logits in the caller's columns."""
    logits = batch.decoder.logits(final)  # [batch pos d_vocab]
    if bool(batch.shift.any()):
        place = (torch.arange(final.shape[1], device=final.device) - batch.shift[:, None]) % final.shape[1]
        logits = logits.gather(1, place[..., None].expand_as(logits))
    values = batch.metric.fn(logits)
    if not isinstance(values, Tensor) or values.shape != (len(final),):
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise UsageError(
            f"metric: the function gave {got}: expected a tensor with one number per prompt [{len(final)}]"
        )
    if not values.requires_grad:
        raise UsageError("metric: the function's values do not depend differentiably on the logits, so no score exists")
    return values


def gradients(total: Tensor, tensors: Sequence[Tensor | None], keep_graph: bool = False) -> list[Tensor | None]:
    """d total / d tensor for each, None for None; zeros where the total does not depend on a tensor."""
    there = [x for x in tensors if x is not None]
    found = torch.autograd.grad(total, there, retain_graph=keep_graph, allow_unused=True)
    filled = iter([torch.zeros_like(x) if g is None else g for x, g in zip(there, found, strict=True)])
    return [None if x is None else next(filled) for x in tensors]


def require_finite(final: Float[Tensor, "batch q_pos d_model"], batch: Batch, name: str) -> None:
    """Raise UsageError if a run ended in numbers that are not finite."""
    total = final.detach().sum((1, 2))
    if not bool(total.sum().isfinite()):
        bad = ~total.isfinite()
        raise UsageError(
            f"model: the {name} run of prompt {batch.start + int(bad.nonzero()[0])} gives numbers that are not finite; "
            "look for weights that are not"
        )
