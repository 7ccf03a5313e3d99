"""Reruns random effects by whole forward passes, to check what the engine computed from differences."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.edge_reference import Edit
from circuits.engine.runs import Runs
from circuits.engine.sites import BY_COMPONENT
from circuits.metrics import UserMetric
from circuits.patch_result import PatchResult, Verification
from circuits.patching_reference import decoder_logits_patched
from interp.adapters.bridge import site_hooks
from interp.decoder import Decoder
from interp.model import Transformer
from interp.rng import generator


@dataclass(frozen=True)
class Checks:
    """What of a result can be rerun.

    Attributes:
        places: indices of the effects that were run.
        both: the engine's and the rerun effect of one place, for the prompts for which it was run.
    """

    places: Int[Tensor, "case axis"]
    both: Callable[[Sequence[int]], tuple[Float[Tensor, "prompt"], Float[Tensor, "prompt"]]]


def verify(checks: Sequence[Checks], n: int, seed: int) -> Verification:
    """Compare n random effects of some results with the same effects by full forward passes."""
    cases = [(one.both, place) for one in checks for place in one.places.tolist()]
    order = torch.randperm(len(cases), generator=generator(seed, "verify"))[:n].tolist()
    if not order:
        return Verification(0, 0.0, 0.0, 0.0)
    pairs = [both(place) for both, place in (cases[index] for index in order)]
    error = torch.cat([(ours.double() - expected.double()) for ours, expected in pairs])
    effect = torch.cat([expected.double() for _, expected in pairs])
    norm = float(effect.norm())
    relative = float(error.norm()) / norm if norm else 0.0
    return Verification(len(order), float(error.abs().max()), relative, float(effect.abs().max()))


def head_checks(result: PatchResult) -> Checks:
    """Single patches that were run for some prompt."""

    def both(place: Sequence[int]) -> tuple[Tensor, Tensor]:
        at = (slice(None), *place)
        compared = result.reason[at] == 0
        return result.effect[at][compared], rerun(result, *place)[compared]

    return Checks((result.reason == 0).any(0).nonzero(), both)


@torch.no_grad()
def rerun(result: PatchResult, layer: int, component: int, pos: int) -> Float[Tensor, "prompt"]:
    """The effect of one patch (indices into the axes of the result) by one forward pass for all prompts."""
    runs, site, wanted = result.patches.runs, result.site, result.layers[layer]
    prompts = runs.prompts
    place = (result.positions[pos] - prompts.shift).clamp(min=0)  # [batch]
    batch = torch.arange(len(place), device=place.device)
    value = result.patches.source[wanted][batch, place]  # [batch *component width]
    which = result.components[component]

    def edit(activation: Tensor) -> Tensor:
        changed = activation.clone()
        if site in BY_COMPONENT:
            changed[batch, place, which] = value[:, which].to(activation)
        else:
            changed[batch, place] = value.to(activation)
        return changed

    patched = logits_with(runs.model, prompts.base, [Edit(site, wanted, edit)])
    before = logits_with(runs.model, prompts.base)
    return value_of(runs, patched, before) - value_of(runs, before, before)


def exact(model: Any) -> Any:
    """The model in float64 where it can be copied: a Decoder or our Transformer; a bridge as it is."""
    if isinstance(model, Decoder):
        return model.to(torch.float64)
    return copy.deepcopy(model).double() if isinstance(model, Transformer) else model


def logits_with(
    model: Any, tokens: Int[Tensor, "batch pos"], edits: Sequence[Edit] = ()
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits with activations edited, through the model's hooks or the written-out forward of a plain decoder.

    Args:
        edits: in the order in which the model computes what they change.
    """
    if isinstance(model, Decoder):
        named = {(one.site, one.layer): one.change for one in edits}

        def edit(site: str, layer: int, x: Tensor) -> Tensor:
            return named[site, layer](x) if (site, layer) in named else x

        return decoder_logits_patched(model, tokens, edit)
    if not edits:
        return model(tokens)
    hooks = [hook for one in edits for hook in site_hooks(model, one.site, one.layer, one.change)]
    return model.run_with_hooks(tokens, fwd_hooks=hooks)


def value_of(runs: Runs, logits: Tensor, before: Tensor) -> Float[Tensor, "prompt"]:
    """The metric of logits, with those of the base run; a function of logits gets them in the dtype of the engine."""
    if isinstance(runs.metric, UserMetric):
        return runs.metric.fn(logits if runs.base is None else logits.to(runs.base.final))
    rows = runs.rows
    at = (rows.prompt, rows.pos)
    return rows.mean(runs.metric.of_logits(logits[at], rows, before[at]))
