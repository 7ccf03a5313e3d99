"""Edge scores: differences of what senders write, contracted with gradients of what receivers read."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.gradients.reads import LayerReads, Reads, folded, pushed_forward
from interp.decoder import Decoder, Layer

Block = tuple[slice, slice]  # prompts and positions
LEAST_ROWS = 128  # with fewer, folding the weights would cost more than the products
CACHED_BYTES = 2**22


@dataclass(frozen=True)
class Difference:
    """Corrupted minus clean of everything that writes into the residual stream."""

    embed: Float[Tensor, "batch pos d_model"]
    z: tuple[Float[Tensor, "batch pos head d_head"], ...]
    mlp_out: tuple[Float[Tensor, "batch pos d_model"] | None, ...]


def score_edges(
    decoder: Decoder, diff: Difference, reads: Reads, out: Float[Tensor, "batch pos sender receiver"], max_bytes: int
) -> None:
    """Add sum over d_model of sender difference times receiver gradient to `out`, summed over positions if it has one.

    Pairs that are no edge may get any value. Rows (prompt, position) are taken in blocks whose differences and
    gradients fit in `max_bytes`.
    """
    batch, n_pos, d_model = diff.embed.shape
    readers = decoder.n_heads + 2  # of one slot, with the MLPs before and behind
    row_bytes = (out.shape[2] + readers) * d_model * out.element_size()
    rows = max(1, min(max(LEAST_ROWS, CACHED_BYTES // row_bytes), max_bytes // row_bytes))
    largest = min(rows, batch * n_pos)
    space = diff.embed.new_empty(out.shape[2], largest * d_model), diff.embed.new_empty(readers, largest * d_model)
    for block in blocks(batch, n_pos, rows):
        target = out[block] if out.shape[1] == n_pos else out[block[0]]
        score_block(decoder, diff, reads, block, space, target)


def blocks(batch: int, n_pos: int, rows: int) -> Iterator[Block]:
    """Slices of prompts and positions, of at most `rows` rows each, that cover everything once."""
    prompts, places = (rows // n_pos, n_pos) if rows >= n_pos else (1, rows)
    for start in range(0, batch, prompts):
        for pos in range(0, n_pos, places):
            yield slice(start, min(start + prompts, batch)), slice(pos, min(pos + places, n_pos))


def score_block(
    decoder: Decoder, diff: Difference, reads: Reads, block: Block, space: tuple[Tensor, Tensor], out: Tensor
) -> None:
    """Add the scores of one block of rows to `out` [prompt, pos or 1, sender, receiver]; `space` is memory to work in.

    An MLP is contracted together with the queries of the next layer, which read the same stream (the MLP's edge to
    itself is none, and ignored), or with the values of its own layer in a parallel block.
    """
    shape = diff.embed[block].shape
    written = space[0][:, : shape.numel()].view(-1, *shape)  # [sender prompt pos d_model]
    written[0] = diff.embed[block]
    n, column = 1, 0
    behind: list[Tensor] = []  # gradient at the MLP of the layer before
    for index, (layer, read) in enumerate(zip(decoder.layers, reads.layers, strict=True)):
        own = [] if read.mlp is None else [read.mlp[block]]
        for gradient in slot_gradients(layer, read, block, behind, own if layer.parallel else [], space[1]):
            contract(written[:n], gradient, out[:, :, :n, column : column + len(gradient)])
            column += len(gradient)
        behind = [] if layer.parallel else own
        if layer.adds_to_normed:
            written[:n].copy_(pushed_forward(layer.ln1, reads.x[index][block], written[:n]))
        z = diff.z[index][block].flatten(0, 1).transpose(0, 1)  # [head row d_head]
        torch.bmm(z, layer.attn.W_O, out=written[n : n + len(z)].flatten(1, 2))
        n += len(z)
        if read.mlp is not None:
            written[n] = diff.mlp_out[index][block]
            n += 1
    contract(written, torch.stack([*behind, reads.final[block]]), out[:, :, :, column:])


def slot_gradients(
    layer: Layer, read: LayerReads, block: Block, before: list[Tensor], after: list[Tensor], space: Tensor
) -> Iterator[Float[Tensor, "receiver prompt pos d_model"]]:
    """Gradients at the residual stream that queries, keys and values read, with those `before` and `after` them.

    All in the same memory `space`, one after the other.
    """
    attn = layer.attn
    shape = read.q.scaled[block].shape[:2]
    for weight, slot, extra in (
        (attn.W_Q, read.q, (before, [])),
        (attn.W_K, read.k, ([], [])),
        (attn.W_V, read.v, ([], after)),
    ):
        first, stop = len(extra[0]), len(extra[0]) + len(weight)
        gradient = space[: stop + len(extra[1]), : shape.numel() * attn.W_Q.shape[1]]
        gradient = gradient.view(len(gradient), shape.numel(), -1)  # [receiver row d_model]
        torch.bmm(
            slot.scaled[block].flatten(0, 1).transpose(0, 1), folded(layer.ln1, weight).mT, out=gradient[first:stop]
        )
        for x_hat, radial in zip(read.x_hat, slot.radial, strict=True):
            direction, amount = x_hat[block].flatten(0, 1), radial[block].flatten(0, 1)
            gradient[first:stop].addcmul_(direction, amount.T[..., None], value=-1)
        for place, one in [*enumerate(extra[0]), *enumerate(extra[1], stop)]:
            gradient[place] = one.flatten(0, 1)
        yield gradient.unflatten(1, shape)


def contract(written: Tensor, gradient: Tensor, out: Tensor) -> None:
    """Add sum over d_model, and over positions where `out` has one, of written times gradient.

    Args:
        written: [sender prompt pos d_model].
        gradient: [receiver prompt pos d_model].
        out: [prompt, pos or 1, sender, receiver].
    """
    if out.shape[1] == written.shape[2]:
        a, b = written.flatten(1, 2).transpose(0, 1), gradient.flatten(1, 2).transpose(0, 1)  # [row * d_model]
        out += (a @ b.mT).view(out.shape)
    else:
        a, b = written.flatten(2).transpose(0, 1), gradient.flatten(2).transpose(0, 1)  # [prompt * pos*d_model]
        out += (a @ b.mT)[:, None]
