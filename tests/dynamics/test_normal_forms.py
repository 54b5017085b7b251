"""Normal forms: the closed forms, the same in any coordinates, and amplitudes against simulated orbits."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from kpflow.dynamics import NormalForm, continue_branch, flip, fold, hopf, neimark_sacker, pitchfork, reduced_equation

EXACT = 1e-12
ANGLES = (0.4, 0.9, 1.7, 2.6)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rotation(angle: float) -> Tensor:
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)


def near(form: NormalForm, tolerance: float = EXACT, **expected: float) -> None:
    assert form.coefficients == pytest.approx(expected, abs=tolerance, rel=tolerance)


def check_vectors(step: Callable, point: Tensor, form: NormalForm) -> None:
    """A q = μ q, pᴴ A = μ pᴴ, ‖q‖ = 1, ⟨p, q⟩ = 1, the largest entry of q positive."""
    matrix = torch.func.jacrev(step)(point).to(form.right.dtype)
    mu = form.multiplier if form.right.is_complex() else form.multiplier.real
    assert torch.allclose(matrix @ form.right, mu * form.right, atol=1e-9)
    assert torch.allclose(form.left.conj() @ matrix, mu * form.left.conj(), atol=1e-9)
    assert torch.linalg.vector_norm(form.right).item() == pytest.approx(1, abs=EXACT)
    assert abs(torch.vdot(form.left, form.right).item() - 1) < EXACT
    largest = complex(form.right[form.right.abs().argmax()].item())
    assert largest.real > 0
    assert abs(largest.imag) < EXACT


def henon(a: float, b: float = 0.3) -> tuple[Callable[[Tensor], Tensor], Callable[[float], Tensor]]:
    def step(x: Tensor) -> Tensor:
        return torch.stack([1 - a * x[0] ** 2 + x[1], b * x[0]])

    def point(sign: float) -> Tensor:
        root = (b - 1 + sign * math.sqrt(max((1 - b) ** 2 + 4 * a, 0.0))) / (2 * a)
        return vector(root, b * root)

    return step, point


def logistic(x: Tensor, r: Tensor | float) -> Tensor:
    return r * x * (1 - x)


def delayed_logistic(x: Tensor) -> Tensor:
    return torch.stack([2 * x[0] * (1 - x[1]), x[0]])


def lorenz(x: Tensor, r: Tensor | float) -> Tensor:
    return torch.stack([10 * (x[1] - x[0]), x[0] * (r - x[2]) - x[1], x[0] * x[1] - 8 / 3 * x[2]])


def brusselator(x: Tensor, b: float = 2.0) -> Tensor:
    return torch.stack([1 - (b + 1) * x[0] + x[0] ** 2 * x[1], b * x[0] - x[0] ** 2 * x[1]])


# The closed forms.


def test_pitchfork_of_a_tanh_unit():
    def step(h: Tensor, w: Tensor) -> Tensor:
        return torch.tanh(w * h)

    form = reduced_equation(step, vector(0), 1.0)
    near(form, a=0, b1=1, b2=0, b3=-2)
    assert form.kind == "pitchfork"
    near(pitchfork(torch.tanh, vector(0)), b=0, c=-1 / 3)


@pytest.mark.parametrize("w", [1.2, 2.0, 5.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_folds_of_a_tanh_unit(w, sign):
    h = sign * math.sqrt(1 - 1 / w)
    b = math.atanh(h) - w * h
    if w == 2.0:
        assert b == pytest.approx(-sign * 0.532839975353552, abs=1e-15)
    near(fold(lambda x: torch.tanh(w * x + b), vector(h)), b=-w * h)
    form = reduced_equation(lambda x, bias: torch.tanh(w * x + bias), vector(h), b)
    near(form, a=1 / w, b1=-2 * h, b2=-2 * w * h, b3=w**2 * (4 - 6 / w))
    assert form.kind == "fold"


def test_cusp_of_a_tanh_unit():
    form = reduced_equation(lambda x, bias: torch.tanh(x + bias), vector(0), 0.0)
    near(form, a=1, b1=0, b2=0, b3=-2)
    assert form.kind == "fold"
    assert pitchfork(torch.tanh, vector(0)).kind == "pitchfork"


def test_flip_of_a_tanh_unit():
    form = flip(lambda h: torch.tanh(-h), vector(0))
    near(form, c=1 / 3)
    assert (form.kind, form.supercritical, form.multiplier) == ("flip", True, -1)


@pytest.mark.parametrize("angle", ANGLES)
def test_neimark_sacker_of_a_rotated_tanh(angle):
    turn = rotation(angle)
    form = neimark_sacker(lambda h: torch.tanh(turn @ h), vector(0, 0))
    near(form, d=-0.5)
    assert abs(form.multiplier - complex(math.cos(angle), math.sin(angle))) < EXACT


@pytest.mark.parametrize(("alpha", "theta"), [(0.2, 0.9), (0.5, 1.2), (0.1, 0.6)])
def test_neimark_sacker_of_a_leaky_network(alpha, theta):
    rest = 1 - alpha
    rho = (math.sqrt((rest * math.cos(theta)) ** 2 + 1 - rest**2) - rest * math.cos(theta)) / alpha
    turn = rho * rotation(theta)
    mu = rest + alpha * rho * complex(math.cos(theta), math.sin(theta))
    phase = math.atan2(mu.imag, mu.real)
    expected = -0.5 * alpha * rho**3 * math.cos(theta - phase)
    if alpha == 0.2:
        assert (rho, expected) == pytest.approx((1.4100179083459181, -0.218461), abs=5e-7)
    form = neimark_sacker(lambda h: rest * h + alpha * torch.tanh(turn @ h), vector(0, 0))
    near(form, d=expected)
    assert abs(form.multiplier - mu) < EXACT


def test_pitchfork_of_a_rate_flow():
    near(pitchfork(lambda x: torch.tanh(x) - x, vector(0), flow=True), b=0, c=-1 / 3)
    form = reduced_equation(lambda x, w: torch.tanh(w * x) - x, vector(0), 1.0, flow=True)
    near(form, a=0, b1=1, b2=0, b3=-2)
    assert form.multiplier == 0


def test_fold_of_a_rate_flow():
    h = math.sqrt(0.5)
    b = math.atanh(h) - 2 * h
    near(fold(lambda x: torch.tanh(2 * x + b) - x, vector(h), flow=True), b=-2 * h)


@pytest.mark.parametrize("theta", [0.3, 0.9, 1.4])
def test_hopf_of_a_rate_flow(theta):
    rho = 1 / math.cos(theta)
    turn = rho * rotation(theta)
    form = hopf(lambda x: torch.tanh(turn @ x) - x, vector(0, 0))
    near(form, l1=-(rho**2) / (2 * math.tan(theta)))
    assert abs(form.multiplier - 1j * math.tan(theta)) < EXACT


def test_transcritical_of_the_logistic_map():
    form = reduced_equation(logistic, vector(0), 1.0)
    near(form, a=0, b1=1, b2=-2, b3=0)
    assert form.kind == "transcritical"


def test_flip_of_the_logistic_map():
    near(flip(lambda x: logistic(x, 3.0), vector(2 / 3)), c=9)


def test_fold_of_the_henon_map():
    step, point = henon(-0.1225)
    form = fold(step, point(1))
    assert form.multiplier == pytest.approx(1, abs=1e-7)  # a double root is found to the root of rounding
    b = 0.3  # q = (1, b)/√(1 + b²) and p ∝ (1, 1), so ½⟨p, B(q, q)⟩ = −a q₁²/(q₁ + q₂)
    near(form, b=0.1225 / (math.sqrt(1 + b**2) * (1 + b)), tolerance=1e-7)


def test_flip_of_the_henon_map():
    step, point = henon(0.3675)
    form = flip(step, point(1))
    near(form, c=0.13616, tolerance=5e-6)
    # By hand: q = (1, −b)/√(1 + b²), p ∝ (1, −1), (I − A)⁻¹ (1, 0) = (1, b)/(2 a x + 1 − b) with 2 a x = 1 − b.
    a, b = 0.3675, 0.3
    near(form, c=0.5 * (2 * a) ** 2 / (2 * (1 - b)) / (1 + b) / (1 + b**2), tolerance=EXACT)


def test_neimark_sacker_of_the_delayed_logistic_map():
    form = neimark_sacker(delayed_logistic, vector(0.5, 0.5))
    near(form, d=-1)
    assert abs(form.multiplier - complex(0.5, math.sqrt(0.75))) < EXACT


def test_hopf_of_the_brusselator():
    form = hopf(brusselator, vector(1, 2))
    near(form, l1=-0.5)
    assert abs(form.multiplier - 1j) < EXACT


def test_pitchfork_of_the_lorenz_flow():
    near(pitchfork(lambda x: lorenz(x, 1.0), vector(0, 0, 0), flow=True), b=0, c=-15 / 88)  # −.170454545…
    form = reduced_equation(lorenz, vector(0, 0, 0), 1.0, flow=True)
    assert form.coefficients["b1"] == pytest.approx(10 / 11, abs=EXACT)


def test_hopf_of_the_lorenz_flow_is_subcritical():
    r = 470 / 19
    side = math.sqrt(8 / 3 * (r - 1))
    form = hopf(lambda x: lorenz(x, r), vector(side, side, r - 1))
    near(form, l1=2.655e-4, tolerance=5e-8)
    assert not form.supercritical
    assert form.amplitude(-0.01) > 0


# The same in other coordinates: x = Φ(y), Φ a random matrix after two bends, so that B and all systems take part.


def mixing(seed: int) -> Tensor:
    noise = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.eye(6, dtype=torch.float64) + 0.3 * noise


def bent(y: Tensor, sign: float) -> Tensor:
    """y₃, y₄ moved by squares of y₁, y₂; with −1 for `sign` back."""
    squares = torch.stack([0.7 * y[0] ** 2 - y[1] ** 2, y[0] * y[1] + 0.4 * y[0] ** 2])
    return torch.cat([y[:2], y[2:4] + sign * squares, y[4:]])


def swept(y: Tensor, sign: float) -> Tensor:
    """y₁, y₂ stretched by exponentials of y₃ and y₄; with −1 for `sign` back."""
    return torch.cat([y[:2] * torch.exp(sign * torch.stack([y[2] - 0.3 * y[3], 0.6 * y[3]])), y[2:]])


def changed(field: Callable[[Tensor], Tensor], matrix: Tensor, flow: bool = False) -> Callable[[Tensor], Tensor]:
    inverse = torch.linalg.inv(matrix)

    def forth(y: Tensor) -> Tensor:
        return matrix @ swept(bent(y, 1.0), 1.0)

    def step(x: Tensor) -> Tensor:
        y = bent(swept(inverse @ x, -1.0), -1.0)
        return torch.func.jvp(forth, (y,), (field(y),))[1] if flow else forth(field(y))

    return step


REST = vector(0.3, -0.6, 0.1, 0.45)
ORIGIN = torch.zeros(6, dtype=torch.float64)


def with_rest(*critical: Tensor, y: Tensor) -> Tensor:
    """The given maps of the critical coordinates, beside contracting ones."""
    return torch.cat([torch.stack(critical), REST[: 6 - len(critical)] * y[len(critical) :]])


def turning(y: Tensor) -> Tensor:
    square = y[0] ** 2 + y[1] ** 2
    return torch.cat([(rotation(1.1) @ y[:2]) * (1 - 0.25 * square), REST * y[2:]])


def spiral(y: Tensor) -> Tensor:
    square = y[0] ** 2 + y[1] ** 2
    turned = 1.7 * torch.stack([-y[1], y[0]])
    return torch.cat([turned - 0.25 * square * y[:2], -(1 + REST) * y[2:]])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_neimark_sacker_in_random_coordinates(seed):
    matrix = mixing(seed)
    step = changed(turning, matrix)
    form = neimark_sacker(step, ORIGIN)
    unit = matrix @ vector(1, 0, 0, 0, 0, 0) - 1j * (matrix @ vector(0, 1, 0, 0, 0, 0))
    scale = float(torch.linalg.vector_norm(unit / 2)) ** -2  # z of y = z q + …, in the unit of a q with ‖q‖ = 1
    assert form.coefficients["d"] / scale == pytest.approx(-0.25, abs=1e-11)
    check_vectors(step, ORIGIN, form)


JVP = pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")  # torch's, of its own jvp


@JVP
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_hopf_in_random_coordinates(seed):
    matrix = mixing(seed)
    step = changed(spiral, matrix, flow=True)
    form = hopf(step, ORIGIN)
    unit = matrix @ vector(1, 0, 0, 0, 0, 0) - 1j * (matrix @ vector(0, 1, 0, 0, 0, 0))
    scale = float(torch.linalg.vector_norm(unit / 2)) ** -2
    assert 1.7 * form.coefficients["l1"] / scale == pytest.approx(-0.25, abs=1e-11)
    check_vectors(step, ORIGIN, form)


def along(matrix: Tensor) -> float:
    """±‖M e₁‖⁻¹: what turns the coordinate y₁ into that of the unit vector q."""
    column = matrix[:, 0]
    return math.copysign(1 / float(torch.linalg.vector_norm(column)), float(column[column.abs().argmax()]))


def straight(y: Tensor, sign: float) -> Tensor:
    """Only y₁ is critical: y₂ contracts like the others."""
    return with_rest(sign * y[0] + 0.8 * sign * y[0] ** 3, 0.5 * y[1], y=y)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pitchfork_and_flip_in_random_coordinates(seed):
    matrix = mixing(seed)
    length = abs(along(matrix))
    step = changed(lambda y: straight(y, 1.0), matrix)
    form = pitchfork(step, ORIGIN)
    assert form.coefficients["c"] / length**2 == pytest.approx(0.8, abs=1e-11)
    assert form.coefficients["b"] == pytest.approx(0, abs=EXACT)
    check_vectors(step, ORIGIN, form)
    step = changed(lambda y: straight(y, -1.0), matrix)
    form = flip(step, ORIGIN)
    assert form.coefficients["c"] / length**2 == pytest.approx(-0.8, abs=1e-11)
    check_vectors(step, ORIGIN, form)


@JVP
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pitchfork_of_a_flow_in_random_coordinates(seed):
    matrix = mixing(seed)
    step = changed(lambda y: straight(y, 1.0) - y, matrix, flow=True)
    form = pitchfork(step, ORIGIN, flow=True)
    assert form.coefficients["c"] / along(matrix) ** 2 == pytest.approx(0.8, abs=1e-11)
    check_vectors(step, ORIGIN, form)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fold_in_random_coordinates(seed):
    matrix = mixing(seed)
    step = changed(lambda y: with_rest(y[0] - 0.6 * y[0] ** 2, 0.5 * y[1], y=y), matrix)
    form = fold(step, ORIGIN)
    assert form.coefficients["b"] / along(matrix) == pytest.approx(-0.6, abs=1e-11)
    check_vectors(step, ORIGIN, form)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_reduced_equation_against_the_branches_of_fixed_points(seed):
    """The branch y₁² = 0.25 δλ in the straight coordinates is b₁ δλ + ⅙ b₃ x² = 0 in the others; a fixed shift is a."""
    matrix = mixing(seed)

    def step(x: Tensor, value: Tensor) -> Tensor:
        def inner(y: Tensor) -> Tensor:
            return with_rest(y[0] + 0.2 * value * y[0] - 0.8 * y[0] ** 3, 0.5 * y[1] + 0.3 * value, y=y)

        return changed(inner, matrix)(x)

    form = reduced_equation(step, ORIGIN, 0.0)
    given = form.coefficients
    assert form.kind == "pitchfork"
    assert (given["a"], given["b2"]) == pytest.approx((0, 0), abs=1e-11)
    assert given["b1"] == pytest.approx(0.2, abs=1e-11)
    assert given["b3"] / along(matrix) ** 2 == pytest.approx(-4.8, abs=1e-10)
    assert form.supercritical


def test_a_parameter_that_moves_the_point_alone_counts_by_the_mixed_term():
    """y₁' = y₁ + y₁ y₂ with y₂ at rest in 2 · 0.3 δλ: b₁ is all B(q, ψ)."""

    def step(x: Tensor, value: Tensor) -> Tensor:
        return with_rest(x[0] + x[0] * x[1] - x[0] ** 3, 0.5 * x[1] + 0.3 * value, y=x)

    near(reduced_equation(step, ORIGIN, 0.0), a=0, b1=0.6, b2=0, b3=-6)


