"""Steps on which searches have it hard: continua, jumps, steps that leave the floating range, seeds far away."""

import math

import pytest
import torch
from torch import nn

from helpers import close, randn
from kpflow.dynamics import IndexVerdict, Status, Stop, find_fixed_points
from kpflow.states.cells import RateRNN


def ring(h, x):
    """A circle of fixed points of radius 1, attracting in the plane; a third unit decays."""
    plane, rest = h[:, :2], h[:, 2:]
    radius = plane.norm(dim=1, keepdim=True)
    return torch.cat([plane * (1 + 0.5 * (1 - radius)), 0.5 * rest], dim=1) + 0 * x.sum()


def test_a_ring_is_reported_as_singular_points():
    points = find_fixed_points(ring, torch.zeros(1), randn(30, 3, seed=0), bounded=True)
    on = points.states[:, :2].norm(dim=1)
    assert len(points.states) > 20  # not merged into one
    close(on[points.singular], torch.ones(int(points.singular.sum())).double(), 1e-9)
    assert points.singular.sum() >= 20
    assert points.index_verdict is IndexVerdict.SINGULAR
    assert points.stopped is Stop.GIVEN  # no seeds are added for the sake of a sum that tells nothing
    assert not points.certified[points.singular].any()
    assert all(kind == "marginal" for kind, one in zip(points.kinds, points.singular.tolist(), strict=True) if one)


def test_a_ring_under_a_time_limit_is_cut():
    points = find_fixed_points(ring, torch.zeros(1), randn(30, 3, seed=0), bounded=True, descent=10**6, time_limit=0.2)
    assert points.stopped is Stop.TIME
    assert torch.isfinite(points.states).all()


@pytest.mark.parametrize(
    ("step", "roots"),
    [
        (lambda h, x: 0 * h + torch.sign(h) + x, 2),  # h = ±1; at 0 sign jumps, and sign(0) = 0
        (lambda h, x: 0 * h - torch.sign(h) - 0.5 + x, 0),
        (lambda h, x: h + (h.detach() * 10).round() / 10 + 1 + x, 0),  # no derivative tells where to go
    ],
)
def test_discontinuous_steps_end_in_a_status(step, roots):
    points = find_fixed_points(step, torch.zeros(1), torch.tensor([[0.7], [-0.4], [2.0], [-3.0]]))
    assert len(points.states) >= roots
    ends = {Status.ROOT, Status.SLOW, Status.MAXITER}
    assert {*points.status} <= ends
    assert (points.residual <= 1e-11).all()
    assert torch.isfinite(points.slow.states).all()


def test_expanding_maps_have_their_saddle():
    """Seeds that iteration would carry off to infinity: Newton's method does not iterate."""
    a = 3 * torch.linalg.qr(randn(4, 4, seed=0))[0]
    points = find_fixed_points(lambda h, x: h @ a.mT + x, randn(4, seed=1), 1e3 * randn(10, 4, seed=2))
    assert points.kinds == ("repeller",)
    close(points.states[0], torch.linalg.solve(torch.eye(4).double() - a, randn(4, seed=1)), 1e-10)


def test_a_step_that_leaves_the_floating_range_is_no_root():
    points = find_fixed_points(
        lambda h, x: torch.exp(h**3) + 2 + x, torch.zeros(1), torch.tensor([[100.0], [-1.0], [20.0]])
    )
    assert points.status[0] is points.status[2] is Status.DIVERGED
    assert torch.isfinite(points.slow.residual).all()
    assert len(points.states) == int((points.residual < 1e-10).sum())


def test_a_step_that_is_nan_everywhere():
    points = find_fixed_points(lambda h, x: (h * math.nan) + x, torch.zeros(1), torch.ones(3, 2), bounded=True)
    assert points.status == (Status.DIVERGED,) * 3
    assert (len(points.states), points.index_sum) == (0, 0)
    assert points.index_verdict is IndexVerdict.MISSING
    assert points.stopped is Stop.SATURATED


def test_relu_without_a_bound_makes_no_claim():
    rnn = RateRNN(2, 6, nonlinearity=torch.relu, gain=3.0)
    points = find_fixed_points(rnn, torch.ones(2), randn(20, 6, seed=0))
    assert points.index_verdict is IndexVerdict.NOT_APPLICABLE
    assert points.stopped is Stop.GIVEN


def test_states_held_at_the_limit_are_told():
    """Where an update gate is almost 1 at |h| = 1, the speed falls further outside, where no fixed point can be."""
    cell = nn.GRUCell(1, 8)
    with torch.no_grad():
        for i, value in enumerate(cell.parameters()):
            value.copy_(2.0 * randn(*value.shape, seed=i))
    seeds = 2 * torch.rand(60, 8, generator=torch.Generator().manual_seed(0)) - 1
    points = find_fixed_points(cell, torch.zeros(1), seeds, rounds=0)
    assert points.status.count(Status.HELD) > 5
    assert (points.point[[end is Status.HELD for end in points.status]] == -1).all()
