"""Several sites patched at once: differences are carried densely, and overwritten where a patch stands."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.engine.products import Products
from circuits.engine.record import LayerRecord, Record
from circuits.engine.rows import Rows, Span, narrow
from circuits.engine.sites import values
from circuits.engine.wave import attention_change, mlp_post_delta, norm_delta, turned
from interp.decoder import Decoder, Layer


@dataclass(frozen=True)
class Overwrites:
    """The patches of one site in one layer: branch n gets the source's value at (component, position).

    Attributes:
        at: columns branch, component, position; positions are absolute.
    """

    at: Int[Tensor, "patch 3"]


Events = dict[tuple[int, str], Overwrites]  # (layer, site) -> what is overwritten there


@dataclass(frozen=True)
class Stage:
    """Differences of all branches of a chunk in one layer, with what overwrites need."""

    layer: Layer
    base: LayerRecord
    source: LayerRecord
    number: int
    events: Events
    span: Span

    def overwritten(self, site: str, delta: Tensor, headed: bool) -> Tensor:
        """`delta` with source - base at every patched place of the site; [batch branch row *component width]."""
        event = self.events.get((self.number, site))
        if event is None or not len(event.at):
            return delta
        branch, component, position = event.at.T
        new, old = (values(run, site)[:, position] for run in (self.source, self.base))  # [batch patch ...]
        change, row = new - old, position - self.span.start
        changed = delta.clone()
        if headed:
            which = torch.arange(len(position), device=position.device)
            changed[:, branch, row, component] = change[:, which, component]
        else:
            changed[:, branch, row] = change
        return changed


def carry(
    decoder: Decoder,
    base: Record,
    source: Record,
    events: Events,
    n_branches: int,
    span: Span,
    out: Rows,
    mul: Products,
) -> Float[Tensor, "batch branch kept d_model"]:
    """Differences of the final residual stream at rows `out` with all overwrites of every branch in place."""
    n_batch, width = len(base.final), base.final.shape[-1]
    delta = base.final.new_zeros(n_batch, n_branches, span.count, width)
    first, live = min(number for number, _ in events), False
    for number, layer in enumerate(decoder.layers):
        if number < first and not live:
            continue
        live = True
        stage = Stage(layer, base.layers[number], source.layers[number], number, events, span)
        delta = _block(stage, delta, mul)
    return narrow(delta, span, out)


def _block(stage: Stage, delta: Tensor, mul: Products) -> Float[Tensor, "batch branch row d_model"]:
    layer, base, span, attn = stage.layer, stage.base, stage.span, stage.layer.attn
    delta = stage.overwritten("resid_pre", delta, False)
    dy = norm_delta(layer.ln1, base.pre, span, delta, mul)
    projected = ((site, mul.heads(dy, weight)) for site, weight in (("q", attn.W_Q), ("k", attn.W_K), ("v", attn.W_V)))
    dq, dk, dv = (stage.overwritten(site, change, True) for site, change in projected)
    reached = reached_rows(dq, dk, dv)
    position = span.positions(len(delta), delta.device)[:, None]
    dq, dk = turned(attn.rotary, dq, position), turned(attn.rotary, dk, position)
    dz = attention_change(attn, base, span, dq, dk, dv, span, mul) if reached.any() else torch.zeros_like(dq)
    dz = stage.overwritten("z", dz.masked_fill_(~reached[..., None, None], 0), True)
    out = stage.overwritten("attn_out", mul(dz.flatten(-2), attn.W_O.flatten(0, 1)), False)
    mid = (dy if layer.adds_to_normed else delta) + out
    if layer.mlp is not None:
        if not layer.parallel:
            mid = stage.overwritten("resid_mid", mid, False)
        post = mlp_post_delta(layer, base, span, delta if layer.parallel else mid, mul)
        post = stage.overwritten("mlp_post", post, True)
        mid = mid + stage.overwritten("mlp_out", mul(post, layer.mlp.W_out), False)
    return stage.overwritten("resid_post", mid, False)


def reached_rows(
    dq: Float[Tensor, "batch branch row head d_head"],
    dk: Float[Tensor, "batch branch row kv_head d_head"],
    dv: Float[Tensor, "batch branch row kv_head d_head"],
) -> Bool[Tensor, "batch branch row"]:
    """Rows whose query changes, or which see a changed key or value; attention of all others changes by exactly 0."""
    query, key, value = (x.flatten(-2).any(-1) for x in (dq, dk, dv))
    return query | (key | value).int().cummax(-1).values.bool()


def by_layer_and_site(sets: Sequence[Sequence[tuple[str, int, int, int]]], device: torch.device) -> Events:
    """Overwrites of a chunk from (site, layer, component, position) of every branch."""
    found: dict[tuple[int, str], list[tuple[int, int, int]]] = {}
    for branch, patches in enumerate(sets):
        for site, layer, component, position in patches:
            found.setdefault((layer, site), []).append((branch, component, position))
    return {key: Overwrites(torch.tensor(rows, device=device)) for key, rows in found.items()}
