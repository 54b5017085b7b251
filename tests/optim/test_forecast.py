"""Forecasts: exact for models that are linear in their parameters, first-order right for others, honest beyond."""

import copy

import pytest
import torch
from torch import nn

import kpflow as kp
from kpflow.optim import forecast, forecast_optimizer
from models import F64, randn, seeded


def descent(model, inputs, loss, rate, steps, metric=None, momentum=0.0):
    """Losses and outputs of full-batch descent, and the model's after `steps`."""
    model = copy.deepcopy(model)
    losses, outputs = [], []
    parameters = list(model.parameters())
    mean = 0.0
    for _ in range(steps + 1):
        y = model(inputs)
        value = loss(y)
        losses.append(float(value.detach()))
        outputs.append(y.detach())
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])
        mean = momentum * mean + (1 - momentum) * gradient
        move = rate * (mean if metric is None else metric * mean)
        with torch.no_grad():
            for p, part in zip(parameters, move.split([p.numel() for p in parameters]), strict=True):
                p.sub_(part.reshape(p.shape))
    return torch.tensor(losses, dtype=F64), torch.stack(outputs)


@pytest.fixture
def linear():
    """A linear model with more outputs than parameters, so that a part of the loss is out of reach."""
    model, inputs = seeded(nn.Linear(3, 2)), randn(8, 3, seed=1)
    target, mask = randn(8, 2, seed=2), torch.ones(8, 2, dtype=F64)
    mask[0] = 0
    return model, inputs, lambda y: (mask * (y - target)).square().mean()


@pytest.mark.parametrize("rate", [0.05, 0.5, 2.0])
def test_a_linear_model_is_predicted_exactly_even_where_it_diverges(linear, rate):
    model, inputs, loss = linear
    seen, _ = descent(model, inputs, loss, rate, 30)
    ahead = forecast(kp.linearise(model, inputs), loss, learning_rate=rate, steps=30)
    torch.testing.assert_close(ahead.losses, seen, rtol=1e-8, atol=1e-12)
    assert ahead.error == 0  # the Krylov space is complete
    assert ahead.stable == bool(seen[-1] < seen[0])
    assert ahead.holds(seen) == 31


def test_a_descent_that_diverges_for_long_stays_finite(linear):
    model, inputs, loss = linear
    components = randn(2, 8, 2, seed=5)
    ahead = forecast(kp.linearise(model, inputs), loss, learning_rate=5.0, steps=5000, components=components)
    assert not ahead.stable
    assert bool(torch.isfinite(ahead.losses).all() & torch.isfinite(ahead.directions).all())
    assert float(ahead.losses[-1]) > 1e100


