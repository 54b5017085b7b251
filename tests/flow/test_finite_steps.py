"""Finite steps as flows: the kernel that makes the linear theory exact, and the orders of the modified fields."""

import math
from typing import Any

import pytest
import torch

from kpflow.flow import finite_step_kernel, finite_step_rates, modified_flow, modified_gradient_flow


def symmetric(values, seed=0):
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)).Q
    return turn @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ turn.mT


@pytest.mark.parametrize("values", [(0.1, 0.5, 0.9), (0.3, 1.4, 1.9), (0.2, 1.1, 2.3), (0.0, 0.0, 0.7)])
def test_the_kernel_gives_what_descent_leaves_after_any_number_of_steps(values):
    theta = symmetric(values) / 0.5
    kernel = finite_step_kernel(theta, 0.5)
    assert kernel.is_complex() == (max(values) > 1)
    identity = torch.eye(3, dtype=torch.float64)
    for steps in (1, 2, 7):
        left = torch.matrix_exp(-0.5 * steps * kernel)
        assert torch.allclose(left.real, torch.linalg.matrix_power(identity - 0.5 * theta, steps), atol=1e-12)
        if left.is_complex():
            assert left.imag.abs().max() < 1e-12


def test_rates_are_those_of_the_flow_for_small_steps_and_change_sign_at_two():
    values = torch.tensor([0.5, 1.99, 2.01], dtype=torch.float64)
    assert finite_step_rates(values, 1e-6).real == pytest.approx(values.tolist(), rel=2e-6)
    assert (finite_step_rates(values, 1.0).real > 0).tolist() == [True, True, False]
    assert float(finite_step_rates(values, 1.0).imag[1]) == pytest.approx(-math.pi)
    assert math.isinf(float(finite_step_rates(torch.ones(1), 1.0).real))


def integrated(field, start, time, steps=20):
    """By classical Runge–Kutta steps that are small against those that are compared."""
    state, step = start, time / steps
    for _ in range(steps):
        one = field(state)
        two = field(state + step / 2 * one)
        three = field(state + step / 2 * two)
        state = state + step / 6 * (one + 2 * two + 2 * three + field(state + step * three))
    return state


@pytest.mark.parametrize("order", [1, 2, 3])
def test_one_step_is_the_flow_up_to_the_next_order(order):
    start = torch.tensor([0.7, -0.4], dtype=torch.float64)

    def loss(theta):
        return theta[0].exp() * theta[1].sin() + theta.square().sum() ** 2

    slope = torch.func.grad(loss)(start)
    errors = [
        float((start - eta * slope - integrated(modified_gradient_flow(loss, eta, order), start, eta)).norm())
        for eta in (0.01, 0.005)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.1)


def bilinear(players):
    """Two players of two parameters each, with L₁ = xᵀAy = −L₂/2: one learns at twice the rate of the other."""
    payoff = torch.tensor([[1.0, 0.5], [-0.3, 2.0]], dtype=torch.float64)
    first, second = players
    return torch.stack([-payoff @ second, 2 * payoff.mT @ first])


def cubic(players):
    x, y = players
    return torch.stack([-y - x**3, 2 * x - x**2 * y])


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("game", "start"), [(bilinear, [[0.6, -0.4], [0.3, 0.8]]), (cubic, [0.6, -0.4])])
def test_a_step_of_a_game_is_the_flow_up_to_the_next_order(game, start, order):
    players = torch.tensor(start, dtype=torch.float64)
    errors = [
        float((players + eta * game(players) - integrated(modified_flow(game, eta, order), players, eta)).norm())
        for eta in (0.01, 0.005)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.05)


def test_steps_of_a_bilinear_game_drive_its_players_away():
    # with f = Mθ: f − η/2 M²θ, and M² has negative eigenvalues for the rotation that a bilinear game is
    players = torch.tensor([[0.6, -0.4], [0.3, 0.8]], dtype=torch.float64)
    matrix = torch.func.jacrev(bilinear)(players).reshape(4, 4)
    series = matrix - 0.1 / 2 * matrix @ matrix
    assert torch.allclose(modified_flow(bilinear, 0.1)(players).flatten(), series @ players.flatten(), atol=1e-14)
    assert (torch.linalg.eigvals(series).real > 0.01).all()
    assert torch.linalg.eigvals(matrix).real.abs().max() < 1e-12


def test_on_a_quadratic_the_fields_are_the_series_of_the_kernel():
    theta = symmetric((0.1, 0.2, 0.3))
    start = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    field = modified_gradient_flow(lambda w: 0.5 * w @ theta @ w, 0.1, 3)
    assert torch.allclose(field(start), -finite_step_kernel(theta, 0.1) @ start, atol=1e-5, rtol=0)
    series = theta + 0.05 * theta @ theta + 0.01 / 3 * theta @ theta @ theta
    assert torch.allclose(field(start), -series @ start, atol=1e-14)


def test_what_is_refused():
    wrong: Any = [[1.0]]
    with pytest.raises(TypeError, match=r"`kernel` must be a torch.Tensor; got list"):
        finite_step_kernel(wrong, 0.1)
    with pytest.raises(ValueError, match=r"`kernel` must be a symmetric matrix; got shape \(2, 2\)"):
        finite_step_kernel(torch.tensor([[1.0, 0.5], [0.0, 1.0]]), 0.1)
    for call in (
        lambda eta: finite_step_kernel(torch.eye(2), eta),
        lambda eta: finite_step_rates(torch.ones(2), eta),
        lambda eta: modified_gradient_flow(torch.sum, eta, 1),
        lambda eta: modified_flow(torch.neg, eta),
    ):
        with pytest.raises(ValueError, match="`learning_rate` must be a positive number; got 0"):
            call(0.0)
    with pytest.raises(ValueError, match="`order` must be a whole number between 1 and 3; got 4"):
        modified_gradient_flow(torch.sum, 0.1, 4)
    with pytest.raises(ValueError, match="`order` must be a whole number between 1 and 3; got 0"):
        modified_flow(torch.neg, 0.1, 0)
    with pytest.raises(ValueError, match=r"`field` must give a velocity of the shape of the parameters, \(3,\); got"):
        modified_flow(torch.sum, 0.1)(torch.ones(3))
