"""The two runs of a patching call, checked and recorded: what is patched into, and what the new values are."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.engine.finish import decoder_logits, is_read, user_value
from circuits.engine.plan import forward_flops
from circuits.engine.products import Backend, Precision, Products
from circuits.engine.prompts import Prompts, aligned
from circuits.engine.record import LayerRecord, Record, record
from circuits.metrics import Metric, UserMetric, metric_rows
from circuits.metrics import Rows as MetricRows
from interp.decoder import Decoder, decoder_of, forward
from interp.errors import UsageError
from interp.model import Transformer
from interp.rng import generator

Direction = Literal["denoise", "noise"]
Ablation = Literal["none", "zero", "mean", "resample"]
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "tf32": torch.float32, "bf16": torch.float32}


class Options(TypedDict, total=False):
    """What every patching call takes besides model, prompts and metric; the defaults are those of `Given`.

    Attributes:
        direction: "denoise" puts clean values into the corrupted run, "noise" corrupted ones into the clean run.
        ablation: "none" patches between the two runs. The others act on the clean run: "zero"; "mean" over prompts and
            positions; "resample" takes the values of the corrupted prompts or, without any, of other clean prompts.
        mask: true where a token is real, [batch, pos]; padding on either side.
        precision: of the weight products of differences: "fp32", "fp64", or by name the coarser "tf32" and "bf16".
        backend: "auto" takes the tested kernel on a GPU and torch elsewhere; "torch" and "triton" demand one. The
            result says which ran.
        max_bytes: memory that chunks may take; None for a quarter of what is free.
        seed: draws the partners of "resample" without corrupted prompts.
        progress: called with (chunks done, chunks in all) after each chunk; may raise to cancel.
    """

    direction: Direction
    ablation: Ablation
    mask: Bool[Tensor, "batch pos"] | None
    precision: Precision
    backend: Backend
    max_bytes: int | None
    seed: int
    progress: Callable[[int, int], None] | None


@dataclass(frozen=True)
class Given:
    """`Options` with every default filled in.

    Raises:
        UsageError: naming the option that has an unknown value.
    """

    direction: Direction = "denoise"
    ablation: Ablation = "none"
    mask: Tensor | None = None
    precision: Precision = "fp32"
    backend: Backend = "auto"
    max_bytes: int | None = None
    seed: int = 0
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        for name, known in KNOWN.items():
            if getattr(self, name) not in known:
                raise UsageError(f"{name}: {getattr(self, name)!r}: expected one of {', '.join(known)}")

    @property
    def into_corrupted(self) -> bool:
        """Whether the corrupted run is the one that is patched into."""
        return self.ablation == "none" and self.direction == "denoise"


KNOWN = {
    "direction": ("denoise", "noise"),
    "ablation": ("none", "zero", "mean", "resample"),
    "precision": tuple(DTYPES),
    "backend": ("auto", "torch", "triton"),
}


@dataclass(frozen=True)
class Runs:
    """Everything that a call computes with.

    Attributes:
        base: the run that is patched into.
        other: the run that is patched from; None for ablations without one.
        own: the decoder in the weights' own format, where that has 16 bits.
        columns: places whose outputs were recorded in the last block; None for all.
    """

    model: Any
    decoder: Decoder
    prompts: Prompts
    base: Record
    other: Record | None
    metric: Metric | UserMetric
    rows: MetricRows
    given: Given
    mul: Products
    own: Decoder | None = None
    columns: Int[Tensor, "row"] | None = None

    @property
    def recording_flops(self) -> int:
        """Work of the recorded runs, 2 per multiply-add, without logits."""
        (n_prompts, n_pos), rows = self.base.final.shape[:2], None if self.columns is None else len(self.columns)
        return (1 if self.other is None else 2) * n_prompts * forward_flops(self.decoder, n_pos, False, rows)

    @property
    def drift(self) -> Float[Tensor, "prompt"] | None:
        """Metric of the base run minus what it is when computed in the weights' own 16-bit format; None for others."""
        if self.own is None:
            return None
        own = forward(self.own, self.prompts.base).to(self.base.final)
        if isinstance(self.metric, UserMetric):
            return self.values[0] - self.metric.fn(own)
        at = (self.rows.prompt, self.rows.pos)
        base = decoder_logits(self.decoder, self.base)[at]
        of_own = self.metric.of_logits(own[at], self.rows, base)
        return self.rows.mean(self.metric.of_logits(base, self.rows, base) - of_own)

    @cached_property
    def read(self) -> Bool[Tensor, "prompt pos"]:
        """Positions that the metric reads."""
        return is_read(self.rows, *self.base.final.shape[:2])

    @property
    def values(self) -> tuple[Float[Tensor, "prompt"], Float[Tensor, "prompt"] | None]:
        """The metric of the base run and of the other one."""
        if isinstance(self.metric, UserMetric):
            runs = (self.base, self.other)
            found = [run and user_value(self.metric, decoder_logits(self.decoder, run)) for run in runs]
            return found[0], found[1]
        at = (self.rows.prompt, self.rows.pos)
        if hasattr(self.metric, "directions"):
            return self._by_directions(at)
        finals = [run.final[at] for run in (self.base, self.other) if run is not None]
        logits = self.decoder.logits(torch.stack(finals))  # [run row d_vocab]
        found = [self.rows.mean(self.metric.of_logits(one, self.rows, logits[0])) for one in logits]
        return found[0], found[1] if len(found) > 1 else None

    def _by_directions(self, at: tuple[Tensor, Tensor]) -> tuple[Float[Tensor, "prompt"], Tensor | None]:
        """The same for a metric that is linear after the final norm, without the logits of other tokens."""
        decoder, metric = self.decoder, self.metric
        directions = metric.directions(decoder.W_U, self.rows)  # [row d_model]
        bias = 0 if decoder.b_U is None else metric.directions(decoder.b_U[None], self.rows)[:, 0]
        runs = (self.base, self.other)
        found = [run and self.rows.mean((run.normed_final[at] * directions).sum(-1) + bias) for run in runs]
        return found[0], found[1]


