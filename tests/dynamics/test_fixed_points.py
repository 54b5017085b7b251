"""Fixed points against closed forms, scipy's root finder and plain iteration; statuses; messages."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn

from helpers import close, randn
from kpflow import dynamics
from kpflow.dynamics import IndexVerdict, Status, Stop, find_fixed_points
from kpflow.dynamics.maps import exact_derivatives, static_map
from kpflow.states.cells import LowRankRNN, RateRNN


def unit(w, bounded=True):
    """Fixed points of tanh(w h + x)."""
    return lambda x, **more: find_fixed_points(
        lambda h, x: torch.tanh(w * h + x),
        torch.tensor([x], dtype=torch.float64),
        randn(30, 1, seed=0),
        bounded=bounded,
        **more,
    )


def scaled(module, factor, seed=0):
    """The module with white weights of this size."""
    with torch.no_grad():
        for i, value in enumerate(module.parameters()):
            value.copy_(factor * randn(*value.shape, seed=seed + i))
    return module


MODELS = {
    "RNNCell": (lambda: nn.RNNCell(3, 5), 5),
    "GRUCell": (lambda: nn.GRUCell(3, 5), 5),
    "LSTMCell": (lambda: nn.LSTMCell(3, 4), 8),
    "RNN": (lambda: nn.RNN(3, 5), 5),
    "RNN, relu": (lambda: nn.RNN(3, 5, nonlinearity="relu"), 5),
    "GRU": (lambda: nn.GRU(3, 5, batch_first=True), 5),
    "LSTM": (lambda: nn.LSTM(3, 4), 8),
    "RateRNN": (lambda: RateRNN(3, 5, alpha=0.3, bias=True), 5),
    "LowRankRNN": (lambda: LowRankRNN(3, 5, 2, alpha=0.3), 5),
}


def one_step(module, h, x):
    """A step as the user would make it, for a module in float64."""
    if isinstance(module, nn.LSTMCell):
        return torch.cat(module(x, h.chunk(2, dim=1)), dim=1)
    if isinstance(module, nn.LSTM):
        return torch.cat(module(x[None], tuple(part[None].contiguous() for part in h.chunk(2, dim=1)))[1], dim=2)[0]
    if isinstance(module, nn.RNNBase):
        return module(x.unsqueeze(1 if module.batch_first else 0), h[None])[1][0]
    if isinstance(module, nn.RNNCellBase):
        return module(x, h)
    return module.step(h, x)


@pytest.mark.parametrize("x", [0.0, 0.3, -0.5])
def test_three_roots_of_a_tanh_unit(x):
    fold = math.sqrt(0.5)  # |h| of the two folds between which the roots lie
    expected = [
        brentq(lambda h: math.tanh(2 * h + x) - h, *ends, xtol=1e-15)
        for ends in ((-1, -fold), (-fold, fold), (fold, 1))
    ]
    points = unit(2.0)(x)
    order = points.states[:, 0].argsort()
    np.testing.assert_allclose(points.states[order, 0], expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(
        points.multipliers[order, 0].real, [2 * (1 - h**2) for h in expected], rtol=0, atol=1e-13
    )
    assert points.kinds == ("stable", "stable", "repeller")
    assert points.unstable.tolist() == [0, 0, 1]
    assert (points.index_sum, points.index_verdict) == (1, IndexVerdict.CONSISTENT)
    assert points.status == (Status.ROOT,) * 30
    assert set(points.point.tolist()) == {0, 1, 2}
    assert float(points.residual.max()) <= 2e-12
    assert len(points.slow.states) == 0


def test_seeds_are_told_their_points():
    points = unit(2.0)(0.0)
    seeds = randn(30, 1, seed=0)
    close(points.states[points.point].sign()[seeds.abs() > 0.6], seeds.sign()[seeds.abs() > 0.6])


def test_too_few_seeds_are_found_out():
    points = find_fixed_points(
        lambda h, x: torch.tanh(2 * h + x), torch.zeros(1), torch.tensor([[0.9], [-0.9]]), bounded=True, rounds=0
    )
    assert (len(points.states), points.index_sum, points.index_verdict) == (2, 2, IndexVerdict.MISSING)
    assert (points.added, points.stopped) == (0, Stop.ROUNDS)


def test_beyond_the_fold_there_is_a_root_and_a_ghost():
    points = unit(2.0)(0.6)  # the fold is at 0.5328
    assert len(points.states) == len(points.slow.states) == 1
    assert {*points.status} == {Status.ROOT, Status.SLOW}
    ghost = float(points.slow.states[0, 0])
    assert ghost == pytest.approx(-(math.acosh(math.sqrt(2)) + 0.6) / 2, abs=1e-5)  # where F' = 1
    gap, slope = math.tanh(2 * ghost + 0.6) - ghost, 2 * (1 - math.tanh(2 * ghost + 0.6) ** 2) - 1
    assert float(points.slow.residual[0]) == pytest.approx(gap, rel=1e-12)
    assert abs(gap) > 0.01 > 1e-5 > abs(slope)
    assert points.slow.multipliers[0, 0].real.item() == pytest.approx(1, abs=2e-5)
    came = points.point[[end == Status.SLOW for end in points.status]]
    assert came.tolist() == [0] * len(came)


def test_at_a_pitchfork_the_index_is_not_trusted():
    points = unit(1.0)(0.0)
    assert len(points.states) == 1
    assert abs(float(points.states[0, 0])) < 1e-3
    assert (points.kinds, points.index_verdict) == (("marginal",), IndexVerdict.SINGULAR)


def test_linear_step_is_solved_exactly():
    a = 0.4 * randn(6, 6, seed=1)
    b = randn(6, seed=2)
    points = find_fixed_points(lambda h, x: h @ a.mT + x, b, randn(10, 6, seed=3))
    close(points.states[0], torch.linalg.solve(torch.eye(6).double() - a, b))
    close(points.jacobians[0], a)
    mu, v, u = points.multipliers[0], points.right[0], points.left[0]

    def same(got, expected):
        close(torch.view_as_real(got.resolve_conj()), torch.view_as_real(expected.resolve_conj()))

    same(a.to(v.dtype) @ v, v * mu)
    same(u.mT @ a.to(v.dtype), mu[:, None] * u.mT)
    same((u * v).sum(0), torch.ones_like(mu))
    close(v.abs().square().sum(0), torch.ones(6).double())
    assert (mu.abs().diff() <= 1e-15).all()
    assert points.index_verdict is IndexVerdict.NOT_APPLICABLE
    assert points.index_sum == int(torch.linalg.slogdet(torch.eye(6).double() - a)[0])


def test_time_scales_and_frequencies():
    angle, radius = 0.5, 0.9
    turn = radius * torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64
    )
    points = find_fixed_points(lambda h, x: h @ turn.mT + 0 * x.sum(), torch.zeros(2), randn(2, 2, seed=0), dt=0.1)
    close(points.timescales, torch.full((1, 2), -0.1 / math.log(radius), dtype=torch.float64))
    np.testing.assert_allclose(points.frequencies[0].abs(), angle / (0.2 * math.pi), rtol=1e-6)
    assert (points.kinds, points.spiral.tolist()) == (("stable",), [True])
    double = find_fixed_points(lambda h, x: 2 * h + x, torch.ones(1), randn(2, 1, seed=0))
    np.testing.assert_allclose(double.timescales, -1 / math.log(2), rtol=1e-14)
    assert (double.kinds, double.spiral.tolist()) == (("repeller",), [False])


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_step(name):
    make, width = MODELS[name]
    module = scaled(make(), 0.3)
    exact = copy.deepcopy(module).double()
    x = randn(3, seed=5)
    points = find_fixed_points(module, x, randn(20, width, seed=4))
    k = len(points.states)
    assert k >= 1
    moved = one_step(exact, points.states, x.expand(k, -1)).detach()
    assert float((moved - points.states).norm(dim=1).max()) <= 1e-12 * (1 + float(points.states.norm(dim=1).max()))
    slow = torch.autograd.functional.jacobian(lambda h: one_step(exact, h[None], x[None])[0], points.states[0])
    close(points.jacobians[0], slow)
    state = torch.zeros(1, width).double()
    for _ in range(500):  # weights are small enough: plain iteration comes to a stable point
        state = one_step(exact, state, x[None]).detach()
    assert float((points.states - state).norm(dim=1).min()) < 1e-8
    known = name != "RNN, relu"
    assert (points.index_verdict is IndexVerdict.NOT_APPLICABLE) != known
    assert not known or points.index_sum == 1


def test_many_points_of_a_random_gru():
    """All states of all points are apart, each within its own error of itself, and the index sum is 1."""
    module = scaled(nn.GRUCell(2, 6), 2.0, seed=11)
    points = find_fixed_points(
        module, torch.zeros(2), 2 * torch.rand(400, 6, generator=torch.Generator().manual_seed(1)) - 1
    )
    assert len(points.states) > 1
    assert points.index_verdict is IndexVerdict.CONSISTENT
    assert float(torch.pdist(points.states).min()) > 1e-3
    assert float(points.states.abs().max()) <= 1


def test_saturated_gates_make_no_points_outside_the_cube():
    module = scaled(nn.GRUCell(2, 6), 3.0, seed=11)  # far outside, z = 1 to rounding and every state stays
    points = find_fixed_points(module, torch.zeros(2), 20 * randn(100, 6, seed=0))
    assert float(points.states.abs().max()) <= 1
    assert float(points.slow.states.abs().max() if len(points.slow.states) else 0.0) <= 1
    assert "root" in points.status


def test_model_is_left_as_it_was():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh())

    class Net(nn.Module):
        def __init__(self):
            nn.Module.__init__(self)
            self.inner = module
            self.register_buffer("offset", torch.ones(4))

        def forward(self, h, x):
            return self.inner(h) * self.offset + x

    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    kept = [id(value) for value in net.parameters()]
    points = find_fixed_points(net, torch.zeros(4), torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))
    assert points.states.dtype == torch.float64
    assert [id(value) for value in net.parameters()] == kept
    assert all(
        value.requires_grad and value.grad is None and value.dtype == torch.float32 for value in net.parameters()
    )
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_bound_method_is_copied_with_its_module():
    rnn = RateRNN(3, 5, alpha=0.3)
    seeds = randn(6, 5, seed=0)
    close(find_fixed_points(rnn.step, torch.ones(3), seeds).states, find_fixed_points(rnn, torch.ones(3), seeds).states)
    assert rnn.weight_hh.dtype == torch.float32


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(mode):
    cell = nn.GRUCell(2, 3)
    with mode():
        points = find_fixed_points(cell, torch.zeros(2), torch.zeros(4, 3))
    assert points.index_sum == 1


def test_a_step_does_not_depend_on_the_other_seeds():
    module = scaled(nn.GRUCell(2, 6), 2.0, seed=11)
    with exact_derivatives():
        mapping = static_map(module, torch.zeros(2).double(), torch.zeros(1, 6).double())
    h = randn(7, 6, seed=0)
    with exact_derivatives():
        together, apart = mapping.linearised(h)[1], torch.cat([mapping.linearised(one[None])[1] for one in h])
    close(together, apart)


def test_states_that_leave_the_floating_range_are_diverged():
    points = find_fixed_points(
        lambda h, x: torch.exp(3 * h) + 1 + x, torch.zeros(1), torch.tensor([[0.0], [500.0]]), descent=0
    )
    assert points.status == (Status.SLOW, Status.DIVERGED)
    assert points.point.tolist() == [0, -1]
    assert float(points.slow.states[0, 0]) == pytest.approx(-math.log(3) / 3, abs=1e-5)
    never = find_fixed_points(lambda h, x: h / 0 + x, torch.zeros(1), torch.ones(2, 1))
    assert never.status == (Status.DIVERGED,) * 2
    assert never.states.shape == (0, 1)
    assert repr(never).startswith("FixedPoints(0 points: none; 0 slow; index sum 0, not applicable; seeds: 2 diverged")


def test_steps_are_bounded():
    short = find_fixed_points(
        lambda h, x: torch.cos(h) + x, torch.zeros(1), torch.full((1, 1), 0.74), descent=0, iterations=0
    )
    assert short.status == (Status.ROOT,)  # Newton alone, in three steps
    assert float(short.states[0, 0]) == pytest.approx(0.7390851332151607, abs=1e-12)
    far = find_fixed_points(lambda h, x: h**5 + x, torch.zeros(1), torch.full((1, 1), 50.0), descent=0, iterations=2)
    assert far.status == (Status.MAXITER,)


def test_a_line_of_points_is_marginal_and_kept_apart():
    keep = torch.tensor([[1.0, 0.0], [0.0, 0.5]]).double()
    points = find_fixed_points(lambda h, x: h @ keep + x, torch.zeros(2), randn(8, 2, seed=0), bounded=True)
    assert points.kinds == ("marginal",) * len(points.states)
    assert len(points.states) == 8
    assert points.index_verdict is IndexVerdict.SINGULAR
    assert math.isinf(float(points.timescales[0, 0]))


def test_eigenvectors_of_a_jacobian_without_a_basis_are_finite():
    block = torch.tensor([[0.5, 1.0], [0.0, 0.5]]).double()
    points = find_fixed_points(lambda h, x: h @ block.mT + x, torch.ones(2), randn(3, 2, seed=0))
    assert torch.isfinite(torch.view_as_real(points.left)).all()
    assert float(points.condition[0]) > 1e8


ZERO = torch.zeros(1)
SEEDS = torch.ones(4, 1)


class Untouchable(nn.Module):
    def __deepcopy__(self, memo):
        raise RuntimeError("no copies")

    def forward(self, h, x):
        return h + x


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": torch.zeros(5, 1)}, r"`inputs` must be one static input, shape \(I,\); got \(5, 1\)"),
        ({"inputs": torch.tensor([math.nan])}, "`inputs` must be finite; got NaN at input 0"),
        ({"seeds": torch.ones(1)}, r"`seeds` must be states to start from, shape \(n, H\), at least one; got \(1,\)"),
        ({"seeds": torch.ones(0, 1)}, r"`seeds` must be states to start from.*got \(0, 1\)"),
        ({"seeds": torch.tensor([[1.0], [math.inf]])}, "`seeds` must be finite; got inf at seed 1, unit 0.*Leave such"),
        ({"inputs": torch.zeros(1, device="meta")}, "`inputs` must be on the device of `seeds`, cpu; got meta"),
        ({"tolerance": 0.0}, "`tolerance` must be a positive number; got 0.0"),
        ({"descent": -1}, "`descent` must be a whole number at least 0; got -1"),
        ({"iterations": -1}, "`iterations` must be a whole number at least 0"),
        ({"merge": -1.0}, "`merge` must be a number at least 0"),
        ({"marginal": -1.0}, "`marginal` must be a number at least 0"),
        ({"dt": 0.0}, "`dt` must be a positive number"),
        (
            {"step": lambda h, x: h[:, :0]},
            r"`step` must give states of the shape that it takes, \(3, 1\); got \(3, 0\)",
        ),
        ({"step": lambda h, x: h.detach()}, "`step` must be differentiable in h"),
        ({"step": lambda h, x: h + torch.rand(1, dtype=h.dtype)}, "`step` must be deterministic"),
        ({"step": lambda h, x: h - h.mean(0) + h.square().sum(0)}, "`step` must treat the samples of a batch apart"),
        ({"step": lambda h, x: h @ torch.ones(1, 1)}, "`step` fails as step.*must be float64"),
        ({"step": Untouchable()}, "`step` must be a module that copy.deepcopy copies.*no copies"),
        ({"step": nn.GRU(1, 1, 2)}, "`step` must have one layer"),
        ({"step": nn.GRUCell(1, 2)}, r"`seeds` must have shape \(n, 2\), the states of GRUCell; got \(4, 1\)"),
        ({"step": nn.LSTM(1, 2)}, r"`seeds` must have shape \(n, 4\), h and c side by side of LSTM"),
        ({"step": RateRNN(2, 1)}, r"`inputs` must have shape \(2,\), one input of RateRNN; got \(1,\)"),
    ],
)
def test_messages(arguments: dict[str, Any], message):
    given = {"step": lambda h, x: h / 2 + x, "inputs": ZERO, "seeds": SEEDS} | arguments
    step, inputs, seeds = given.pop("step"), given.pop("inputs"), given.pop("seeds")
    with pytest.raises(ValueError, match=message):
        find_fixed_points(step, inputs, seeds, **given)


def test_messages_about_types():
    with pytest.raises(TypeError, match=r"`seeds` must hold floating-point numbers; got torch.int64"):
        find_fixed_points(lambda h, x: h, ZERO, torch.ones(2, 1, dtype=torch.int64))
    with pytest.raises(TypeError, match="`step` must give a float64 tensor for float64 states; got tuple"):
        find_fixed_points(lambda h, x: (h, h), ZERO, SEEDS)
    with pytest.raises(TypeError, match=r"`step` must give a float64 tensor for float64 states; got torch.float32"):
        find_fixed_points(lambda h, x: h.float(), ZERO, SEEDS)


def test_the_table_of_public_names():
    assert {"find_fixed_points", "FixedPoints", "SlowPoints", "Status", "IndexVerdict"} <= {*dynamics.__all__}
