"""Borders of ReLU networks: where arguments change sign along a branch, and branches that turn there."""

import pytest
import torch
from torch import Tensor, nn

from helpers import randn
from kpflow.dynamics import continue_branch, find_fixed_points, input_path
from kpflow.dynamics.kinks import kinks


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


X = vector(-2.0, 0.5, 3.0)
BENDS = {
    "relu": (lambda: torch.relu(X), X),
    "nn.ReLU": (lambda: nn.ReLU()(X), X),
    "in place": (lambda: nn.functional.relu_(X.clone()), X),
    "leaky": (lambda: nn.functional.leaky_relu(X, 0.1), X),
    "abs": (lambda: X.abs(), X),
    "clamp": (lambda: X.clamp(-1, 2), torch.cat([X + 1, X - 2])),
    "clamp, one side": (lambda: X.clamp(min=0.5), X - 0.5),
    "clamp_max": (lambda: X.clamp_max(0.5), X - 0.5),
    "relu6": (lambda: nn.functional.relu6(X), torch.cat([X, X - 6])),
    "hardtanh": (lambda: nn.functional.hardtanh(X), torch.cat([X + 1, X - 1])),
    "clamp_": (lambda: X.clone().clamp_(-1, 2), torch.cat([X + 1, X - 2])),
    "clamp_min_": (lambda: X.clone().clamp_min_(0.5), X - 0.5),
    "clamp_max_": (lambda: X.clone().clamp_max_(0.5), X - 0.5),
    "hardtanh_": (lambda: nn.functional.hardtanh_(X.clone()), torch.cat([X + 1, X - 1])),
    "relu6, in place": (lambda: nn.ReLU6(inplace=True)(X.clone()), torch.cat([X, X - 6])),
    "abs_": (lambda: X.clone().abs_(), X),
    "threshold": (lambda: nn.functional.threshold(X, 1.0, 1.0), X - 1),
    "threshold, in place": (lambda: nn.Threshold(0.5, 0.5, inplace=True)(X.clone()), X - 0.5),
    "prelu": (lambda: nn.functional.prelu(X, vector(0.1)), X),
    "maximum": (lambda: torch.maximum(X, 0 * X), X),
    "minimum": (lambda: torch.minimum(X, 0 * X), X),
    "smooth": (lambda: torch.tanh(nn.functional.softplus(X)), vector()),
}


@pytest.mark.parametrize("name", BENDS)
def test_arguments_of_what_has_a_kink(name):
    function, expected = BENDS[name]
    assert torch.equal(kinks(function), expected)


@pytest.mark.parametrize("module", [nn.RNNCell(2, 3, nonlinearity="relu"), nn.RNN(2, 3, nonlinearity="relu")])
def test_arguments_inside_a_fused_layer(module):
    module, h, x = module.double(), randn(1, 3, seed=0), randn(1, 2, seed=1)
    w_ih, w_hh, b_ih, b_hh = (value.detach() for value in module.parameters())
    call = (lambda: module(x[None], h[None])) if isinstance(module, nn.RNN) else (lambda: module(x, h))
    torch.testing.assert_close(kinks(call), (x @ w_ih.mT + b_ih + h @ w_hh.mT + b_hh)[0])


@pytest.mark.parametrize(("slope", "turns"), [(0.5, False), (1.5, True), (2.5, True), (7.0, True)])
def test_border_of_one_unit(slope, turns):
    """h = relu(w h) + λ: h = λ below 0, h = λ/(1 − w) above: for w > 1 both are at λ < 0, a non-smooth fold."""
    branch = continue_branch(lambda h, value: torch.relu(slope * h) + value, vector(-0.5), -0.5, bounds=(-1.0, 1.0))
    (event,) = branch.events
    assert (event.kind, event.units, event.form) == ("border", (0,), None)
    assert event.parameter == pytest.approx(0, abs=1e-12)
    assert float(event.state) == pytest.approx(0, abs=1e-12)
    assert ("non-smooth fold" in event.note) == turns
    assert f"Unstable directions: 0 before, {int(turns)} behind" in event.note
    ends = sorted(zip(branch.parameters[[0, -1]].tolist(), branch.states[[0, -1], 0].tolist(), strict=True))
    other = (-1.0, -1 / (1 - slope)) if turns else (1.0, 1 / (1 - slope))
    expected = sorted([(-1.0, -1.0), other])
    assert [value for pair in ends for value in pair] == pytest.approx([v for pair in expected for v in pair], abs=1e-9)


