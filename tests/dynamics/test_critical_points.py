"""Critical points: gradients against finite differences with Newton, coefficients against the maps themselves."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kpflow.dynamics import (
    CriticalPoint,
    Unfolding,
    critical,
    flip,
    fold,
    hopf,
    neimark_sacker,
    pitchfork,
    reduced_form,
)
from kpflow.states.cells import RateRNN

NONE = torch.zeros(1)


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(h: Tensor, _: Tensor, p: Any) -> Tensor:
    return torch.tanh(h @ p["W"].mT + p["b"])


def newton(step: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    for _ in range(30):
        matrix = torch.func.jacrev(step)(h) - torch.eye(len(h), dtype=h.dtype)
        h = h - torch.linalg.solve(matrix, step(h) - h)
    return h


@pytest.fixture(scope="module")
def biased() -> tuple[dict[str, Tensor], Tensor]:
    """Parameters of tanh(W h + b) of 5 units, and a fixed point away from 0 with real and complex multipliers."""
    p = {"W": 0.6 * noise(5, 5, seed=0), "b": 0.3 * noise(5, seed=1)}
    return p, newton(lambda h: network(h, NONE, p), torch.zeros(5, dtype=torch.float64))


def multipliers_of(step: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    return torch.linalg.eigvals(torch.func.jacrev(step)(newton(step, start)))


def difference(found: CriticalPoint, step: Callable[[Tensor, Tensor], Tensor], theta: Tensor, way: Tensor) -> complex:
    """dλ along `way`, by the fourth-order central difference with the fixed point tracked by Newton's method."""
    size, values = 1e-3, {}
    for k in (-2, -1, 1, 2):
        moved = multipliers_of(lambda h, k=k: step(h, theta + k * size * way), found.point)
        values[k] = complex(moved[(moved - found.multiplier).abs().argmin()])
    return (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * size)


@pytest.mark.parametrize("number", range(4))
def test_the_gradient_is_the_derivative_along_the_moving_fixed_point(biased, number):
    p, point = biased
    wanted = complex(torch.linalg.eigvals(torch.func.jacrev(lambda h: network(h, NONE, p))(point))[number])
    found = critical(network, point, NONE, multiplier=wanted, parameters=p)
    theta, way = torch.cat([p["W"].flatten(), p["b"]]), noise(30, seed=2) / 5

    def step(h: Tensor, flat: Tensor) -> Tensor:
        return torch.tanh(flat[:25].reshape(5, 5) @ h + flat[25:])

    slope = difference(found, step, theta, way)
    value = found.multiplier
    mu, omega = (value.conjugate() * slope / abs(value)).real, (slope / value).imag
    if value.imag:
        assert found.unfolding is Unfolding.MULTIPLIER_AND_FREQUENCY
        assert (found.gradient @ way).tolist() == pytest.approx([mu, omega], rel=1e-7)
    else:
        assert float(found.gradient @ way) == pytest.approx(mu, rel=1e-7)


def test_the_motion_of_the_fixed_point_counts(biased):
    """At h̄ ≠ 0 the term uᵀ ∂J/∂θ v alone, the point held where it is, is another vector."""
    p, point = biased
    found = critical(network, point, NONE, multiplier=1.0, parameters=p)

    def held(bias: Tensor) -> Tensor:
        slope = 1 - torch.tanh(p["W"] @ found.point + bias) ** 2
        return torch.dot(found.left * slope, p["W"] @ found.right)

    frozen, whole = torch.func.grad(held)(p["b"]), found.named_gradient["b"]
    assert float((whole - frozen).norm() / whole.norm()) > 0.1


