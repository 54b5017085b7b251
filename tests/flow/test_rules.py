"""Learning rules: their operators against dense matrices, their updates against each rule carried out by hand."""

import pytest
import torch
from torch import nn

import kpflow as kp
from kpflow.flow import (
    back_propagation,
    feedback_alignment,
    functional_descent,
    local_learning,
    natural_gradient,
    preconditioned,
    truncated_back_propagation,
)
from kpflow.operators import to_dense
from models import F64, randn, seeded

B, T, H = 3, 6, 4
CELLS = {
    "RNN": lambda: nn.RNN(2, H, batch_first=True),
    "GRU": lambda: nn.GRU(2, H, batch_first=True),
    "LSTM": lambda: nn.LSTM(2, H, batch_first=True),
    "rate": lambda: kp.states.cells.RateRNN(2, H, alpha=0.5),
    "two layers": lambda: nn.RNN(2, H, 2, batch_first=True),
}


@pytest.fixture(params=CELLS)
def lin(request):
    return kp.linearise(seeded(CELLS[request.param]()), randn(B, T, 2, seed=1))


def parts(lin):
    """P, K and J as matrices."""
    P, K = to_dense(kp.Propagator(lin)), to_dense(kp.ParameterKernel(lin))
    return P, K, to_dense(kp.flow.ImmediateJacobian(lin))


def test_operators_are_the_formulas(lin):
    P, K, J = parts(lin)
    identity = torch.eye(len(P), dtype=F64)
    metric = torch.rand(J.shape[1], dtype=F64, generator=torch.Generator().manual_seed(3)) - 0.3
    ntk = P @ K @ P.mT
    expected = {
        back_propagation(lin): ntk,
        local_learning(lin): P @ K,
        functional_descent(lin): P @ P.mT,
        natural_gradient(lin, 0.1, tolerance=1e-13): ntk @ torch.linalg.inv(ntk + 0.1 * identity),
        preconditioned(lin, metric): P @ J @ torch.diag(metric) @ J.mT @ P.mT,
    }
    for rule, matrix in expected.items():
        torch.testing.assert_close(to_dense(rule.operator), matrix, rtol=1e-9, atol=1e-9)
        error = randn(2, *lin.space.shape, seed=4)
        flat = error[0].flatten()
        assert rule.predicted_loss_change(error[0]) == pytest.approx(-float(flat @ matrix @ flat), rel=1e-8)


@pytest.mark.parametrize("window", [1, 2, 4, 6, 10])
def test_truncated_credit_is_the_propagator_within_windows(lin, window):
    P, K, _ = parts(lin)
    place = torch.arange(T).repeat_interleave(lin.space.shape[2]).repeat(B) // window
    within = P * (place[:, None] == place[None, :])
    rule = truncated_back_propagation(lin, window)
    torch.testing.assert_close(to_dense(rule.credit), within.mT)
    torch.testing.assert_close(to_dense(rule.operator), P @ K @ within.mT)
    inverse = to_dense(kp.Propagator(kp.states.credit.windowed(lin, window)).inverse)
    torch.testing.assert_close(inverse @ within, torch.eye(len(P), dtype=F64))
    if window == 1 and len(lin.layers) == 1:  # layers hand credit down within a step
        torch.testing.assert_close(to_dense(rule.operator), to_dense(local_learning(lin).operator))


@pytest.mark.parametrize("window", [1, 2, 5])
def test_the_update_is_that_of_states_that_are_detached(window):
    rnn, inputs, target = seeded(nn.RNN(2, H, batch_first=True)), randn(B, T, 2, seed=1), randn(B, T, H, seed=2)
    hidden, states = torch.zeros(1, B, H, dtype=F64), []
    for t in range(T):
        if t % window == 0:
            hidden = hidden.detach()
        _, hidden = rnn(inputs[:, t : t + 1], hidden)
        states.append(hidden[0])
    loss = (torch.stack(states, dim=1) - target).square().sum()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(rnn.parameters()))])
    lin = kp.linearise(rnn, inputs)
    error = 2 * (lin.states - target)
    torch.testing.assert_close(truncated_back_propagation(lin, window).update(error), gradient)


