"""Sequential activation patching, one forward pass per intervention: the specification of the fast engine."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.decoder import Decoder, affine, attend, normed, project
from interp.hooks import HookedModel


@dataclass(frozen=True)
class Patch:
    """Replace the activation at `hook_name`, at `position` and (for per-head activations) `head`, by `value`.

    `position` is one place for all rows, a slice of places, or one place per row. `value` has the shape of what is
    replaced: [batch, d_head] for a head, [batch, d_model] for the residual stream, with an axis of positions after the
    batch where `position` is a slice.
    """

    hook_name: str
    position: int | slice | Int[Tensor, "batch"]
    value: Float[Tensor, "batch *width"]
    head: int | None = None


@dataclass(frozen=True)
class KeyEdit:
    """Rewrite one head's attention rows, then let the model run on.

    `weights[q]` maps a query position to the weight of every key, for all sequences or for each one; the pattern is
    multiplied by it and each edited row is renormalised. A row whose weights leave no mass becomes uniform over the
    keys with positive weight.
    """

    layer: int
    head: int
    weights: dict[int, Float[Tensor, "*batch k_pos"]]


def z_name(layer: int) -> str:
    """Hook name of the per-head attention output before W_O."""
    return f"blocks.{layer}.attn.hook_z"


@torch.inference_mode()
def record(model: HookedModel, tokens: Int[Tensor, "batch pos"], names: list[str]) -> dict[str, Tensor]:
    """Activations of one forward pass by hook name."""
    _, cache = model.run_with_cache(tokens, names_filter=names)
    return {name: cache[name] for name in names}


@torch.inference_mode()
def run_patched(
    model: HookedModel, tokens: Int[Tensor, "batch pos"], patches: list[Patch]
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits with every patch in place at once; everything downstream is recomputed."""

    def replace(patch: Patch):
        def hook(activation: Tensor, hook) -> Tensor:
            changed = activation.clone()
            rows = torch.arange(len(changed)) if isinstance(patch.position, Tensor) else slice(None)
            slot = (rows, patch.position) if patch.head is None else (rows, patch.position, patch.head)
            changed[slot] = patch.value
            return changed

        return hook

    return model.run_with_hooks(tokens, fwd_hooks=[(patch.hook_name, replace(patch)) for patch in patches])


def edited_rows(pattern: Float[Tensor, "batch q_pos k_pos"], edit: KeyEdit) -> Float[Tensor, "batch q_pos k_pos"]:
    """The pattern of one head after the edit."""
    changed = pattern.clone()
    for query, weight in edit.weights.items():
        row = pattern[:, query] * weight.to(pattern)
        total = row.sum(-1, keepdim=True)
        fallback = (weight > 0).to(pattern) / (weight > 0).sum(-1, keepdim=True).clamp(min=1)
        changed[:, query] = torch.where(total > 1e-12, row / total.clamp(min=1e-12), fallback)
    return changed


@torch.inference_mode()
def run_with_key_edits(
    model: HookedModel, tokens: Int[Tensor, "batch pos"], edits: list[KeyEdit], capture: dict[str, Tensor] | None = None
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits with the attention rows of the named heads rewritten.

    `capture`, where given, is filled with the resulting outputs z of the edited layers, by hook name.
    """

    def rewrite(edit: KeyEdit):
        def hook(pattern: Tensor, hook) -> Tensor:
            changed = pattern.clone()
            changed[:, edit.head] = edited_rows(pattern[:, edit.head], edit)
            return changed

        return hook

    def keep(activation: Tensor, hook) -> None:
        capture[hook.name] = activation

    hooks = [(f"blocks.{edit.layer}.attn.hook_pattern", rewrite(edit)) for edit in edits]
    if capture is not None:
        hooks += [(name, keep) for name in sorted({z_name(edit.layer) for edit in edits})]
    return model.run_with_hooks(tokens, fwd_hooks=hooks)


@torch.inference_mode()
def patch_heads_reference(
    model: HookedModel,
    clean: Int[Tensor, "batch pos"],
    corrupted: Int[Tensor, "batch pos"],
    metric,
    positions: list[int],
) -> Float[Tensor, "batch layer head patch"]:
    """metric(patched logits) - metric(clean logits) for each single head and position, one forward per patch.

    Args:
        metric: maps logits [batch, pos, d_vocab] to one number per sequence.
        positions: absolute positions to patch, the same in both runs.
    """
    cfg = model.cfg
    names = [z_name(layer) for layer in range(cfg.n_layers)]
    source = record(model, corrupted, names)
    base = metric(model(clean))
    effect = base.new_zeros(len(clean), cfg.n_layers, cfg.n_heads, len(positions))
    for layer in range(cfg.n_layers):
        for head in range(cfg.n_heads):
            for index, position in enumerate(positions):
                patch = Patch(names[layer], position, source[names[layer]][:, position, head], head)
                effect[:, layer, head, index] = metric(run_patched(model, clean, [patch])) - base
    return effect


def relative_move(before: Float[Tensor, "batch *rest"], after: Float[Tensor, "batch *rest"]) -> float:
    """Median over the batch of |after - before| / |before|: 0 when an intervention left the activation alone."""
    change = (after - before).flatten(1).norm(dim=1)
    return float((change / before.flatten(1).norm(dim=1).clamp(min=1e-12)).median())


@torch.inference_mode()
def decoder_logits_patched(
    decoder: Decoder,
    tokens: Int[Tensor, "batch pos"],
    edit: Callable[[str, int, Tensor], Tensor] | None = None,
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of a plain decoder, written out step by step, with `edit(site, layer, activation)` at each site.

    Sites in order: resid_pre, q, k, v (before rotary positions), z, attn_out, resid_mid (not in parallel blocks),
    mlp_post, mlp_out, resid_post. The edit returns the activation to go on with.
    """
    change = edit or (lambda site, layer, activation: activation)
    x = decoder.embed(tokens)
    position = torch.arange(tokens.shape[1], device=tokens.device)[None]
    for number, layer in enumerate(decoder.layers):
        attn = layer.attn
        x = change("resid_pre", number, x)
        y = normed(layer.ln1, x)
        q = change("q", number, project(y, attn.W_Q, attn.b_Q))
        k = change("k", number, project(y, attn.W_K, attn.b_K))
        v = change("v", number, project(y, attn.W_V, attn.b_V))
        if attn.rotary is not None:
            q, k = attn.rotary(q, position), attn.rotary(k, position)
        z = change("z", number, attend(attn, q, k, v)[0])
        out = change("attn_out", number, affine(z.flatten(-2), attn.W_O.flatten(0, 1), attn.b_O))
        mid = (y if layer.adds_to_normed else x) + out
        if layer.mlp is not None and not layer.parallel:
            mid = change("resid_mid", number, mid)
        if layer.mlp is not None:
            post = change("mlp_post", number, layer.mlp.post(normed(layer.ln2, x if layer.parallel else mid)))
            mid = mid + change("mlp_out", number, affine(post, layer.mlp.W_out, layer.mlp.b_out))
        x = change("resid_post", number, mid)
    return decoder.logits(x)
