"""Exact activation patching: every (layer, head, position) patch of a model as differences from one shared base run.

Exact means the stated single-site intervention, to rounding. It says nothing of interactions between sites.
"""

import time
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.engine.bookkeeping import ordinary, without_autograd
from circuits.engine.cost import SPREADING, Single, chunk_work, states_flops
from circuits.engine.finish import Scores
from circuits.engine.one_column import Queries
from circuits.engine.plan import (
    Chunk,
    Plan,
    Room,
    chunks_for,
    forward_flops,
    positions_together,
    product_speed,
    recorded_bytes,
)
from circuits.engine.replay import CudaGraph, Graph, Replays, why_no_graph
from circuits.engine.rows import OneRow, Rows, Span
from circuits.engine.runs import Given, Options, Runs, as_decoder, new_values, runs_for
from circuits.engine.shapes import shape_of
from circuits.engine.sites import BY_COMPONENT, SITES, Site, Wanted, joining, n_components, numbers, values
from circuits.engine.starts import Starts
from circuits.engine.sweep import Branches, Joining, rows_to_read, sweep
from circuits.metrics import Metric, UserMetric
from circuits.patch_by_forwards import patch_by_forwards
from circuits.patch_result import REASONS, PatchResult
from interp.decoder import Decoder
from interp.errors import NotExpressible, UsageError
from interp.model import Transformer
from kernels.one_column import State


@dataclass(frozen=True)
class Patches:
    """The patches of one call, checked.

    Attributes:
        source: new values by layer.
        positions: places counted from each prompt's first token; `columns` are the caller's.
    """

    runs: Runs
    site: Site
    source: list[Tensor]
    layers: tuple[int, ...]
    components: tuple[int, ...]
    positions: tuple[int, ...]
    columns: tuple[int, ...]


@torch.no_grad()
def patch_heads(
    model: Transformer | Decoder | Any,
    *,
    clean: Int[Tensor, "batch pos"],
    metric: Metric | UserMetric | Callable[[Tensor], Tensor],
    corrupted: Int[Tensor, "batch pos"] | None = None,
    site: Site = "z",
    layers: Sequence[int] | None = None,
    components: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    **options: Unpack[Options],
) -> PatchResult:
    """What each single patch does to the metric: metric(patched run) - metric(base run).

    Args:
        model: our Transformer, a Decoder, or a TransformerBridge. A bridge that cannot be written exactly as a Decoder
            is patched by full forwards, and a warning says why.
        clean, corrupted: prompts that agree position by position; rows of unequal length with `mask`.
        metric: one of `circuits.metrics`, or a function of logits [batch, pos, d_vocab] that gives [batch].
        site: "z" (head outputs before W_O), "q", "k", "v", "resid_pre", "resid_mid", "resid_post", "attn_out",
            "mlp_out" or "mlp_post" (single neurons). For grouped queries k and v have one component per key-value head.
        layers, components, positions: which ones; None for all. Positions count from the first column of `clean`.
        options: direction, ablation, mask, precision, backend, max_bytes, seed and progress; see `Options`.

    Raises:
        UsageError: naming the argument that is wrong.
    """
    started = time.perf_counter()
    given = Given(**options)
    chosen = {"layers": layers, "components": components, "positions": positions}
    try:
        decoder = as_decoder(model)
    except NotExpressible as reason:
        warnings.warn(f"patching by full forwards, which is slower: {reason}", stacklevel=2)
        return patch_by_forwards(model, clean, corrupted, metric, site, chosen, given)
    with without_autograd(metric):
        runs = runs_for(model, decoder, clean, corrupted, metric, given, trimmed=True)
        result = patch_site(runs, site, chosen, started)
    return ordinary(result)


def patch_site(runs: Runs, site: Site, chosen: Mapping[str, Sequence[int] | None], started: float) -> PatchResult:
    """The patches of one site between two recorded runs.

    Args:
        chosen: layers, components and positions; None for all.
        started: when the call began, by `time.perf_counter`.
    """
    patches = patches_of(runs, site, **chosen)
    reason = skip_reasons(patches)
    plan = plan_of(patches, reason, runs.given.max_bytes)
    effect, reason, graph = run_plan(patches, plan, reason, runs.given.progress)
    return result_of(patches, plan, effect, reason, graph, time.perf_counter() - started)