@pytest.mark.parametrize("make", [lambda: nn.GRUCell(2, 4), lambda: nn.LSTMCell(2, 3), lambda: nn.RNN(2, 4)])
def test_modules_have_gradients_by_their_own_names(make):
    torch.manual_seed(3)
    module = make()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x, width = noise(2, seed=4), 6 if isinstance(module, nn.LSTMCell) else 4
    copy = make().double()
    copy.load_state_dict(module.state_dict())
    shapes = {name: value.shape for name, value in copy.named_parameters()}
    theta = torch.cat([value.detach().flatten() for value in copy.parameters()])

    def step(h: Tensor, flat: Tensor) -> Tensor:
        parts = zip(shapes, flat.split([shape.numel() for shape in shapes.values()]), strict=True)
        held = {name: part.reshape(shapes[name]) for name, part in parts}
        if isinstance(copy, nn.LSTMCell):
            state = tuple(part[None] for part in h.chunk(2))
            return torch.cat(torch.func.functional_call(copy, held, (x[None], state)), dim=1)[0]
        if isinstance(copy, nn.RNN):
            return torch.func.functional_call(copy, held, (x[None], h[None]))[1][0]
        return torch.func.functional_call(copy, held, (x[None], h[None]))[0]

    point = newton(lambda h: step(h, theta), torch.zeros(width, dtype=torch.float64))
    found = critical(module, point, x)
    way = noise(len(theta), seed=5) / len(theta) ** 0.5
    slope = difference(found, step, theta, way)
    mu = (found.multiplier.conjugate() * slope / abs(found.multiplier)).real
    assert float(found.gradient.reshape(-1, len(theta))[0] @ way) == pytest.approx(mu, rel=1e-6)
    assert list(found.named_gradient) == [name for name, _ in module.named_parameters()]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_gradient_of_a_network_at_zero_is_u_v(sign):
    weight = noise(4, 4, seed=6)
    weight = (
        sign * weight / max(torch.linalg.eigvals(weight), key=lambda value: abs(value.imag) == 0 and value.real).real
    )
    cell = nn.RNNCell(1, 4).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        cell.weight_hh.copy_(weight)
    found = critical(cell, torch.zeros(4), NONE, multiplier=sign)
    assert found.kind == ("pitchfork" if sign > 0 else "flip")
    outer = sign * torch.outer(found.left, found.right)
    torch.testing.assert_close(found.named_gradient["weight_hh"], outer, rtol=1e-10, atol=1e-12)
    assert float(found.named_gradient["bias_hh"].abs().max()) < 1e-9
    assert float(torch.dot(found.left, found.right)) == pytest.approx(1, abs=1e-12)
    assert found.distance == pytest.approx(0, abs=1e-9)
    assert found.supercritical


# Centre manifolds.


def polynomial_map(values: list[float], seed: int) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """h' = A h + Q(h, h) + K(h, h, h) with the multipliers `values` in slanted coordinates."""
    n = len(values)
    slant = torch.eye(n, dtype=torch.float64) + 0.3 * noise(n, n, seed=seed)
    matrix = slant @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ torch.linalg.inv(slant)
    square, cube = 0.3 * noise(n, n, n, seed=seed + 1), 0.3 * noise(n, n, n, n, seed=seed + 2)

    def step(h: Tensor, _: Tensor, p: Any) -> Tensor:
        bent = torch.einsum("ijk,nj,nk->ni", square, h, h) + torch.einsum("ijkl,nj,nk,nl->ni", cube, h, h, h)
        return h @ (p["scale"] * matrix).mT + bent

    return step


@pytest.mark.parametrize(("value", "seed"), [(1.0, 0), (0.93, 0), (1.04, 10), (-1.0, 20), (-0.95, 20)])
def test_coefficients_are_those_of_the_map_on_the_manifold(value, seed):
    """Orbits fall onto the manifold at 0.2ᵗ; there the projection onto u is a map of one number, which is fitted."""
    step, p = polynomial_map([value, 0.2, -0.15, 0.1], seed), {"scale": torch.ones((), dtype=torch.float64)}
    found = critical(step, torch.zeros(4), NONE, multiplier=value, parameters=p)
    h = torch.linspace(-0.04, 0.04, 41, dtype=torch.float64)[:, None] * found.right
    for _ in range(16):
        h = step(h, NONE, p)
    before, after = h @ found.left, step(h, NONE, p) @ found.left
    size = float(before.abs().max())
    powers = torch.stack([(before / size) ** k for k in range(2, 8)], dim=1)
    fit = torch.linalg.lstsq(powers, (after - found.multiplier.real * before)[:, None]).solution[:, 0]
    assert found.coefficients["a"] == pytest.approx(float(fit[0]) / size**2, rel=1e-5, abs=1e-7)
    assert found.coefficients["c"] == pytest.approx(float(fit[1]) / size**3, rel=2e-3)