# Amplitudes, against simulated orbits just past the bifurcation.


@pytest.mark.parametrize(("beyond", "ratio"), [(1e-2, 0.9951), (2.5e-3, 0.9987), (6e-4, 0.9997)])
def test_amplitude_of_the_delayed_logistic_map(beyond, ratio):
    form = neimark_sacker(delayed_logistic, vector(0.5, 0.5))
    r = 2 + beyond
    rest = 1 - 1 / r
    expected = form.amplitude(math.sqrt(r - 1) - 1)  # det A = r − 1 = |μ|²
    x, y = rest + math.sqrt(expected), rest
    for _ in range(int(20 / beyond)):
        x, y = r * x * (1 - y), x
    orbit = [x]
    for _ in range(60_000):
        x, y = r * x * (1 - y), x
        orbit.append(x)
    states = torch.tensor(orbit, dtype=torch.float64)  # both coordinates pass through the same values
    assert 2 * float(states.var()) / expected == pytest.approx(ratio, abs=1e-4)
    assert 2 * float((states - rest).square().mean()) / expected == pytest.approx(1, abs=3e-4)
    assert form.supercritical


@pytest.mark.parametrize(("r", "ratio"), [(3.01, 0.9958), (3.001, 0.9996)])
def test_amplitude_of_the_logistic_flip(r, ratio):
    form = flip(lambda x: logistic(x, 3.0), vector(2 / 3))
    squared = ((r + 1) * (r - 3)) / (2 * r) ** 2  # of half the distance of the two states of the cycle, exactly
    assert squared / form.amplitude(r - 3) == pytest.approx(ratio, abs=5e-5)


