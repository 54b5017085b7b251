"""Learning rules: their operators against dense matrices, their updates against each rule carried out by hand."""

import copy

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
from kpflow.flow.curvature import loss_curvature
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


class Read(nn.Module):
    """A recurrent network with a nonlinear read-out."""

    def __init__(self):
        super().__init__()
        self.core, self.read = nn.RNN(2, H, batch_first=True), nn.Linear(H, 3)

    def forward(self, inputs):
        return torch.tanh(self.read(self.core(inputs)[0]))


TARGET, MASK = randn(B, T, 3, seed=2), (torch.arange(T) > 1).to(F64)[:, None]
CLASSES = torch.arange(B * T) % 3


def squared(y):
    """A mean of squares with a mask, as tasks have."""
    return (MASK * (y - TARGET)).square().mean()


def crossed(y):
    """Cross-entropy."""
    return nn.functional.cross_entropy(y.flatten(0, -2), CLASSES)


def by_autograd(model, inputs, loss):
    """dy/dθ, H and the gradient, dense."""
    y = model(inputs)
    rows = [torch.autograd.grad(v, list(model.parameters()), retain_graph=True) for v in y.flatten()]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    curvature = torch.autograd.functional.hessian(loss, y.detach()).reshape(y.numel(), y.numel())
    gradient = torch.autograd.grad(loss(y), list(model.parameters()))
    return jacobian, curvature, torch.cat([g.flatten() for g in gradient])


def shifted(model, step):
    """A copy whose parameters have moved by −step, flat."""
    model = copy.deepcopy(model)
    before = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(before - step, model.parameters())
    return model


@pytest.mark.parametrize("loss", [squared, crossed])
def test_gauss_newton_of_the_outputs_is_that_of_autograd(loss):
    model, inputs = seeded(Read()), randn(B, T, 2, seed=1)
    J, curvature, gradient = by_autograd(model, inputs, loss)
    lin = kp.linearise(model, inputs)
    error = torch.func.grad(loss)(lin.readout.outputs)
    shift = 0.1 * torch.eye(J.shape[1], dtype=F64)
    rule = natural_gradient(lin, 0.1, loss, of="outputs", tolerance=1e-11)
    inverse = torch.linalg.inv(J.mT @ curvature @ J + shift)
    torch.testing.assert_close(rule.update(error), inverse @ gradient, rtol=1e-8, atol=1e-10)
    flat, block = error.flatten(), randn(2, B, T, 3, seed=4)
    expected = (J @ inverse @ J.mT @ block.flatten(1).mT).mT.reshape(block.shape)
    torch.testing.assert_close(rule.operator(block), expected, rtol=1e-8, atol=1e-8)
    assert rule.predicted_loss_change(error) == pytest.approx(-float(flat @ J @ inverse @ J.mT @ flat), rel=1e-8)
    plain = natural_gradient(lin, 0.1, of="outputs", tolerance=1e-11)
    expected = torch.linalg.solve(J.mT @ J + shift, gradient)
    torch.testing.assert_close(plain.update(error), expected, rtol=1e-8, atol=1e-9)


def test_curvature_is_the_fisher_information_of_the_loss():
    """E ∇ log p ∇ log pᵀ over what the model itself would draw: of classes, and of normal targets."""
    y = randn(B, T, 3, seed=3)
    p = y.reshape(-1, 3).softmax(1)
    scores = torch.eye(3, dtype=F64) - p[:, None]  # of each class, for each position
    fisher = torch.block_diag(*torch.einsum("nc,nci,ncj->nij", p, scores, scores)) / (B * T)
    space = kp.Space.of((B, T, 3), ("trial", "time", "output"), F64)
    torch.testing.assert_close(to_dense(loss_curvature(crossed, y, space)), fisher)
    weights = 2 * MASK.expand(B, T, 3).flatten() / (B * T * 3)
    torch.testing.assert_close(to_dense(loss_curvature(squared, y, space)), torch.diag(weights))


