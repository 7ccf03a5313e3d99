"""Null models of a head scan: random decoders of the same shape, one maximum over all heads from each."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from circuits.detectors.base import HeadDetector
from circuits.heads.probe import Probe
from circuits.heads.view import View, after, attention, readout
from interp.decoder import MLP, Attention, Decoder, Layer, Norm, Rotary, Weights, normed
from probes.null import GAINS, NullScan

FEWEST, MOST = 100, 400  # twins where no number was asked for
SECONDS = 30.0  # that they may take beyond the fewest
SHARED = ((5e11, 10), (1e10, 5))  # above so many operations, so many twins share all but their attention layers


@dataclasses.dataclass(frozen=True)
class TwinPlan:
    """How many twins, and how many of them share embedding, MLPs and the residual streams that heads read.

    Attributes:
        n: None: 100, 200, 300 or 400, the most that are made within 30 s by the time that those before have taken.
    """

    n: int | None
    sharing: int


def plan_twins(decoder: Decoder, probe: Probe, n: int | None) -> TwinPlan:
    """Twins in groups where a forward is dear; as many as are made in 30 s unless `n` says how many."""
    flops = 2 * probe.tokens.numel() * layer_parameters(decoder)
    return TwinPlan(n, next((size for bar, size in SHARED if flops > bar), 1))


def layer_parameters(decoder: Decoder) -> int:
    """Weights of all attention and MLP matrices."""
    parts = [part for layer in decoder.layers for part in (layer.attn, layer.mlp) if part is not None]
    return sum(value.numel() for part in parts for value in vars(part).values() if isinstance(value, Tensor))


def shape_of(part: Any) -> Any:
    """A decoder without its values: shapes of tensors, and everything else as it is; what its twins depend on.

    Rotary speeds and whether the unembedding is tied are part of it.
    """
    if isinstance(part, Decoder):
        tied = torch.equal(part.W_U, part.W_E.mT)
        return tied, *(shape_of(value) for name, value in vars(part).items() if name != "name")
    if isinstance(part, Rotary):
        return tuple(part.speed.tolist()), part.interleaved, part.scale
    if isinstance(part, Tensor):
        return tuple(part.shape)
    if isinstance(part, tuple):
        return tuple(map(shape_of, part))
    return tuple((name, shape_of(value)) for name, value in vars(part).items()) if isinstance(part, Weights) else part


@torch.no_grad()
def twin_maxima(
    decoder: Decoder,
    tokens: Int[Tensor, "row pos"],
    probe: Probe,
    kinds: Sequence[HeadDetector],
    plan: TwinPlan,
    stream: Generator,
    progress: Callable[[int, int], None] | None = None,
) -> NullScan:
    """The largest score of any head in each of so many random decoders as planned, for each kind of head.

    The weights are those of an untrained `Transformer`: matrices normal with standard deviation 1/sqrt(inputs),
    embeddings with 1, biases 0, norms 1. W_Q of a twin is multiplied by one of `probes.null.GAINS` in turn, since
    untrained attention is nearly uniform and plain twins alone would make any peaked head look significant.
    """
    most, done, started = plan.n or MOST, 0, time.perf_counter()
    gains, maxima, aim = [GAINS[index % len(GAINS)] for index in range(most)], [], most
    while done < aim:
        maxima.append(_group(decoder, tokens, probe, kinds, gains[done : min(done + plan.sharing, aim)], stream))
        done += len(maxima[-1])
        if plan.n is None:
            aim = affordable(done, time.perf_counter() - started)
        if progress is not None:
            progress(done, aim)
    return NullScan(torch.cat(maxima), torch.tensor(gains[:done]))


def affordable(done: int, seconds: float) -> int:
    """Twins in all that fit the time, in hundreds, when so many have taken so many seconds; a hundred is finished."""
    fit = int(SECONDS / max(seconds / done * FEWEST, 1e-9))
    return min(MOST, FEWEST * max(1, fit, -(-done // FEWEST)))


def _group(
    decoder: Decoder,
    tokens: Int[Tensor, "row pos"],
    probe: Probe,
    kinds: Sequence[HeadDetector],
    gains: Sequence[float],
    stream: Generator,
) -> Float[Tensor, "twin kind"]:
    """Twins that read the residual streams of the first of them."""
    frame = _frame(decoder, stream)
    x, out, last = frame.embed(tokens), readout(frame), len(decoder.layers) - 1
    best = torch.full((len(gains), len(kinds)), -torch.inf)
    for number, layer in enumerate(decoder.layers):
        read = x
        for twin, gain in enumerate(gains):
            drawn = _layer(layer, gain, stream, twin == 0 and number < last)
            y = normed(drawn.ln1, read)
            z, pattern, v = attention(drawn, y)
            view = View(drawn, tokens, pattern, v, out)
            found = [probe.by_unit(kind.scores(view, probe)).mean(0).max() for kind in kinds]
            best[twin] = best[twin].maximum(torch.stack(found).cpu())
            if twin == 0 and number < last:
                x = after(drawn, read, y, z)
    return best


def _normal(value: Tensor, std: float, stream: Generator) -> Tensor:
    return (torch.randn(value.shape, generator=stream) * std).to(value)


def _frame(decoder: Decoder, stream: Generator) -> Decoder:
    """Embeddings, final norm and unembedding of a twin; tied where the decoder's are."""
    tied = torch.equal(decoder.W_U, decoder.W_E.mT)
    W_E = _normal(decoder.W_E, 1.0, stream)
    W_U = W_E.mT if tied else _normal(decoder.W_U, decoder.d_model**-0.5, stream)
    W_pos = None if decoder.W_pos is None else _normal(decoder.W_pos, 1.0, stream)
    norms = {name: _norm(getattr(decoder, name)) for name in ("ln_embed", "ln_final")}
    return dataclasses.replace(decoder, W_E=W_E, W_U=W_U, W_pos=W_pos, b_U=None, **norms)


def _norm(norm: Norm | None) -> Norm | None:
    return None if norm is None else dataclasses.replace(norm, w=None, b=None)


def _layer(layer: Layer, gain: float, stream: Generator, goes_on: bool) -> Layer:
    """A layer of a twin; its MLP is needed only where the forward goes on."""
    mlp = _mlp(layer.mlp, stream) if goes_on and layer.mlp is not None else None
    attn = _attention(layer.attn, gain, stream)
    return dataclasses.replace(layer, ln1=_norm(layer.ln1), ln2=_norm(layer.ln2), attn=attn, mlp=mlp)


def _attention(attn: Attention, gain: float, stream: Generator) -> Attention:
    heads, d_model, d_head = attn.W_Q.shape
    std = d_model**-0.5
    return dataclasses.replace(
        attn,
        W_Q=_normal(attn.W_Q, gain * std, stream),
        W_K=_normal(attn.W_K, std, stream),
        W_V=_normal(attn.W_V, std, stream),
        W_O=_normal(attn.W_O, (heads * d_head) ** -0.5, stream),
        **dict.fromkeys(("b_Q", "b_K", "b_V", "b_O")),
    )


def _mlp(mlp: MLP, stream: Generator) -> MLP:
    matrices = {
        name: _normal(value, value.shape[0] ** -0.5, stream)
        for name in ("W_in", "W_out", "W_gate")
        if (value := getattr(mlp, name)) is not None
    }
    return dataclasses.replace(mlp, **matrices, **dict.fromkeys(("b_in", "b_out", "b_gate")))
