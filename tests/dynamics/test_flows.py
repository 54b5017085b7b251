"""Zeros of vector fields: closed forms, eigenvalues, index, what is refused."""

import math

import pytest
import torch
from torch import nn

from helpers import close, randn
from kpflow.dynamics import IndexVerdict, Status, find_fixed_points
from kpflow.states.cells import RateRNN

SEEDS = 3 * randn(60, 2, seed=0)


def lorenz(h, x):
    a, b, c = h.unbind(dim=1)
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], dim=1) + 0 * x


def test_the_three_zeros_of_lorenz():
    points = find_fixed_points(lorenz, torch.zeros(1), 20 * randn(60, 3, seed=0), flow=True, bounded=True)
    r = math.sqrt(8 / 3 * 27)
    expected = torch.tensor([[0.0, 0.0, 0.0], [-r, -r, 27.0], [r, r, 27.0]], dtype=torch.float64)
    close(points.states[points.states[:, 0].argsort()], expected[expected[:, 0].argsort()], 1e-11)
    assert points.flow
    assert (points.index_sum, points.index_verdict) == (1, IndexVerdict.CONSISTENT)  # inwards on a large ellipsoid
    assert points.kinds == ("saddle-1", "saddle-2", "saddle-2")
    assert points.spiral.tolist() == [False, True, True]
    origin = points.multipliers[0].real
    root = math.sqrt(1201)  # λ² + 11 λ − 270 = 0
    close(origin, torch.tensor([(root - 11) / 2, -8 / 3, -(root + 11) / 2], dtype=torch.float64))
    close(points.timescales[0], -1 / origin)
    close(points.jacobians[0], torch.tensor([[-10.0, 10, 0], [28, -1, 0], [0, 0, -8 / 3]], dtype=torch.float64))


def test_hopf_point_turns_at_its_frequency():
    def field(h, x):
        a, b = h.unbind(dim=1)
        square = h.square().sum(dim=1)
        return torch.stack([0.1 * a - 3 * b - a * square, 3 * a + 0.1 * b - b * square], dim=1) + 0 * x.sum()

    points = find_fixed_points(field, torch.zeros(1), SEEDS, flow=True, bounded=True, dt=5.0)
    assert len(points.states) == points.index_sum == 1
    close(points.frequencies[0].abs(), torch.full((2,), 3 / (2 * math.pi), dtype=torch.float64))
    close(points.timescales[0], torch.full((2,), -10.0, dtype=torch.float64))
    assert points.kinds == ("repeller",)
    assert points.spiral.tolist() == [True]
    close(points.multipliers[0].real, torch.full((2,), 0.1, dtype=torch.float64))


@pytest.mark.parametrize(("w", "count"), [(0.5, 1), (2.0, 3)])
def test_a_rate_flow_has_the_points_of_its_map(w, count):
    flow = find_fixed_points(
        lambda h, x: -h + torch.tanh(w * h + x), torch.zeros(1), randn(30, 1, seed=0), flow=True, bounded=True
    )
    step = find_fixed_points(lambda h, x: torch.tanh(w * h + x), torch.zeros(1), randn(30, 1, seed=0), bounded=True)
    assert len(flow.states) == count
    close(flow.states.sort(dim=0)[0], step.states.sort(dim=0)[0])
    assert flow.kinds == step.kinds
    assert flow.index_sum == step.index_sum == 1
    close(flow.multipliers.real.sort(dim=0)[0] + 1, step.multipliers.real.sort(dim=0)[0])
    assert flow.status == (Status.ROOT,) * 30


def test_fast_flows_are_stable_for_what_they_are():
    """λ = −5 is stable, although |1 + λ| > 1: nothing of a flow is judged as of a map."""
    points = find_fixed_points(lambda h, x: -5 * h + x, torch.ones(1), randn(5, 1, seed=0), flow=True)
    assert points.kinds == ("stable",)
    assert points.unstable.tolist() == [0]
    close(points.states, torch.full((1, 1), 0.2, dtype=torch.float64))
    close(points.input_jacobians, torch.ones(1, 1, 1).double())
    assert points.index_verdict is IndexVerdict.NOT_APPLICABLE
    points = find_fixed_points(
        lambda h, x: -5 * h + 10 * torch.tanh(h) + x,
        torch.zeros(1),
        torch.tensor([[3.0], [-3.0]]),
        flow=True,
        bounded=True,
    )
    assert len(points.states) == 3  # mixes of the stable points found the one between


def test_a_line_of_zeros_is_singular():
    points = find_fixed_points(
        lambda h, x: torch.stack([0 * h[:, 0], -h[:, 1]], dim=1) + 0 * x,
        torch.zeros(1),
        SEEDS[:6],
        flow=True,
        bounded=True,
    )
    assert points.singular.all()
    assert points.kinds == ("marginal",) * 6
    assert points.index_verdict is IndexVerdict.SINGULAR


def test_discrete_cells_are_no_flows():
    message = "`flow=True` takes a vector field f"
    with pytest.raises(ValueError, match=message):
        find_fixed_points(nn.GRUCell(1, 2), torch.zeros(1), SEEDS, flow=True)
    with pytest.raises(ValueError, match="RateRNN is a step"):
        find_fixed_points(RateRNN(1, 2), torch.zeros(1), SEEDS, flow=True)
    with pytest.raises(ValueError, match=message):
        find_fixed_points(RateRNN(1, 2).step, torch.zeros(1), SEEDS, flow=True)
