"""The channel of a bifurcation: an exact split of the NTK, exact fields where they are known, and its dominance."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kpflow as kp
from kpflow.dynamics import (
    PolynomialForm,
    critical,
    reduced_form,
    scalar_form,
    scalar_propagator,
    sensitivity,
    trajectory,
)
from kpflow.flow import Dominance, Separability, channels, conditions, critical_propagator, crosstalk
from kpflow.operators import Gramian, to_dense

UNITS, TIMES, TRIALS = 30, 40, 8


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    assert float((got - expected).norm()) <= tolerance * float(expected.norm())


def network(weight: Tensor, nonlinearity: Any = torch.tanh, bias: bool = False) -> kp.states.cells.RateRNN:
    """h' = φ(W h), of which W alone learns."""
    made = kp.states.cells.RateRNN(
        1, len(weight), dtype=torch.float64, convention="outside", nonlinearity=nonlinearity, bias=bias
    )
    with torch.no_grad():
        made.weight_hh.copy_(weight)
    made.weight_ih.requires_grad_(False)
    return made


def at(rnn: nn.Module, start: Tensor, times: int) -> Any:
    return kp.linearise(rnn, torch.zeros(len(start), times, 1, dtype=torch.float64), initial=start)


def slanted(block: Tensor, seed: int, units: int = UNITS) -> Tensor:
    """A matrix that is not normal, with the eigenvalues of `block` and others in [−.4, .4]."""
    random = torch.Generator().manual_seed(seed)
    inner = torch.diag(0.8 * torch.rand(units, generator=random, dtype=torch.float64) - 0.4)
    inner[: len(block), : len(block)] = block
    slant = torch.randn(units, units, generator=random, dtype=torch.float64) / units**0.5
    slant = torch.eye(units, dtype=torch.float64) + 0.5 * slant
    return slant @ inner @ torch.linalg.inv(slant)


# The split.


@pytest.fixture(scope="module", params=["RNN", "GRU", "LSTM", "rate"])
def lin(request):
    torch.manual_seed(0)
    make: Any = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM, "rate": kp.states.cells.RateRNN}[request.param]
    model = make(2, 3) if request.param == "rate" else make(2, 3, batch_first=True)
    return kp.linearise(model.double(), noise(2, 4, 2, seed=1))


@pytest.mark.parametrize("rows", [1, 2])
def test_the_split_is_exact(lin, rows):
    size = lin.parameters.size
    gradient = noise(rows, size, seed=2) if rows > 1 else noise(size, seed=2)
    parts = channels(lin, gradient)
    whole, channel, residual = (to_dense(op) for op in (kp.Ntk(lin), parts.channel, parts.residual))
    close(channel + residual, whole, 1e-12)
    close(parts.directions @ parts.directions.mT, torch.eye(rows, dtype=torch.float64), 1e-14)
    close(parts.scales @ parts.directions, gradient.reshape(rows, size), 1e-13)
    jacobian = to_dense(kp.Ntk(lin).jacobian)
    field = jacobian @ parts.directions.mT
    close(parts.field.reshape(rows, -1).mT, field, 1e-12)
    close(channel, field @ field.mT, 1e-12)
    assert int(torch.linalg.matrix_rank(channel)) == rows
    assert parts.dominance == pytest.approx(float(field.square().sum() / jacobian.square().sum()), rel=1e-11)
    assert parts.singular_values.tolist() == pytest.approx(torch.linalg.svdvals(field).tolist())
    assert tuple(parts.field.shape) == ((rows,) if rows > 1 else ()) + lin.space.shape


def test_dominances_of_an_orthonormal_basis_sum_to_one(lin):
    basis = torch.linalg.qr(noise(lin.parameters.size, lin.parameters.size, seed=3)).Q
    shares = [channels(lin, direction).dominance for direction in basis]
    assert sum(shares) == pytest.approx(1, abs=1e-10)
    assert all(0 <= share <= 1 for share in shares)


