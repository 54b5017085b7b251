"""Conserved charges: found for models whose symmetries are known, and moved by finite steps as the law says."""

import pytest
import torch
from torch import nn

from kpflow.flow import Charges, find_charges


def inputs(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(*layers, seed=0):
    model = nn.Sequential(*layers).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64))
    return model


def flat(model):
    return torch.cat([value.detach().flatten() for value in model.parameters()])


@pytest.fixture(scope="module")
def rectifier():
    model = network(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.LogSoftmax(dim=1))
    return model, inputs(40, 3), find_charges(model, inputs(40, 3))


def test_a_rectifier_rescales_and_softmax_forgets_shifts(rectifier):
    model, _, charges = rectifier
    # 4 units rescale; the columns of W₂ and the output biases forget a shift
    assert len(charges) == 4 + 4 + 1
    values = charges.singular_values
    assert values[-9] < 1e-13 * values[0] < 1e-4 * values[0] < values[-10]
    written = torch.zeros(9, 2, 31, dtype=torch.float64)
    for unit in range(4):
        written[unit, 0, 3 * unit : 3 * unit + 3] = 1
        written[unit, 0, 12 + unit] = 1  # its bias
        written[unit, 0, 16 + unit : 28 : 4] = -1
        written[4 + unit, 1, 16 + unit : 28 : 4] = 1
    written[8, 1, 28:] = 1
    found = torch.cat([charges.scalings, charges.shifts], dim=1)
    basis = torch.linalg.qr(found.mT).Q
    off = written.flatten(1) - written.flatten(1) @ basis @ basis.mT
    assert off.abs().max() < 1e-10
    # every one of them by itself, up to its scale
    assert ((found.abs() < 1e-10) | ((found.abs() - 1).abs() < 1e-10)).all()
    assert charges.parameters.size == flat(model).numel() == 31


def test_a_smooth_network_has_none_and_a_linear_one_those_of_its_units():
    assert len(find_charges(network(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), inputs(20, 2))) == 0
    assert len(find_charges(network(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)), inputs(20, 2))) == 3


def test_a_recurrent_rectifier_rescales_and_its_two_biases_are_one():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(2, 3, nonlinearity="relu", batch_first=True)
            self.out = nn.Linear(3, 2)

        def forward(self, x):
            return self.out(self.rnn(x)[0])

    charges = find_charges(Recurrent().double(), inputs(8, 5, 2), core="rnn")
    assert len(charges) == 3 + 3
    assert (charges.scalings.abs().amax(dim=1) > 0.5).sum() == 3  # rescaling
    linear = charges.shifts[charges.scalings.abs().amax(dim=1) < 1e-9]
    assert torch.allclose(linear.sum(dim=1), torch.zeros(3, dtype=torch.float64), atol=1e-10)  # b_ih − b_hh


def test_the_law_of_a_finite_step_is_exact_for_any_loss(rectifier):
    model, x, charges = rectifier
    theta = flat(model)
    for loss in (lambda y: -y[:, 0].mean(), lambda y: (y - 1).square().sum()):
        model.zero_grad()
        loss(model(x)).backward()
        gradient = torch.cat([value.grad.flatten() for value in model.parameters()])
        assert (charges.generators(theta) @ gradient).abs().max() < 1e-9
        for rate, decay in ((0.3, 0.0), (0.1, 0.4)):
            moved = (1 - rate * decay) * theta - rate * gradient
            predicted = charges.after_step(theta, gradient, rate, decay)
            assert torch.allclose(charges.values(moved), predicted, rtol=1e-11, atol=1e-11)
            assert (charges.values(moved) - charges.values(theta)).abs().max() > 1e-3


def test_a_charge_of_both_kinds_moves_by_the_law_too():
    # of y = (θ + 1) w: ξ = (θ + 1, −w)
    charge = Charges(
        torch.tensor([[1.0, -1.0]], dtype=torch.float64),
        torch.tensor([[1.0, 0.0]], dtype=torch.float64),
        torch.zeros(1, dtype=torch.float64),
        find_charges(network(nn.Linear(1, 1)), inputs(5, 1)).parameters,
    )
    theta = torch.tensor([0.5, 2.0], dtype=torch.float64)
    gradient = torch.tensor([2.0, 1.5], dtype=torch.float64)  # across ξ = (1.5, −2)
    moved = (1 - 0.1 * 0.3) * theta - 0.1 * gradient
    assert torch.allclose(charge.after_step(theta, gradient, 0.1, 0.3), charge.values(moved), rtol=1e-14)