def test_amplitude_of_a_pitchfork():
    form = pitchfork(torch.tanh, vector(0))
    h = torch.tensor(0.1, dtype=torch.float64)
    for _ in range(4000):
        h = torch.tanh(1.01 * h)
    assert float(h) ** 2 / form.amplitude(0.01) == pytest.approx(1, abs=0.02)
    turned = reduced_equation(lambda x, w: torch.tanh(w * x), vector(0), 1.0)
    assert turned.amplitude(0.01) == pytest.approx(form.amplitude(0.01), abs=EXACT)


WEIGHTS = torch.randn(17, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def biased(h: Tensor, gain: Tensor | float) -> Tensor:
    """Sixteen tanh units with biases: the fixed point is not at 0, and moves with the gain."""
    return torch.tanh(gain * (WEIGHTS[:16] @ h) / 4 + 0.3 * WEIGHTS[16])


def scatter(states: Tensor) -> float:
    """The mean of ‖h − h̄‖² along an orbit, under a window to which the fraction of a last turn is nothing."""
    weights = torch.hann_window(len(states), dtype=torch.float64)[:, None]
    weights = weights / weights.sum()
    return float((weights * (states - (weights * states).sum(0)).square()).sum())


def test_amplitude_of_a_network_with_biases():
    """The invariant circle comes to the size of the normal form's in proportion to the excess."""
    birth = continue_branch(biased, torch.tanh(0.3 * WEIGHTS[16]), 0.0, bounds=(0.0, 1.3), max_step=0.2).events[0]
    assert (birth.kind, birth.supercritical, round(birth.parameter, 6)) == ("neimark-sacker", True, 1.206997)
    assert birth.form is not None
    ratios = []
    for beyond in (2e-2, 5e-3, 1.25e-3):
        gain = birth.parameter + beyond
        branch = continue_branch(biased, birth.state, birth.parameter, bounds=(birth.parameter, gain), max_step=beyond)
        excess = float(branch.multipliers[-1].abs().max()) - 1
        expected = birth.form.amplitude(excess)
        h = branch.states[-1] + math.sqrt(2 * expected) * birth.form.right.real
        orbit = []
        for _ in range(int(5 / excess) + 3000):
            h = biased(h, gain)
            orbit.append(h)
        ratios.append(scatter(torch.stack(orbit[-3000:])) / expected)
    assert ratios == pytest.approx([0.9815, 0.9936, 0.9981], abs=2e-4)  # 1 − 0.0185, 0.0064, 0.0019


def check_cycle(
    field: Callable[[Tensor, float], Tensor], point: Tensor, form: NormalForm, value: float, growth: float, ratio: float
) -> None:
    """Integrate from a cycle of the predicted size, until its error is e⁻⁹ of what it was and for 16 turns more."""
    expected = form.amplitude(growth)
    start = point + math.sqrt(2 * expected) * form.right.real
    times = np.linspace(4.5 / growth, 4.5 / growth + 100, 10_001)
    solution = solve_ivp(
        lambda _, x: field(torch.from_numpy(x), value).numpy(),
        (0, times[-1]),
        start.numpy(),
        method="DOP853",
        t_eval=times,
        rtol=1e-9,
        atol=1e-12,
    )
    assert scatter(torch.from_numpy(solution.y.T)) / expected == pytest.approx(ratio, abs=2e-4)


@pytest.mark.parametrize(("beyond", "ratio"), [(0.04, 1.0053), (0.01, 1.0013)])
def test_amplitude_of_the_brusselator(beyond, ratio):
    """With B = 2 + ε the eigenvalues are of real part ε/2, and the fixed point is (1, B)."""
    form = hopf(brusselator, vector(1, 2))
    check_cycle(brusselator, vector(1, 2 + beyond), form, 2 + beyond, beyond / 2, ratio)


@pytest.mark.parametrize(("beyond", "ratio"), [(0.04, 0.9371), (0.01, 0.9836)])
def test_amplitude_of_a_rate_flow(beyond, ratio):
    """ρ = (1 + ε)/cos θ: eigenvalues of real part ε."""

    def field(x: Tensor, gain: float) -> Tensor:
        return torch.tanh(gain * (rotation(0.9) @ x) / math.cos(0.9)) - x

    form = hopf(lambda x: field(x, 1.0), vector(0, 0))
    check_cycle(field, vector(0, 0), form, 1 + beyond, beyond, ratio)


# What is refused.


def test_several_pairs_and_which_is_meant():
    def step(h: Tensor) -> Tensor:
        first = torch.tanh(rotation(0.9) @ h[:2])
        return torch.cat([first, rotation(2.5) @ (h[2:] * (1 - 0.1 * (h[2:] ** 2).sum()))])

    rest = torch.zeros(4, dtype=torch.float64)
    near(neimark_sacker(step, rest, multiplier=complex(0.6, 0.8)), d=-0.5)
    near(neimark_sacker(step, rest, multiplier=complex(-0.8, -0.6)), d=-0.2)


@pytest.mark.parametrize(("angle", "order"), [(2 * math.pi / 3, 3), (math.pi / 2, 4)])
def test_strong_resonances_are_refused(angle, order):
    turn = rotation(angle)
    with pytest.raises(ValueError, match=rf"strong resonance, μ\^{order} = 1"):
        neimark_sacker(lambda h: torch.tanh(turn @ h), vector(0, 0))


@pytest.mark.parametrize(("angle", "order"), [(0.015, 1), (3.135, 2), (2.09, 3), (1.568, 4)])
def test_close_to_a_strong_resonance_warns(angle, order):
    turn = rotation(angle)
    with pytest.warns(UserWarning, match=rf"close to a strong resonance, \|μ\^{order} − 1\|"):
        form = neimark_sacker(lambda h: torch.tanh(turn @ h), vector(0, 0))
    near(form, d=-0.5, tolerance=1e-10)


def test_no_fixed_point():
    with pytest.raises(ValueError, match=r"fixed point, step\(point\) = point; its residual is 1.00e-01"):
        fold(lambda x: x + 0.1, vector(0))
    with pytest.raises(ValueError, match=r"step\(point\) = 0.*is `step` a map, not a flow"):
        fold(lambda x: torch.tanh(x + 1), vector(0), flow=True)


@pytest.mark.parametrize("kind", [fold, pitchfork, flip])
def test_no_critical_multiplier(kind):
    with pytest.raises(ValueError, match=r"no critical multiplier: a \w+ needs -?1.*nearest is 0.5"):
        kind(lambda x: 0.5 * x, vector(0, 0))


def test_no_critical_pair():
    turn = rotation(1.0)
    with pytest.raises(ValueError, match="no complex multipliers; a Neimark–Sacker bifurcation needs a pair"):
        neimark_sacker(lambda h: 0.5 * h, vector(0, 0))
    with pytest.raises(ValueError, match=r"pair on the unit circle.*nearest is 0.4862"):
        neimark_sacker(lambda h: 0.9 * turn @ h, vector(0, 0))
    with pytest.raises(ValueError, match="pair on the imaginary axis"):
        hopf(lambda h: turn @ h, vector(0, 0))


def test_tolerance_admits_what_is_nearly_critical():
    form = pitchfork(lambda x: torch.tanh(0.99 * x), vector(0), tolerance=0.02)
    assert form.multiplier == pytest.approx(0.99)
    near(form, b=0, c=-(0.99**3) / 3)


@pytest.mark.parametrize("kind", [fold, pitchfork])
def test_multipliers_that_are_not_simple(kind):
    jordan = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"bordered matrix of the multiplier 1.* is singular"):
        kind(torch.tanh, vector(0, 0))
    with pytest.raises(ValueError, match=r"bordered matrix .* is singular"):
        kind(lambda x: jordan @ x, vector(0, 0))