@torch.no_grad()
def plan_heads(
    model: Transformer | Decoder | Any,
    *,
    clean: Int[Tensor, "batch pos"],
    metric: Metric | UserMetric | Callable[[Tensor], Tensor],
    corrupted: Int[Tensor, "batch pos"] | None = None,
    site: Site = "z",
    layers: Sequence[int] | None = None,
    components: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    **options: Unpack[Options],
) -> Plan:
    """What `patch_heads` with these arguments would cost: chunks, operations, memory and seconds; nothing is patched.

    The two runs are recorded, so that their memory is real. The seconds assume the speed that one large product has
    now, which small models do not reach.

    Raises:
        UsageError: naming the argument that is wrong.
        NotExpressible: for a model that would be patched by full forwards.
    """
    given = Given(**options)
    runs = runs_for(model, as_decoder(model), clean, corrupted, metric, given, trimmed=True)
    patches = patches_of(runs, site, layers, components, positions)
    plan = plan_of(patches, skip_reasons(patches), given.max_bytes)
    return replace(plan, seconds=plan.flops / product_speed(runs.decoder, plan.rows))


def patches_of(
    runs: Runs,
    site: Site,
    layers: Sequence[int] | None,
    components: Sequence[int] | None,
    positions: Sequence[int] | None,
) -> Patches:
    """Which patches are asked for.

    Raises:
        UsageError: for a site that the model does not have, or numbers that it does not have.
    """
    check_site(runs.decoder, site)
    decoder = runs.decoder
    columns = numbers("positions", positions, runs.base.final.shape[1])
    shifts = set(runs.prompts.shift.tolist())
    return Patches(
        runs=runs,
        site=site,
        source=new_values(runs, lambda run: values(run, site)),
        layers=numbers("layers", layers, len(decoder.layers)),
        components=numbers("components", components, n_components(decoder, site)),
        positions=tuple(sorted({column - shift for column in columns for shift in shifts if column >= shift})),
        columns=columns,
    )


def check_site(decoder: Decoder, site: str) -> None:
    """Raise UsageError for a site that is unknown, or that the model does not have."""
    if site not in SITES:
        raise UsageError(f"site: {site!r}: expected one of {', '.join(SITES)}")
    if site == "resid_mid" and any(layer.parallel or layer.mlp is None for layer in decoder.layers):
        raise UsageError("site: resid_mid does not exist in a block without a stream between attention and MLP")
    if site in ("mlp_out", "mlp_post") and any(layer.mlp is None for layer in decoder.layers):
        raise UsageError(f"site: {site} does not exist in an attention-only model")


def plan_of(patches: Patches, reason: Int[Tensor, "prompt layer component pos"], max_bytes: int | None) -> Plan:
    """How the call will be cut into chunks, and what it will cost; `reason` is that of `skip_reasons`."""
    runs, base = patches.runs, patches.runs.base.final
    read, n_layers = runs.read, len(runs.decoder.layers)
    room = Room.of(runs.decoder, base, max_bytes)
    active = (reason == 0).flatten(1, 2).any(1)  # [prompt pos]
    lasting = 1 if patches.site in ("k", "v") else 2
    whole = int(read.all())  # the last layer carries every row, too
    carried = sum(max(0, n_layers - lasting - layer + whole) for layer in patches.layers)
    prompts = len(base) * len(patches.components)
    chunks = chunks_for(
        active=active[:, list(patches.positions)],
        layers=patches.layers,
        n_components=len(patches.components),
        positions=patches.positions,
        stop=int(read.any(0).nonzero().max()) + 1,
        long_layers=sum(layer + lasting < n_layers for layer in patches.layers),
        out_rows=int(read.sum(1).max()),
        max_rows=room.rows,
        most_positions=positions_together(runs.decoder, carried * prompts, base.device),
    )
    count = int((reason == 0).sum())
    recorded = recorded_bytes(base, 1 if runs.other is None else 2, n_layers)
    return Plan(
        chunks=tuple(chunks),
        patches=count,
        rows=room.rows,
        flops=predicted(patches, chunks),
        bytes=room.rows * room.per_row + recorded,
        naive_flops=count * forward_flops(runs.decoder, base.shape[1]),
        budget=room.budget,
    )


