"""A request for gradient scores, checked and cut into batches of prompts that fit in memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.engine.plan import free_memory
from circuits.engine.prompts import Prompts, aligned
from circuits.engine.runs import as_decoder
from circuits.gradients.run import Batch
from circuits.metrics import KL, Accuracy, Metric, Rows, UserMetric, metric_rows
from interp.decoder import Decoder, Layer
from interp.errors import UsageError

LEAST_ROWS = 512  # with fewer rows at once, reading the weights costs more than the products
CACHED_BYTES = 2**24


@dataclass(frozen=True)
class Request:
    """What every gradient method is asked: a decoder, aligned prompts, a metric with its rows, a memory budget."""

    decoder: Decoder
    prompts: Prompts
    metric: Metric | UserMetric
    rows: Rows
    max_bytes: int

    @property
    def shape(self) -> tuple[int, int]:
        """Prompts and positions."""
        return tuple(self.prompts.base.shape)

    @property
    def real(self) -> Bool[Tensor, "batch pos"]:
        """Where an aligned prompt has a token."""
        place = torch.arange(self.shape[1], device=self.prompts.lengths.device)
        return place < self.prompts.lengths[:, None]

    def in_columns(self, x: Float[Tensor, "batch *axis"], dim: int) -> Float[Tensor, "batch *axis"]:
        """x with its axis of positions `dim` in the columns of the caller, whose prompts may begin with padding."""
        if not bool(self.prompts.shift.any()):
            return x
        n_pos = self.shape[1]
        place = (torch.arange(n_pos, device=x.device) - self.prompts.shift[:, None]) % n_pos  # [batch pos]
        index = place.view(len(x), *(n_pos if axis == dim else 1 for axis in range(1, x.dim())))
        return x.gather(dim, index.expand_as(x))


def request(
    model: Any,
    clean: Int[Tensor, "batch pos"],
    corrupted: Int[Tensor, "batch pos"],
    metric: Metric | UserMetric | Callable[[Tensor], Tensor],
    mask: Tensor | None,
    max_bytes: int | None,
) -> Request:
    """Check everything.

    Raises:
        UsageError: naming the argument that is wrong.
        NotExpressible: for a model that cannot be written exactly as a Decoder.
    """
    decoder = as_decoder(model)
    if decoder.W_E.dtype in (torch.float16, torch.bfloat16):
        decoder = decoder.to(torch.float32)
    prompts = aligned(clean, corrupted, mask, ("clean", "corrupted"), decoder.W_E.shape[0], decoder.n_ctx)
    if callable(metric) and not hasattr(metric, "positions"):
        metric = UserMetric(metric)
    if not isinstance(metric, UserMetric) and not hasattr(metric, "of_logits"):
        raise UsageError(
            f"metric: a {type(metric).__name__}: expected one of circuits.metrics, or a function of logits"
        )
    if isinstance(metric, Accuracy):
        raise UsageError("metric: Accuracy is a step whose gradient is zero everywhere: use LogitDiff or LogProb")
    if max_bytes is not None and max_bytes < 1:
        raise UsageError(f"max_bytes: {max_bytes}: expected at least 1, or None for a quarter of the free memory")
    budget = free_memory(decoder.W_E.device) // 4 if max_bytes is None else max_bytes
    return Request(decoder, prompts, metric, metric_rows(metric, prompts.lengths), budget)


def refuse_divergence(metric: Metric | UserMetric, method: str) -> None:
    """Raise UsageError for a divergence from the clean run, which is at its minimum where the gradient is taken."""
    if isinstance(metric, KL):
        raise UsageError(
            f"metric: KL from the clean run is smallest at the clean run, where {method} takes the gradient, so every "
            "score would be 0: use eap_ig, or LogitDiff or LogProb"
        )


def batches(ask: Request) -> Iterator[Batch]:
    """The prompts in pieces; all at once for a user metric, whose function wants the whole table."""
    n_prompts, n_pos = ask.shape
    per_row = kept_bytes(ask.decoder)
    rows = max(1, min(max(LEAST_ROWS, CACHED_BYTES // per_row), ask.max_bytes // (2 * per_row)))
    step = n_prompts if isinstance(ask.metric, UserMetric) else max(1, rows // n_pos)
    for start in range(0, n_prompts, step):
        yield batch_of(ask, start, min(start + step, n_prompts))


def batch_of(ask: Request, start: int, stop: int) -> Batch:
    """Prompts `start` to `stop` with the rows of them that the metric reads."""
    whole, part = ask.rows, slice(start, stop)
    here = (whole.prompt >= start) & (whole.prompt < stop)
    rows = Rows(whole.prompt[here], whole.pos[here], whole.column[here], whole.n_prompts)
    at = rows.pos.unique()
    few = 2 * len(at) <= ask.shape[1] and not isinstance(ask.metric, UserMetric)
    return Batch(
        decoder=ask.decoder,
        clean=ask.prompts.base[part],
        corrupted=ask.prompts.source[part],
        real=None if bool(ask.prompts.mask.all()) else ask.real[part],
        metric=ask.metric,
        rows=rows,
        counts=whole.counts,
        start=start,
        shift=ask.prompts.shift[part],
        at=at if few else None,
    )


def kept_bytes(decoder: Decoder) -> int:
    """Bytes of one row that a forward pass with gradients keeps."""

    def numbers(layer: Layer) -> int:
        attn, mlp = layer.attn, layer.mlp
        d_mlp = 0 if mlp is None else mlp.W_in.shape[1] * (1 if mlp.W_gate is None else 4)
        return 6 * decoder.d_model + 2 * attn.W_Q.shape[2] * (2 * len(attn.W_Q) + 2 * len(attn.W_K)) + d_mlp

    return sum(numbers(layer) for layer in decoder.layers) * decoder.W_E.element_size()