def test_a_metric_on_the_outputs_is_that_of_their_kernel():
    model, inputs = seeded(Read()), randn(B, T, 2, seed=1)
    lin = kp.linearise(model, inputs)
    metric = torch.rand(lin.parameters.size, dtype=F64, generator=torch.Generator().manual_seed(3)) - 0.3
    rule, error = preconditioned(lin, metric, of="outputs"), torch.func.grad(squared)(lin.readout.outputs)
    gradient = torch.autograd.grad(squared(model(inputs)), list(model.parameters()))
    torch.testing.assert_close(rule.update(error), metric * torch.cat([g.flatten() for g in gradient]))
    torch.testing.assert_close(rule.operator(error), kp.Ntk(lin, metric=metric, readout="outputs")(error))


@pytest.mark.parametrize("of", ["states", "outputs"])
def test_gauss_newton_moves_what_it_says_it_moves(of):
    model, inputs = seeded(Read()), randn(B, T, 2, seed=1)
    lin = kp.linearise(model, inputs, core="core")
    y, goal = (lin.states, randn(B, T, H, seed=2)) if of == "states" else (lin.readout.outputs, TARGET)
    rule = natural_gradient(lin, 0.1, lambda y: (y - goal).square().mean(), of=of, tolerance=1e-5)
    error = 2 * (y - goal) / y.numel()
    update, predicted = rule.update(error), rule.operator(error)
    misses = []
    for rate in (1e-4, 5e-5):
        moved = shifted(model, rate * update)
        after = moved.core(inputs)[0] if of == "states" else moved(inputs)
        misses.append(float(((after.detach() - y) / rate + predicted).norm() / predicted.norm()))
    assert misses[0] < 0.01
    assert misses[1] == pytest.approx(misses[0] / 2, rel=0.05)


def test_undamped_gauss_newton_solves_least_squares_in_one_step():
    model, inputs, target = seeded(nn.Linear(3, 2)), randn(8, 3, seed=1), randn(8, 2, seed=2)
    lin = kp.linearise(model, inputs)
    rule = natural_gradient(lin, 1e-12, lambda y: (y - target).square().mean(), of="outputs")
    after = shifted(model, rule.update(2 * (model(inputs) - target).detach() / 16))(inputs)
    features = torch.cat([inputs, torch.ones(8, 1, dtype=F64)], 1)
    torch.testing.assert_close(after.detach(), features @ torch.linalg.lstsq(features, target).solution)


@pytest.mark.parametrize("loss", [squared, crossed])
@pytest.mark.parametrize(("damping", "tolerance"), [(0.1, 1e-6), (1e-6, 1e-3)])
def test_a_step_of_the_natural_gradient_optimiser_is_the_rule(loss, damping, tolerance):
    """At full rank; the last damping is nearly none."""
    model, inputs = seeded(Read()), randn(B, T, 2, seed=1)
    lin = kp.linearise(model, inputs)
    error = torch.func.grad(loss)(lin.readout.outputs)
    expected = shifted(model, natural_gradient(lin, damping, loss, of="outputs", tolerance=1e-12).update(error))

    def closure():
        outputs = model(inputs)
        return loss(outputs), outputs

    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    kp.optim.NaturalGradient(model, rank=lin.parameters.size, form="damped", damping=damping).step(closure)
    moved, found = (nn.utils.parameters_to_vector(m.parameters()).detach() - before for m in (model, expected))
    assert float((moved - found).norm()) < tolerance * float(found.norm())


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
    with pytest.raises(ValueError, match="`of` must be one of 'states', 'outputs'"):
        natural_gradient(lin, 0.1, of="gates")
    with pytest.raises(ValueError, match="`loss` must be curved in the outputs"):
        natural_gradient(lin, 0.1, torch.sum)
    with pytest.raises(ValueError, match="has no update of parameters"):
        functional_descent(lin).update(lin.states)
    weight = torch.ones(4, dtype=F64, requires_grad=True)
    unknown = kp.linearise(
        lambda h, x, p: torch.tanh(p["w"] * h + x.sum(-1, keepdim=True)), randn(B, T, 2, seed=1),
        initial=torch.zeros(B, 4, dtype=F64), parameters={"w": weight},
    )  # fmt: skip
    with pytest.raises(ValueError, match="must have known recurrent weights"):
        feedback_alignment(unknown)
    with pytest.raises(ValueError, match="Take the rule of its states, of="):
        natural_gradient(unknown, 0.1, of="outputs")
    assert truncated_back_propagation(unknown, 2).update(unknown.states).shape == (4,)
