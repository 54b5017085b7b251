"""A step as a function of its parameters: against the module itself, and its derivatives against autograd."""

import pytest
import torch
from torch import nn

from kpflow.dynamics.parametric import parametric_map
from kpflow.states.cells import LowRankRNN, RateRNN

STEPS = {
    "RNNCell": (lambda: nn.RNNCell(2, 3), 3),
    "GRUCell": (lambda: nn.GRUCell(2, 3), 3),
    "LSTMCell": (lambda: nn.LSTMCell(2, 3), 6),
    "RNN": (lambda: nn.RNN(2, 3, batch_first=True), 3),
    "GRU": (lambda: nn.GRU(2, 3), 3),
    "LSTM": (lambda: nn.LSTM(2, 3), 6),
    "rate": (lambda: RateRNN(2, 3), 3),
    "low rank": (lambda: LowRankRNN(2, 3, 1), 3),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_map_with_moved_parameters_is_that_of_a_module_that_has_them(name: str) -> None:
    make, width = STEPS[name]
    torch.manual_seed(0)
    module = make()
    states, x = torch.randn(4, width, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    mapping = parametric_map(module, x, states)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    moved = mapping.named(1.5 * mapping.flat(mapping.parameters))
    value = mapping(states, x, moved)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert mapping.trainable == tuple(key for key, _ in module.named_parameters())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    again = parametric_map(module, x, states)
    torch.testing.assert_close(value, again(states, x), rtol=1e-6, atol=1e-7)  # 1.5 θ in float32 and in float64
    assert not torch.allclose(value, mapping(states, x))


def test_the_gradient_reaches_every_trainable_parameter_and_no_other() -> None:
    module = nn.GRUCell(2, 3)
    module.weight_ih.requires_grad_(False)
    states, x = torch.randn(1, 3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    mapping = parametric_map(module, x, states)
    assert mapping.trainable == ("weight_hh", "bias_ih", "bias_hh")
    flat = mapping.flat(mapping.parameters)
    gradient = torch.func.grad(lambda theta: mapping(states, x, mapping.named(theta)).sum())(flat)
    cell = nn.GRUCell(2, 3).double()
    cell.load_state_dict(module.state_dict())
    expected = torch.autograd.grad(cell(x[None], states).sum(), [cell.weight_hh, cell.bias_ih, cell.bias_hh])
    torch.testing.assert_close(gradient, torch.cat([part.reshape(-1) for part in expected]))


def test_a_function_takes_its_parameters_by_name() -> None:
    weight = torch.randn(3, 3)
    mapping = parametric_map(
        lambda h, _, p: torch.tanh(h @ p["w"].mT), torch.zeros(1), torch.zeros(1, 3), {"w": weight}
    )
    states = torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(
        mapping(states, torch.zeros(1, dtype=torch.float64)), torch.tanh(states @ weight.double().mT)
    )


def test_refusals() -> None:
    x, states = torch.zeros(2), torch.zeros(1, 3)
    with pytest.raises(ValueError, match="must hold the parameters of a step that is a function"):
        parametric_map(lambda h, _: h, x, states)
    with pytest.raises(ValueError, match="a module has its own"):
        parametric_map(nn.GRUCell(2, 3), x, states, {"w": torch.zeros(1)})
    with pytest.raises(ValueError, match="must have trainable parameters"):
        parametric_map(nn.GRUCell(2, 3).requires_grad_(False), x, states)
    with pytest.raises(ValueError, match="must be finite; got NaN"):
        parametric_map(lambda h, _, p: h * p["w"], x, states, {"w": torch.tensor([torch.nan])})
