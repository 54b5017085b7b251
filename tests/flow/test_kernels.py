"""Kernels of outputs, of some parameters, with a metric; the response to a step; exact facts of small models."""

import pytest
import torch
from torch import nn

import kpflow as kp
from kpflow.operators import Dense, Diagonal, Identity, Restriction, to_dense
from kpflow.states.cells import RateRNN
from models import MODELS, Plain, randn, seeded, trainable

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
WITH_OUTPUTS = [name for name in MODELS if name.startswith(("around", "plain"))]


def full_jacobian(function, parameters) -> torch.Tensor:
    blocks = torch.func.jacrev(function)(parameters)
    count = function(parameters).numel()
    return torch.cat([blocks[name].reshape(count, -1) for name in parameters], dim=1)


def gru_lin():
    return kp.linearise(seeded(nn.GRU(3, 4, batch_first=True)), randn(2, 5, 3, seed=1))


@pytest.mark.parametrize("name", WITH_OUTPUTS)
def test_output_kernel_includes_the_readouts_parameters(name):
    case = MODELS[name]()
    lin = kp.linearise(case.model, case.inputs, **case.keywords)
    torch.testing.assert_close(lin.readout.outputs, case.outputs(case.parameters), **CLOSE)
    jacobian = full_jacobian(case.outputs, case.parameters)
    ntk = kp.Ntk(lin, readout="outputs")
    torch.testing.assert_close(to_dense(ntk.jacobian), jacobian, **CLOSE)
    torch.testing.assert_close(to_dense(ntk.jacobian.T), jacobian.mT, **CLOSE)
    torch.testing.assert_close(to_dense(ntk), jacobian @ jacobian.mT, **CLOSE)
    assert ntk.in_space.axes == ("trial", "time", "output")


def test_readout_as_an_operator_and_of_a_bare_module():
    lin = gru_lin()
    ntk, weights = to_dense(kp.Ntk(lin)), randn(6, 40, seed=3)
    readout = Dense(weights, (lin.space, kp.Space.of((6,), ("output",))))
    torch.testing.assert_close(to_dense(kp.Ntk(lin, readout=readout)), weights @ ntk @ weights.mT, **CLOSE)
    torch.testing.assert_close(to_dense(kp.Ntk(lin, readout="outputs")), ntk, **CLOSE)


def test_some_parameters_only():
    lin = gru_lin()
    names = ["weight_hh_l0", "bias_ih_l0"]
    columns = torch.cat([torch.full((part.size,), part.name in names) for part in lin.parameters.parts])
    J = to_dense(kp.ParameterKernel(lin).jacobian)[:, columns]
    K = kp.ParameterKernel(lin, params=names)
    torch.testing.assert_close(to_dense(K.jacobian), J, **CLOSE)
    torch.testing.assert_close(to_dense(K), J @ J.mT, **CLOSE)
    assert [part.name for part in K.jacobian.in_space.parts] == names
    P = to_dense(kp.Propagator(lin))
    torch.testing.assert_close(to_dense(kp.Ntk(lin, params=names)), P @ J @ J.mT @ P.mT, **CLOSE)


def test_parts_add_up_to_the_kernel():
    lin = gru_lin()
    parts = sum(to_dense(kp.ParameterKernel(lin, params=[part.name])) for part in lin.parameters.parts)
    torch.testing.assert_close(parts, to_dense(kp.ParameterKernel(lin)), **CLOSE)


@pytest.mark.parametrize("form", ["tensor", "diagonal", "dense"])
def test_metric_on_parameters(form):
    lin = gru_lin()
    rates = 0.1 + randn(lin.parameters.size, seed=4).square()
    matrix = torch.diag(rates)
    if form == "dense":
        matrix = matrix + 0.01
    metric = {
        "tensor": rates,
        "diagonal": Diagonal(rates, lin.parameters),
        "dense": Dense(matrix, (lin.parameters, lin.parameters)),
    }[form]
    for kernel in (kp.ParameterKernel, kp.Ntk):
        J = to_dense(kernel(lin).jacobian)
        weighted = kernel(lin, metric=metric)
        torch.testing.assert_close(to_dense(weighted), J @ matrix @ J.mT, **CLOSE)
        assert weighted.symmetric


