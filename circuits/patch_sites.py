"""Exact patching of several sites between the same two runs, which are recorded once."""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.engine.bookkeeping import ordinary, without_autograd
from circuits.engine.products import Products
from circuits.engine.runs import Given, Options, Runs, as_decoder, runs_for
from circuits.engine.sites import Site
from circuits.metrics import Metric, UserMetric
from circuits.patch_by_forwards import patch_by_forwards
from circuits.patch_result import PatchResult
from circuits.patching import check_site, patch_site
from interp.errors import NotExpressible, UsageError


@torch.no_grad()
def patch_sites(
    model: Any,
    sites: Sequence[Site],
    *,
    clean: Int[Tensor, "batch pos"],
    metric: Metric | UserMetric | Callable[[Tensor], Tensor],
    corrupted: Int[Tensor, "batch pos"] | None = None,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    **options: Unpack[Options],
) -> dict[Site, PatchResult]:
    """The result of `circuits.patching.patch_heads` for each of several sites, by site, in the order asked for.

    The arguments not named here are those of `patch_heads`. The runs are recorded once and shared: the first result's
    `plan`, `flops` and `seconds` have the recording in them, and the others' have not, so that sums are what the call
    cost. That is worth most where few patches are run. Each result can be verified by itself.

    Raises:
        UsageError: naming the argument that is wrong; for no site, or one that is named twice.
    """
    started = time.perf_counter()
    if not sites or isinstance(sites, str) or len(set(sites)) < len(sites):
        raise UsageError(f"sites: {sites!r}: expected a list of different sites, such as ['z', 'mlp_out']")
    given, chosen = Given(**options), {"layers": layers, "components": None, "positions": positions}
    try:
        decoder = as_decoder(model)
    except NotExpressible as reason:
        warnings.warn(f"patching by full forwards, which is slower: {reason}", stacklevel=2)
        return {site: patch_by_forwards(model, clean, corrupted, metric, site, chosen, given) for site in sites}
    for site in sites:
        check_site(decoder, site)
    with without_autograd(metric):
        runs = runs_for(model, decoder, clean, corrupted, metric, given, trimmed=True)
        found = {sites[0]: patch_site(runs, sites[0], chosen, started)}
        for site in sites[1:]:
            started = time.perf_counter()
            result = patch_site(_again(runs), site, chosen, started)
            plan = replace(result.plan, flops=result.plan.flops - runs.recording_flops)
            found[site] = replace(result, plan=plan, flops=result.flops - runs.recording_flops)
    return {site: ordinary(result) for site, result in found.items()}


def _again(runs: Runs) -> Runs:
    """The same runs with a count of their own; weights that are joined for products are kept."""
    mul = Products(runs.mul.precision, runs.mul.backend, flattened=runs.mul.flattened, tables=runs.mul.tables)
    return replace(runs, mul=mul)