def test_a_network_of_six_relus():
    weight, bias = 0.35 * randn(6, 6, seed=1), randn(6, seed=2)
    along = 2 * bias.flip(0)
    start = find_fixed_points(lambda h, x: torch.relu(h @ weight.mT + x), bias, randn(5, 6, seed=3)).states[0]
    branch = continue_branch(
        lambda h, value: torch.relu(weight @ h + bias + value * along), start, 0.0, bounds=(-2.0, 2.0)
    )
    assert len(branch.events) >= 5
    assert {event.kind for event in branch.events} == {"border"}
    for event in branch.events:
        arguments = weight @ event.state + bias + event.parameter * along
        assert float(arguments.abs().min()) < 1e-9
        assert event.units == (int(arguments.abs().argmin()),)
        assert event.bracket[0] <= event.parameter <= event.bracket[1] <= event.bracket[0] + 1e-6
    signs = torch.sign(branch.states @ weight.mT + bias + branch.parameters[:, None] * along)
    flips = int((signs[1:] * signs[:-1] < 0).any(dim=1).sum())
    assert flips <= len(branch.events)  # each change of sign is an event
    for h, value in zip(branch.states[::17], branch.parameters[::17], strict=True):
        torch.testing.assert_close(torch.relu(weight @ h + bias + value * along), h, rtol=0, atol=1e-11)


def test_along_inputs_of_a_relu_network_every_change_of_the_active_set_is_met():
    torch.manual_seed(0)
    cell = nn.RNNCell(2, 8, nonlinearity="relu")
    with torch.no_grad():
        cell.weight_hh.mul_(0.7)
    one, other = vector(-3.0, 1.0), vector(3.0, 2.0)
    start = find_fixed_points(cell, one, torch.rand(5, 8, generator=torch.Generator().manual_seed(0))).states[0]
    branch = continue_branch(input_path(cell, one, other, start), start, 0.0, bounds=(0.0, 1.0))
    w_ih, w_hh, b_ih, b_hh = (value.detach().double() for value in cell.parameters())

    def active(h: Tensor, s: float) -> Tensor:
        return w_ih @ (one + s * (other - one)) + b_ih + w_hh @ h + b_hh > 0

    changed = active(branch.states[0], 0.0) ^ active(branch.states[-1], 1.0)
    crossed = torch.zeros(8, dtype=torch.int64)
    for event in branch.events:
        crossed[list(event.units)] += 1
    assert torch.equal(crossed % 2 == 1, changed)
    assert int(crossed.sum()) >= 2
    end = find_fixed_points(cell, other, branch.states[-1:])
    torch.testing.assert_close(end.states, branch.states[-1:], rtol=0, atol=1e-9)


def test_a_start_on_a_border_goes_both_ways():
    """h = ½ (|h| + λ): h = λ above 0 and λ/3 below."""
    branch = continue_branch(lambda h, value: 0.5 * (h.abs() + value), vector(0), 0.0, bounds=(-1.0, 1.0))
    assert branch.parameters[[0, -1]].tolist() == [-1.0, 1.0]
    assert branch.states[[0, -1], 0].tolist() == pytest.approx([-1 / 3, 1], abs=1e-9)


def test_a_network_without_bias_starts_at_zero():
    weight, along = 0.35 * randn(6, 6, seed=1), randn(6, seed=2)
    branch = continue_branch(
        lambda h, value: torch.relu(weight @ h + value * along), torch.zeros(6).double(), 0.0, bounds=(0.0, 1.0)
    )
    end = branch.states[-1]
    torch.testing.assert_close(torch.relu(weight @ end + along), end, rtol=0, atol=1e-11)
    assert float(branch.parameters[-1]) == 1.0
    assert float(end.norm()) > 0.1
