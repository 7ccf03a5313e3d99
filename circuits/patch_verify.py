"""Reruns single patches by whole forward passes, to check what the engine computed from differences."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.engine.sites import BY_COMPONENT
from circuits.metrics import UserMetric
from circuits.patch_result import PatchResult, Verification
from circuits.patching_reference import decoder_logits_patched
from interp.adapters.bridge import site_hooks
from interp.decoder import Decoder
from interp.rng import generator


def verify(result: PatchResult, n: int, seed: int) -> Verification:
    """Compare n random patches that were run with the same patches by full forward passes."""
    ran = (result.reason == 0).any(0).nonzero()  # [case 3]
    if not len(ran):
        return Verification(0, 0.0, 0.0, 0.0)
    order = torch.randperm(len(ran), generator=generator(seed, "verify"))[:n]
    errors, effects = [], []
    for layer, component, pos in ran[order.to(ran.device)].tolist():
        expected = rerun(result, layer, component, pos)
        compared = result.reason[:, layer, component, pos] == 0
        errors.append((result.effect[:, layer, component, pos] - expected)[compared])
        effects.append(expected[compared])
    error, effect = torch.cat(errors).double(), torch.cat(effects).double()
    norm = float(effect.norm())
    relative = float(error.norm()) / norm if norm else 0.0
    return Verification(len(order), float(error.abs().max()), relative, float(effect.abs().max()))


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

    patched = logits_with(runs.model, prompts.base, site, wanted, edit)
    before = logits_with(runs.model, prompts.base)
    return _value(result, patched, before) - _value(result, before, before)


def logits_with(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    site: str = "",
    layer: int = -1,
    edit: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits with one activation edited, through the model's hooks or the written-out forward of a plain decoder."""
    if isinstance(model, Decoder):

        def named(name: str, number: int, x: Tensor) -> Tensor:
            return edit(x) if (name, number) == (site, layer) else x

        return decoder_logits_patched(model, tokens, None if edit is None else named)
    if edit is None:
        return model(tokens)
    return model.run_with_hooks(tokens, fwd_hooks=site_hooks(model, site, layer, edit))


def _value(result: PatchResult, logits: Tensor, before: Tensor) -> Float[Tensor, "prompt"]:
    runs = result.patches.runs
    if isinstance(runs.metric, UserMetric):
        return runs.metric.fn(logits)
    rows = runs.rows
    at = (rows.prompt, rows.pos)
    return rows.mean(runs.metric.of_logits(logits[at], rows, before[at]))
