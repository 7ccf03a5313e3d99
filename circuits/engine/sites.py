"""Where a patch enters: the difference that each site's new value makes in the residual stream."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.engine.cost import SPREADING
from circuits.engine.one_column import column_update, own_row
from circuits.engine.products import Products
from circuits.engine.record import LayerRecord, Record
from circuits.engine.rows import Rows
from circuits.engine.sweep import Branches, Joining
from circuits.engine.wave import turned
from interp.decoder import Decoder, Layer
from interp.errors import UsageError
from kernels.one_column import State

Site = Literal["z", "q", "k", "v", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_post"]
SITES: tuple[Site, ...] = Site.__args__
FIELD: dict[str, str] = {"q": "q_raw", "k": "k_raw", "resid_pre": "pre", "resid_mid": "mid", "resid_post": "post"}
HEADED = {"z", "q", "k", "v"}
BY_COMPONENT = HEADED | {"mlp_post"}  # sites whose values have an axis of components


@dataclass(frozen=True)
class Wanted:
    """The patches of one chunk: every layer x component x position of these lists.

    Attributes:
        read: positions that the metric reads in some prompt.
        slots: index of the result, for every layer and position of the model and each of `components`.
        all_of_them: also those whose value does not change, so that no branch depends on values; their effect is 0.
    """

    site: Site
    layers: tuple[int, ...]
    components: Int[Tensor, "component"]
    positions: Int[Tensor, "pos"]
    read: Bool[Tensor, "place"]
    slots: Int[Tensor, "layer component place"]
    all_of_them: bool = False


def values(run: LayerRecord, site: Site) -> Float[Tensor, "batch pos *component width"]:
    """What the site holds: [batch pos head d_head] for heads, [batch pos d_mlp] for neurons, else the stream."""
    return getattr(run, FIELD.get(site, site))


def n_components(decoder: Decoder, site: Site) -> int:
    """Heads (key-value heads for k and v), neurons, or 1."""
    layer = decoder.layers[0]
    if site in HEADED:
        return (layer.attn.W_K if site in "kv" else layer.attn.W_Q).shape[0]
    return layer.mlp.W_in.shape[1] if site == "mlp_post" else 1


def numbers(name: str, wanted: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """The numbers asked for, or all of them.

    Raises:
        UsageError: for a number that does not exist.
    """
    if wanted is None:
        return tuple(range(count))
    found = tuple(sorted({int(one) for one in wanted}))
    if any(one < 0 or one >= count for one in found):
        raise UsageError(f"{name}: {list(wanted)}: expected numbers from 0 to {count - 1}")
    return found


def joining(
    decoder: Decoder,
    base: Record,
    source: list[Tensor],
    wanted: Wanted,
    number: int,
    rows: Rows,
    queries: Callable[[int, Rows], State],
    mul: Products,
) -> Joining:
    """The branches that begin in a layer (-1: the embedding); differences that are exactly zero begin nowhere.

    Args:
        source: new values by layer, each of the shape of `values`.
        rows: what the layer carries on.
    """
    entering = number + 1 if wanted.site == "resid_pre" else number
    if entering not in wanted.layers or entering >= len(decoder.layers):
        return Joining()
    if entering == len(decoder.layers) - 1 and wanted.site not in SPREADING:  # rows not read cannot matter any more
        read = mul.fixed(lambda: wanted.positions[wanted.read[wanted.positions]])
        wanted = replace(wanted, positions=read)
    if not len(wanted.positions):
        return Joining()
    layer, run = decoder.layers[entering], base.layers[entering]
    old = values(run, wanted.site)[:, wanted.positions]  # [batch pos ...]
    change = source[entering][:, wanted.positions] - old
    if wanted.site in BY_COMPONENT:
        change = change[:, :, wanted.components]
    slots = wanted.slots[entering][:, wanted.positions].T  # [pos component]
    if wanted.site in HEADED:
        return _heads(wanted, layer, run, change, slots, rows, lambda: queries(entering, rows), mul)
    if wanted.site == "mlp_post":
        delta = change[..., None] * layer.mlp.W_out[wanted.components]  # [batch pos neuron d_model]
        return Joining(post=_flat(delta, change[..., None], wanted, slots))
    branches = _flat(change[:, :, None], change[:, :, None], wanted, slots)
    before_mlp = wanted.site in ("attn_out", "resid_mid") and not layer.parallel
    return Joining(mid=branches) if before_mlp else Joining(post=branches)


def _flat(
    delta: Float[Tensor, "batch pos component d_model"],
    change: Float[Tensor, "batch pos component width"],
    wanted: Wanted,
    slots: Int[Tensor, "pos component"],
) -> Branches | None:
    """One branch per (position, component) whose site changes in some prompt."""
    p = wanted.positions[:, None].expand_as(slots).flatten()
    alive = None if wanted.all_of_them else (change != 0).any(-1).any(0).flatten()
    return _alive(Branches(delta.flatten(1, 2), p, slots.flatten()), alive)


def _alive(branches: Branches, alive: Tensor | None) -> Branches | None:
    if alive is None or bool(alive.all()):
        return branches if len(branches.p) else None
    some = alive.nonzero()[:, 0]
    return Branches(branches.delta[:, some], branches.p[some], branches.slot[some]) if len(some) else None


def _heads(
    wanted: Wanted,
    layer: Layer,
    run: LayerRecord,
    change: Float[Tensor, "batch pos component d_head"],
    slots: Int[Tensor, "pos component"],
    rows: Rows,
    queries: Callable[[], State],
    mul: Products,
) -> Joining:
    attn = layer.attn
    if wanted.site == "z":
        delta = through_output(change, attn.W_O[wanted.components], mul)
        branches = _flat(delta, change, wanted, slots)
        return Joining(post=branches) if layer.parallel else Joining(mid=branches)
    p = wanted.positions[:, None].expand_as(slots).flatten()
    which = wanted.components.expand_as(slots).flatten()
    change, slot = change.flatten(1, 2), slots.flatten()  # [batch branch d_head], [branch]
    if not wanted.all_of_them:
        alive = (change != 0).any(-1).any(0).nonzero()[:, 0]
        if not len(alive):
            return Joining()
        change, p, which, slot = change[:, alive], p[alive], which[alive], slot[alive]
    full = change.new_zeros(
        *change.shape[:2], attn.W_Q.shape[0] if wanted.site == "q" else attn.W_K.shape[0], change.shape[-1]
    )
    full[:, torch.arange(len(p)), which] = change
    if wanted.site != "v":
        full = turned(attn.rotary, full, p.expand(len(full), -1))
    if wanted.site == "q":
        dz = own_row(attn, run, p, full, None, None, mul)  # [batch branch head d_head]
        own = torch.arange(dz.shape[2], device=p.device) == which[:, None]
        delta = mul((dz * own[..., None]).flatten(-2), attn.W_O.flatten(0, 1))
        branches = Branches(delta, p, slot)
        return Joining(post=branches) if layer.parallel else Joining(mid=branches)
    dk, dv = (full, None) if wanted.site == "k" else (None, full)
    dz = column_update(attn, queries(), run, rows, p, dk, dv, mul)  # [batch branch row head d_head]
    return Joining(spread=Branches(mul(dz.flatten(-2), attn.W_O.flatten(0, 1)), p, slot))


def through_output(
    change: Float[Tensor, "batch pos head d_head"], W_O: Float[Tensor, "head d_head d_model"], mul: Products
) -> Float[Tensor, "batch pos head d_model"]:
    """What a change of each head's z alone adds to the stream."""
    batch, pos, heads, d_head = change.shape
    by_head = change.permute(2, 0, 1, 3).reshape(heads, batch * pos, d_head)
    delta = mul.batched(by_head, W_O)  # [head case d_model]
    return delta.view(heads, batch, pos, -1).permute(1, 2, 0, 3)