def test_two_bifurcations_at_once():
    with pytest.raises(ValueError, match="matrix I − A at `point` is singular"):
        flip(lambda x: x * vector(-1, 1), vector(0, 0))

    def resting(x: Tensor) -> Tensor:
        return torch.stack([-x[1], x[0], x[0] ** 2])

    with pytest.raises(ValueError, match=r"of the mean, I − A \(flows: A\), at `point` is singular"):
        hopf(resting, vector(0, 0, 0))

    def doubled(x: Tensor) -> Tensor:
        return torch.stack([-x[1], x[0], -2 * x[3], 2 * x[2]])

    with pytest.raises(ValueError, match="of the doubled frequency"):
        hopf(doubled, vector(0, 0, 0, 0), multiplier=1j)


def test_amplitudes_that_do_not_exist():
    with pytest.raises(ValueError, match="fold has neither amplitude"):
        fold(lambda x: x + x**2, vector(0)).amplitude(0.1)
    form = flip(lambda h: torch.tanh(-h), vector(0))
    with pytest.raises(ValueError, match="`excess` must be positive"):
        form.amplitude(-0.1)
    with pytest.raises(ValueError, match="`excess` must be negative"):
        flip(lambda h: -h - h**3, vector(0)).amplitude(0.1)
    with pytest.raises(ValueError, match="`excess` must be a finite number"):
        form.amplitude(math.nan)
    with pytest.raises(ValueError, match="degenerate"):
        _ = flip(lambda h: -h, vector(0)).supercritical


