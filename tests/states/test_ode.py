"""Neural ODEs through torchdiffeq: the map of the solver on the steps that it took."""

import pytest
import torch
import torchdiffeq
from torch import nn
from torchdiffeq._impl import rk_common
from torchdiffeq._impl.dopri5 import _DORMAND_PRINCE_SHAMPINE_TABLEAU as TABLEAU
from torchdiffeq._impl.dopri5 import DPS_C_MID
from torchdiffeq._impl.interp import _interp_evaluate, _interp_fit

import kpflow as kp
from kpflow.operators import to_dense
from models import F64, randn, seeded, trainable

CLOSE = {"rtol": 1e-10, "atol": 1e-10}

TIMES = torch.tensor([0.0, 0.5, 1.0], dtype=F64)

OFTEN = pytest.mark.filterwarnings("ignore:Functional iteration did not converge")  # of torchdiffeq's Adams method


class Field(nn.Module):
    """dy/dt = cos(t) W₂ tanh(W₁ y + b₁) + b₂."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 3)

    def forward(self, t, y):
        return self.second(torch.tanh(self.first(y))) * torch.cos(t)


class NeuralOde(nn.Module):
    def __init__(self, method: str, options: dict | None = None, solve=torchdiffeq.odeint, **tolerances) -> None:
        super().__init__()
        self.field = Field()
        self.readout = nn.Linear(3, 2)
        self.register_buffer("times", TIMES)
        self.solve, self.how = solve, {"method": method, "options": options, **tolerances}
        seeded(self)

    def forward(self, y):
        return self.readout(self.solve(self.field, y, self.times, **self.how)[1:].sum(0))


class OwnSteps(nn.Module):
    """Takes steps while a value asks for it, and reads numbers off tensors in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.threshold = nn.Parameter(torch.tensor(0.1))
        seeded(self, scale=0.3)

    def forward(self, y):
        count = 0
        while y.norm() > 1 and count < 7:
            y, count = 0.7 * torch.tanh(self.linear(y)), count + 1
        largest = max(y.abs().max(), y.new_tensor(0.2))
        entries = y[0].detach().tolist()
        if largest.detach().item() < 5 and not torch.equal(y, -y) and sum(entries) < 9:
            y = y * float(y[0, 0].detach() + 3) * int(y.detach().abs().sum() + 2)
        return self.linear(y) + self.threshold


def jacobian(module, x):
    """By plain reverse mode through the module."""
    outputs = module(x).flatten()
    rows = [
        torch.autograd.grad(o, list(module.parameters()), retain_graph=True, materialize_grads=True) for o in outputs
    ]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def output_jacobian(lin):
    return to_dense(kp.Ntk(lin, readout="outputs").jacobian)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("euler", None),
        ("midpoint", {"step_size": 0.25}),
        ("rk4", {"step_size": 0.4}),
        ("rk4", {"step_size": 0.5, "interp": "cubic", "perturb": True}),
        pytest.param("implicit_adams", {"step_size": 0.2}, marks=OFTEN),
    ],
)
def test_a_fixed_step_solver_is_the_map_that_it_is(method, options):
    module, x = NeuralOde(method, options), randn(4, 3, seed=1)
    lin = kp.linearise(module, x, branches="recorded")
    torch.testing.assert_close(lin.readout.outputs, module(x).detach(), **CLOSE)
    expected = jacobian(module, x)
    torch.testing.assert_close(output_jacobian(lin), expected, **CLOSE)
    torch.testing.assert_close(to_dense(kp.Ntk(lin, readout="outputs")), expected @ expected.mT, **CLOSE)


def test_every_evaluation_of_the_field_is_a_state():
    lin = kp.linearise(NeuralOde("midpoint", {"step_size": 0.5}), randn(4, 3, seed=1), branches="recorded")
    names = [part.name for part in lin.space.parts]
    assert names[:4] == ["field.first", "field.second", "field.first@1", "field.second@1"]
    assert len(names) == 2 * 2 * 2 + 1
    assert lin.trials() is not None
    alone = kp.linearise(
        NeuralOde("midpoint", {"step_size": 0.5}), randn(4, 3, seed=1), states=["field.second"], branches="recorded"
    )
    assert [part.name for part in alone.space.parts] == [f"field.second{n}" for n in ("", "@1", "@2", "@3")]


def fixed_map(x, steps):
    """The outputs as a function of parameters: Dormand and Prince's formulas written out, on given steps."""

    def outputs(p):
        def field(t, y):
            hidden = torch.tanh(y @ p["field.first.weight"].mT + p["field.first.bias"])
            return (hidden @ p["field.second.weight"].mT + p["field.second.bias"]) * torch.cos(t)

        y, wanted, found = x, TIMES[1:].tolist(), []
        slope = field(TIMES[0], y)
        for t, dt in steps:
            slopes = [slope]
            for alpha, beta in zip(TABLEAU.alpha, TABLEAU.beta, strict=True):
                after = y + dt * sum(b * k for b, k in zip(beta.tolist(), slopes, strict=True))
                slopes.append(field(t + alpha * dt, after))
            middle = y + dt * sum(c * k for c, k in zip(DPS_C_MID.tolist(), slopes, strict=True))
            curve = _interp_fit(y, after, middle, slopes[0], slopes[-1], dt)
            while wanted and wanted[0] <= t + dt:
                found.append(_interp_evaluate(curve, t, t + dt, torch.tensor(wanted.pop(0), dtype=F64)))
            y, slope = after, slopes[-1]
        return sum(found) @ p["readout.weight"].mT + p["readout.bias"]

    return outputs


