"""What the heads of a decoder look at on given sequences, layer by layer, with what they write to the logits."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.decoder import Decoder, Layer, affine, attend, normed, qkv


@dataclass(frozen=True)
class Readout:
    """Directions of single logits in the last residual, with the weights of the final norm.

    The norm's divisor is left out: scores that divide by a spread over the same logits do not depend on it.

    Attributes:
        directions: per token, minus their mean over tokens.
    """

    directions: Float[Tensor, "d_model token"]


def readout(decoder: Decoder) -> Readout:
    """The decoder's unembedding as seen from before the final norm."""
    directions, norm = decoder.W_U, decoder.ln_final
    if norm is not None and norm.w is not None:
        directions = norm.w[:, None] * directions
    if norm is not None and norm.centred:
        directions = directions - directions.mean(0, keepdim=True)
    return Readout(directions - directions.mean(1, keepdim=True))


@dataclass(frozen=True)
class View:
    """One layer's heads on the sequences of a probe, clean ones first.

    Attributes:
        v: values, per key-value head.
    """

    layer: Layer
    tokens: Int[Tensor, "row pos"]
    pattern: Float[Tensor, "row head q_pos k_pos"]
    v: Float[Tensor, "row pos kv_head d_head"]
    readout: Readout

    def raises(self, tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "row head pos"]:
        """How much a head raises the logit of a token by what it reads at each place, in standard deviations.

        With u = W_U^T (v_k W_O), the direct logits of the value at place k, centred over tokens, this is
        u[token] / std(u): about 0 for a head that does not copy, at most sqrt(number of tokens - 1).

        Args:
            tokens: the token whose logit is asked for at each place; `self.tokens` for copying.
        """
        attn = self.layer.attn
        write = attn.W_O @ self.readout.directions  # [head d_head token]
        spread = write @ write.mT / write.shape[-1]  # [head d_head d_head]
        v = self.v.repeat_interleave(attn.group, 2).transpose(1, 2)  # [row head pos d_head]
        own = write.permute(2, 0, 1)[tokens].transpose(1, 2)  # [row head pos d_head]
        variance = ((v @ spread) * v).sum(-1)
        scale = variance.clamp(min=0).sqrt()
        floor = 1e-6 * scale.amax().clamp(min=1e-30)  # a head that writes nothing raises nothing
        return torch.where(scale > floor, (v * own).sum(-1) / scale.clamp(min=1e-30), torch.zeros_like(scale))


def attention(layer: Layer, y: Float[Tensor, "row pos d_model"]) -> tuple[Tensor, Tensor, Tensor]:
    """Output z, pattern and values of a layer for its normed input."""
    q, k, v = qkv(layer, y)
    z, pattern = attend(layer.attn, q, k, v)
    return z, pattern, v


def after(layer: Layer, x: Tensor, y: Tensor, z: Tensor) -> Float[Tensor, "row pos d_model"]:
    """The residual stream after a layer whose heads gave z."""
    mid = (y if layer.adds_to_normed else x) + affine(z.flatten(-2), layer.attn.W_O.flatten(0, 1), layer.attn.b_O)
    return mid if layer.mlp is None else mid + layer.mlp(normed(layer.ln2, x if layer.parallel else mid))


def views(decoder: Decoder, tokens: Int[Tensor, "row pos"]) -> Iterator[View]:
    """Each layer in turn, of one forward pass."""
    x, out = decoder.embed(tokens), readout(decoder)
    for layer in decoder.layers:
        y = normed(layer.ln1, x)
        z, pattern, v = attention(layer, y)
        yield View(layer, tokens, pattern, v, out)
        x = after(layer, x, y, z)


def copying_score(decoder: Decoder) -> Float[Tensor, "layer head"]:
    """Sum of the eigenvalues of W_E W_V W_O W_U over the sum of their sizes, per head; in [-1, 1], about 0 at random.

    1 where every token raises its own logit. Norm weights are included, divisors and biases are not. Source: "A
    Mathematical Framework for Transformer Circuits", section on copying heads.
    """
    through = readout(decoder).directions @ decoder.W_E  # [d_model d_model]
    scores = []
    for layer in decoder.layers:
        attn, norm = layer.attn, layer.ln1
        W_V = attn.W_V if norm is None or norm.w is None else norm.w[:, None] * attn.W_V
        small = attn.W_O @ through @ W_V.repeat_interleave(attn.group, 0)  # [head d_head d_head], the same eigenvalues
        values = torch.linalg.eigvals(small.float()).to(torch.complex128)
        scores.append(values.sum(-1).real / values.abs().sum(-1).clamp(min=1e-30))
    return torch.stack(scores)