def test_bad_points_and_steps():
    with pytest.raises(ValueError, match=r"one state of shape \(n,\) in float64; got shape \(1, 2\)"):
        fold(torch.tanh, torch.zeros(1, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"in float64; got shape .* in torch\.float32"):
        fold(torch.tanh, torch.zeros(2))
    with pytest.raises(ValueError, match="`point` must be finite"):
        fold(torch.tanh, vector(math.nan))
    with pytest.raises(ValueError, match="`step` must return shape"):
        fold(lambda x: x[:1], vector(0, 0))
    with pytest.raises(ValueError, match="leaves the floating range"):
        fold(lambda x: x / 0, vector(0))
    with pytest.raises(ValueError, match=r"D1 step\(point\)` must be finite.*smooth"):
        fold(lambda x: x.abs().sqrt(), vector(0))
    with pytest.raises(ValueError, match="`tolerance` must be a positive number"):
        fold(torch.tanh, vector(0), tolerance=-1.0)
    with pytest.raises(ValueError, match="`parameter` must be a finite number"):
        reduced_equation(lambda h, w: torch.tanh(w * h), vector(0), math.nan)


def test_steps_without_derivatives():
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(_ctx, x):
            return torch.tanh(x)

        @staticmethod
        def backward(_ctx, *grads):
            return grads[0]

    with pytest.raises(ValueError, match=r"differentiable 1 times by nested torch.func.jvp; it raised"):
        fold(Opaque.apply, vector(0))
