"""What is told of each point: its certificate, how it answers inputs, its outputs, its distance from trajectories."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from helpers import close, randn
from kpflow.dynamics import find_fixed_points
from kpflow.dynamics.certificates import kantorovich
from kpflow.dynamics.maps import exact_derivatives, static_map
from kpflow.states.cells import RateRNN


def quadratic(h, x):
    return h + h**2 - x


def test_kantorovich_of_a_parabola():
    """r = h² − a: β = 1/2h, η = |h² − a|/2h, and the Lipschitz constant of r' is 2, doubled for the ball."""
    with exact_derivatives():
        mapping = static_map(quadratic, torch.tensor([2.0]).double(), torch.ones(1, 1).double())
        h = torch.tensor([[1.5], [1.4], [1.0], [0.3]]).double()
        jacobians = mapping.linearised(h)[1]
        got = kantorovich(mapping, h, jacobians)
    expected = (h**2 - 2).abs() / (2 * h) * 4 / (2 * h)
    close(got, expected[:, 0], 1e-8)
    assert (got <= 0.5).tolist() == [True, True, False, False]


@pytest.mark.parametrize("width", [1, 5, 80])
def test_curvature_of_a_quadratic_map(width):
    """Fᵢ = hᵢ² / 2: ∂ⱼ∂ₗFᵢ = δᵢⱼₗ, whose Frobenius norm is √H; above 64 units estimated from 64 directions."""
    h = torch.full((1, width), 3.0, dtype=torch.float64)
    with exact_derivatives():
        mapping = static_map(lambda h, x: h**2 / 2 + 0 * x.sum(), torch.zeros(1).double(), h)
        got = kantorovich(mapping, h, mapping.linearised(h)[1])
    residual = 1.5 * math.sqrt(width)
    expected = 0.5 * (residual * 0.5) * 2 * math.sqrt(width)  # β η L, with β = ½
    assert float(got) == pytest.approx(expected, rel=1e-7)  # here the same for any orthonormal directions


def test_a_residual_of_zero_is_known_to_rounding_only():
    """At 0 the residual of (1 − 1e-9) h + h² is exactly 0, but β = 1e9: rounding could be a root elsewhere, or none."""
    h = torch.zeros(1, 1).double()
    with exact_derivatives():
        mapping = static_map(lambda h, x: (1 - 1e-9) * h + h**2 + x, torch.zeros(1).double(), h)
        got = kantorovich(mapping, h, mapping.linearised(h)[1])
    assert float(got) == pytest.approx(1e18 * torch.finfo(torch.float64).eps * 4, rel=1e-3)


def test_regular_points_are_certified_and_singular_ones_are_not():
    def points(w):
        return find_fixed_points(lambda h, x: torch.tanh(w * h + x), torch.zeros(1), randn(20, 1, seed=0), bounded=True)

    assert points(2.0).certified.all()
    assert not points(2.0).singular.any()
    pitchfork = points(1.0)
    assert not pitchfork.certified.any()
    assert pitchfork.singular.all()


def test_trained_like_networks_are_certified_above_64_units():
    cell = RateRNN(2, 70, alpha=0.5, gain=0.5)
    points = find_fixed_points(cell, torch.ones(2), randn(3, 70, seed=0))
    assert points.certified.tolist() == [True]


@pytest.mark.parametrize("make", [lambda: nn.GRUCell(3, 4), lambda: nn.LSTM(3, 2), lambda: RateRNN(3, 4, alpha=0.4)])
def test_points_move_with_the_input_as_the_jacobians_say(make):
    """dh/dx = (I − ∂F/∂h)⁻¹ ∂F/∂x, the implicit function theorem, against two searches."""
    module, x = make(), randn(3, seed=1)
    with torch.no_grad():
        for i, value in enumerate(module.parameters()):
            value.copy_(0.5 * randn(*value.shape, seed=i))
    seeds, step = randn(5, 4, seed=2), 1e-5
    points = find_fixed_points(module, x, seeds)
    assert len(points.states) == 1
    moved = torch.linalg.solve(torch.eye(4).double() - points.jacobians[0], points.input_jacobians[0])
    for j in range(3):
        along = step * torch.eye(3).double()[j]
        ahead, behind = (find_fixed_points(module, x + sign * along, seeds).states[0] for sign in (1, -1))
        close((ahead - behind) / (2 * step), moved[:, j], 1e-8)


def test_a_step_that_ignores_its_input():
    points = find_fixed_points(lambda h, x: 0.5 * h, torch.zeros(2), randn(2, 3, seed=0))
    close(points.input_jacobians, torch.zeros(1, 3, 2).double())


def test_outputs_by_a_module_or_a_function():
    linear = nn.Linear(3, 2)
    before = copy.deepcopy(linear.state_dict())
    step, x, seeds = (lambda h, x: 0.5 * h + x), torch.ones(3), randn(4, 3, seed=0)
    points = find_fixed_points(step, x, seeds, readout=linear)
    assert points.outputs is not None
    weight, bias = linear.weight.detach().double(), linear.bias.detach().double()
    close(points.outputs, points.states @ weight.mT + bias)
    assert not points.outputs.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in linear.state_dict().items())
    assert linear.weight.dtype == torch.float32
    first = find_fixed_points(step, x, seeds, readout=lambda h: h[:, :1]).outputs
    assert first is not None
    close(first, torch.full((1, 1), 2.0, dtype=torch.float64))
    assert find_fixed_points(step, x, seeds).outputs is None


@pytest.mark.parametrize(
    ("readout", "message"),
    [
        (nn.Linear(2, 1), r"`readout` fails at states of shape \(1, 3\).*of an LSTM h and c side by side"),
        (lambda h: h.sum(), r"`readout` must give a tensor with a row for each of 1 states; got \(\)"),
        (lambda h: 3.0, "`readout` must give a tensor with a row for each of 1 states; got float"),
    ],
)
def test_messages_about_the_readout(readout: Any, message):
    with pytest.raises(ValueError, match=message):
        find_fixed_points(lambda h, x: 0.5 * h + x, torch.ones(3), randn(4, 3, seed=0), readout=readout)


def test_distance_to_the_nearest_state():
    points = find_fixed_points(lambda h, x: 0.5 * h + x, torch.ones(2), randn(4, 2, seed=0))  # at (2, 2)
    states = torch.tensor([[[2.0, 5.0], [6.0, 5.0]], [[2.0, 4.5], [9.0, 9.0]]])
    close(points.distance(states), torch.tensor([2.5]).double())
    with pytest.raises(ValueError, match=r"`states` must be states of the same units, shape \(\*, 2\).*got \(4, 3\)"):
        points.distance(torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"at least one; got \(0, 2\)"):
        points.distance(torch.ones(0, 2))