def base_and_source(clean: Tensor, corrupted: Tensor | None, given: Given, d_vocab: int, n_ctx: int) -> Prompts:
    """The prompts as base and source of the patches.

    Raises:
        UsageError: for prompts that are missing or do not fit.
    """
    if given.ablation == "none" and corrupted is None:
        raise UsageError("corrupted: patching between two runs needs corrupted prompts; or name an ablation")
    if given.into_corrupted:
        return aligned(corrupted, clean, given.mask, ("corrupted", "clean"), d_vocab, n_ctx)
    source = corrupted if given.ablation in ("none", "resample") else None
    return aligned(clean, source, given.mask, ("clean", "corrupted"), d_vocab, n_ctx)


def as_metric(metric: Metric | UserMetric | Callable[[Tensor], Tensor]) -> Metric | UserMetric:
    """A plain function of logits as a metric."""
    return UserMetric(metric) if callable(metric) and not hasattr(metric, "positions") else metric


def runs_for(
    model: Any,
    decoder: Decoder,
    clean: Tensor,
    corrupted: Tensor | None,
    metric: Metric | UserMetric | Callable[[Tensor], Tensor],
    given: Given,
    trimmed: bool = False,
) -> Runs:
    """Check the arguments and record the runs.

    Args:
        trimmed: leave out of the last block what the metric does not read, where that changes no patch.

    Raises:
        UsageError: naming the argument that is wrong.
    """
    own = decoder if decoder.W_E.dtype in (torch.bfloat16, torch.float16) else None
    decoder = in_dtype(decoder, DTYPES[given.precision])
    prompts = base_and_source(clean, corrupted, given, decoder.W_E.shape[0], decoder.n_ctx)
    named = as_metric(metric)
    rows, mul = metric_rows(named, prompts.lengths), Products(given.precision, given.backend)
    averaged = given.ablation in ("mean", "resample") and prompts.source is None  # over rows that nobody reads
    columns = None if not trimmed or averaged or isinstance(named, UserMetric) else rows.pos.unique()
    columns = None if columns is None or len(columns) == prompts.base.shape[1] else columns
    base, other = both_runs(decoder, prompts, columns, mul)
    check_finite(decoder, base)
    return Runs(model, decoder, prompts, base, other, named, rows, given, mul, own, columns)


def in_dtype(decoder: Decoder, dtype: torch.dtype) -> Decoder:
    """The decoder with every tensor in a dtype; the same object where that is so already."""
    weights = [value for _, value in named_weights(decoder)]
    weights += [layer.attn.rotary.speed for layer in decoder.layers if layer.attn.rotary is not None]
    return decoder if all(value.dtype == dtype for value in weights) else decoder.to(dtype)