def test_real_kinds_agree_with_the_normal_forms_at_criticality():
    step, p = polynomial_map([1.0, 0.2, -0.15], 3), {"scale": torch.ones((), dtype=torch.float64)}
    zero = torch.zeros(3, dtype=torch.float64)
    found = critical(step, zero, NONE, parameters=p)
    assert found.kind == "transcritical"  # 0 stays a fixed point for every parameter
    assert found.coefficients["a"] == pytest.approx(fold(lambda h: step(h[None], NONE, p)[0], zero).coefficients["b"])
    third = pitchfork(lambda h: step(h[None], NONE, p)[0], zero).coefficients["c"]
    assert found.coefficients["c"] == pytest.approx(third)
    assert float(found.gradient) == pytest.approx(1)  # λ = scale
    step = polynomial_map([-1.0, 0.2, -0.15], 3)
    found = critical(step, zero, NONE, parameters=p)
    expected = flip(lambda h: step(h[None], NONE, p)[0], zero)
    assert found.coefficients["b"] == pytest.approx(expected.coefficients["c"])
    assert found.supercritical == expected.supercritical
    assert float(found.gradient) == pytest.approx(1)  # μ = −1 − λ, λ = −scale


def turned(angle: float, modulus: float, n: int, seed: int) -> Tensor:
    """A matrix with the pair modulus · exp(±i angle), the others small, not normal."""
    block = torch.diag(0.5 * torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.25)
    block[0, 0] = block[1, 1] = modulus * math.cos(angle)
    block[1, 0], block[0, 1] = modulus * math.sin(angle), -modulus * math.sin(angle)
    slant = torch.eye(n, dtype=torch.float64) + 0.2 * noise(n, n, seed=seed)
    return slant @ block @ torch.linalg.inv(slant)


def test_neimark_sacker_of_a_network_at_zero():
    """c₁ = −λ|λ|² Σ u v|v|², and the mean over phases of one step's z'/z is λ + c₁ |z|²."""
    p = {"W": turned(0.7, 1.01, 5, 7), "b": torch.zeros(5, dtype=torch.float64)}
    found = critical(network, torch.zeros(5), NONE, parameters=p)
    value, v, u = found.multiplier, found.right, found.left
    assert value == pytest.approx(1.01 * complex(math.cos(0.7), math.sin(0.7)), abs=1e-10)
    formula = -value * abs(value) ** 2 * complex((u * v * v.abs() ** 2).sum())
    assert found.coefficients["c1"] == pytest.approx(formula, rel=1e-10)
    phases = torch.exp(2j * math.pi * torch.arange(64, dtype=torch.float64) / 64)
    z = 0.02 * phases
    rates = (network(2 * (z[:, None] * v).real, NONE, p).to(u) @ u / z).mean()
    assert (complex(rates) - value) / 0.02**2 == pytest.approx(found.coefficients["c1"], rel=2e-3)
    assert found.supercritical == ((value.conjugate() * found.coefficients["c1"]).real < 0)
    assert found.supercritical


def test_the_invariant_circle_is_where_the_reduced_form_has_it():
    p = {"W": turned(0.7, 1.01, 5, 7), "b": 0.05 * noise(5, seed=8)}
    point = newton(lambda h: network(h, NONE, p), torch.zeros(5, dtype=torch.float64))
    found = critical(network, point, NONE, parameters=p)
    assert found.kind == "neimark-sacker"
    h = found.point[None] + 0.01
    squares = []
    for t in range(12000):
        h = network(h, NONE, p)
        if t > 8000:
            squares.append(abs(complex((h[0] - found.point).to(found.left) @ found.left)) ** 2)
    radius = reduced_form(found).fixed_points(0.0)[1]
    assert sum(squares) / len(squares) == pytest.approx(float(radius) ** 2, rel=0.05)


def test_neimark_sacker_agrees_with_the_normal_form_with_a_bend():
    p = {"W": turned(1.0, 1.0, 4, 9), "c": noise(4, seed=10)}

    def step(h: Tensor, _: Tensor, p: Any) -> Tensor:
        return torch.tanh(h @ p["W"].mT) + p["c"] * (h**2).sum(dim=1, keepdim=True)

    zero = torch.zeros(4, dtype=torch.float64)
    found = critical(step, zero, NONE, parameters=p)
    expected = neimark_sacker(lambda h: step(h[None], NONE, p)[0], zero)
    assert found.coefficients["d"] == pytest.approx(expected.coefficients["d"], rel=1e-9)


