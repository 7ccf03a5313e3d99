"""The elementwise part of an MLP's difference, in blocks that stay in a CPU's cache from the first step to the last."""

import torch
from jaxtyping import Float
from torch import Tensor

from interp.decoder import ACTIVATIONS

BLOCK = 1 << 18  # neurons that go through all steps together on a CPU: a megabyte of float32
SLOPE, CUBE = 1.5957691216057308, 0.07135481627260025  # sqrt(8 / pi), and 0.044715 times that


def activated(activation: str, x: Float[Tensor, "*row d_mlp"]) -> Float[Tensor, "*row d_mlp"]:
    """The activation.

    The approximate GELU of GPT-2 is x sigmoid(sqrt(8 / pi) (x + 0.044715 x^3)): the same function as with tanh, and on
    a CPU without the slow hyperbolic tangent.
    """
    if activation != "gelu_tanh" or x.is_cuda:
        return ACTIVATIONS[activation](x)
    gate = x.square().mul_(CUBE).add_(SLOPE).mul_(x).sigmoid_()
    return gate.mul_(x)


def changed_neurons(
    activation: str,
    inner: Float[Tensor, "batch branch *row d_mlp"],
    gate: Float[Tensor, "batch branch *row d_mlp"] | None,
    post: Float[Tensor, "batch branch *row d_mlp"],
) -> Float[Tensor, "batch branch *row d_mlp"]:
    """Neurons after the activation minus those of the base run, over `inner`.

    Args:
        inner, gate: before the activation, in the patched runs.
        post: neurons of the base run; has one branch where all branches share their rows.
    """
    per_branch = inner[:, :1].numel()
    size = inner.shape[1] if inner.is_cuda else max(1, BLOCK // max(1, per_branch))  # a chunk may be empty
    for first in range(0, inner.shape[1], size):
        part = slice(first, first + size)
        one = inner[:, part]
        new = activated(activation, one) if gate is None else activated(activation, gate[:, part]).mul_(one)
        torch.sub(new, post if post.shape[1] == 1 else post[:, part], out=one)
    return inner
