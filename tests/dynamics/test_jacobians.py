"""Analytic Jacobians of the known cells against automatic differentiation; maps without gates that slow them."""

import dataclasses

import pytest
import torch
from torch import nn

from helpers import close, randn
from kpflow.dynamics import find_fixed_points
from kpflow.dynamics.maps import exact_derivatives, static_map
from kpflow.states.cells import LowRankRNN, RateRNN


def scaled(module, factor=0.8):
    with torch.no_grad():
        for i, value in enumerate(module.parameters()):
            value.copy_(factor * randn(*value.shape, seed=i))
    return module


CELLS = {
    "RNN": (lambda: nn.RNN(3, 5), 5),
    "RNN, relu": (lambda: nn.RNN(3, 5, nonlinearity="relu"), 5),
    "RNNCell, no bias": (lambda: nn.RNNCell(3, 5, bias=False), 5),
    "GRU": (lambda: nn.GRU(3, 5, batch_first=True), 5),
    "GRU, no bias": (lambda: nn.GRU(3, 5, bias=False), 5),
    "GRUCell": (lambda: nn.GRUCell(3, 5), 5),
    "LSTM": (lambda: nn.LSTM(3, 4), 8),
    "LSTM, no bias": (lambda: nn.LSTM(3, 4, bias=False), 8),
    "LSTMCell": (lambda: nn.LSTMCell(3, 4), 8),
    "RateRNN, inside": (lambda: RateRNN(3, 5, alpha=0.3, bias=True), 5),
    "RateRNN, outside": (lambda: RateRNN(3, 5, alpha=0.3, convention="outside", nonlinearity=torch.sigmoid), 5),
    "RateRNN, no leak": (lambda: RateRNN(3, 5), 5),
    "LowRankRNN": (lambda: LowRankRNN(3, 5, 2, alpha=0.3, bias=True), 5),
}

GATED = [name for name in CELLS if "GRU" in name or "LSTM" in name]


@pytest.mark.parametrize("name", CELLS)
def test_formulas_are_the_derivatives(name):
    make, width = CELLS[name]
    h, x = randn(7, width, seed=50), randn(3, seed=51)
    with exact_derivatives():
        mapping = static_map(scaled(make()), x, h)
        assert mapping.jacobian is not None
        plain = dataclasses.replace(mapping, jacobian=None, target=None)
        for one, other in zip(mapping.linearised(h), plain.linearised(h), strict=True):
            close(one, other)
        assert mapping.of_input is not None
        step = dataclasses.replace(static_map(Wrapped(scaled(make())), x, h))
        assert step.jacobian is None  # a module of its own: by automatic differentiation
        assert step.of_input is not None
        close(mapping.of_input(h), step.of_input(h))
        close(mapping.linearised(h)[1], step.linearised(h)[1])


class Wrapped(nn.Module):
    """A cell that is not known as one."""

    def __init__(self, inner):
        nn.Module.__init__(self)
        self.inner = inner

    def forward(self, h, x):
        if isinstance(self.inner, nn.LSTMCell):
            return torch.cat(self.inner(x, h.chunk(2, dim=1)), dim=1)
        if isinstance(self.inner, nn.RNNCellBase):
            return self.inner(x, h)
        if not isinstance(self.inner, nn.RNNBase):
            return self.inner.step(h, x)
        start = tuple(p.contiguous()[None] for p in h.chunk(2, dim=1)) if isinstance(self.inner, nn.LSTM) else h[None]
        end = self.inner(x.unsqueeze(1 if self.inner.batch_first else 0), start)[1]
        return torch.cat(end, dim=2)[0] if isinstance(end, tuple) else end[0]


@pytest.mark.parametrize("name", GATED)
def test_targets_have_the_same_fixed_points(name):
    make, width = CELLS[name]
    x = randn(3, seed=51)
    seeds = randn(40, width, seed=52)
    points = find_fixed_points(Wrapped(scaled(make())), x, seeds)  # without a target
    with exact_derivatives():
        mapping = static_map(scaled(make()), x, seeds)
        target = mapping.target
        assert target is not None
        close(target(points.states), points.states, 1e-10)
        by_rows = dataclasses.replace(target, jacobian=None)
        close(target.linearised(seeds)[1], by_rows.linearised(seeds)[1])
        moved, h = mapping(seeds), seeds  # F(h) − h = (1 − u)(G(h) − h) with 0 < u < 1, of c and of a GRU's h
        gated = slice(width // 2, None) if "LSTM" in name else slice(None)
        assert (((moved - h) * (target(seeds) - h))[:, gated] >= -1e-15).all()


def test_saturated_gates_hide_no_points():
    """Where update gates are almost 1, ½‖F(h) − h‖² has minima everywhere; the map without the gate has not."""
    cell = scaled(nn.GRUCell(1, 8), 2.0)
    seeds = 2 * torch.rand(60, 8, generator=torch.Generator().manual_seed(0)) - 1
    eased = find_fixed_points(cell, torch.zeros(1), seeds, rounds=0)
    plain = find_fixed_points(Wrapped(cell), torch.zeros(1), seeds, rounds=0)
    assert (len(eased.states), eased.index_sum) == (3, 1)
    assert eased.status.count("root") > 30
    assert plain.status.count("root") < 10
    assert (len(plain.states), plain.index_sum) == (2, 0)


def test_a_hook_or_a_forward_of_its_own_is_honoured():
    class Mine(nn.GRUCell):
        def forward(self, input, hx=None):
            return 0.5 * super().forward(input, hx)

    hooked = scaled(nn.GRUCell(3, 5))
    hooked.register_forward_hook(lambda module, arguments, result: 0.5 * result)
    mine, h, x = scaled(Mine(3, 5)), randn(4, 5, seed=0), randn(3, seed=1)
    with exact_derivatives():
        halved = static_map(scaled(nn.GRUCell(3, 5)), x, h).linearised(h)
        for module in (mine, hooked):
            mapping = static_map(module, x, h)
            assert mapping.jacobian is None
            assert mapping.target is None
            for one, other in zip(mapping.linearised(h), halved, strict=True):
                close(one, 0.5 * other)


def test_parametrised_weights_go_by_automatic_differentiation():
    cell = torch.nn.utils.parametrizations.orthogonal(nn.RNNCell(3, 4), "weight_hh")
    with exact_derivatives():
        mapping = static_map(cell, torch.zeros(3).double(), torch.zeros(2, 4).double())
    assert mapping.jacobian is None


def test_a_nonlinearity_with_parameters_goes_by_automatic_differentiation():
    rnn = RateRNN(3, 4, alpha=0.5, nonlinearity=nn.PReLU())
    points = find_fixed_points(rnn, torch.zeros(3), randn(3, 4, seed=0))
    assert len(points.states)