def test_adams_kernel_predicts_adams_step():
    """With M = diag(1/(√v + ε)) the kernel moves the states as Adam's second and later steps do (β₁ = 0)."""
    model, inputs = seeded(RateRNN(3, 4)), randn(2, 5, 3, seed=1)
    target = randn(2, 5, 4, seed=7)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-6, alpha=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        (0.5 * (model(inputs) - target).square().sum()).backward()
        optimizer.step()
    lin = kp.linearise(model, inputs)
    optimizer.zero_grad()
    (0.5 * (model(inputs) - target).square().sum()).backward()
    optimizer.step()
    metric = torch.cat([(1 / (optimizer.state[p]["square_avg"].sqrt() + 1e-8)).flatten() for p in model.parameters()])
    predicted = -1e-6 * kp.Ntk(lin, metric=metric)(lin.states - target)
    actual = model(inputs).detach() - lin.states
    assert float((actual - predicted).norm() / predicted.norm()) < 1e-4


def test_response_is_the_chain_of_operators():
    lin = gru_lin()
    target = randn(*lin.space.shape, seed=7)
    r = kp.flow.response(lin, lambda s: 0.5 * (s - target).square().sum(), learning_rate=0.25, of="states")
    P, K = kp.Propagator(lin), kp.ParameterKernel(lin)
    torch.testing.assert_close(r.error, lin.states - target)
    torch.testing.assert_close(r.adjoint, P.T(r.error))
    torch.testing.assert_close(r.immediate, K(r.adjoint))
    torch.testing.assert_close(r.change, kp.Ntk(lin)(r.error))
    torch.testing.assert_close(r.predicted_change, -0.25 * r.change)
    assert r.loss == pytest.approx(float(0.5 * r.error.square().sum()))


@pytest.mark.parametrize("name", WITH_OUTPUTS)
def test_response_of_a_real_loss(name):
    """The gradient is what backward leaves, and the predicted loss change is right as the learning rate goes to 0."""
    case = MODELS[name]()
    lin = kp.linearise(case.model, case.inputs, **case.keywords)
    target = randn(*lin.readout.space.shape, seed=8)

    def loss(outputs):
        return (outputs - target).square().mean()

    leaves = {key: value.clone().requires_grad_() for key, value in case.parameters.items()}
    loss(case.outputs(leaves)).backward()
    response = kp.flow.response(lin, loss, learning_rate=1e-5)
    for key, value in lin.parameters.split(response.gradient).items():
        torch.testing.assert_close(value, leaves[key].grad, **CLOSE)
    stepped = {key: (leaf - 1e-5 * leaf.grad).detach() for key, leaf in leaves.items()}
    actual = float(loss(case.outputs(stepped)) - loss(case.outputs(case.parameters)))
    assert actual / response.predicted_loss_change == pytest.approx(1, abs=1e-3)


def test_rate_network_spectrum_is_that_of_its_activity():
    """K = α² M Mᵀ ⊗ I: eigenvalues α² σ_i(M)², each H times; effective ranks by closed form (theory §1.3b)."""
    lin = kp.linearise(seeded(RateRNN(3, 4, alpha=0.3)), randn(2, 5, 3, seed=1))
    (core,) = kp.flow.cores(lin).values()
    K = to_dense(kp.ParameterKernel(lin))
    expected = 0.09 * core.spectrum.repeat_interleave(4).sort(descending=True).values
    torch.testing.assert_close(torch.linalg.eigvalsh(K).flip(0)[: len(expected)], expected, rtol=1e-9, atol=1e-12)
    effective = float(K.trace() ** 2 / K.square().sum())
    assert effective == pytest.approx(4 * core.effective_rank)


def test_rank_and_kernel_of_the_ntk():
    """rank NTK = rank K = H rank M, and ker NTK = P⁻ᵀ ker K (theory §1.1, §3.5)."""
    lin = kp.linearise(seeded(nn.RNN(3, 4, batch_first=True)), randn(3, 6, 3, seed=1))
    (core,) = kp.flow.cores(lin).values()
    ntk, K = to_dense(kp.Ntk(lin)), to_dense(kp.ParameterKernel(lin))
    rank = 4 * core.rank
    assert torch.linalg.matrix_rank(ntk, rtol=1e-9) == torch.linalg.matrix_rank(K, rtol=1e-9) == rank
    null = torch.linalg.eigh(K).eigenvectors[:, : lin.space.size - rank]
    mapped = to_dense(kp.Propagator(lin).inverse).mT @ null
    assert float((ntk @ mapped).norm() / ntk.norm()) < 1e-12
    assert float((ntk @ null).norm() / ntk.norm()) > 1e-3


def test_linear_network_propagator_in_closed_form():
    """P = Σ_d L^d ⊗ W^d for h' = W h + U x (theory §3.1)."""
    model = seeded(RateRNN(3, 4, nonlinearity=lambda z: z))
    lin = kp.linearise(model, randn(1, 6, 3, seed=1))
    shift, W = torch.diag(torch.ones(5, dtype=torch.float64), -1), model.weight_hh.detach()
    powers = [torch.kron(torch.linalg.matrix_power(shift, d), torch.linalg.matrix_power(W, d)) for d in range(6)]
    torch.testing.assert_close(to_dense(kp.Propagator(lin)), sum(powers), **CLOSE)


