"""Scalar normal forms: maps of one number α with one parameter μ, critical at μ = 0, vectorised over both.

The learning problems that recurrent networks become near a bifurcation (arXiv 2605.12763). Surfaces there are drawn
over g = 1 + μ. Circle forms (Neimark–Sacker, Hopf) have a complex α, here two real numbers.
"""

import abc
import dataclasses
import math
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_one_of, check_positive

from .critical_points import CriticalPoint, Unfolding

__all__ = ["HopfForm", "NeimarkSackerForm", "PolynomialForm", "ScalarForm", "reduced_form", "scalar_form"]

NAMES = ("saddle-node", "transcritical", "pitchfork", "flip", "neimark-sacker", "hopf")


class ScalarForm(abc.ABC):
    """A map α' = f(α, μ) of d = 1 or 2 real numbers, with its derivatives."""

    dimension: int
    """d: 1, or 2 for the real and imaginary part of a complex α."""

    @abc.abstractmethod
    def step(self, state: Float[Tensor, "*g d"], mu: Float[Tensor, "*g"]) -> Float[Tensor, "*g d"]:
        """f(α, μ)."""

    @abc.abstractmethod
    def jacobian(self, state: Float[Tensor, "*g d"], mu: Float[Tensor, "*g"]) -> Float[Tensor, "*g d d"]:
        """∂f/∂α."""

    @abc.abstractmethod
    def forcing(self, state: Float[Tensor, "*g d"], mu: Float[Tensor, "*g"], of: str = "mu") -> Float[Tensor, "*g d"]:
        """∂f/∂μ; of a circle form with `of="omega"` ∂f/∂ω."""

    @abc.abstractmethod
    def fixed_points(self, mu: float) -> Float[Tensor, "k"]:
        """The fixed points by size; of a circle form the radii of 0 and of the invariant circles."""


@final
@dataclasses.dataclass(frozen=True)
class PolynomialForm(ScalarForm):
    """α' = σ (1 + κ μ) α + β μ + a α² + c α³.

    Args:
        sign: σ: 1, or −1 for a flip; times the multiplier at μ = 0, if that is not ±1.
        slope: κ, 1 where μ changes the multiplier; 0 in a saddle-node.
        offset: β, −1 in a saddle-node.
        quadratic: a.
        cubic: c.

    Example:
        >>> form = scalar_form("pitchfork")
        >>> form
        PolynomialForm(sign=1.0, slope=1.0, offset=0.0, quadratic=0.0, cubic=-1.0)
        >>> form.fixed_points(0.25)
        tensor([-0.5000,  0.0000,  0.5000], dtype=torch.float64)
    """

    sign: float = 1.0
    slope: float = 1.0
    offset: float = 0.0
    quadratic: float = 0.0
    cubic: float = 0.0
    dimension = 1

    def step(self, state: Tensor, mu: Tensor) -> Tensor:
        mu = mu[..., None]
        return (
            self.sign * (1 + self.slope * mu) * state
            + self.offset * mu
            + self.quadratic * state**2
            + self.cubic * state**3
        )

    def jacobian(self, state: Tensor, mu: Tensor) -> Tensor:
        linear = self.sign * (1 + self.slope * mu[..., None])
        return (linear + 2 * self.quadratic * state + 3 * self.cubic * state**2)[..., None]

    def forcing(self, state: Tensor, mu: Tensor, of: str = "mu") -> Tensor:
        if of != "mu":
            raise ValueError(f"`of` must be 'mu' for a form of one real number; got {of!r}. Circle forms have 'omega'.")
        return self.sign * self.slope * state + self.offset + 0 * mu[..., None]

    def fixed_points(self, mu: float) -> Tensor:
        linear = self.sign * (1 + self.slope * mu) - 1
        roots = _real_roots([self.cubic, self.quadratic, linear, self.offset * mu])
        return torch.tensor(sorted(roots), dtype=torch.float64)