def predicted(patches: Patches, chunks: Sequence[Chunk]) -> int:
    """Floating-point operations of both runs and of all chunks, as if every patch changed something."""
    runs, decoder = patches.runs, patches.runs.decoder
    n_prompts, n_pos = runs.base.final.shape[:2]
    several, used, total = len(chunks) > 2, set(), runs.recording_flops
    table = runs.read.tolist()
    for chunk in chunks:
        read = [table[prompt] for prompt in chunk.prompts]
        shape = shape_of(runs, read, chunk.positions[0], several)
        positions = [p for p in chunk.positions if p < shape.stop]
        here = Single.at(positions, [any(column) for column in zip(*read, strict=True)])
        components = chunk.components[1] - chunk.components[0]
        work = chunk_work(decoder, patches.site, shape, chunk.layers, components, here)
        total, used = total + work.flops, used | work.states
    return total + states_flops(decoder, n_prompts, n_pos, len(used))


def skip_reasons(patches: Patches) -> Int[Tensor, "prompt layer component pos"]:
    """Why a patch has exactly no effect and is not run: an index into REASONS, 0 for those that are."""
    runs, prompts = patches.runs, patches.runs.prompts
    n_prompts, n_pos = prompts.base.shape
    place, read = torch.arange(n_pos, device=prompts.base.device), runs.read
    last_read = torch.where(read, place, -1).amax(1)
    shape = (n_prompts, len(runs.decoder.layers), len(patches.components), n_pos)
    reason = torch.zeros(shape, dtype=torch.int8, device=place.device)
    if patches.site not in SPREADING:
        reason[:, -1] = torch.where(read, 0, REASONS.index("last layer, row not read"))[:, None]
    after = (place > last_read[:, None])[:, None, None]
    reason.masked_fill_(after, REASONS.index("after the metric"))
    if runs.other is not None:
        before = (place < prompts.first_difference[:, None])[:, None, None]
        reason.masked_fill_(before, REASONS.index("before the first difference"))
    return reason.masked_fill_((place >= prompts.lengths[:, None])[:, None, None], REASONS.index("padding"))


def run_plan(
    patches: Patches,
    plan: Plan,
    reason: Int[Tensor, "prompt layer component pos"],
    progress: Callable[[int, int], None] | None,
) -> tuple[Float[Tensor, "prompt layer component pos"], Int[Tensor, "prompt layer component pos"], str]:
    """Effects over all layers, asked components and positions; why some did not run; whether chunks were replayed."""
    runs = patches.runs
    slots = torch.arange(reason[0].numel(), device=reason.device).view(reason.shape[1:])
    scores = Scores(runs.decoder, runs.base, runs.metric, runs.rows, reason[0].numel())
    equal = torch.ones_like(reason[0].flatten(), dtype=torch.bool)
    queries = Queries(runs.decoder.layers, runs.base, len(plan.chunks) > 2, runs.mul)
    replays = replays_for(runs, plan)
    if replays.on:
        equal = unchanged(patches, reason).flatten()
    which = patches.site, patches.layers, patches.components
    starts = None if replays.on else Starts.of(runs, patches.source, which, slots, plan)
    for done, chunk in enumerate(plan.chunks, 1):
        run_chunk(patches, chunk, slots, scores, equal, queries, replays, starts)
        if progress is not None:
            progress(done, len(plan.chunks))
    reason = torch.where((reason == 0) & equal.view(slots.shape), REASONS.index("no difference"), reason)
    return scores.effect.view(reason.shape).masked_fill(reason != 0, 0), reason, str(replays)


def replays_for(runs: Runs, plan: Plan) -> Replays:
    """What runs the chunks: by CUDA graphs where device, metric and the shapes of the chunks allow it."""
    new_graph, why_not = graphs_for(runs)
    keys = [] if new_graph is None else [chunk_key(runs, chunk) for chunk in plan.chunks]
    return Replays(runs.mul, keys, new_graph, why_not)


def graphs_for(runs: Runs) -> tuple[Callable[[], Graph] | None, str]:
    """How a graph is made for these runs; None with the reason where that is impossible."""
    device = runs.base.final.device
    why_not = why_no_graph(device, runs.metric)
    return (None, why_not) if why_not else (lambda: CudaGraph(device), "")


def chunk_key(runs: Runs, chunk: Chunk) -> Hashable:
    """Equal for chunks that differ in nothing but which prompts they are."""
    read = tuple(map(tuple, runs.read[list(chunk.prompts)].tolist()))
    return len(chunk.prompts), chunk.positions, chunk.layers, chunk.components, read


