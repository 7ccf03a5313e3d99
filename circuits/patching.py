"""Exact activation patching: every (layer, head, position) patch of a model as differences from one shared base run.

Exact means the stated single-site intervention, to rounding. It says nothing of interactions between sites.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.engine.finish import Scores, is_read, metric_value
from circuits.engine.one_column import Attended, Queries
from circuits.engine.plan import (
    CACHE_ROWS,
    LARGEST_ROWS,
    Chunk,
    Plan,
    chunks_for,
    forward_flops,
    free_memory,
    row_bytes,
)
from circuits.engine.products import Precision, Products
from circuits.engine.prompts import Prompts, aligned
from circuits.engine.record import Record, record
from circuits.engine.rows import OneRow, Rows, Span
from circuits.engine.sites import SITES, Site, Wanted, joining, n_components, values
from circuits.engine.sweep import Branches, Joining, rows_to_read, sweep
from circuits.metrics import Metric, UserMetric, metric_rows
from circuits.metrics import Rows as MetricRows
from circuits.patch_result import REASONS, PatchResult
from interp.decoder import Decoder, decoder_of
from interp.errors import UsageError
from interp.model import Transformer
from interp.rng import generator

Direction = Literal["denoise", "noise"]
Ablation = Literal["none", "zero", "mean", "resample"]
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "tf32": torch.float32, "bf16": torch.float32}


@dataclass(frozen=True)
class Setting:
    """Everything that one call needs, checked."""

    decoder: Decoder
    prompts: Prompts
    base: Record
    source: list[Tensor]
    other: Record | None
    metric: Metric | UserMetric
    rows: MetricRows
    site: Site
    layers: tuple[int, ...]
    components: tuple[int, ...]
    positions: tuple[int, ...]
    columns: tuple[int, ...]
    mul: Products


@torch.no_grad()
def patch_heads(
    model: Transformer | Decoder | Any,
    *,
    clean: Int[Tensor, "batch pos"],
    metric: Metric | UserMetric | Callable[[Tensor], Tensor],
    corrupted: Int[Tensor, "batch pos"] | None = None,
    site: Site = "z",
    direction: Direction = "denoise",
    ablation: Ablation = "none",
    layers: Sequence[int] | None = None,
    components: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    mask: Tensor | None = None,
    precision: Precision = "fp32",
    backend: str = "auto",
    max_bytes: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> PatchResult:
    """What each single patch does to the metric: metric(patched run) - metric(base run).

    Args:
        model: our Transformer, a Decoder, or an outside model that an adapter can write as one.
        clean, corrupted: prompts that agree position by position; rows of unequal length with `mask`.
        metric: one of `circuits.metrics`, or a function of logits [batch, pos, d_vocab] that gives [batch].
        site: "z" (head outputs before W_O), "q", "k", "v", "resid_pre", "resid_mid", "resid_post", "attn_out",
            "mlp_out" or "mlp_post" (single neurons). For grouped queries k and v have one component per key-value head.
        direction: "denoise" puts clean values into the corrupted run, "noise" corrupted ones into the clean run.
        ablation: "none" patches between the two runs. The others act on the clean run: "zero"; "mean" over prompts and
            positions; "resample" takes the values of the corrupted prompts or, without any, of other clean prompts.
        layers, components, positions: which ones; None for all. Positions count from the first column of `clean`.
        mask: true where a token is real; padding on either side.
        precision: of the weight products of differences: "fp32", "fp64", or by name the coarser "tf32" and "bf16".
        max_bytes: memory that chunks may take; None for a quarter of what is free.
        seed: draws the partners of "resample" without corrupted prompts.
        progress: called with (patches done, patches in all) after each chunk; may raise to cancel.

    Raises:
        UsageError: naming the argument that is wrong.
    """
    started = time.perf_counter()
    setting = _setting(
        model, clean, corrupted, metric, site, direction, ablation, layers, components, positions, mask, precision, seed
    )
    plan = plan_of(setting, max_bytes)
    effect, reason = _run(setting, plan, progress)
    return _result(setting, plan, effect, reason, model, direction, ablation, precision, time.perf_counter() - started)


def _setting(
    model, clean, corrupted, metric, site, direction, ablation, layers, components, positions, mask, precision, seed
) -> Setting:
    if site not in SITES:
        raise UsageError(f"site: {site!r}: expected one of {', '.join(SITES)}")
    if precision not in DTYPES:
        raise UsageError(f"precision: {precision!r}: expected one of {', '.join(DTYPES)}")
    if direction not in ("denoise", "noise") or ablation not in ("none", "zero", "mean", "resample"):
        raise UsageError(f"direction: {direction!r}, ablation: {ablation!r}: see the docstring for the known ones")
    decoder = as_decoder(model).to(DTYPES[precision])
    if ablation == "none" and corrupted is None:
        raise UsageError("corrupted: patching between two runs needs corrupted prompts; or name an ablation")
    if ablation == "none" and direction == "denoise":
        prompts = aligned(corrupted, clean, mask, ("corrupted", "clean"), *sizes(decoder))
    else:
        source = corrupted if ablation in ("none", "resample") else None
        prompts = aligned(clean, source, mask, ("clean", "corrupted"), *sizes(decoder))
    base, other = both_runs(decoder, prompts)
    check_finite(decoder, base)
    if callable(metric) and not hasattr(metric, "positions"):
        metric = UserMetric(metric)
    rows = metric_rows(metric, prompts.lengths)
    if site == "resid_mid" and any(layer.parallel or layer.mlp is None for layer in decoder.layers):
        raise UsageError("site: resid_mid does not exist in a block without a stream between attention and MLP")
    if site in ("mlp_out", "mlp_post") and any(layer.mlp is None for layer in decoder.layers):
        raise UsageError(f"site: {site} does not exist in an attention-only model")
    columns = _chosen("positions", positions, clean.shape[1])
    return Setting(
        decoder=decoder,
        prompts=prompts,
        base=base,
        source=new_values(base, other, site, ablation, prompts, seed),
        other=other,
        metric=metric,
        rows=rows,
        site=site,
        layers=_chosen("layers", layers, len(decoder.layers)),
        components=_chosen("components", components, n_components(decoder, site)),
        positions=_shifted(columns, prompts),
        columns=columns,
        mul=Products(precision),
    )


def both_runs(decoder: Decoder, prompts: Prompts) -> tuple[Record, Record | None]:
    """Base and source run, recorded as one batch."""
    if prompts.source is None:
        return record(decoder, prompts.base), None
    n, both = len(prompts.base), record(decoder, torch.cat((prompts.base, prompts.source)))
    return both.rows(slice(0, n)), both.rows(slice(n, None))


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


def sizes(decoder: Decoder) -> tuple[int, int]:
    """Vocabulary and context length, as `aligned` wants them."""
    return decoder.W_E.shape[0], decoder.n_ctx


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


def new_values(
    base: Record, other: Record | None, site: Site, ablation: Ablation, prompts: Prompts, seed: int
) -> list[Tensor]:
    """What is put in at each layer, shaped like the site's own values."""
    if other is not None:
        return [values(run, site) for run in other.layers]
    old = [values(run, site) for run in base.layers]
    if ablation == "zero":
        return [torch.zeros_like(value) for value in old]
    place = torch.arange(prompts.base.shape[1], device=prompts.base.device)
    real = place < prompts.lengths[:, None]  # [batch pos]
    if ablation == "mean":
        return [value[real].mean(0).expand_as(value) for value in old]
    order = torch.randperm(len(real), generator=generator(seed, "resample")).to(prompts.base.device)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    if len(order) < 2 or bool((prompts.lengths != prompts.lengths[0]).any()):
        raise UsageError("corrupted: resampling among the clean prompts needs at least two, all of one length")
    return [value[partner] for value in old]