def test_estimators_take_the_residual_by_its_jacobian(lin):
    parts = channels(lin, noise(lin.parameters.size, seed=4))
    assert isinstance(parts.residual, Gramian)
    assert parts.residual.symmetric
    rest = kp.estimate.trace(parts.residual, method="exact")
    assert float(rest) == pytest.approx(parts.trace - parts.energy, rel=1e-10)
    assert float(kp.estimate.trace(parts.channel, method="exact")) == pytest.approx(parts.energy, rel=1e-10)


class Model(nn.Module):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.core = nn.GRU(2, 3, batch_first=True)
        self.out = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.core(x)[0])


def test_names_find_their_place_in_a_larger_model():
    torch.manual_seed(0)
    model = Model().double()
    found = critical(model.core, torch.zeros(3), torch.zeros(2), reach=2.0)
    lin = kp.linearise(model, noise(2, 4, 2, seed=5))
    parts = channels(lin, found.named_gradient, prefix="core.")
    named = lin.parameters.split(parts.directions)
    assert float(named["out.weight"].abs().max() if "out.weight" in named else 0.0) == 0
    flat = found.gradient.reshape(-1, found.parameters.size)
    inside = torch.cat([named[f"core.{name}"].flatten(1) for name in found.named_gradient], dim=1)
    close(parts.scales @ inside, flat, 1e-13)
    weight = {"core.weight_hh_l0": found.named_gradient["weight_hh_l0"]}
    assert float(channels(lin, weight).directions.norm()) == pytest.approx(len(flat) ** 0.5)


def test_a_model_in_float32():
    rnn = kp.states.cells.RateRNN(1, 4)
    found = critical(rnn, torch.zeros(4), torch.zeros(1))
    lin = kp.linearise(rnn, torch.zeros(2, 5, 1), initial=torch.full((2, 4), 0.1))
    parts = channels(lin, found.named_gradient, trace=kp.estimate.trace(kp.Ntk(lin), method="exact").value)
    assert parts.field.dtype == torch.float32
    q = torch.ones(2, 5, 4)
    torch.testing.assert_close((parts.channel + parts.residual)(q), kp.Ntk(lin)(q), rtol=1e-4, atol=1e-6)
    assert 0 < parts.dominance < 1


# Fields that are known.


@pytest.mark.parametrize("name", ["saddle-node", "transcritical", "pitchfork", "flip"])
def test_a_scalar_form_is_all_channel(name):
    """Of a network of one unit with the parameter μ the NTK is S Sᵀ, S = d_μ α."""
    form, mu, start = (
        scalar_form(name),
        torch.tensor([0.05], dtype=torch.float64),
        torch.tensor([0.1, -0.05, 0.2]).double(),
    )
    lin = kp.linearise(
        lambda h, _, p: form.step(h, p["mu"].expand(h.shape[0])),
        torch.zeros(3, 9, 1, dtype=torch.float64),
        initial=start[:, None],
        parameters={"mu": mu.clone().requires_grad_()},
    )
    close(lin.states[..., 0], trajectory(form, start, mu, 9), 1e-12)
    parts = channels(lin, torch.ones(1, dtype=torch.float64))
    slope = sensitivity(form, start, mu, 9)
    close(to_dense(parts.channel), torch.outer(slope.flatten(), slope.flatten()), 1e-8)
    close(to_dense(parts.channel), to_dense(kp.Ntk(lin)), 1e-8)
    found = parts.compare(slope, torch.ones(1, dtype=torch.float64))
    assert found.relative_error < 1e-12
    assert found.cosine == pytest.approx(1, abs=1e-12)
    phi = torch.block_diag(*scalar_propagator(form, start, mu, 9))
    close(to_dense(kp.Propagator(lin)), phi, 1e-12)