def unchanged(
    patches: Patches, reason: Int[Tensor, "prompt layer component pos"]
) -> Bool[Tensor, "layer component pos"]:
    """Places where the new value is the old one in every prompt in which the patch would run."""
    same = torch.ones_like(reason[0], dtype=torch.bool)
    for layer in patches.layers:
        change = patches.source[layer] != values(patches.runs.base.layers[layer], patches.site)
        if patches.site != "mlp_post":  # neurons have no axis besides their own
            change = change.any(-1)
        change = change[:, :, list(patches.components)] if patches.site in BY_COMPONENT else change[..., None]
        same[layer] = ~(change.transpose(1, 2) & (reason[:, layer] == 0)).any(0)
    return same


def run_chunk(
    patches: Patches,
    chunk: Chunk,
    slots: Int[Tensor, "layer component pos"],
    scores: Scores,
    equal: Tensor,
    queries: Queries,
    replays: Replays,
    starts: Starts | None,
) -> None:
    """Carry the patches of one chunk to the metric; slots of branches that began are no longer `equal`.

    What is fixed by the chunk's shape is made here; `carry` does the rest, and can be replayed for other prompts.
    """
    runs, device = patches.runs, patches.runs.base.final.device
    prompts = torch.tensor(chunk.prompts, device=device)
    whole = len(chunk.prompts) == len(runs.base.final)
    key = chunk_key(runs, chunk) if replays.on else None
    read = runs.read[prompts]
    span = Span(chunk.positions[0], int(read.any(0).nonzero().max()) + 1)
    first, stop = chunk.components
    wanted = Wanted(
        site=patches.site,
        layers=chunk.layers,
        components=torch.tensor(patches.components[first:stop], device=device),
        positions=torch.tensor([p for p in chunk.positions if p < span.stop], device=device),
        read=read.any(0),
        slots=slots[:, first:stop],
        all_of_them=key in replays.often,
    )
    out = rows_to_read(read, span)

    def carry(prompts: Int[Tensor, "prompt"]) -> None:
        base = runs.base if whole else runs.base.rows(prompts)
        source = patches.source if whole else [value[prompts] for value in patches.source]

        def finish(branches: Branches, where: OneRow | Rows) -> None:
            if not wanted.all_of_them:
                equal[branches.slot] = False
            scores.add(branches, where, base, prompts, runs.mul)

        def state(number: int, rows: Rows) -> State:
            return queries.at(number, None if whole else prompts, base.layers[number], rows, span.stop)

        def begin(number: int, rows: Rows) -> Joining:
            joins = joining(runs.decoder, base, source, wanted, number, rows, state, runs.mul)
            return joins if starts is None else starts.after_block(number, joins, None if whole else prompts)

        sweep(runs.decoder, base, begin, span, out, finish, state, runs.mul)

    replays.run(key, prompts, carry)


def result_of(patches: Patches, plan: Plan, effect: Tensor, reason: Tensor, graph: str, seconds: float) -> PatchResult:
    """The result in the caller's columns, with the metric of the runs themselves."""
    runs, prompts = patches.runs, patches.runs.prompts
    base, other = runs.values
    n_layers, n_pos = effect.shape[1], effect.shape[-1]
    if bool(prompts.shift.any()):
        column = (torch.arange(n_pos, device=effect.device) - prompts.shift[:, None]) % n_pos  # the caller's, in ours
        index = column[:, None, None].expand_as(effect)
        effect, reason = effect.gather(-1, index), reason.gather(-1, index)
    if len(patches.layers) < n_layers or len(patches.columns) < n_pos:
        layers, columns = list(patches.layers), list(patches.columns)
        effect, reason = effect[:, layers][..., columns], reason[:, layers][..., columns]
    return PatchResult(
        effect=effect,
        reason=reason,
        site=patches.site,
        layers=patches.layers,
        components=patches.components,
        positions=patches.columns,
        base=base,
        source=other,
        direction=runs.given.direction,
        ablation=runs.given.ablation,
        precision=runs.mul.precision,
        backend=runs.mul.by,
        plan=plan,
        flops=runs.mul.flops + runs.recording_flops,
        graph=graph,
        seconds=seconds,
        drift=runs.drift,
        patches=patches,
    )
