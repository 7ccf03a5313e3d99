"""Embeddings in the plane through training: one principal plane for all checkpoints, with its signs fixed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

NEARLY = 1 - 1e-6


@dataclass(frozen=True)
class Plane:
    """A plane through the mean of the points it was fitted to.

    Attributes:
        axes: orthonormal, the direction of largest variance first.
        explained: share of the variance of the fitted points along each axis.
    """

    centre: Float[Tensor, "d_model"]
    axes: Float[Tensor, "axis d_model"]
    explained: Float[Tensor, "axis"]

    def place(self, points: Float[Tensor, "point d_model"]) -> Float[Tensor, "point axis"]:
        """Coordinates of points in the plane."""
        return (points.double() - self.centre) @ self.axes.T

    def share(self, points: Float[Tensor, "point d_model"]) -> Float[Tensor, "axis"]:
        """How much of the variance of these points lies along each axis; 0 where they all coincide."""
        centred = points.double() - points.double().mean(0)
        whole = centred.square().sum()
        return (centred @ self.axes.T).square().sum(0) / whole.clamp(min=torch.finfo(torch.float64).tiny)


def principal_plane(points: Float[Tensor, "point d_model"]) -> Plane:
    """The plane of largest variance.

    The point that lies farthest along an axis lies on its positive side (the first of them where several are as far),
    so that the coordinates do not change when the embedding space is turned or mirrored. Missing axes, where points
    span less than a plane, are zero.
    """
    centred = points.double() - points.double().mean(0)
    _, size, directions = torch.linalg.svd(centred, full_matrices=False)
    axes, size = directions[:2], size[:2]
    along = centred @ axes.T  # [point axis]
    far = along.abs() >= NEARLY * along.abs().amax(0)
    first = far.to(torch.int8).argmax(0)
    sign = torch.where(along.gather(0, first[None])[0] < 0, -1.0, 1.0).double()
    whole = centred.square().sum().clamp(min=torch.finfo(torch.float64).tiny)
    explained = size.square() / whole
    missing = 2 - len(axes)
    axes = torch.cat((axes * sign[:, None], axes.new_zeros(missing, axes.shape[1])))
    return Plane(points.double().mean(0), axes, torch.cat((explained, explained.new_zeros(missing))))


@dataclass(frozen=True)
class Trajectory:
    """Points of every checkpoint in the plane of the last one.

    Attributes:
        explained: share of the variance of the last checkpoint along each axis.
        shares: the same for every checkpoint: how much of it the plane shows.
    """

    places: Float[Tensor, "step point axis"]
    explained: Float[Tensor, "axis"]
    shares: Float[Tensor, "step axis"]


def trajectory(points: Sequence[Float[Tensor, "point d_model"]]) -> Trajectory:
    """Where each point was at each checkpoint; the plane is that of the last, so that nothing jumps on the way."""
    plane = principal_plane(points[-1])
    return Trajectory(
        places=torch.stack([plane.place(one) for one in points]),
        explained=plane.explained,
        shares=torch.stack([plane.share(one) for one in points]),
    )