def test_scalar_gain_amplification():
    """h' = g h: dS/dg = t g^{t−1} h₀, so the NTK is that vector's outer product (theory §1.3j, §4.6)."""
    gain = torch.tensor([[1.1]], dtype=torch.float64, requires_grad=True)
    start = torch.tensor([[0.5]], dtype=torch.float64)
    lin = kp.linearise(
        lambda h, x, p: h @ p["g"] + 0 * x, torch.zeros(1, 9, 1).double(), initial=start, parameters={"g": gain}
    )
    t = torch.arange(1, 10, dtype=torch.float64)
    field = t * 1.1 ** (t - 1) * 0.5
    torch.testing.assert_close(to_dense(kp.Ntk(lin)), torch.outer(field, field), **CLOSE)


def test_restriction_to_a_group_of_trials():
    """NTK blocks between groups of trials couple through K only: P_i K_ij P_jᵀ (theory §2.1)."""
    lin = gru_lin()
    one = Restriction(lin.space, {"trial": [0]})
    two = Restriction(lin.space, {"trial": [1]})
    block = one @ kp.Ntk(lin) @ two.T
    torch.testing.assert_close(to_dense(block), to_dense(kp.Ntk(lin))[:20, 20:], **CLOSE)


def test_golden_trace_of_the_gru():
    """tr NTK of nn.GRU(10, 64), 50 steps, 15 trials: 223 056.46 in float32 with torch's seed 0 (theory §10)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inputs, model = torch.randn(50, 15, 10), nn.GRU(10, 64)
    lin = kp.linearise(model, inputs)
    probes = torch.randint(0, 2, (64, *lin.space.shape), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    samples = kp.Ntk(lin).jacobian.T(probes).double().square().sum(-1)
    error = float(samples.std() / 8)
    assert abs(float(samples.mean()) - 223056.46) < 4 * error
    assert error < 3000


def test_bad_arguments():
    lin = gru_lin()
    with pytest.raises(ValueError, match=r"`params` must name some of the trainable parameters.*got \['nope'\]"):
        kp.Ntk(lin, params=["nope"])
    with pytest.raises(ValueError, match="`params` must name some"):
        kp.ParameterKernel(lin, params=[])
    with pytest.raises(ValueError, match="`diagonal` must have shape"):
        kp.Ntk(lin, metric=torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="`metric` must act on Space"):
        kp.Ntk(lin, metric=Identity(lin.space))
    skew = Dense(torch.triu(torch.ones(lin.parameters.size, lin.parameters.size, dtype=torch.float64)))
    with pytest.raises(ValueError, match="`metric` must be symmetric"):
        kp.Ntk(lin, metric=skew)
    with pytest.raises(ValueError, match='must be None, "outputs" or an operator'):
        kp.Ntk(lin, readout="targets")
    with pytest.raises(ValueError, match="`learning_rate` must be a positive number"):
        kp.flow.response(lin, lambda y: y.sum(), learning_rate=-0.1)
    with pytest.raises(ValueError, match="`loss` must give a scalar tensor; got"):
        kp.flow.response(lin, lambda y: y)
    with pytest.raises(ValueError, match="`loss` must depend on its argument"):
        kp.flow.response(lin, lambda y: torch.ones(()))
    with pytest.raises(ValueError, match="`loss` must be finite; got NaN"):
        kp.flow.response(lin, lambda y: y.sum() * float("nan"))
    with pytest.raises(ValueError, match='`of` must be "outputs" or "states"'):
        kp.flow.response(lin, lambda y: y.sum(), of="weights")


def test_a_step_by_itself_has_no_outputs():
    case = MODELS["step-module"]()
    lin = kp.linearise(case.model, case.inputs, **case.keywords)
    with pytest.raises(ValueError, match="needs a model with outputs; a step by itself has states only"):
        kp.Ntk(lin, readout="outputs")
    with pytest.raises(ValueError, match='Give a loss of the states, with of="states"'):
        kp.flow.response(lin, lambda y: y.sum())


def test_readout_that_ignores_the_core():
    class Deaf(Plain):
        def forward(self, inputs):
            self.rnn(inputs)
            return self.readout(torch.cat([inputs, inputs[..., :1]], dim=-1))

    model = seeded(Deaf(nn.GRU(3, 4, batch_first=True)))
    lin = kp.linearise(model, randn(2, 5, 3, seed=1), core="rnn")
    ntk = kp.Ntk(lin, readout="outputs", params=[name for name in trainable(model) if name.startswith("rnn")])
    assert not to_dense(ntk).any()
