"""Teacher forcing inside P: against networks whose step is forced, and dense Jacobians."""

import math

import pytest
import torch
from torch import nn

import kpflow as kp
from kpflow.flow import forcing, teacher_forced
from kpflow.operators import to_dense
from models import F64, randn, seeded

B, T, H = 2, 6, 4
CELLS = {
    "RNN": lambda: nn.RNN(2, H, batch_first=True),
    "LSTM": lambda: nn.LSTM(2, H, batch_first=True),
    "rate": lambda: kp.states.cells.RateRNN(2, H, alpha=0.5),
    "two layers": lambda: nn.RNN(2, H, 2, batch_first=True),
}


@pytest.fixture(params=CELLS)
def lin(request):
    return kp.linearise(seeded(CELLS[request.param](), scale=0.9), randn(B, T, 2, seed=1))


def lagged(lin):
    """The part of I − P⁻¹ from one time to the next, and that within a time."""
    L = torch.eye(lin.space.size, dtype=F64) - to_dense(kp.Propagator(lin).inverse)
    time = torch.arange(T).repeat_interleave(lin.space.shape[2]).repeat(B)
    same = time[:, None] == time[None, :]
    return L * ~same, L * same


def test_the_propagator_has_the_factor_inside(lin):
    lag, same = lagged(lin)
    identity = torch.eye(len(lag), dtype=F64)
    expected = torch.linalg.inv(identity - same - 0.7 * lag)
    forced = teacher_forced(lin, 0.3)
    torch.testing.assert_close(to_dense(kp.Propagator(forced)), expected)
    torch.testing.assert_close(to_dense(kp.Propagator(forced).T), expected.mT)
    torch.testing.assert_close(to_dense(kp.Propagator(forced).inverse) @ expected, identity)
    K = to_dense(kp.ParameterKernel(lin))
    torch.testing.assert_close(to_dense(kp.Ntk(forced)), expected @ K @ expected.mT)


def test_no_forcing_and_full_forcing(lin):
    torch.testing.assert_close(to_dense(kp.Propagator(teacher_forced(lin, 0.0))), to_dense(kp.Propagator(lin)))
    _, same = lagged(lin)
    full = torch.linalg.inv(torch.eye(len(same), dtype=F64) - same)
    torch.testing.assert_close(to_dense(kp.Propagator(teacher_forced(lin, 1.0))), full)


def test_a_strength_for_every_step(lin):
    sparse = torch.zeros(T, dtype=F64)
    sparse[::3] = 1.0
    window = to_dense(kp.Propagator(kp.states.credit.windowed(lin, 3)))
    torch.testing.assert_close(to_dense(kp.Propagator(teacher_forced(lin, sparse))), window)


def test_it_is_the_linearisation_of_a_forced_step():
    cell, inputs = seeded(nn.RNNCell(2, H), scale=0.9), randn(B, T, 2, seed=1)
    lin = kp.linearise(cell, inputs, initial=torch.zeros(B, H, dtype=F64))
    before = torch.cat([torch.zeros(B, 1, H, dtype=F64), lin.states[:, :-1]], dim=1)

    def step(h, x, parameters):
        mixed = 0.6 * h + 0.4 * x[..., 2:]
        return torch.func.functional_call(cell, parameters, (x[..., :2], mixed))

    run = kp.linearise(
        step,
        torch.cat([inputs, before], dim=2),
        initial=torch.zeros(B, H, dtype=F64),
        parameters=dict(cell.named_parameters()),
    )
    torch.testing.assert_close(run.states, lin.states)
    torch.testing.assert_close(to_dense(kp.Ntk(run)), to_dense(kp.Ntk(teacher_forced(lin, 0.4))))


def test_strengths_are_those_of_the_dense_jacobians(lin):
    P = to_dense(kp.Propagator(lin)).reshape(2 * lin.space.shape)
    same = to_dense(kp.Propagator(kp.states.credit.windowed(lin, 1))).reshape(2 * lin.space.shape)
    found = forcing(lin)
    norms, growth = torch.empty(B, T - 1, dtype=F64), torch.empty(B, dtype=F64)
    for b in range(B):
        steps = [P[b, t, :, b, t - 1] @ torch.linalg.inv(same[b, t - 1, :, b, t - 1]) for t in range(1, T)]
        norms[b] = torch.stack([torch.linalg.matrix_norm(A, ord=2) for A in steps])
        product = steps[0]
        for A in steps[1:]:
            product = A @ product
        growth[b] = torch.linalg.matrix_norm(product, ord=2).log() / (T - 1)
    torch.testing.assert_close(found.norms, norms)
    torch.testing.assert_close(found.growth, growth)
    assert found.critical == pytest.approx(max(0, 1 - math.exp(-float(growth.mean()))))
    assert found.geometric == pytest.approx(max(0, 1 - math.exp(-float(norms.log().mean()))))
    assert found.strict == pytest.approx(max(0, 1 - 1 / float(norms.max())))
    assert found.critical <= found.geometric <= found.strict
    assert repr(found).startswith("Forcing(critical ")


def test_the_bound_holds_above_the_strict_strength():
    rnn = seeded(nn.RNN(2, H, batch_first=True), scale=1.5)
    lin = kp.linearise(rnn, 0.1 * randn(B, 20, 2, seed=1))
    found = forcing(lin)
    assert found.strict > 0.1
    strength = 0.5 * (1 + found.strict)
    norm = float(torch.linalg.matrix_norm(to_dense(kp.Propagator(teacher_forced(lin, strength))), ord=2))
    assert 1 < norm <= found.bound(strength)
    assert found.bound(0.5 * found.strict) == math.inf


def test_units_that_are_all_silent_pass_nothing_on():
    rnn = nn.RNN(1, 3, batch_first=True, nonlinearity="relu", dtype=F64)
    inputs = torch.ones(2, 5, 1, dtype=F64)
    with torch.no_grad():
        for weight in rnn.parameters():
            weight.fill_(0.5)
        inputs[0] = -10.0  # the first trial is silent, the second is not
    found = forcing(kp.linearise(rnn, inputs))
    assert found.growth[0] == -math.inf
    assert found.growth[1] == pytest.approx(math.log(1.5))
    assert (found.critical, found.geometric) == (0.0, 0.0)
    assert found.strict == pytest.approx(1 / 3)
    assert forcing(kp.linearise(rnn, inputs[:1])).strict == 0.0


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_outside_is_refused(lin, strength):
    with pytest.raises(ValueError, match="`strength` must be a number between 0 and 1"):
        teacher_forced(lin, strength)
    with pytest.raises(ValueError, match=r"`strength` must be within \[0, 1\] at every step"):
        teacher_forced(lin, torch.full((T,), strength))


def test_other_refusals(lin):
    with pytest.raises(ValueError, match=r"`strength` must be one number, or one for each of the 6 steps; got shape"):
        teacher_forced(lin, torch.zeros(T + 1))
    graph = kp.linearise(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), torch.ones(4, 2))
    for call in (lambda: teacher_forced(graph, 0.5), lambda: forcing(graph)):
        with pytest.raises(ValueError, match="`linearisation` must be that of a recurrent network"):
            call()
    single = kp.linearise(seeded(nn.RNN(2, H, batch_first=True)), randn(B, 1, 2, seed=1))
    with pytest.raises(ValueError, match="`linearisation` must have two steps at least, to have a Jacobian; got 1"):
        forcing(single)
