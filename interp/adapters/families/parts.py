"""What the families share: the protocol of one, activation functions, rotary positions, windows and scalings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.adapters.limits import FIXED_ROPE, NEUTRAL
from interp.decoder import Activation, Decoder, Rotary
from interp.errors import NotExpressible

Take = Callable[[str], Tensor]  # the values of a tensor by its key, in float32
Has = Callable[[str], bool]
Shapes = dict[str, tuple[int, ...]]
SLIDING = ("mistral", "qwen2")
ACTS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True)
class Family:
    """How the weights of one architecture become a decoder.

    Attributes:
        prefix: of the keys of everything but the unembedding; it may be absent in a file.
        unembedding: keys that the unembedding may have; absent from files of models that tie it to the embedding.
        embedding: key of the embedding, without prefix.
        limits: what `Decoder` has no formula for, given the configuration.
        shapes: every key without prefix, with its shape.
        build: the decoder, given configuration, the values, and the unembedding [d_vocab, d_model].
    """

    prefix: str
    unembedding: tuple[str, ...]
    embedding: str
    limits: Callable[[Any], list[str]]
    shapes: Callable[[Any], Shapes]
    build: Callable[[Any, Take, Tensor, str], Decoder]


def activations(name: str) -> list[str]:
    """An activation function that is none of ours."""
    return [] if name in ACTS else [f"the activation function {name!r:.40} is none of {', '.join(ACTS)}"]


def scalings(config: Any) -> list[str]:
    """Factors on what flows through that are not 1."""
    factors = ((what, getattr(config, field, None)) for field, what in NEUTRAL.items())
    return [f"{what} by {factor}" for what, factor in factors if factor is not None and factor != 1]


def angles(config: Any) -> list[str]:
    """Rotary positions whose angles depend on the input, or that are not known."""
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    return [] if kind in FIXED_ROPE else [f"rotary scaling {kind!r}, whose angles are not fixed"]


def rotary(config: Any, pairs: int) -> Rotary:
    """Rotary positions as transformers computes them, in float32; coordinate i is paired with i + pairs."""
    parameters = config.rope_parameters
    if parameters.get("rope_type", "default") == "default":
        speed = 1.0 / (parameters["rope_theta"] ** (torch.arange(0, 2 * pairs, 2, dtype=torch.float32) / (2 * pairs)))
        return Rotary(speed, interleaved=False)
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    speed, scale = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config)
    if len(speed) != pairs:
        raise NotExpressible(f"rotary positions on {len(speed)} pairs of coordinates, expected {pairs}")
    return Rotary(speed.float(), interleaved=False, scale=float(scale))


def context(config: Any) -> int:
    """Positions for which attention is plain: all of them, or a sliding window where that is shorter."""
    if config.model_type not in SLIDING:
        return config.max_position_embeddings
    window, kinds = config.sliding_window, getattr(config, "layer_types", None) or ()
    slides = "sliding_attention" in kinds if kinds else window is not None
    return min(config.max_position_embeddings, window) if slides and window else config.max_position_embeddings


def heads_of(matrix: Tensor, heads: int) -> Tensor:
    """[head*d_head, d_model] as Linear stores it -> [head d_model d_head]."""
    return matrix.unflatten(0, (heads, -1)).transpose(1, 2)