def test_a_metric_is_that_of_preconditioned_steps(linear):
    model, inputs, loss = linear
    metric = torch.rand(8, dtype=F64, generator=torch.Generator().manual_seed(4)) + 0.1
    seen, _ = descent(model, inputs, loss, 0.3, 20, metric)
    ahead = forecast(kp.linearise(model, inputs), loss, learning_rate=0.3, steps=20, metric=metric)
    torch.testing.assert_close(ahead.losses, seen, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("rate", [0.3, 3.0, 30.0])
def test_momentum_on_a_linear_model_is_predicted_exactly(linear, rate):
    model, inputs, loss = linear
    metric = torch.rand(8, dtype=F64, generator=torch.Generator().manual_seed(4)) + 0.1
    components = randn(2, 8, 2, seed=5)
    seen, outputs = descent(model, inputs, loss, rate, 60, metric, momentum=0.9)
    keywords = {"learning_rate": rate, "steps": 60, "metric": metric, "components": components}
    ahead = forecast(kp.linearise(model, inputs), loss, momentum=0.9, **keywords)
    torch.testing.assert_close(ahead.losses, seen, rtol=1e-10, atol=0)
    moved = torch.einsum("cij,nij->cn", components, outputs - outputs[0])
    torch.testing.assert_close(ahead.directions, moved, rtol=1e-8, atol=1e-10)
    factors = torch.zeros(len(ahead.rates), 2, 2, dtype=F64)  # of (θ, m) in a step
    factors[:, 0, 0], factors[:, 0, 1] = 1 - 0.1 * rate * ahead.rates, -0.9 * rate
    factors[:, 1, 0], factors[:, 1, 1] = 0.1 * ahead.rates, 0.9
    assert ahead.stable == bool((torch.linalg.eigvals(factors).abs() < 1).all()) == (rate < 30)
    assert forecast(kp.linearise(model, inputs), loss, **keywords).stable == (rate < 3)


def trained(model, optimizer, inputs, loss, steps):
    """Losses before each of so many steps."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model(inputs))
        losses.append(float(value.detach()))
        value.backward()
        optimizer.step()
    return torch.tensor(losses, dtype=F64)


def test_momentum_of_sgd_has_a_rate_that_is_larger(linear):
    model, inputs, loss = linear
    ahead = forecast(kp.linearise(model, inputs), loss, learning_rate=0.05 / (1 - 0.9), momentum=0.9, steps=20)
    seen = trained(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), inputs, loss, 21)
    torch.testing.assert_close(ahead.losses, seen, rtol=1e-10, atol=0)


def test_momentum_that_is_there_already_is_counted(linear):
    model, inputs, loss = linear
    metric = torch.rand(8, dtype=F64, generator=torch.Generator().manual_seed(4)) + 0.1
    buffer, components = randn(8, seed=7), randn(2, 8, 2, seed=5)
    lin, keywords = kp.linearise(model, inputs), {"learning_rate": 0.3, "steps": 40, "metric": metric, "momentum": 0.8}
    ahead = forecast(lin, loss, momentum_buffer=buffer, components=components, **keywords)
    mean, theta, losses, outputs = buffer, torch.nn.utils.parameters_to_vector(model.parameters()).detach(), [], []
    for _ in range(41):
        named = lin.parameters.split(theta.requires_grad_())
        y = torch.func.functional_call(model, dict(named), inputs)
        (gradient,) = torch.autograd.grad(loss(y), theta)
        losses.append(float(loss(y).detach()))
        outputs.append(y.detach())
        mean = 0.8 * mean + 0.2 * gradient
        theta = (theta - 0.3 * metric * mean).detach()
    torch.testing.assert_close(ahead.losses, torch.tensor(losses, dtype=F64), rtol=1e-10, atol=0)
    moved = torch.einsum("cij,nij->cn", components, torch.stack(outputs) - outputs[0])
    torch.testing.assert_close(ahead.directions, moved, rtol=1e-8, atol=1e-10)
    nothing = forecast(lin, loss, momentum_buffer=torch.zeros(8, dtype=F64), **keywords).losses
    torch.testing.assert_close(nothing, forecast(lin, loss, **keywords).losses)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_in_the_middle_of_training_is_forecast_exactly(linear, momentum):
    """With groups that have rates of their own; a run that starts anew has no buffer yet."""
    model, inputs, loss = linear
    groups = [{"params": [model.bias], "lr": 0.02}, {"params": [model.weight], "lr": 0.05}]
    optimizer = torch.optim.SGD(groups, momentum=momentum)
    for _ in range(2):
        lin = kp.linearise(model, inputs)
        ahead = forecast_optimizer(lin, loss, optimizer, model, steps=20)
        torch.testing.assert_close(ahead.losses, trained(model, optimizer, inputs, loss, 21), rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_adam_in_the_middle_of_training_is_forecast_for_a_while(kind, seed):
    """To a tenth of what the loss falls by in 10 steps; without its momentum it would be half of that."""
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data = 0.5 * torch.randn(p.shape, generator=generator, dtype=F64)
    inputs, target = randn(20, 3, seed=10 * seed + 1), randn(20, 2, seed=10 * seed + 2)

    def loss(y):
        return (y - target).square().mean()

    optimizer = kind(model.parameters(), lr=0.01, weight_decay=0)
    trained(model, optimizer, inputs, loss, 200)
    lin = kp.linearise(copy.deepcopy(model), inputs)
    ahead = forecast_optimizer(lin, loss, optimizer, model, steps=10)
    for state in optimizer.state.values():
        state["kept"], state["exp_avg"] = state["exp_avg"], torch.zeros_like(state["exp_avg"])
    behind = forecast_optimizer(lin, loss, optimizer, model, steps=10)
    for state in optimizer.state.values():
        state["exp_avg"] = state.pop("kept")
    seen = trained(model, optimizer, inputs, loss, 11)
    fall = float(seen[0] - seen[10])
    assert abs(float(ahead.losses[10] - seen[10])) < 0.1 * fall
    assert abs(float(behind.losses[10] - seen[10])) > 0.45 * fall


def test_optimisers_that_cannot_be_read_are_refused(linear):
    model, inputs, loss = linear
    lin = kp.linearise(model, inputs)

    def ahead(optimizer):
        return forecast_optimizer(lin, loss, optimizer, model, steps=3)

    with pytest.raises(TypeError, match=r"`optimizer` must be a torch.optim.SGD, Adam or AdamW; got RMSprop"):
        ahead(torch.optim.RMSprop(model.parameters()))
    with pytest.raises(ValueError, match=r"`optimizer` must not have \['weight_decay'\]"):
        ahead(torch.optim.AdamW(model.parameters()))
    with pytest.raises(ValueError, match=r"it does not train \['bias'\]"):
        ahead(torch.optim.SGD([model.weight], lr=0.1))
    with pytest.raises(ValueError, match="`optimizer` must have made a step, for Adam's moments"):
        ahead(torch.optim.Adam(model.parameters()))
    groups = [{"params": [model.weight], "momentum": 0.9}, {"params": [model.bias], "momentum": 0.5}]
    with pytest.raises(ValueError, match=r"`optimizer` must have one momentum for all groups; got \[0.5, 0.9\]"):
        ahead(torch.optim.SGD(groups, lr=0.1))
    for rate, momentum in ((0.0, 0.9), (0.1, 1.0)):
        with pytest.raises(ValueError, match=f"positive rate and a momentum below 1; got {rate:g} and {momentum:g}"):
            ahead(torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum))


def test_an_optimiser_is_read_and_not_changed(linear):
    model, inputs, loss = linear
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    forecast_optimizer(kp.linearise(model, inputs), loss, optimizer, model, steps=3)
    assert not optimizer.state


def test_rates_and_parts_are_those_of_the_gauss_newton_matrix(linear):
    model, inputs, loss = linear
    ahead = forecast(kp.linearise(model, inputs), loss, learning_rate=0.1, steps=3)
    y = model(inputs)
    rows = [torch.autograd.grad(v, list(model.parameters()), retain_graph=True) for v in y.flatten()]
    J = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    H = torch.autograd.functional.hessian(loss, y.detach()).reshape(16, 16)
    values, vectors = torch.linalg.eigh(J.mT @ H @ J)
    gradient = torch.autograd.grad(loss(y), list(model.parameters()))
    weights = (vectors.mT @ torch.cat([g.flatten() for g in gradient])).square() / (2 * values)
    distinct = values.flip(0)[::2]  # both outputs have the same inputs: every eigenvalue twice
    torch.testing.assert_close(ahead.rates, distinct, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(ahead.parts, weights.flip(0).reshape(-1, 2).sum(1), rtol=1e-5, atol=1e-10)
    seen, target = torch.cat([inputs[1:], torch.ones(7, 1, dtype=F64)], 1), _target(loss)[1:]
    left = target - seen @ torch.linalg.lstsq(seen, target).solution
    assert ahead.out_of_reach == pytest.approx(float(left.square().sum()) / 16, rel=1e-6)


def _target(loss):
    """y* of a masked mean of squares, zero where it is masked."""
    origin = torch.zeros(8, 2, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(origin), origin)
    return -8 * slope


def test_components_move_as_they_do_in_training(linear):
    model, inputs, loss = linear
    components = randn(3, 8, 2, seed=5)
    _, outputs = descent(model, inputs, loss, 0.4, 25)
    ahead = forecast(kp.linearise(model, inputs), loss, learning_rate=0.4, steps=25, components=components)
    moved = torch.einsum("cij,nij->cn", components, outputs - outputs[0])
    torch.testing.assert_close(ahead.directions, moved, rtol=1e-8, atol=1e-10)
    lacking = (_target(loss) - outputs[0]) * (_target(loss) != 0)
    torch.testing.assert_close(ahead.wanted, torch.einsum("cij,ij->c", components, lacking))
    torch.testing.assert_close(ahead.learned[:, 0], torch.zeros(3, dtype=F64))
    for share in (0.2, 0.9):
        for time, row in zip(ahead.times(share), ahead.learned, strict=True):
            reached = (row >= share).nonzero()
            assert float(time) == (float(reached[0]) if len(reached) else torch.inf)


@pytest.mark.parametrize("of", ["outputs", "states"])
def test_a_recurrent_network_is_predicted_to_first_order(of):
    rnn, inputs, target = seeded(nn.RNN(2, 5, batch_first=True)), randn(4, 6, 2, seed=1), randn(4, 6, 5, seed=2)

    def loss(states):
        return (states - target).square().mean()

    class States(nn.Module):
        def __init__(self):
            super().__init__()
            self.core = rnn

        def forward(self, x):
            return self.core(x)[0]

    lin = kp.linearise(States(), inputs, core="core") if of == "outputs" else kp.linearise(rnn, inputs)
    misses = []
    for rate in (2e-2, 1e-2):
        seen, _ = descent(States(), inputs, loss, rate, 4)
        ahead = forecast(lin, loss, learning_rate=rate, steps=4, of=of)
        misses.append(float((ahead.losses - seen).abs().max()))
    assert misses[0] < 1e-3 * float(seen[0])
    assert misses[1] == pytest.approx(misses[0] / 4, rel=0.2)  # the kernel moves by O(η), its effect by O(η²)


def test_it_says_when_the_kernel_has_moved():
    rnn, inputs, target = seeded(nn.RNN(2, 5, batch_first=True)), randn(4, 6, 2, seed=1), randn(4, 6, 5, seed=2)
    seen, _ = descent(_Outputs(rnn), inputs, lambda y: (y - target).square().mean(), 0.1, 60)
    ahead = forecast(
        kp.linearise(rnn, inputs), lambda y: (y - target).square().mean(), learning_rate=0.1, steps=60, of="states"
    )
    assert 3 < ahead.holds(seen, 0.02) < 61
    assert ahead.holds(seen, 0.002) <= ahead.holds(seen, 0.02)


class _Outputs(nn.Module):
    def __init__(self, core):
        super().__init__()
        self.core = core

    def forward(self, x):
        return self.core(x)[0]


def test_a_small_krylov_space_knows_its_error():
    model, inputs, target = seeded(nn.Linear(30, 1)), randn(60, 30, seed=1), randn(60, 1, seed=2)
    inputs = inputs * torch.logspace(0, -2, 30, dtype=F64)

    def loss(y):
        return (y - target).square().mean()

    lin = kp.linearise(model, inputs)
    exact = forecast(lin, loss, learning_rate=0.3, steps=400, krylov=31).losses
    for krylov in (4, 6, 10):
        ahead = forecast(lin, loss, learning_rate=0.3, steps=400, krylov=krylov)
        assert float((ahead.losses - exact).abs().max()) <= ahead.error
        assert ahead.products == krylov


def test_refusals(linear):
    model, inputs, loss = linear
    lin = kp.linearise(model, inputs)
    keywords = {"learning_rate": 0.1, "steps": 3}
    with pytest.raises(ValueError, match="`loss` must be curved in the outputs"):
        forecast(lin, lambda y: y.sum(), **keywords)
    with pytest.raises(ValueError, match="`loss` must be curved along its gradient, as squared errors are"):
        forecast(lin, lambda y: y.abs().sum(), **keywords)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"`share` must be above 0 and at most 1; got {share}"):
            forecast(lin, loss, **keywords).times(share)
    with pytest.raises(ValueError, match="The gradient of `loss` must not be zero"):
        forecast(lin, lambda y: (y - y.detach()).square().sum(), **keywords)
    with pytest.raises(ValueError, match=r"`metric` must be a positive diagonal of shape \(8,\)"):
        forecast(lin, loss, metric=-torch.ones(8, dtype=F64), **keywords)
    with pytest.raises(ValueError, match=r"`components` must have shape \(C, 8, 2\)"):
        forecast(lin, loss, components=torch.ones(1, 3, 2, dtype=F64), **keywords)
    one = torch.zeros(2, 8, 2, dtype=F64)
    one[0, 3, 0] = one[1, 0, 0] = 1.0  # the first trial is masked
    with pytest.raises(ValueError, match=r"`components` must lack something each; the error has none of \[1\]"):
        forecast(lin, loss, components=one, **keywords)
    for name, value in (("learning_rate", 0.0), ("steps", 0), ("krylov", 0)):
        with pytest.raises(ValueError, match=f"`{name}` must be a positive"):
            forecast(lin, loss, **(keywords | {name: value}))
    for momentum in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"`momentum` must be a number between 0 and 1; got {momentum}"):
            forecast(lin, loss, momentum=momentum, **keywords)
    with pytest.raises(ValueError, match=r"`momentum_buffer` must be flat, of shape \(8,\); got \(2, 4\)"):
        forecast(lin, loss, momentum=0.9, momentum_buffer=torch.ones(2, 4, dtype=F64), **keywords)
    with pytest.raises(ValueError, match="`momentum_buffer` needs a `momentum`; got 0"):
        forecast(lin, loss, momentum_buffer=torch.ones(8, dtype=F64), **keywords)
    with pytest.raises(ValueError, match="`losses` must be at most 4"):
        forecast(lin, loss, **keywords).holds(torch.ones(5))