@final
@dataclasses.dataclass(frozen=True)
class NeimarkSackerForm(ScalarForm):
    """z' = (ρ + μ) exp(iω) z + c₁ |z|² z.

    The invariant circles have |(ρ + μ) exp(iω) + c₁ r²| = 1. With ρ = 1 and c₁ = −1 that is r² = (1 + μ) cos ω −
    √(1 − (1 + μ)² sin² ω), about μ / cos ω (not μ), supercritical where cos ω > 0.

    Args:
        omega: ω.
        cubic: c₁.
        modulus: ρ.

    Example:
        >>> NeimarkSackerForm(omega=math.pi / 3).fixed_points(0.01)  # radii; √(μ / cos ω) = 0.1414
        tensor([0.0000, 0.1425, 0.9948], dtype=torch.float64)
    """

    omega: float = math.pi / 4
    cubic: complex | float = -1.0
    modulus: float = 1.0
    dimension = 2

    def step(self, state: Tensor, mu: Tensor) -> Tensor:
        growth = self.modulus + mu[..., None]
        return growth * (state @ _rotation(state, self.omega).mT) + _square(state) * (state @ self._bend(state).mT)

    def jacobian(self, state: Tensor, mu: Tensor) -> Tensor:
        linear = (self.modulus + mu[..., None, None]) * _rotation(state, self.omega)
        bend = self._bend(state)
        outer = state[..., :, None] * state[..., None, :]
        return linear + _square(state)[..., None] * bend + 2 * bend @ outer

    def forcing(self, state: Tensor, mu: Tensor, of: str = "mu") -> Tensor:
        turned = state @ _rotation(state, self.omega).mT
        return turned + 0 * mu[..., None] if of == "mu" else _quarter((self.modulus + mu[..., None]) * turned)

    def fixed_points(self, mu: float) -> Tensor:
        growth, c1 = self.modulus + mu, complex(self.cubic)
        along = growth * (complex(math.cos(self.omega), -math.sin(self.omega)) * c1).real
        squares = _real_roots([abs(c1) ** 2, 2 * along, growth**2 - 1])
        return torch.tensor([0.0, *sorted(math.sqrt(value) for value in squares if value > 0)], dtype=torch.float64)

    def _bend(self, state: Tensor) -> Tensor:
        c1 = complex(self.cubic)
        return state.new_tensor([[c1.real, -c1.imag], [c1.imag, c1.real]])


@final
@dataclasses.dataclass(frozen=True)
class HopfForm(ScalarForm):
    """Hopf: the exact map over a time dt of the flow ż = (μ + iω) z − |z|² z, whose cycle has the radius √μ.

    z' = exp((μ + iω) dt) z / √(1 + |z|² (exp(2μ dt) − 1) / μ).

    Args:
        omega: ω.
        dt: Time of a step.

    Example:
        >>> from kpflow.dynamics import trajectory
        >>> form = HopfForm(dt=0.5)
        >>> form.fixed_points(0.25)
        tensor([0.0000, 0.5000], dtype=torch.float64)
        >>> trajectory(form, 0.1, 0.25, 40).abs()[-1]
        tensor(0.4997, dtype=torch.float64)
    """

    omega: float = 1.0
    dt: float = 1.0
    dimension = 2

    def step(self, state: Tensor, mu: Tensor) -> Tensor:
        growth = torch.exp(mu * self.dt)[..., None]
        return growth * (state @ _rotation(state, self.omega * self.dt).mT) / self._shrink(state, mu).sqrt()

    def jacobian(self, state: Tensor, mu: Tensor) -> Tensor:
        growth, shrink = torch.exp(mu * self.dt)[..., None, None], self._shrink(state, mu)[..., None]
        outer = state[..., :, None] * state[..., None, :]
        saturation = self._saturation(mu)[..., None, None]
        inner = torch.eye(2, dtype=state.dtype, device=state.device) - saturation * outer / shrink
        return growth * _rotation(state, self.omega * self.dt) @ inner / shrink.sqrt()

    def forcing(self, state: Tensor, mu: Tensor, of: str = "mu") -> Tensor:
        if of == "omega":
            return self.dt * _quarter(self.step(state, mu))
        square, shrink = _square(state), self._shrink(state, mu)
        change = self.dt - 0.5 * square * self._saturation_slope(mu)[..., None] / shrink
        return self.step(state, mu) * change

    def fixed_points(self, mu: float) -> Tensor:
        return torch.tensor([0.0, math.sqrt(mu)] if mu > 0 else [0.0], dtype=torch.float64)

    def _saturation(self, mu: Tensor) -> Tensor:
        """(exp(2μ dt) − 1) / μ, 2 dt at μ = 0."""
        y = 2 * self.dt * mu
        safe = torch.where(y == 0, 1.0, y)
        return 2 * self.dt * torch.where(y == 0, 1.0, torch.expm1(safe) / safe)

    def _saturation_slope(self, mu: Tensor) -> Tensor:
        """Its derivative (2 dt exp(2μ dt) − saturation) / μ, by its series near 0, where that cancels."""
        y = 2 * self.dt * mu
        small = y.abs() < 0.05
        safe = torch.where(small, 1.0, y)
        series = sum(y**k / (math.factorial(k) * (k + 2)) for k in range(9))
        exact = (torch.exp(safe) * (safe - 1) + 1) / safe**2
        return (2 * self.dt) ** 2 * torch.where(small, series, exact)

    def _shrink(self, state: Tensor, mu: Tensor) -> Tensor:
        return 1 + _square(state) * self._saturation(mu)[..., None]


