"""Frames: factorisations that are unique, and what cannot be told from zero."""

import math

import torch

from helpers import close, randn
from kpflow.dynamics import frames


def test_factors_with_a_positive_diagonal() -> None:
    block = randn(3, 20, 5, seed=0)
    frame, triangle = frames.orthonormal(block)
    columns = frame.permute(1, 2, 0)
    close(columns @ triangle, block.permute(1, 2, 0))
    close(columns.mT @ columns, torch.eye(3).double().expand(20, 3, 3))
    close(triangle.tril(-1), torch.zeros(20, 3, 3))
    assert bool((triangle.diagonal(dim1=1, dim2=2) > 0).all())


def test_a_rank_is_known_to_rounding() -> None:
    """Rank 2 in directions of their own: the third R_ii is rounding, not zero."""
    block = (randn(4, 10, 5, 2, seed=0) @ randn(10, 2, 1, seed=1))[..., 0]
    block[2:] = 0.3 * block[:1] + torch.tensor([0.7, 0.1]).reshape(2, 1, 1) * block[1:2]
    _, triangle = frames.orthonormal(block)
    assert bool((triangle.diagonal(dim1=1, dim2=2)[:, 2] > 0).any())
    logs = frames.logarithms(triangle, 5)
    assert bool(torch.isfinite(logs[:, :2]).all())
    assert bool((logs[:, 2:] == -math.inf).all())


def test_spread_is_the_worst_of_all_trials() -> None:
    triangles = torch.stack([torch.eye(2), torch.tensor([[1.0, 3.0], [0.0, 1e-3]])]).double()
    assert abs(frames.spread(triangles) - math.log(3e3)) < 1e-6
    triangles[0, 0, 0] = 0
    assert frames.spread(triangles) == math.inf