@pytest.mark.parametrize("g", [0.7, 1.0, 1.2])
def test_of_a_symmetric_linear_network_everything_is_exact(g):
    units, times = 5, 12
    vectors = torch.linalg.qr(noise(units, units, seed=6)).Q
    values = torch.tensor([g, 0.3, -0.2, 0.1, 0.45], dtype=torch.float64)
    start = noise(3, units, seed=7)
    weight = vectors @ torch.diag(values) @ vectors.mT
    rnn = network((weight + weight.mT) / 2, nonlinearity=lambda h: h)
    lin = at(rnn, start, times)
    found = critical(rnn, torch.zeros(units), torch.zeros(1), multiplier=g)
    v = found.right
    close(found.named_gradient["weight_hh"], torch.outer(v, v), 1e-12)
    parts = channels(lin, found.named_gradient)
    t = torch.arange(1, times + 1, dtype=torch.float64)
    slope = t * g ** (t - 1) * (start @ v)[:, None]
    close(parts.field, slope[..., None] * v, 1e-12)
    compared = parts.compare(sensitivity(reduced_form(found), start @ found.left, 0.0, times), v)
    assert compared.relative_error < 1e-12
    field = (slope[..., None] * v).flatten()
    close(to_dense(parts.channel), torch.outer(field, field), 1e-8)
    basis = torch.einsum("ai,bj->ijab", vectors, vectors).reshape(-1, units, units)
    total = sum(to_dense(channels(lin, {"weight_hh": one}).channel) for one in basis)
    close(total, to_dense(kp.Ntk(lin)), 1e-8)
    phi = scalar_propagator(PolynomialForm(), (start @ v), g - 1, times)
    through = critical_propagator(lin.space, phi, v, found.left)
    onto = torch.kron(torch.eye(3 * times, dtype=torch.float64), torch.outer(v, v))
    close(to_dense(through), to_dense(kp.Propagator(lin)) @ onto, 1e-12)
    close(to_dense(through.T), to_dense(through).mT, 1e-12)
    assert crosstalk(lin, v, found.left) < 1e-12


def test_the_critical_propagator_of_a_pair():
    angle, weight = 0.7, slanted(0.9 * rotation(0.7), 8, units=4)
    rnn = network(weight, nonlinearity=lambda h: h)
    lin = at(rnn, noise(2, 4, seed=9), 6)
    found = critical(rnn, torch.zeros(4), torch.zeros(1), multiplier=0.9 * complex(math.cos(angle), math.sin(angle)))
    phi = scalar_propagator(reduced_form(found), torch.zeros(2), 0.0, 6)
    through = critical_propagator(lin.space, phi, found.right, found.left)
    projector = 2 * torch.outer(found.right, found.left).real
    onto = torch.kron(torch.eye(12, dtype=torch.float64), projector)
    close(to_dense(through), to_dense(kp.Propagator(lin)) @ onto, 1e-10)
    close(to_dense(through.T), to_dense(through).mT, 1e-12)
    assert crosstalk(lin, found.right, found.left) < 1e-10


def rotation(angle: float) -> Tensor:
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)


@pytest.mark.parametrize("shear", [1.0, 6.0])
def test_crosstalk_is_the_norm_of_its_definition(shear):
    """With little and with much of it."""
    weight = torch.diag(torch.tensor([1.2, 0.3, -0.4], dtype=torch.float64))
    weight[0, 1], weight[1, 2] = shear, 0.5
    turn = torch.linalg.qr(noise(3, 3, seed=10)).Q  # so that φ' mixes both ways
    rnn = network(turn @ weight @ turn.mT)
    lin = at(rnn, 0.8 * noise(2, 3, seed=11), 7)
    found = critical(rnn, torch.zeros(3), torch.zeros(1), multiplier=1.2)
    inverse = to_dense(kp.Propagator(lin).inverse)
    onto = torch.kron(torch.eye(14, dtype=torch.float64), torch.outer(found.right, found.left))
    away = torch.eye(42, dtype=torch.float64) - onto
    split = onto @ inverse @ onto + away @ inverse @ away
    expected = float(torch.linalg.matrix_norm(torch.linalg.solve(split, inverse - split), 2))
    assert (expected > 1) == (shear > 1)
    assert crosstalk(lin, found.right, found.left, iterations=60) == pytest.approx(expected, rel=5e-3)


# Near a bifurcation.