def test_the_states_move_as_the_rule_predicts():
    inputs, target = randn(B, T, 2, seed=1), randn(B, T, H, seed=2)
    rnn = seeded(nn.RNN(2, H, batch_first=True))
    lin = kp.linearise(rnn, inputs)
    error = lin.states - target
    for rule in (truncated_back_propagation(lin, 2), feedback_alignment(lin), natural_gradient(lin, 0.5)):
        update, predicted = rule.update(error), rule.operator(error)
        misses = []
        for rate in (1e-3, 5e-4):
            moved = seeded(nn.RNN(2, H, batch_first=True))
            sizes = [p.numel() for p in moved.parameters()]
            with torch.no_grad():
                for p, part in zip(moved.parameters(), update.split(sizes), strict=True):
                    p.sub_(rate * part.reshape(p.shape))
            change = (kp.linearise(moved, inputs).states - lin.states) / rate
            misses.append(float((change + predicted).norm() / predicted.norm()))
        assert misses[0] < 0.05
        assert misses[1] == pytest.approx(misses[0] / 2, rel=0.05)


def test_feedback_weights_stand_in_every_step_of_the_adjoint():
    rnn, inputs = seeded(nn.RNN(2, H, batch_first=True)), randn(B, T, 2, seed=1)
    lin, feedback = kp.linearise(rnn, inputs), randn(H, H, seed=5)
    error = randn(B, T, H, seed=6)
    adjoint, carried = torch.zeros_like(error), torch.zeros(B, H, dtype=F64)
    for t in reversed(range(T)):
        adjoint[:, t] = error[:, t] + carried
        carried = (adjoint[:, t] * (1 - lin.states[:, t].square())) @ feedback
    torch.testing.assert_close(feedback_alignment(lin, [feedback]).credit(error), adjoint)


def test_own_weights_as_feedback_are_back_propagation(lin):
    weights = [layer.transition.weight for layer in lin.unformed]
    own = feedback_alignment(lin, weights)
    torch.testing.assert_close(to_dense(own.operator), to_dense(kp.Ntk(lin)))
    other = feedback_alignment(lin)
    again = feedback_alignment(lin, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(to_dense(other.operator), to_dense(kp.Ntk(lin)))
    assert torch.equal(to_dense(other.operator), to_dense(again.operator))


def test_adam_moves_by_the_preconditioned_kernel():
    rnn, inputs, target = seeded(nn.RNN(2, H, batch_first=True)), randn(B, T, 2, seed=1), randn(B, T, H, seed=2)
    optimizer = torch.optim.Adam(rnn.parameters(), lr=1e-4, betas=(0.0, 0.9))
    for _ in range(5):
        optimizer.zero_grad()
        (rnn(inputs)[0] - target).square().sum().backward()
        before = [p.detach().clone() for p in rnn.parameters()]
        lin = kp.linearise(rnn, inputs)
        optimizer.step()
    seconds = torch.cat([optimizer.state[p]["exp_avg_sq"].flatten() for p in rnn.parameters()]) / (1 - 0.9**5)
    rule = preconditioned(lin, 1 / (seconds.sqrt() + 1e-8), "Adam")
    moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(rnn.parameters(), before, strict=True)])
    torch.testing.assert_close(-1e-4 * rule.update(2 * (lin.states - target)), moved)


def test_refusals():
    lin = kp.linearise(seeded(nn.RNN(2, H, batch_first=True)), randn(B, T, 2, seed=1))
    graph = kp.linearise(seeded(nn.Sequential(nn.Linear(2, 3), nn.Tanh())), randn(B, 2, seed=1))
    with pytest.raises(ValueError, match="must be that of a recurrent network"):
        truncated_back_propagation(graph, 2)
    with pytest.raises(ValueError, match="must be that of a recurrent network"):
        feedback_alignment(graph)
    with pytest.raises(ValueError, match="`window` must be a positive whole number"):
        truncated_back_propagation(lin, 0)
    with pytest.raises(ValueError, match=r"`weights\[0\]` must have shape \(4, 4\)"):
        feedback_alignment(lin, [torch.zeros(3, 3, dtype=F64)])
    with pytest.raises(ValueError, match="`damping` must be a positive number"):
        natural_gradient(lin, 0.0)
    with pytest.raises(ValueError, match="has no update of parameters"):
        functional_descent(lin).update(lin.states)
    weight = torch.ones(4, dtype=F64, requires_grad=True)
    unknown = kp.linearise(
        lambda h, x, p: torch.tanh(p["w"] * h + x.sum(-1, keepdim=True)), randn(B, T, 2, seed=1),
        initial=torch.zeros(B, 4, dtype=F64), parameters={"w": weight},
    )  # fmt: skip
    with pytest.raises(ValueError, match="must have known recurrent weights"):
        feedback_alignment(unknown)
    assert truncated_back_propagation(unknown, 2).update(unknown.states).shape == (4,)