def test_the_law_over_training_needs_the_start_and_the_gradients_only(rectifier):
    model, x, charges = rectifier
    start, targets = flat(model), inputs(40, 3, seed=1)
    shapes = {name: value.shape for name, value in model.named_parameters()}

    def loss(theta, kind):
        parts = theta.split([shape.numel() for shape in shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        outputs = torch.func.functional_call(model, named, (x,))
        return (outputs - targets).square().mean() if kind else -outputs[:, 0].mean()

    for rate, decay in ((0.02, 0.0), (0.02, 0.3)):
        path, gradients = [start], []
        for step in range(60):  # of two losses in turn
            gradients.append(torch.func.grad(loss)(path[-1], step % 2))
            path.append((1 - rate * decay) * path[-1] - rate * gradients[-1])
        law, direct = charges.along(start, torch.stack(gradients), rate, decay), charges.values(torch.stack(path))
        assert law.shape == (61, 9)
        assert torch.allclose(law, direct, rtol=1e-10, atol=1e-10)
        assert (direct[-1] - direct[0]).abs().max() > 1e-3
        missed = charges.along(start, 1.01 * torch.stack(gradients), rate, decay)
        assert (missed - direct).abs().max() > 1e-6


def test_the_law_over_training_of_a_charge_of_both_kinds():
    # of y = (θ + 1) w, whose gradients are along (w, θ + 1)
    charge = Charges(
        torch.tensor([[1.0, -1.0]], dtype=torch.float64),
        torch.tensor([[1.0, 0.0]], dtype=torch.float64),
        torch.zeros(1, dtype=torch.float64),
        find_charges(network(nn.Linear(1, 1)), inputs(5, 1)).parameters,
    )
    path, gradients = [torch.tensor([0.5, 2.0], dtype=torch.float64)], []
    for _ in range(40):
        first, second = path[-1]
        gradients.append(((first + 1) * second - 1) * torch.stack([second, first + 1]))
        path.append((1 - 0.1 * 0.3) * path[-1] - 0.1 * gradients[-1])
    law, direct = charge.along(path[0], torch.stack(gradients), 0.1, 0.3), charge.values(torch.stack(path))
    assert torch.allclose(law, direct, rtol=1e-13, atol=1e-13)
    assert (direct[-1] - direct[0]).abs() > 0.1


def test_the_model_and_the_global_generator_stay_as_they_are(rectifier):
    model, x, _ = rectifier
    before, state = flat(model).clone(), torch.random.get_rng_state()
    first, again = (find_charges(model, x, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first.scalings, again.scalings)
    assert torch.equal(flat(model), before)
    assert torch.equal(torch.random.get_rng_state(), state)


class Step(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, state, drive):
        return self.inner(state).tanh() + drive[..., :1]


def test_what_is_refused(rectifier):
    model, x, charges = rectifier
    with pytest.raises(ValueError, match="`of` must be one of 'outputs', 'states'; got 'losses'"):
        find_charges(model, x, of="losses")
    with pytest.raises(ValueError, match="`points` must be a positive whole number; got 0"):
        find_charges(model, x, points=0)
    with pytest.raises(ValueError, match='`of` "outputs" needs a model with outputs'):
        find_charges(Step().double(), inputs(2, 4, 2), initial=torch.zeros(2, 3).double())
    theta = flat(model)
    with pytest.raises(ValueError, match="`learning_rate` must be a positive number"):
        charges.after_step(theta, theta, 0.0)
    with pytest.raises(ValueError, match="`weight_decay` must be a number at least 0"):
        charges.after_step(theta, theta, 0.1, -0.1)
    with pytest.raises(ValueError, match=r"`gradients` must be one row of 31 parameters for each step; got shape"):
        charges.along(theta, torch.zeros(2, 30), 0.1)
    with pytest.raises(ValueError, match="`weight_decay` must be a number at least 0"):
        charges.along(theta, theta[None], 0.1, -0.1)