def scalar_form(name: str, *, supercritical: bool = True, omega: float | None = None, dt: float = 1.0) -> ScalarForm:
    """The normal form of a name, critical at μ = 0.

    saddle-node α' = α − μ − α² · transcritical α' = (1+μ)α − α² · pitchfork α' = (1+μ)α − α³ · flip α' = −(1+μ)α + α³ ·
    neimark-sacker z' = (1+μ)exp(iω)z − |z|²z · hopf ż = (μ+iω)z − |z|²z over a time dt, exactly.

    Args:
        name: As above.
        supercritical: False changes the sign of the cubic term of pitchfork and flip.
        omega: ω of the last two; π/4 and 1 if not given.
        dt: Time of a step of hopf.

    Raises:
        ValueError: `name` is unknown, or an argument does not apply to it.

    Example:
        >>> scalar_form("saddle-node").fixed_points(-0.25)
        tensor([-0.5000,  0.5000], dtype=torch.float64)
        >>> round(float(scalar_form("neimark-sacker").fixed_points(0.01)[1]) ** 2, 5)  # about 0.01 / cos(π/4)
        0.01421
    """
    check_one_of("name", name, NAMES)
    check_positive("dt", dt)
    if not supercritical and name not in ("pitchfork", "flip"):
        raise ValueError(f"`supercritical` applies to 'pitchfork' and 'flip'; got False for {name!r}. Leave it out.")
    if omega is not None and name not in ("neimark-sacker", "hopf"):
        raise ValueError(f"`omega` applies to 'neimark-sacker' and 'hopf'; got {omega!r} for {name!r}. Leave it out.")
    side = 1.0 if supercritical else -1.0
    forms: dict[str, ScalarForm] = {
        "saddle-node": PolynomialForm(slope=0.0, offset=-1.0, quadratic=-1.0),
        "transcritical": PolynomialForm(quadratic=-1.0),
        "pitchfork": PolynomialForm(cubic=-side),
        "flip": PolynomialForm(sign=-1.0, cubic=side),
        "neimark-sacker": NeimarkSackerForm(math.pi / 4 if omega is None else float(omega)),
        "hopf": HopfForm(1.0 if omega is None else float(omega), float(dt)),
    }
    return forms[name]


def reduced_form(found: Any) -> ScalarForm:
    """The map on the centre manifold of a critical point, off criticality too, with μ counted from where it is.

    α' = (λ ± μ) α + a α² + c α³ so that |λ| grows by μ; z' = (|λ| + μ) exp(iω) z + c₁ |z|² z for a pair; at a fold,
    where the gradient is that of an offset, α' = λ α + μ + a α² + c α³. The other coefficients are held fixed.

    Args:
        found: Of `critical`, of a map.

    Raises:
        TypeError: `found` is no critical point.
        ValueError: It is one of a flow, or λ = 0.

    Example:
        >>> from kpflow.dynamics import critical
        >>> found = critical(torch.nn.RNNCell(1, 1), torch.zeros(1), torch.zeros(1), reach=2.0)
        >>> form = reduced_form(found)
        >>> form.sign == found.multiplier.real, form.quadratic == found.coefficients["a"]
        (True, True)
    """
    if not isinstance(found, CriticalPoint):
        raise TypeError(f"`found` must be what critical(...) gives; got {type(found).__name__}.")
    value, given = found.multiplier, found.coefficients
    if found.flow or value == 0:
        raise ValueError(
            f"`found` must be of a map with λ other than 0; got {found!r}{' of a flow' if found.flow else ''}. The "
            "step of a discretised flow is a map."
        )
    if value.imag:
        return NeimarkSackerForm(math.atan2(value.imag, value.real), given["c1"], abs(value))
    a, c = given["a"].real, given["c"].real
    if found.unfolding is Unfolding.OFFSET:
        return PolynomialForm(value.real, 0.0, 1.0, a, c)
    return PolynomialForm(value.real, 1 / abs(value.real), 0.0, a, c)


def _real_roots(coefficients: list[float]) -> list[float]:
    """Distinct real roots of a polynomial, those of the leading zeros left out; 0 exactly where it is one."""
    while len(coefficients) > 1 and coefficients[0] == 0:
        coefficients = coefficients[1:]
    if len(coefficients) < 2:
        return []
    if coefficients[-1] == 0:
        return sorted({0.0, *_real_roots(coefficients[:-1])})
    companion = torch.diag(torch.ones(len(coefficients) - 2, dtype=torch.float64), -1)
    companion[0] = -torch.tensor(coefficients[1:], dtype=torch.float64) / coefficients[0]
    roots = torch.linalg.eigvals(companion)
    return [float(root.real) for root in roots if abs(float(root.imag)) <= 1e-7 * (1 + abs(float(root.real)))]


def _square(state: Tensor) -> Tensor:
    """|z|², with a last axis of 1."""
    return state.square().sum(dim=-1, keepdim=True)


def _rotation(state: Tensor, angle: float) -> Tensor:
    rows = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return torch.tensor(rows, dtype=state.dtype, device=state.device)


def _quarter(state: Tensor) -> Tensor:
    """i z."""
    return torch.stack([-state[..., 1], state[..., 0]], dim=-1)