def modes(lin: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Squared singular values of dS/dθ by rising size, and its leading vectors, through the small side."""
    jacobian = to_dense(kp.Ntk(lin).jacobian)
    energies, vectors = torch.linalg.eigh(jacobian.mT @ jacobian)
    left = jacobian @ vectors[:, -1]
    return energies, left / left.norm(), vectors[:, -1]


@pytest.fixture(scope="module")
def table() -> dict[float, dict[str, Any]]:
    """The rows of a tanh network of 30 units whose leading multiplier passes 1, the others in [−.4, .4]."""
    start, rows = 0.05 * noise(TRIALS, UNITS, seed=100), {}
    for value in (0.8, 1.0):
        rnn = network(slanted(torch.tensor([[value]], dtype=torch.float64), 0))
        lin = at(rnn, start, TIMES)
        found = critical(rnn, torch.zeros(UNITS), torch.zeros(1), multiplier=value)
        parts = channels(lin, found.named_gradient)
        slope = sensitivity(reduced_form(found), start @ found.left, 0.0, TIMES)
        energies, left, right = modes(lin)
        scalar = (slope[..., None] * found.right).flatten()
        rows[value] = {
            "dominance": parts.dominance,
            "left": abs(float(left @ scalar / scalar.norm())),
            "right": abs(float(right @ parts.directions[0])),
            "rank": float(energies.sum() ** 2 / energies.square().sum()),
            "error": parts.compare(slope, found.right).relative_error,
            "conditions": conditions(parts, slope, found.right, found.left),
        }
    return rows


def test_the_ntk_collapses_at_criticality(table):
    assert table[0.8]["rank"] > 100
    assert table[1.0]["rank"] < 1.5
    assert table[1.0]["dominance"] > 0.85
    assert table[1.0]["left"] > 0.99
    assert table[1.0]["right"] > 0.99
    assert table[1.0]["error"] < 0.06 < table[0.8]["error"]


def test_the_conditions_hold_at_criticality_and_not_far_from_it(table):
    near = table[1.0]["conditions"]
    assert (near.dominance, near.separability) == (Dominance.HOLDS, Separability.HOLDS)
    assert near.ratio < near.bound < 0.5
    assert near.crosstalk < 0.1
    assert table[0.8]["conditions"].dominance is Dominance.RESIDUAL
    assert table[0.8]["conditions"].separability is Separability.HOLDS


def test_a_wrong_scalar_form_explains_nothing_and_large_states_mix():
    rnn = network(torch.tensor([[1.2, 6.0], [0.0, 0.3]], dtype=torch.float64))
    start = noise(3, 2, seed=13)
    lin = at(rnn, start, 10)
    found = critical(rnn, torch.zeros(2), torch.zeros(1), multiplier=1.2)
    parts = channels(lin, found.named_gradient)
    slope = sensitivity(reduced_form(found), start @ found.left, 0.0, 10)
    verdict = conditions(parts, -slope, found.right, found.left)
    assert verdict.dominance is Dominance.FIELD
    assert verdict.bound == math.inf
    assert verdict.separability is Separability.CROSSTALK
    assert verdict.crosstalk > 1


def test_a_neimark_sacker_channel_has_rank_two():
    value = complex(math.cos(0.7), math.sin(0.7))
    rnn = network(slanted(rotation(0.7), 1))
    start = 0.05 * noise(TRIALS, UNITS, seed=101)
    lin = at(rnn, start, TIMES)
    found = critical(rnn, torch.zeros(UNITS), torch.zeros(1), multiplier=value)
    parts = channels(lin, found.named_gradient)
    large, small = parts.singular_values.tolist()
    assert small > 0.85 * large
    energies, _, _ = modes(lin)
    assert 1.9 < float(energies.sum() ** 2 / energies.square().sum()) < 2.6
    assert float(energies[-3]) < 0.12**2 * float(energies[-2])
    assert parts.dominance > 0.85
    form, coordinate = reduced_form(found), start.to(torch.complex128) @ found.left
    slopes = torch.stack([sensitivity(form, coordinate, 0.0, TIMES, of=of) for of in ("mu", "omega")])
    assert parts.compare(slopes, found.right).relative_error < 0.08
    assert conditions(parts, slopes, found.right, found.left).dominance is Dominance.HOLDS


# Bad input.


def test_gradients_are_checked():
    lin = kp.linearise(nn.RNN(1, 2, batch_first=True).double(), noise(1, 3, 1, seed=14))
    size = lin.parameters.size
    for wrong in (torch.ones(size + 1), torch.ones(0, size), torch.ones(())):
        with pytest.raises(ValueError, match=r"`gradient` must have shape \(10,\) or \(k, 10\), over the parameters"):
            channels(lin, wrong.double())
    with pytest.raises(TypeError, match="`gradient` must hold floating-point numbers"):
        channels(lin, torch.ones(size, dtype=torch.int64))
    with pytest.raises(ValueError, match="`gradient` must not be zero: no parameter"):
        channels(lin, torch.zeros(size, dtype=torch.float64))
    with pytest.raises(ValueError, match="`gradient` must be finite; got NaN"):
        channels(lin, torch.full((size,), math.nan))
    with pytest.raises(ValueError, match="`gradient` must have independent rows; the 2 rows"):
        channels(lin, torch.ones(2, size, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"must name parameters of `linearisation`, .*; got \['rnn.weight_hh_l0'\]"):
        channels(lin, {"weight_hh_l0": torch.ones(2, 2)}, prefix="rnn.")
    with pytest.raises(ValueError, match="got none"):
        channels(lin, {})
    with pytest.raises(ValueError, match=r"`gradient\['weight_hh_l0'\]` must have shape \(2, 2\) or \(k, 2, 2\)"):
        channels(lin, {"weight_hh_l0": torch.ones(4)})
    with pytest.raises(ValueError, match=r"equally many rows for every parameter; got \[\(\), \(2,\)\]"):
        channels(lin, {"weight_hh_l0": torch.ones(2, 2), "bias_hh_l0": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="`prefix` belongs to names"):
        channels(lin, torch.ones(size), prefix="rnn.")
    with pytest.raises(ValueError, match="`trace` must be a positive number"):
        channels(lin, torch.ones(size), trace=0.0)


def test_the_trace_has_to_come_from_somewhere():
    step: Any = lambda h, _, p: torch.tanh(h @ p["w"].mT)  # noqa: E731
    lin = kp.linearise(
        step,
        noise(1, 3, 1, seed=15),
        initial=noise(1, 2, seed=16),
        parameters={"w": noise(2, 2, seed=17).requires_grad_()},
    )
    with pytest.raises(ValueError, match="`dominance` needs tr NTK"):
        _ = channels(lin, torch.ones(4, dtype=torch.float64)).dominance
    known = kp.estimate.trace(kp.Ntk(lin), method="exact").value
    assert 0 < channels(lin, torch.ones(4, dtype=torch.float64), trace=known).dominance < 1


def test_vectors_and_sensitivities_are_checked():
    lin = kp.linearise(nn.RNN(1, 2, batch_first=True).double(), noise(1, 3, 1, seed=18))
    parts = channels(lin, torch.ones(lin.parameters.size, dtype=torch.float64))
    unit = torch.tensor([1.0, 0.0], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"`sensitivity` must have shape \(1, 3\)"):
        parts.predicted(torch.ones(3), unit)
    with pytest.raises(ValueError, match=r"`right` must have shape \(2,\), one entry a unit"):
        parts.predicted(torch.ones(1, 3), torch.ones(3))
    with pytest.raises(ValueError, match="must have uᵀ v = 1, without a conjugate; got 2"):
        crosstalk(lin, unit, 2 * unit)
    for name in ("probes", "iterations"):
        numbers: Any = {name: 0}
        with pytest.raises(ValueError, match=f"`{name}` must be a positive whole number"):
            crosstalk(lin, unit, unit, **numbers)
    with pytest.raises(ValueError, match=r"`transitions` must have shape \(B, T, T\) for states"):
        critical_propagator(lin.space, torch.ones(2, 3, 3), unit, unit)
    with pytest.raises(ValueError, match=r"`right` and `left` must have shape \(2,\)"):
        critical_propagator(lin.space, torch.ones(1, 3, 3), torch.ones(3), unit)
    flat = kp.linearise(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double(), noise(3, 2, seed=19))
    with pytest.raises(ValueError, match="The states must have axes trial, time, unit"):
        crosstalk(flat, unit, unit)
