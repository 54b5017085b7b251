"""The identities that define P, K and the NTK, for every model, against autograd of the unrolled module."""

import pytest
import torch

import kpflow as kp
from kpflow.operators import to_dense
from models import MODELS, randn

TOLERANCE = 1e-10  # relative, float64; measured values are around 1e-15


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b).clamp_min(1e-300))


def full_jacobian(function, parameters) -> torch.Tensor:
    """d function / dθ as a dense matrix, columns in the order of `parameters`."""
    blocks = torch.func.jacrev(function)(parameters)
    count = function(parameters).numel()
    return torch.cat([blocks[name].reshape(count, -1) for name in parameters], dim=1)


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def lin(case):
    return kp.linearise(case.model, case.inputs, **case.keywords)


def test_states_are_the_modules_own(case, lin):
    assert relative(lin.states, case.states(case.parameters)) < 1e-13


def test_parameters_are_all_trainable_ones(case, lin):
    assert {part.name: part.shape for part in lin.parameters.parts} == {
        name: tuple(value.shape) for name, value in case.parameters.items()
    }


def test_ntk_is_that_of_the_unrolled_module(case, lin):
    jacobian = full_jacobian(case.states, case.parameters)
    assert relative(to_dense(kp.Ntk(lin).jacobian), jacobian) < TOLERANCE
    assert relative(to_dense(kp.Ntk(lin)), jacobian @ jacobian.mT) < TOLERANCE


def test_ntk_is_p_k_p_transposed(lin):
    P, K, ntk = kp.Propagator(lin), kp.ParameterKernel(lin), kp.Ntk(lin)
    assert relative(to_dense(P @ K @ P.T), to_dense(ntk)) < TOLERANCE
    assert (P @ K @ P.T).symmetric
    assert ntk.symmetric


def test_propagator_inverse(lin):
    P = kp.Propagator(lin)
    identity = torch.eye(lin.space.size, dtype=lin.space.dtype)
    assert relative(to_dense(P @ P.inverse), identity) < TOLERANCE
    assert relative(to_dense(P.inverse @ P), identity) < TOLERANCE
    assert isinstance(P.inverse.inverse, kp.Propagator)


def test_propagator_has_determinant_one(lin):
    sign, logdet = torch.linalg.slogdet(to_dense(kp.Propagator(lin)))
    assert sign == 1
    assert abs(logdet) < 1e-12


def test_trials_do_not_meet_in_the_propagator(lin):
    trials, size = lin.space.shape[0], lin.space.size
    blocks = to_dense(kp.Propagator(lin)).unflatten(0, (trials, -1)).unflatten(2, (trials, -1))
    assert size > trials
    for b in range(trials):
        for c in range(trials):
            assert bool(blocks[b, :, c].any()) == (b == c)


@pytest.mark.parametrize("name", ["Propagator", "inverse", "J", "PJ"])
def test_adjoints(lin, name):
    P = kp.Propagator(lin)
    jacobians = {"J": kp.ParameterKernel(lin).jacobian, "PJ": kp.Ntk(lin).jacobian}
    operator = {"Propagator": P, "inverse": P.inverse, **jacobians}[name]
    u, v = randn(3, *operator.in_shape, seed=5), randn(3, *operator.out_shape, seed=6)
    torch.testing.assert_close((operator(u) * v).sum(), (u * operator.T(v)).sum(), rtol=1e-11, atol=1e-11)
    assert relative(to_dense(operator.T), to_dense(operator).mT) < 1e-13


def test_adjoint_chain_is_the_gradient_that_backward_leaves(case, lin):
    target = randn(*lin.space.shape, seed=7)
    leaves = {name: value.clone().requires_grad_() for name, value in case.parameters.items()}
    (0.5 * (case.states(leaves) - target).square().sum()).backward()
    error = lin.states - target
    P, J = kp.Propagator(lin), kp.ParameterKernel(lin).jacobian
    gradient = lin.parameters.split(J.T(P.T(error)))
    for name, leaf in leaves.items():
        expected = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        torch.testing.assert_close(gradient[name], expected, rtol=1e-10, atol=1e-12)


def test_kernel_equals_its_kronecker_cores(lin):
    if not lin.sites():
        with pytest.raises(ValueError, match="no known weight sites"):
            kp.flow.cores(lin)
        return
    cores = kp.flow.cores(lin)
    names = [name for core in cores.values() for name in core.parameters]
    K = kp.ParameterKernel(lin, params=sorted(set(names)))
    assert relative(sum(to_dense(core.kernel) for core in cores.values()), to_dense(K)) < TOLERANCE


def test_core_by_the_formula_of_the_theorem(lin):
    """D (M Mᵀ ⊗ I) Dᵀ with everything formed: the theorem written down, beside the operator that never forms it."""
    for core in kp.flow.cores(lin).values() if lin.sites() else ():
        steps, (trials, time, blocks, units) = core.gram.shape[0], core.slope.shape
        mixing = torch.eye(units, dtype=core.gram.dtype) if core.mixing is None else core.mixing
        slopes = torch.zeros(
            trials * time, lin.space.shape[-1], trials * time, core.multiplicity, dtype=core.gram.dtype
        )
        for i in range(steps):
            for r in range(blocks):
                rows = slice(core.offset + r * units, core.offset + (r + 1) * units)
                slopes[i, rows, i] = core.slope.flatten(0, 1)[i, r, :, None] * mixing
        D = slopes.flatten(0, 1).flatten(1)
        inner = torch.kron(core.gram, torch.eye(core.multiplicity, dtype=core.gram.dtype))
        torch.testing.assert_close(to_dense(core.kernel), D @ inner @ D.mT, rtol=1e-10, atol=1e-12)


def test_step_changes_the_states_as_predicted(case, lin):
    """dS_actual / dS_predicted → 1: the error halves with the learning rate."""
    target = randn(*lin.space.shape, seed=7)
    response = kp.flow.response(lin, lambda s: 0.5 * (s - target).square().mean(), of="states")
    gradient = lin.parameters.split(response.gradient)
    errors = []
    for rate in (1e-3, 5e-4):
        stepped = {name: value - rate * gradient[name] for name, value in case.parameters.items()}
        actual = case.states(stepped) - case.states(case.parameters)
        errors.append(relative(actual / rate, -response.change))
    assert errors[1] < 2e-2
    assert 1.7 < errors[0] / errors[1] < 2.3
