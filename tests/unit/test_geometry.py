"""The plane of embeddings: by hand, the same after the space is turned, signs fixed, nothing jumps between steps."""

import pytest
import torch

from probes.geometry import principal_plane, trajectory

POINTS = torch.randn(9, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def turn(seed: int) -> torch.Tensor:
    """A random orthogonal matrix, mirrored for odd seeds."""
    drawn = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix = torch.linalg.qr(drawn)[0]
    wanted = 1.0 if seed % 2 == 0 else -1.0
    matrix[:, 0] *= torch.linalg.det(matrix).sign() * wanted
    return matrix


def test_points_on_a_cross_lie_where_they_were():
    points = torch.tensor([[3.0, 0, 7], [-3, 0, 7], [0, 1, 7], [0, -1, 7]])
    plane = principal_plane(points)
    expected = torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]]).double()
    assert (plane.place(points) - expected).abs().max() < 1e-6
    assert plane.explained.tolist() == pytest.approx([0.9, 0.1])


@pytest.mark.parametrize("seed", range(6))
def test_turning_or_mirroring_the_space_changes_no_coordinate(seed):
    shift = torch.arange(6).double()
    steps = [0.2 * POINTS, 0.5 * POINTS + POINTS.flip(0), POINTS]
    plain = trajectory(steps)
    turned = trajectory([one @ turn(seed) + shift for one in steps])
    moved = turned.places - plain.places
    assert moved.abs().max() < 1e-9
    assert (turned.shares - plain.shares).abs().max() < 1e-12


def test_the_farthest_point_lies_on_the_positive_side_whatever_the_svd_gives():
    for points in (POINTS, -POINTS, POINTS.flip(0)):
        places = principal_plane(points).place(points)
        farthest = places.abs().argmax(0)
        assert all(places[farthest[axis], axis] > 0 for axis in (0, 1))


def test_a_small_step_of_the_weights_is_a_small_step_in_the_plane():
    drift = torch.randn(9, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    steps = [POINTS + 0.01 * t * drift for t in range(20)]
    places = trajectory(steps).places
    assert (places[1:] - places[:-1]).norm(dim=-1).max() <= 0.01 * drift.norm(dim=1).max() + 1e-12


def test_shares_are_of_the_variance_and_those_of_the_fit_are_the_largest():
    path = trajectory([POINTS.flip(1), POINTS])
    assert (path.shares[-1] - path.explained).abs().max() < 1e-12
    assert path.shares[0].sum() <= path.explained.sum()
    assert trajectory([POINTS]).explained.sum() < 1
    assert trajectory([POINTS[:, :2]]).explained.sum().item() == pytest.approx(1)


def test_points_that_span_less_than_a_plane_get_zero_axes_not_noise():
    line = torch.arange(4.0)[:, None]
    assert trajectory([line]).places[0, :, 1].abs().max() == 0
    assert trajectory([torch.ones(3, 5)]).shares.abs().max() == 0