def taken(module, x):
    """The accepted steps, as the solver itself tells them, and the number of the others."""
    steps, rejected = [], []
    module.field.callback_accept_step = lambda t, _y, dt: steps.append((t.detach().clone(), dt.detach().clone()))
    module.field.callback_reject_step = lambda t, _y, _dt: rejected.append(t)
    module(x)
    del module.field.callback_accept_step, module.field.callback_reject_step
    return steps, len(rejected)


@pytest.mark.parametrize("options", [{"first_step": 1.0}, None], ids=["given first step", "chosen first step"])
def test_an_adaptive_solver_is_the_map_on_the_steps_that_it_took(options):
    module, x = NeuralOde("dopri5", options, rtol=1e-4, atol=1e-5), 2 * randn(4, 3, seed=1)
    steps, rejected = taken(module, x)
    lin = kp.linearise(module, x, branches="recorded")
    outputs, parameters = fixed_map(x, steps), trainable(module)
    torch.testing.assert_close(lin.readout.outputs, outputs(parameters), **CLOSE)
    blocks = torch.func.jacrev(outputs)(parameters)
    expected = torch.cat([blocks[name].flatten(2).flatten(0, 1) for name in parameters], dim=1)
    torch.testing.assert_close(output_jacobian(lin), expected, **CLOSE)
    gap = float((jacobian(module, x) - expected).abs().max())
    if options is None:
        assert gap > 1e-8  # torchdiffeq itself differentiates its choice of the first step too
    else:
        assert gap < 1e-12
        assert rejected > 0


def test_torchdiffeq_is_left_as_it_was():
    before = rk_common._select_initial_step, rk_common._UncheckedAssign
    module, x = NeuralOde("euler"), randn(4, 3, seed=1)
    for inputs in (x, x[:, :2]):
        try:
            kp.linearise(module, inputs, branches="recorded")
        except ValueError:
            assert inputs is not x
        assert (rk_common._select_initial_step, rk_common._UncheckedAssign) == before


def test_an_ode_as_a_recurrent_step():
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.field, self.encoder = Field(), nn.Linear(2, 3)
            seeded(self)

        def forward(self, h, x):
            drive = self.encoder(x)
            return torchdiffeq.odeint(
                lambda t, y: self.field(t, y) + drive, h, TIMES[:2], method="rk4", options={"step_size": 0.25}
            )[-1]

    module, inputs, initial = Step(), randn(2, 4, 2, seed=1), randn(2, 3, seed=2)
    lin = kp.linearise(module, inputs, initial=initial)

    def states(parameters):
        h, found = initial, []
        for x in inputs.unbind(1):
            h = torch.func.functional_call(module, parameters, (h, x))
            found.append(h)
        return torch.stack(found, dim=1)

    parameters = trainable(module)
    torch.testing.assert_close(lin.states, states(parameters), **CLOSE)
    blocks = torch.func.jacrev(states)(parameters)
    expected = torch.cat([blocks[name].reshape(lin.space.size, -1) for name in parameters], dim=1)
    torch.testing.assert_close(to_dense(kp.Ntk(lin).jacobian), expected, **CLOSE)


def test_control_flow_of_ones_own():
    module = OwnSteps()
    for scale in (0.1, 3.0, 8.0):
        x = scale * randn(4, 3, seed=1)
        lin = kp.linearise(module, x, branches="recorded", states=["linear"])
        torch.testing.assert_close(lin.readout.outputs, module(x).detach(), **CLOSE)
        torch.testing.assert_close(output_jacobian(lin), jacobian(module, x), **CLOSE)


def test_branches_are_refused_unless_asked_for():
    module, x = NeuralOde("rk4", {"step_size": 0.5}), randn(4, 3, seed=1)
    with pytest.raises(ValueError, match=r"control flow or a shape depends on the values.*set branches='recorded'"):
        kp.linearise(module, x)
    with pytest.raises(ValueError, match=r"`branches` must be one of 'refuse', 'recorded'; got 'all'"):
        kp.linearise(module, x, branches="all")


def test_the_adjoint_method_is_refused():
    module, x = NeuralOde("rk4", {"step_size": 0.25}, solve=torchdiffeq.odeint_adjoint), randn(4, 3, seed=1)
    with pytest.raises(ValueError, match="OdeintAdjointMethod"):
        kp.linearise(module, x, branches="recorded")
