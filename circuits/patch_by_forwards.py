"""Patching by batched full forwards, for models that the engine cannot write exactly: slower, and just as exact."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.engine.plan import Plan
from circuits.engine.products import Products
from circuits.engine.prompts import Prompts
from circuits.engine.runs import Given, Runs, as_metric, base_and_source, replaced_values
from circuits.engine.sites import BY_COMPONENT, Site, numbers
from circuits.metrics import Metric, UserMetric, metric_rows
from circuits.patch_result import REASONS, PatchResult
from interp.adapters.bridge import site_hooks
from interp.errors import UsageError

ROWS_AT_A_TIME = 64  # prompts of one forward


@dataclass(frozen=True)
class ForwardPatches:
    """What `PatchResult.verify` needs of a call that ran by forwards."""

    runs: Runs
    source: list[Tensor]


@torch.no_grad()
def patch_by_forwards(
    model: Any,
    clean: Tensor,
    corrupted: Tensor | None,
    metric: Metric | UserMetric | Callable[[Tensor], Tensor],
    site: Site,
    chosen: Mapping[str, Sequence[int] | None],
    given: Given,
) -> PatchResult:
    """The patches of `patch_heads` through the model's own hooks, many to a forward.

    Args:
        chosen: layers, components and positions; None for all.

    Raises:
        UsageError: naming the argument that is wrong.
    """
    started = time.perf_counter()
    prompts = base_and_source(clean, corrupted, given, model.cfg.d_vocab, model.cfg.n_ctx)
    if bool(prompts.shift.any()):
        raise UsageError("mask: padding on the left is not supported for a model that runs by full forwards")
    named = as_metric(metric)
    runs = Runs(model, None, prompts, None, None, named, metric_rows(named, prompts.lengths), given, Products("fp32"))
    base, new = _old_and_new(runs, site)
    sizes = {"layers": len(base), "components": base[0].shape[2] if site in BY_COMPONENT else 1}
    sizes["positions"] = prompts.base.shape[1]
    wanted = {name: numbers(name, chosen[name], size) for name, size in sizes.items()}
    patches = ForwardPatches(runs, new)
    effect, equal = _effects(patches, base, site, tuple(wanted.values()))
    padding = torch.tensor(wanted["positions"], device=equal.device) >= prompts.lengths[:, None]  # [prompt pos]
    reason = equal * REASONS.index("no difference")
    reason = reason.masked_fill(padding[:, None, None], REASONS.index("padding")).to(torch.int8)
    logits = model(prompts.base)
    return PatchResult(
        effect=effect.masked_fill(reason != 0, 0),
        reason=reason,
        site=site,
        **wanted,
        base=_values(runs, logits, logits),
        source=None if prompts.source is None else _values(runs, model(prompts.source), logits),
        direction=given.direction,
        ablation=given.ablation,
        precision="the model's own",
        backend="full forwards through hooks",
        plan=Plan((), int((reason == 0).sum()), ROWS_AT_A_TIME, 0, 0, 0, 0),
        flops=0,
        seconds=time.perf_counter() - started,
        patches=patches,
    )


def _old_and_new(runs: Runs, site: Site) -> tuple[list[Tensor], list[Tensor]]:
    """What the site holds in each layer of the base run, and what is put there."""
    model, prompts, given = runs.model, runs.prompts, runs.given
    layers = range(model.cfg.n_layers)
    base = [read_site(model, prompts.base, site, layer) for layer in layers]
    if prompts.source is not None:
        return base, [read_site(model, prompts.source, site, layer) for layer in layers]
    return base, [replaced_values(value, given.ablation, prompts.lengths, given.seed) for value in base]


def read_site(model: Any, tokens: Tensor, site: Site, layer: int) -> Float[Tensor, "batch pos *component width"]:
    """What a site holds in one forward of the model."""
    found: list[Tensor] = []

    def keep(activation: Tensor) -> Tensor:
        found.append(activation.detach().clone())
        return activation

    model.run_with_hooks(tokens, fwd_hooks=site_hooks(model, site, layer, keep))
    return found[0]


def _effects(
    patches: ForwardPatches,
    base: list[Tensor],
    site: Site,
    wanted: tuple[tuple[int, ...], ...],
) -> tuple[Float[Tensor, "prompt layer component pos"], Tensor]:
    """Effects, and where old and new value are exactly equal."""
    runs, prompts, model = patches.runs, patches.runs.prompts, patches.runs.model
    n, before = len(prompts.base), model(prompts.base)
    start = _values(runs, before, before)
    shape = (n, *(len(some) for some in wanted))
    effect, equal = start.new_zeros(shape), torch.zeros(shape, dtype=torch.int8, device=start.device)
    places = [(c, p) for c in range(shape[2]) for p in range(shape[3])]
    size, done = max(1, ROWS_AT_A_TIME // n), 0
    for at, layer in enumerate(wanted[0]):
        value = patches.source[layer]
        for first in range(0, len(places), size):
            some = places[first : first + size]
            where = [(wanted[1][c], wanted[2][p]) for c, p in some]
            logits = _patched(model, prompts, site, layer, where, value)
            for (c, p), (component, position), one in zip(some, where, logits.split(n), strict=True):
                at_place = (slice(None), position, component) if site in BY_COMPONENT else (slice(None), position)
                equal[:, at, c, p] = (value[at_place] == base[layer][at_place]).reshape(n, -1).all(1)
                effect[:, at, c, p] = _values(runs, one, before) - start
            done += len(some)
            if (progress := runs.given.progress) is not None:
                progress(done, len(wanted[0]) * len(places))
    return effect, equal


def _patched(
    model: Any, prompts: Prompts, site: Site, layer: int, where: list[tuple[int, int]], value: Tensor
) -> Float[Tensor, "case pos d_vocab"]:
    """Logits of all prompts once per place, each with its own patch."""
    n = len(prompts.base)

    def edit(activation: Tensor) -> Tensor:
        changed = activation.clone()
        for case, (component, position) in enumerate(where):
            rows = slice(case * n, (case + 1) * n)
            if site in BY_COMPONENT:
                changed[rows, position, component] = value[:, position, component]
            else:
                changed[rows, position] = value[:, position]
        return changed

    return model.run_with_hooks(prompts.base.repeat(len(where), 1), fwd_hooks=site_hooks(model, site, layer, edit))


def _values(runs: Runs, logits: Tensor, before: Tensor) -> Float[Tensor, "prompt"]:
    if isinstance(runs.metric, UserMetric):
        return runs.metric.fn(logits)
    at = (runs.rows.prompt, runs.rows.pos)
    return runs.rows.mean(runs.metric.of_logits(logits[at], runs.rows, before[at]))