def test_a_flow_with_a_hopf_bifurcation():
    """Brusselator with A = 1, B = 2: Re λ = (B − 1 − A²)/2, and ω² = A² − (Re λ)²."""

    def field(x: Tensor, _: Tensor, p: Any) -> Tensor:
        a, b = p["A"], p["B"]
        return torch.stack(
            [a - (b + 1) * x[:, 0] + x[:, 0] ** 2 * x[:, 1], b * x[:, 0] - x[:, 0] ** 2 * x[:, 1]], dim=1
        )

    p = {"A": torch.ones((), dtype=torch.float64), "B": 2 * torch.ones((), dtype=torch.float64)}
    found = critical(field, torch.tensor([1.02, 1.97]), NONE, parameters=p, flow=True)
    assert found.point.tolist() == pytest.approx([1, 2])
    assert (found.kind, found.supercritical) == ("hopf", True)
    assert found.coefficients["l1"] == pytest.approx(-0.5)
    assert found.coefficients["l1"] == pytest.approx(
        hopf(lambda x: field(x[None], NONE, p)[0], found.point).coefficients["l1"]
    )
    torch.testing.assert_close(found.gradient, torch.tensor([[-1.0, 0.5], [1.0, 0.0]], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"must be of a map with λ other than 0; got .* of a flow"):
        reduced_form(found)


def test_a_flow_with_a_real_eigenvalue():
    found = critical(
        lambda x, _, p: -x + torch.tanh(p["w"] * x),
        torch.zeros(1),
        NONE,
        parameters={"w": torch.ones(1, dtype=torch.float64)},
        flow=True,
    )
    assert (found.kind, found.supercritical, found.distance) == ("pitchfork", True, 0.0)
    assert found.coefficients["c"] == pytest.approx(-1 / 3)
    assert found.gradient.tolist() == pytest.approx([1])


def test_at_a_fold_the_offset_unfolds_and_near_it_the_multiplier_turns_that_way():
    w = 2.0
    h = math.sqrt(1 - 1 / w)

    def at(bias: float, start: float) -> CriticalPoint:
        p = {"w": torch.tensor([w], dtype=torch.float64), "b": torch.tensor([bias], dtype=torch.float64)}
        return critical(lambda s, _, p: torch.tanh(p["w"] * s + p["b"]), torch.tensor([start]), NONE, parameters=p)

    bias = math.atanh(h) - w * h
    folded = at(bias, h)
    assert (folded.kind, folded.unfolding) == ("fold", Unfolding.OFFSET)
    assert folded.gradient.tolist() == pytest.approx([h / w, 1 / w], rel=1e-6)  # uᵀ ∂f/∂θ
    assert folded.coefficients["a"] == pytest.approx(-w * h, rel=1e-6)
    with pytest.raises(ValueError, match="A fold bifurcation is neither super- nor subcritical"):
        _ = folded.supercritical
    near = at(bias + 1e-6, h + 1e-3)
    assert near.unfolding is Unfolding.MULTIPLIER
    assert 0.99 < near.multiplier.real < 1
    cosine = torch.dot(near.gradient, folded.gradient) / near.gradient.norm() / folded.gradient.norm()
    assert abs(float(cosine)) > 0.9999
    form = reduced_form(folded)
    assert (form.slope, form.offset) == (0.0, 1.0)


def test_it_takes_the_nearest_to_criticality_or_to_what_is_asked_for():
    p = {"W": torch.diag(torch.tensor([1.4, 0.97, -0.5], dtype=torch.float64)), "b": torch.zeros(3).double()}
    assert critical(network, torch.zeros(3), NONE, parameters=p).multiplier == pytest.approx(0.97)
    assert critical(network, torch.zeros(3), NONE, parameters=p, multiplier=1.5).multiplier == pytest.approx(1.4)
    found = critical(network, torch.full((3,), 1e-3), NONE, parameters=p, multiplier=-1.0)
    assert found.kind == "flip"
    assert found.residual < 1e-15
    assert found.multipliers.real.tolist() == pytest.approx([0.97, 1.4, -0.5])
    assert "flip at -0.5" in repr(found)


# Bad input.


def scaled(weight: list[list[float]], nonlinearity: Callable[[Tensor], Tensor] = torch.tanh) -> dict[str, Any]:
    return {
        "step": lambda h, _, p: nonlinearity(h @ p["W"].mT),
        "parameters": {"W": torch.tensor(weight, dtype=torch.float64)},
        "point": torch.zeros(len(weight)),
        "inputs": NONE,
    }


def rotated(angle: float) -> list[list[float]]:
    return [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]


@pytest.mark.parametrize("order", [3, 4])
def test_strong_resonances_are_refused(order):
    with pytest.raises(ValueError, match=rf"strong resonance, λ\^{order} = 1"):
        critical(**scaled(rotated(2 * math.pi / order)))


def test_near_a_strong_resonance_it_warns():
    with pytest.warns(UserWarning, match=r"close to a strong resonance, \|λ\^3 − 1\|"):
        critical(**scaled(rotated(2 * math.pi / 3 + 1e-3)))


def test_multipliers_that_are_not_simple_are_refused():
    for weight in ([[1.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]):
        with pytest.raises(ValueError, match="the multiplier is not simple"):
            critical(**scaled(weight))


def test_another_multiplier_at_one_is_refused():
    with pytest.raises(ValueError, match="is singular: another multiplier is critical or resonant"):
        critical(**scaled([[-1.0, 0.3], [0.0, 1.0]]), multiplier=-1.0)


def test_a_resonance_with_another_multiplier_is_refused():
    with pytest.raises(ValueError, match="I − A, bordered, at `point` is singular: another multiplier"):
        critical(**scaled([[0.8, 0.1], [0.0, 0.64]]))


def test_a_kink_is_refused_and_a_linear_region_is_degenerate():
    with pytest.raises(ValueError, match="must be smooth at `point`; its slope jumps by"):
        critical(**scaled([[1.0, 0.2], [0.0, 0.5]], torch.relu))
    p = {"W": torch.tensor([[0.9]], dtype=torch.float64), "b": torch.tensor([0.1], dtype=torch.float64)}
    found = critical(lambda h, _, p: torch.relu(h @ p["W"].mT + p["b"]), torch.ones(1), NONE, parameters=p)
    assert found.kind == "degenerate"


def test_a_point_that_newton_does_not_reach_is_refused():
    step, p = lambda h, _, p: h + 1 + p["a"] * h**2, {"a": torch.ones((), dtype=torch.float64)}
    with pytest.raises(
        ValueError, match=r"must be near a fixed point, f\(h\) = h; Newton's method came to a residual of"
    ):
        critical(step, torch.zeros(1), NONE, parameters=p)
    with pytest.raises(ValueError, match=r"at a distance of 4\.58e-01"):  # the point of another branch
        critical(**{**scaled([[2.0]]), "point": torch.tensor([0.5])}, reach=0.01)
    with pytest.raises(ValueError, match=r"f\(h\) = 0; .* is `step` a map, not a flow"):
        critical(step, torch.zeros(1), NONE, parameters={"a": torch.zeros((), dtype=torch.float64)}, flow=True)


def test_arguments_are_checked():
    good = scaled([[0.5]])
    with pytest.raises(ValueError, match="`inputs` must be one static input"):
        critical(**{**good, "inputs": torch.zeros(2, 3)})
    with pytest.raises(TypeError, match="`point` must hold floating-point numbers"):
        critical(**{**good, "point": torch.zeros(1, dtype=torch.int64)})
    with pytest.raises(ValueError, match="`point` must be one state of shape"):
        critical(**{**good, "point": torch.zeros(1, 1)})
    with pytest.raises(ValueError, match="`point` must be finite"):
        critical(**{**good, "point": torch.tensor([torch.nan])})
    for name in ("tolerance", "reach"):
        with pytest.raises(ValueError, match=f"`{name}` must be a positive number"):
            critical(**good, **{name: 0.0})
    with pytest.raises(ValueError, match="`zero` must be a number at least 0"):
        critical(**good, zero=-1.0)
    with pytest.raises(ValueError, match="`multiplier` must be a finite number"):
        critical(**good, multiplier=math.nan)
    with pytest.raises(ValueError, match="must have trainable parameters"):
        critical(RateRNN(1, 2).requires_grad_(False), torch.zeros(2), NONE)
    with pytest.raises(ValueError, match="must be deterministic"):
        critical(
            lambda h, _, p: h * p["a"] + torch.rand(1).double(), torch.zeros(1), NONE, parameters={"a": torch.ones(1)}
        )
    noisy: Any = "found"
    with pytest.raises(TypeError, match="must be what critical"):
        reduced_form(noisy)


def test_a_degenerate_coefficient_has_no_criticality():
    found = critical(**scaled([[-1.0]], lambda h: h))
    with pytest.raises(ValueError, match="is degenerate: its coefficient b is zero"):
        _ = found.supercritical
