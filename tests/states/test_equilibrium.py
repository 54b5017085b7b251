"""Deep equilibrium models: P against the dense inverse, dz*/dθ against long iterations, and what is refused."""

import math

import pytest
import torch
from torch import nn

import kpflow as kp
from helpers import without_annotation_checks
from kpflow.operators import to_dense
from kpflow.states import equilibrium, solves
from models import randn, seeded, trainable

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


class Tanh(nn.Module):
    """z = tanh(W z + U x + b), or with a term that trials share."""

    def __init__(self, size: int = 5, shared: float = 0.0) -> None:
        super().__init__()
        self.recurrent = nn.Linear(size, size)
        self.encoder = nn.Linear(3, size, bias=False)
        self.shared = shared
        seeded(self, scale=0.25 / math.sqrt(size / 5))

    def forward(self, z, x):
        moved = torch.tanh(self.recurrent(z) + self.encoder(x))
        return moved + self.shared * moved.roll(1, 0) if self.shared else moved


class Convolution(nn.Module):
    """Images [B, C, 4, 4], with an input that is a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        seeded(self, scale=0.12)

    def forward(self, z, x):
        image, scale = x
        return torch.tanh(self.conv(z) * scale + image)


def solve(f, x, shape, steps=600):
    z = torch.zeros(shape, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(steps):
            z = f(z, x)
    return z


def case(kind):
    """A module, its input and its equilibrium."""
    if kind == "images":
        module, x = Convolution(), (randn(3, 2, 4, 4, seed=1), torch.tensor(1.2, dtype=torch.float64))
        return module, x, solve(module, x, (3, 2, 4, 4))
    module, x = Tanh(shared=0.3 if kind == "shared" else 0.0), randn(4, 3, seed=1)
    return module, x, solve(module, x, (4, 5))


def flat(jacobian, rows):
    return torch.cat([block.reshape(rows, -1) for block in jacobian.values()], dim=1)


def dense(module, x, z):
    """I − L, J and dz*/dθ, by automatic differentiation and the implicit function theorem."""
    n, parameters = z.numel(), trainable(module)
    L = torch.func.jacrev(lambda s: module(s, x))(z).reshape(n, n).detach()
    J = flat(torch.func.jacrev(lambda p: torch.func.functional_call(module, p, (z, x)))(parameters), n)
    return torch.eye(n, dtype=z.dtype) - L, J


@pytest.fixture(params=["factorised", "GMRES"])
def way(request, monkeypatch):
    if request.param == "GMRES":
        monkeypatch.setattr(equilibrium, "DENSE", 0)
    return request.param


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", ["independent", "shared", "images"])
def test_equals_the_dense_inverse_and_a_long_iteration(kind):
    module, x, z = case(kind)
    lin = kp.linearise(module, x, equilibrium=z)
    inverse, J = dense(module, x, z)
    P = torch.linalg.inv(inverse)
    assert lin.space.axes == (("trial", "axis1", "axis2", "axis3") if kind == "images" else ("trial", "unit"))
    assert lin.readout is None
    assert lin.sites() == {}
    torch.testing.assert_close(to_dense(kp.Propagator(lin)), P, **CLOSE)
    torch.testing.assert_close(to_dense(kp.Propagator(lin).T), P.mT, **CLOSE)
    torch.testing.assert_close(to_dense(kp.Propagator(lin).inverse), inverse, **CLOSE)
    torch.testing.assert_close(to_dense(kp.Propagator(lin).inverse.T), inverse.mT, **CLOSE)
    torch.testing.assert_close(to_dense(kp.ParameterKernel(lin)), J @ J.mT, **CLOSE)
    torch.testing.assert_close(to_dense(kp.Ntk(lin).jacobian.T), (P @ J).mT, **CLOSE)

    def iterated(parameters):
        state = torch.zeros_like(z)
        for _ in range(250):
            state = torch.func.functional_call(module, parameters, (state, x))
        return state

    moved = flat(torch.func.jacrev(iterated)(trainable(module)), z.numel())
    torch.testing.assert_close(to_dense(kp.Ntk(lin).jacobian), moved, **CLOSE)
    torch.testing.assert_close(to_dense(kp.Ntk(lin)), moved @ moved.mT, **CLOSE)
    assert 0 < lin.solve_residual < 1e-11


def test_trials_are_told_apart_by_products():
    for kind, independent in (("independent", True), ("shared", False), ("images", True)):
        module, x, z = case(kind)
        trials = kp.linearise(module, x, equilibrium=z).trials()
        assert (trials is not None) == independent
        if trials is not None:
            size = z[0].numel()
            assert trials.states.tolist() == [b for b in range(len(z)) for _ in range(size)]


def test_a_function_with_parameters_and_a_frozen_one():
    module, x, z = case("independent")
    whole = kp.linearise(module, x, equilibrium=z)
    module.encoder.weight.requires_grad_(False)
    one = kp.linearise(module, x, equilibrium=z)
    assert [part.name for part in one.parameters.parts] == ["recurrent.weight", "recurrent.bias"]
    given = {
        name: value.detach().requires_grad_(name != "U")
        for name, value in (("W", module.recurrent.weight), ("b", module.recurrent.bias), ("U", module.encoder.weight))
    }

    def f(state, x, p):
        return torch.tanh(state @ p["W"].mT + p["b"] + x @ p["U"].mT)

    other = kp.linearise(f, x, equilibrium=z, parameters=given)
    expected = torch.cat(
        [
            whole.parameters.split(to_dense(kp.Ntk(whole).jacobian))[name].flatten(1)
            for name in ("recurrent.weight", "recurrent.bias")
        ],
        dim=1,
    )
    for lin in (one, other):
        torch.testing.assert_close(to_dense(kp.Ntk(lin).jacobian), expected, **CLOSE)


def test_memory_is_kept_and_predicted():
    module, x, z = case("independent")
    wide = kp.linearise(module, x, equilibrium=z)
    least = wide.peak_bytes(1)
    q = randn(7, *z.shape, seed=3)
    narrow = kp.linearise(module, x, equilibrium=z, memory=least)
    torch.testing.assert_close(narrow.propagate(q), wide.propagate(q), **CLOSE)
    assert narrow.peak_bytes(7) <= wide.peak_bytes(7)
    with pytest.raises(ValueError, match=r"`memory` must be at least \d+ bytes for the recorded f and one probe"):
        kp.linearise(module, x, equilibrium=z, memory=100)


def test_what_does_not_fit_the_memory_is_not_factorised():
    module, x = Tanh(size=100), randn(4, 3, seed=1)
    z = solve(module, x, (4, 100))
    q = randn(3, *z.shape, seed=3)
    wide, narrow = (kp.linearise(module, x, equilibrium=z, memory=bytes) for bytes in (2**30, 3 * 2**19))
    torch.testing.assert_close(narrow.propagate(q), wide.propagate(q), **CLOSE)
    assert wide._factor_bytes > 0
    assert narrow._factor_bytes == 0


@pytest.mark.usefixtures("way")
def test_float32():
    module, x, z = case("independent")
    P = torch.linalg.inv(dense(module, x, z)[0])
    lin = kp.linearise(
        module.float(), x.float(), equilibrium=solve(module.float(), x.float(), z.shape).float() if False else z.float()
    )
    found = to_dense(kp.Propagator(lin))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), P, rtol=1e-4, atol=1e-5)
    assert lin.solve_residual < 1e-5


@pytest.mark.usefixtures("way")
def test_gradients_go_through_the_probes():
    module, x, z = case("independent")
    lin = kp.linearise(module, x, equilibrium=z)
    q = randn(2, *z.shape, seed=3).requires_grad_()
    weights = randn(2, *z.shape, seed=4)
    (found,) = torch.autograd.grad((lin.propagate(q) * weights).sum(), q)
    torch.testing.assert_close(found, lin.propagate_adjoint(weights), **CLOSE)
    assert lin.propagate(q[:0]).shape == (0, *z.shape)


@pytest.mark.parametrize("basis", [3, 12, 40])
def test_gmres_solves_systems_that_are_not_alike(basis):
    """Each right-hand side of each system has its own space: some are solved at once, one is zero, one is hard."""
    generator = torch.Generator().manual_seed(0)
    A = torch.eye(40, dtype=torch.float64) + 0.05 * torch.randn(3, 40, 40, generator=generator, dtype=torch.float64)
    A[0] = torch.eye(40)
    right = torch.randn(5, 3, 40, generator=generator, dtype=torch.float64)
    right[2] = 0
    right[3] *= 1e-200
    found = solves.solved(lambda q: torch.einsum("gij,sgj->sgi", A, q), solves.Gmres(basis), right, 1e-13)
    exact = torch.linalg.solve(A, right.permute(1, 2, 0)).permute(2, 0, 1)
    assert found.converged
    assert found.residual < 1e-13
    scale = right.abs().amax(dim=-1, keepdim=True).clamp_min(1e-300)
    torch.testing.assert_close(found.value / scale, exact / scale, rtol=0, atol=1e-11)


def test_a_basis_stays_orthogonal_to_rounding():
    basis = torch.linalg.qr(randn(30, 6, seed=1)).Q.mT.reshape(1, 1, 6, 30)
    near = basis.sum(dim=2) + 1e-9 * randn(1, 1, 30, seed=2)
    rest, parts = solves._orthogonalised(basis, near)
    assert float((basis @ rest.unsqueeze(-1)).abs().max() / rest.norm()) < 1e-14
    torch.testing.assert_close((parts.unsqueeze(-2) @ basis)[:, :, 0] + rest, near)


def test_gmres_ends_in_as_many_products_as_there_are_eigenvalues():
    values = torch.tensor([0.5, 0.5, 2.0, 2.0, 3.0, 3.0], dtype=torch.float64)
    found = solves.solved(lambda q: q * values, solves.Gmres(6), randn(2, 1, 6, seed=1), 1e-12)
    assert found.iterations <= 4  # three, and one for the true residual
    torch.testing.assert_close(found.value, randn(2, 1, 6, seed=1) / values)


def scalar(slope):
    """z = slope z + w x, with the equilibrium 0 for x = 0 at any slope."""
    return (lambda z, x, p: slope * z + p["w"] * x), {"w": torch.ones(1, dtype=torch.float64, requires_grad=True)}


def test_a_bifurcation_is_told(way):
    f, parameters = scalar(torch.tensor([0.2, 1.0], dtype=torch.float64))
    zero = torch.zeros(3, 2, dtype=torch.float64)
    lin = kp.linearise(f, zero, equilibrium=zero, parameters=parameters)
    named = "GMRES" if way == "GMRES" else "The factorisation"
    pattern = (
        rf"{named} did not solve .* relative residual is .* after \d+ iterations.*eigenvalue at or near 1, as at a bif"
    )
    with pytest.raises(torch.linalg.LinAlgError, match=pattern):
        lin.propagate(torch.ones(1, 3, 2, dtype=torch.float64))
    assert not lin.solve_residual < 0.5
    torch.testing.assert_close(lin.residual(torch.ones(1, 3, 2, dtype=torch.float64))[0, 0, 0].item(), 0.8)


@pytest.mark.usefixtures("way")
def test_near_a_bifurcation_rounding_is_accepted():
    slopes = torch.tensor([0.2, 1 - 1e-5], dtype=torch.float64)
    f, parameters = scalar(slopes)
    zero = torch.zeros(3, 2, dtype=torch.float64)
    lin = kp.linearise(f, zero, equilibrium=zero, parameters=parameters)
    kick = randn(4, 3, 2, seed=1)
    torch.testing.assert_close(lin.propagate(kick), kick / (1 - slopes), rtol=1e-9, atol=0)


def test_tolerance_is_what_is_left(monkeypatch):
    monkeypatch.setattr(equilibrium, "DENSE", 0)
    module, x = Tanh(size=40), randn(4, 3, seed=1)
    z = solve(module, x, (4, 40))
    kick, left = randn(3, *z.shape, seed=2), []
    for tolerance in (1e-2, 1e-8):
        lin = kp.linearise(module, x, equilibrium=z, tolerance=tolerance)
        lin.propagate(kick)
        left.append(lin.solve_residual)
    assert 1e-4 < left[0] <= 1e-2
    assert left[1] <= 1e-8


def test_what_is_no_equilibrium_is_refused():
    module, x, z = case("independent")
    off = z.clone()
    off[2] += 1e-5
    with pytest.raises(
        ValueError, match=r"`equilibrium` must solve z = f\(z, x\) to .* ≤ 1.5e-08 .* for trial 2.*iterating"
    ):
        kp.linearise(module, x, equilibrium=off)
    kp.linearise(module, x, equilibrium=z + 1e-10)
    f, parameters = scalar(torch.tensor([0.5, 0.5], dtype=torch.float64))
    zero = torch.zeros(3, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"it is inf ‖z‖ for trial 0"):
        kp.linearise(f, zero + 1, equilibrium=zero, parameters=parameters)


def test_bad_arguments():
    module, x, z = case("independent")
    with pytest.raises(ValueError, match=r"`model` fails as f\(z, x\) with z of shape \(4, 6\)"):
        kp.linearise(module, x, equilibrium=torch.zeros(4, 6, dtype=torch.float64))
    with pytest.raises(
        ValueError, match=r"`equilibrium` must have shape \[B, \*\], with at least one trial; got \(0, 5\)"
    ):
        kp.linearise(module, x[:0], equilibrium=z[:0])
    with pytest.raises(TypeError, match=r"`equilibrium` must be a torch.Tensor; got list"):
        kp.linearise(module, x, equilibrium=[1.0])
    with pytest.raises(
        TypeError, match=r"`equilibrium` must have the parameters' dtype torch.float64 .*; got torch.float32"
    ):
        kp.linearise(module, x, equilibrium=z.float())
    with pytest.raises(ValueError, match=r"`equilibrium` must be finite; got NaN at trial 0, unit 0"):
        kp.linearise(module, x, equilibrium=z * torch.nan)
    with pytest.raises(ValueError, match=r"`tolerance` must be a number between .* got 2"):
        kp.linearise(module, x, equilibrium=z, tolerance=2)
    with pytest.raises(ValueError, match=r"`tolerance` goes with `equilibrium`"):
        kp.linearise(module, x, tolerance=1e-3)
    with pytest.raises(ValueError, match=r"`initial` does not go with `equilibrium`"):
        kp.linearise(module, x, equilibrium=z, initial=z)


def test_bad_models():
    _, x, z = case("independent")
    w = {"w": torch.ones(1, dtype=torch.float64, requires_grad=True)}
    with pytest.raises(ValueError, match=r"must give a state like z, torch.float64 of shape \(4, 5\); got .* \(4, 3\)"):
        kp.linearise(lambda z, x, p: p["w"] * x, x, equilibrium=z, parameters=w)
    with without_annotation_checks(), pytest.raises(TypeError, match=r"as f\(z, x\) must give a tensor; got tuple"):
        kp.linearise(lambda z, x, p: (z, x), x, equilibrium=z, parameters=w)
    with pytest.raises(ValueError, match=r"`f\(z, x\)` must be finite; got inf"):
        kp.linearise(lambda z, x, p: p["w"] * z / 0, x, equilibrium=z, parameters=w)
    with pytest.raises(ValueError, match=r"gives another state each time"):
        kp.linearise(lambda z, x, p: p["w"] * z + torch.rand_like(z), x, equilibrium=z, parameters=w)
    hidden = torch.ones(5, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"uses trainable parameters that it is not handed \(one of shape \(5,\)\)"):
        kp.linearise(lambda z, x, p: p["w"] * z * hidden, x, equilibrium=z, parameters=w)


def test_estimates_and_kernels_take_it():
    module, x, z = case("independent")
    lin = kp.linearise(module, x, equilibrium=z)
    inverse, J = dense(module, x, z)
    moved = torch.linalg.solve(inverse, J)
    ntk, kernel = kp.Ntk(lin), kp.ParameterKernel(lin)
    exact = float(moved.square().sum())
    assert abs(kp.estimate.trace(ntk, rtol=0.05).value / exact - 1) < 0.3
    assert abs(float(kp.estimate.trace(kernel, method="exact").value) / float(J.square().sum()) - 1) < 1e-10
    gram = moved @ moved.mT
    rank = exact**2 / float(gram.square().sum())
    assert abs(float(kp.estimate.effective_rank(ntk, method="exact").value) / rank - 1) < 1e-10
    with pytest.raises(ValueError, match="no known weight sites"):
        kp.flow.cores(lin)
    readout = kp.operators.Dense(randn(8, z.numel(), seed=5), (lin.space, kp.Space.of((8,))))
    R = readout.matrix
    torch.testing.assert_close(to_dense(kp.Ntk(lin, readout=readout)), R @ gram @ R.mT, **CLOSE)
    with pytest.raises(ValueError, match=r'`readout` "outputs" needs a model with outputs'):
        kp.Ntk(lin, readout="outputs")