def _chosen(name: str, wanted: Sequence[int] | None, count: int) -> tuple[int, ...]:
    if wanted is None:
        return tuple(range(count))
    chosen = tuple(sorted({int(one) for one in wanted}))
    if any(one < 0 or one >= count for one in chosen):
        raise UsageError(f"{name}: {list(wanted)}: expected numbers from 0 to {count - 1}")
    return chosen


def _shifted(columns: tuple[int, ...], prompts: Prompts) -> tuple[int, ...]:
    """The places, counted from each prompt's first token, that the caller's columns are in any prompt."""
    shifts = set(prompts.shift.tolist())
    return tuple(sorted({column - shift for column in columns for shift in shifts if column >= shift}))


def plan_of(setting: Setting, max_bytes: int | None) -> Plan:
    """How the call will be cut into chunks, and what it will cost."""
    decoder, base = setting.decoder, setting.base.final
    width = base.element_size()
    budget = free_memory(base.device) // 4 if max_bytes is None else max_bytes
    per_row = row_bytes(decoder, width)
    most = CACHE_ROWS if base.device.type == "cpu" else LARGEST_ROWS
    max_rows = max(1, min(most, budget // per_row))
    reason = skip_reasons(setting)
    active = (reason == 0).any(2).any(1)  # [prompt pos]
    read, n_layers = is_read(setting.rows, *base.shape[:2]), len(decoder.layers)
    lasting = 1 if setting.site in ("k", "v") else 2
    chunks = chunks_for(
        active=active[:, list(setting.positions)],
        layers=setting.layers,
        n_components=len(setting.components),
        positions=setting.positions,
        stop=int(read.any(0).nonzero().max()) + 1,
        long_layers=sum(layer + lasting < n_layers for layer in setting.layers),
        out_rows=int(read.sum(1).max()),
        max_rows=max_rows,
    )
    patches = int((reason == 0).sum())
    naive = patches * forward_flops(decoder, base.shape[1])
    runs = 1 if setting.other is None else 2
    recorded = runs * base.numel() * width * (14 + 3 * 4) * n_layers
    return Plan(tuple(chunks), patches, max_rows, 0, max_rows * per_row + recorded, naive, budget)


def skip_reasons(setting: Setting) -> Int[Tensor, "prompt layer component pos"]:
    """Why a patch has exactly no effect and is not run: an index into REASONS, 0 for those that are."""
    prompts, n_layers = setting.prompts, len(setting.decoder.layers)
    n_prompts, n_pos = prompts.base.shape
    place = torch.arange(n_pos, device=prompts.base.device)
    read = is_read(setting.rows, n_prompts, n_pos)
    last_read = torch.where(read, place, -1).amax(1)
    reason = torch.zeros(n_prompts, n_layers, len(setting.components), n_pos, dtype=torch.int8, device=place.device)
    if setting.site not in ("k", "v", "resid_pre"):  # these reach other rows within their own block
        reason[:, -1] = torch.where(read, 0, REASONS.index("last layer, row not read"))[:, None]
    after = (place > last_read[:, None])[:, None, None]
    reason.masked_fill_(after, REASONS.index("after the metric"))
    if setting.other is not None:
        before = (place < prompts.first_difference[:, None])[:, None, None]
        reason.masked_fill_(before, REASONS.index("before the first difference"))
    reason.masked_fill_((place >= prompts.lengths[:, None])[:, None, None], REASONS.index("padding"))
    return reason


def _run(
    setting: Setting, plan: Plan, progress: Callable[[int, int], None] | None
) -> tuple[Float[Tensor, "prompt layer component pos"], Int[Tensor, "prompt layer component pos"]]:
    """Effects over all layers, components asked for and positions, and why those that did not run did not."""
    reason = skip_reasons(setting)
    slots = torch.arange(reason[0].numel(), device=reason.device).view(reason.shape[1:])
    scores = Scores(setting.decoder, setting.base, setting.metric, setting.rows, reason[0].numel())
    equal = torch.ones_like(reason[0].flatten(), dtype=torch.bool)
    keep_bytes = plan.budget // 4 if len(plan.chunks) > 2 else 0
    queries = Queries(setting.decoder.layers, setting.base, keep_bytes, setting.mul)
    done = 0
    for chunk in plan.chunks:
        run_chunk(setting, chunk, slots, scores, equal, queries)
        done += (
            len(chunk.prompts) * len(chunk.positions) * len(chunk.layers) * (chunk.components[1] - chunk.components[0])
        )
        if progress is not None:
            progress(done, plan.patches)
    effect = scores.effect.view(reason.shape)
    reason = torch.where((reason == 0) & equal.view(slots.shape), REASONS.index("no difference"), reason)
    return effect.masked_fill(reason != 0, 0), reason


def run_chunk(
    setting: Setting,
    chunk: Chunk,
    slots: Int[Tensor, "layer component pos"],
    scores: Scores,
    equal: Tensor,
    queries: Queries,
) -> None:
    """Carry the patches of one chunk to the metric; slots of branches that began are no longer `equal`."""
    device = setting.base.final.device
    prompts = torch.tensor(chunk.prompts, device=device)
    whole = len(chunk.prompts) == len(setting.base.final)
    base = setting.base if whole else setting.base.rows(prompts)
    source = setting.source if whole else [value[prompts] for value in setting.source]
    read = is_read(setting.rows, *setting.base.final.shape[:2])[prompts]
    start = chunk.positions[0]
    span = Span(start, int(read.any(0).nonzero().max()) + 1)
    out: Rows = rows_to_read(read, span)
    first, stop = chunk.components
    wanted = Wanted(
        site=setting.site,
        layers=chunk.layers,
        components=torch.tensor(setting.components[first:stop], device=device),
        positions=torch.tensor([p for p in chunk.positions if p < span.stop], device=device),
        slots=slots[:, first:stop],
    )

    def finish(branches: Branches, where: OneRow | Rows) -> None:
        equal[branches.slot] = False
        scores.add(branches, where, base, prompts, setting.mul)

    def state(number: int, rows: Rows) -> Attended:
        return queries.at(number, None if whole else prompts, base.layers[number], rows, span.stop)

    def begin(number: int) -> Joining:
        return joining(setting.decoder, base, source, wanted, number, span, state, setting.mul)

    sweep(setting.decoder, base, begin, span, out, finish, state, setting.mul)


def _result(
    setting: Setting,
    plan: Plan,
    effect: Tensor,
    reason: Tensor,
    model: Any,
    direction: Direction,
    ablation: Ablation,
    precision: Precision,
    seconds: float,
) -> PatchResult:
    """The result in the caller's columns, with the metric of the runs themselves."""
    base = metric_value(setting.decoder, setting.base, setting.base, setting.metric, setting.rows)
    other = None
    if setting.other is not None:
        other = metric_value(setting.decoder, setting.other, setting.base, setting.metric, setting.rows)
    runs = 2 if setting.other is not None else 1
    spent = setting.mul.flops + runs * len(base) * forward_flops(setting.decoder, setting.base.final.shape[1], False)
    shift = setting.prompts.shift
    n_pos = effect.shape[-1]
    column = (torch.arange(n_pos, device=shift.device) - shift[:, None]) % n_pos  # where the caller's column went
    index = column[:, None, None].expand_as(effect)
    picked, chosen = list(setting.layers), list(setting.columns)
    return PatchResult(
        effect=effect.gather(-1, index)[:, picked][..., chosen],
        reason=reason.gather(-1, index)[:, picked][..., chosen],
        site=setting.site,
        layers=setting.layers,
        components=setting.components,
        positions=setting.columns,
        base=base,
        source=other,
        direction=direction,
        ablation=ablation,
        precision=precision,
        backend="torch",
        plan=replace(plan, flops=spent),
        seconds=seconds,
        setting=setting,
        model=model,
    )