def as_decoder(model: Any) -> Decoder:
    """The model's weights and formulas.

    Raises:
        NotExpressible: for a model that cannot be written exactly as a Decoder.
    """
    if isinstance(model, Decoder):
        return model
    if isinstance(model, Transformer):
        return decoder_of(model)
    from interp.adapters.decoders import decoder_for

    return decoder_for(model)


def both_runs(
    decoder: Decoder, prompts: Prompts, read: Int[Tensor, "row"] | None, mul: Products
) -> tuple[Record, Record | None]:
    """Base and source run, recorded as one batch; `read` as in `record`."""
    if prompts.source is None:
        return record(decoder, prompts.base, read, mul), None
    both = torch.cat((prompts.base, prompts.source))
    return halves(record(decoder, both, read, mul), len(prompts.base))


def halves(both: Record, n: int) -> tuple[Record, Record]:
    """The first n prompts of a run, and the others; nothing is copied."""
    layers = []
    for layer in both.layers:
        parts = {name: (None, None) if value is None else value.split(n) for name, value in vars(layer).items()}
        layers.append(tuple(LayerRecord(**{name: part[i] for name, part in parts.items()}) for i in (0, 1)))
    final, normed_final = both.final.split(n), both.normed_final.split(n)
    runs = (Record(tuple(layer[i] for layer in layers), final[i], normed_final[i]) for i in (0, 1))
    return next(runs), next(runs)


def check_finite(decoder: Decoder, run: Record) -> None:
    """Raise UsageError if a run gave NaN or infinity, naming the first weights that are to blame."""
    if bool(run.normed_final.isfinite().all()):
        return
    for name, value in named_weights(decoder):
        if not bool(value.isfinite().all()):
            raise UsageError(f"model: {name} has values that are not finite")
    raise UsageError("model: the weights are finite, but the residual stream overflows; try precision='fp64'")


def named_weights(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the decoder with a name for messages."""
    parts = {"": decoder, "ln_embed ": decoder.ln_embed, "ln_final ": decoder.ln_final}
    for number, layer in enumerate(decoder.layers):
        parts |= {f"blocks.{number} {name} ": getattr(layer, name) for name in ("ln1", "attn", "ln2", "mlp")}
    for prefix, part in parts.items():
        for name, value in vars(part).items() if part is not None else ():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value


def new_values(runs: Runs, read: Callable[[LayerRecord], Tensor]) -> list[Tensor]:
    """What is put in at each layer, for the activation that `read` takes from a recorded block."""
    if runs.other is not None:
        return [read(run) for run in runs.other.layers]
    return [replaced(runs, read(run)) for run in runs.base.layers]


def replaced(runs: Runs, old: Float[Tensor, "batch pos *width"]) -> Float[Tensor, "batch pos *width"]:
    """The values of the clean run after the call's ablation."""
    return replaced_values(old, runs.given.ablation, runs.prompts.lengths, runs.given.seed)


def replaced_values(
    old: Float[Tensor, "batch pos *width"], ablation: Ablation, lengths: Int[Tensor, "batch"], seed: int
) -> Float[Tensor, "batch pos *width"]:
    """Zeros, the mean over prompts and positions, or another prompt's values.

    Raises:
        UsageError: for resampling among prompts that are too few or of several lengths.
    """
    if ablation == "zero":
        return torch.zeros_like(old)
    if ablation == "mean":
        place = torch.arange(old.shape[1], device=old.device)
        return old[place < lengths[:, None]].mean(0).expand_as(old)
    if len(old) < 2 or bool((lengths != lengths[0]).any()):
        raise UsageError("corrupted: resampling among the clean prompts needs at least two, all of one length")
    order = torch.randperm(len(old), generator=generator(seed, "resample")).to(old.device)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return old[partner]


def ablated(runs: Runs) -> Record:
    """The base run with every activation replaced as the ablation says."""

    def layer(run: LayerRecord) -> LayerRecord:
        return LayerRecord(**{k: None if v is None else replaced(runs, v) for k, v in vars(run).items()})

    return replace(runs.base, layers=tuple(layer(run) for run in runs.base.layers))
