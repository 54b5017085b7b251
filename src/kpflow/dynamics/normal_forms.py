"""Normal forms of the bifurcations of a fixed point: coefficients, criticality and amplitudes.

Notation of Kuznetsov, *Elements of Applied Bifurcation Theory*, chapter 5: A = DF(h), B = D²F(h), C = D³F(h), full
derivatives; A q = μ q, pᴴ A = μ pᴴ, ⟨p, v⟩ = pᴴ v. Coefficients depend on the lengths of both vectors: here ‖q‖ = 1 and
⟨p, q⟩ = 1, with the largest entry of q positive.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kpflow._checks import check_positive

from .expansions import Critical, Expansion, bordered_solve, check_resonance, checked_point, solve
from .forms import NormalForm

__all__ = ["flip", "fold", "hopf", "neimark_sacker", "pitchfork", "reduced_equation"]

Map = Callable[[Tensor], Tensor]


def fold(step: Map, point: Tensor, *, flow: bool = False, tolerance: float = 1e-6) -> NormalForm:
    """The fold x' = x + β + b x² of a multiplier 1: b = ½⟨p, B(q, q)⟩ (Kuznetsov, section 5.4).

    For flows x' = β + b x², where he writes a for b.

    Args:
        step: F, from shape `[n]` to `[n]` in float64, without a batch axis; a map, or a vector field if `flow`.
        point: The fixed point, shape `[n]`, float64.
        flow: Whether `step` is the vector field of a flow; its critical eigenvalue is then 0.
        tolerance: Of the residual relative to 1 + ‖h‖, and of the critical multiplier.

    Raises:
        ValueError: `point` is no fixed point, has no multiplier near 1 (flows: 0) or not a simple one, or `step`
            cannot be differentiated there.

    Example:
        >>> import torch
        >>> from kpflow.dynamics import fold
        >>> fold(lambda x: x + x**2, torch.zeros(1, dtype=torch.float64))
        NormalForm(fold at 1: b=1)
    """
    expansion = _expansion(step, point, flow, tolerance)
    critical = _real_critical(expansion, 0.0 if flow else 1.0, tolerance, "fold")
    right = critical.right
    quadratic = 0.5 * _coefficient(critical, expansion.derivative(right, right))
    return _normal_form("fold", {"b": quadratic}, critical)


def pitchfork(step: Map, point: Tensor, *, flow: bool = False, tolerance: float = 1e-6) -> NormalForm:
    """The reduced map x' = x + b x² + c x³ of a multiplier 1, of a pitchfork or a cusp where b = 0.

    c = ⅙⟨p, C(q, q, q) + 3 B(q, h₂)⟩ with (I − A) h₂ = B(q, q) − ⟨p, B(q, q)⟩ q and ⟨p, h₂⟩ = 0, a bordered system
    (Kuznetsov, section 5.4; flows have −A for I − A). Supercritical if c < 0. Where |b| is above `tolerance` the kind
    is "fold".

    Args:
        step: F, from shape `[n]` to `[n]` in float64, without a batch axis; a map, or a vector field if `flow`.
        point: The fixed point, shape `[n]`, float64.
        flow: Whether `step` is the vector field of a flow; its critical eigenvalue is then 0.
        tolerance: Of the residual relative to 1 + ‖h‖, of the critical multiplier, and of b = 0.

    Raises:
        ValueError: As `fold`.

    Example:
        >>> import torch
        >>> from kpflow.dynamics import pitchfork
        >>> pitchfork(torch.tanh, torch.zeros(1, dtype=torch.float64))
        NormalForm(pitchfork at 1: b=0, c=-0.333333)
    """
    expansion = _expansion(step, point, flow, tolerance)
    critical = _real_critical(expansion, 0.0 if flow else 1.0, tolerance, "pitchfork")
    second, third = _quadratic_and_cubic(expansion, critical, flow)
    kind = "pitchfork" if abs(second) / 2 <= tolerance else "fold"
    return _normal_form(kind, {"b": second / 2, "c": third / 6}, critical)


def reduced_equation(
    step: Callable[[Tensor, Tensor], Tensor],
    point: Tensor,
    parameter: float,
    *,
    flow: bool = False,
    tolerance: float = 1e-6,
) -> NormalForm:
    """The equation a δλ + b₁ x δλ + ½ b₂ x² + ⅙ b₃ x³ = 0 of the fixed points h ≈ h̄ + x q near a multiplier 1.

    a = ⟨p, F_λ⟩, b₁ = ⟨p, F_hλ q + B(q, ψ)⟩ with (I − A) ψ = F_λ − a q and ⟨p, ψ⟩ = 0, b₂ = ⟨p, B(q, q)⟩, b₃ = 6 c of
    `pitchfork`. The kind is "fold" if a ≠ 0, else "transcritical" if b₂ ≠ 0, else "pitchfork", whose new branches are
    on the side b₁ b₃ δλ < 0.

    Args:
        step: F(h, λ), from shapes `[n]` and `[]` to `[n]` in float64; a map, or a vector field if `flow`.
        point: The fixed point, shape `[n]`, float64.
        parameter: λ at the bifurcation.
        flow: Whether `step` is the vector field of a flow; its critical eigenvalue is then 0.
        tolerance: Of the residual relative to 1 + ‖h‖, of the critical multiplier, and of a = 0 and b₂ = 0.

    Raises:
        ValueError: As `fold`.

    Example:
        >>> import torch
        >>> from kpflow.dynamics import reduced_equation
        >>> reduced_equation(lambda h, w: torch.tanh(w * h), torch.zeros(1, dtype=torch.float64), 1.0)
        NormalForm(pitchfork at 1: a=0, b1=1, b2=0, b3=-2)
    """
    if isinstance(parameter, bool) or not math.isfinite(parameter):
        raise ValueError(f"`parameter` must be a finite number, λ at the bifurcation; got {parameter!r}.")
    value = checked_point(point).new_tensor(parameter)
    expansion = _expansion(lambda state: step(state, value), point, flow, tolerance)
    critical = _real_critical(expansion, 0.0 if flow else 1.0, tolerance, "reduced equation")
    right, nothing = critical.right, value.new_zeros(1)
    joint = Expansion(lambda both: _joint(step, both), torch.cat([point.detach(), value[None]]), True, math.inf)
    unit = torch.cat([torch.zeros_like(right), nothing + 1])
    forcing = joint.derivative(unit)[:-1]
    mixed = joint.derivative(unit, torch.cat([right, nothing]))[:-1]
    offset = _coefficient(critical, forcing)
    moved = bordered_solve(_deviation(expansion, flow), forcing - offset * right, critical)
    slope = _coefficient(critical, mixed + expansion.derivative(right, moved))
    second, third = _quadratic_and_cubic(expansion, critical, flow)
    kind = "fold" if abs(offset) > tolerance else "transcritical" if abs(second) > tolerance else "pitchfork"
    return _normal_form(kind, {"a": offset, "b1": slope, "b2": second, "b3": third}, critical)


def flip(step: Map, point: Tensor, *, tolerance: float = 1e-6) -> NormalForm:
    """The flip x' = −x + c x³ of a multiplier −1: c = ⅙⟨p, C(q, q, q) + 3 B(q, (I − A)⁻¹ B(q, q))⟩ (Kuznetsov, 5.4).

    A 2-cycle is born; it is supercritical if c > 0. (MatCont's coefficient for limit cycles has the other sign.)

    Args:
        step: The map F, from shape `[n]` to `[n]` in float64, without a batch axis.
        point: The fixed point, shape `[n]`, float64.
        tolerance: Of the residual relative to 1 + ‖h‖, and of the critical multiplier.

    Raises:
        ValueError: As `fold`, with the multiplier −1; or 1 is a multiplier too (a fold–flip).

    Example:
        >>> import torch
        >>> from kpflow.dynamics import flip
        >>> flip(lambda h: torch.tanh(-h), torch.zeros(1, dtype=torch.float64))
        NormalForm(flip at -1: c=0.333333)
    """
    expansion = _expansion(step, point, False, tolerance)
    critical = _real_critical(expansion, -1.0, tolerance, "flip")
    right, second = critical.right, expansion.derivative
    bent = solve(_deviation(expansion, False), second(right, right), "I − A")
    cubic = _coefficient(critical, second(right, right, right) + 3 * second(right, bent)) / 6
    return _normal_form("flip", {"c": cubic}, critical)


def neimark_sacker(
    step: Map, point: Tensor, *, multiplier: complex | None = None, tolerance: float = 1e-6
) -> NormalForm:
    """The Neimark–Sacker bifurcation z' = μ z (1 + d₁ |z|²), d = Re d₁, of a complex pair with |μ| = 1, μ = exp(iθ).

    d = ½ Re[μ̄ ⟨p, C(q, q, q̄) + 2 B(q, (I − A)⁻¹ B(q, q̄)) + B(q̄, (μ² I − A)⁻¹ B(q, q))⟩] (Kuznetsov, section 5.4).
    An invariant circle is born; it is supercritical if d < 0.

    Args:
        step: The map F, from shape `[n]` to `[n]` in float64, without a batch axis.
        point: The fixed point, shape `[n]`, float64.
        multiplier: Which one, if several pairs may be critical; the nearest to this, else the nearest to the circle.
        tolerance: Of the residual relative to 1 + ‖h‖, and of |μ| = 1.

    Raises:
        ValueError: As `fold`, with a complex pair on the unit circle; or at a strong resonance, μᵏ = 1 for k ≤ 4,
            where d says nothing.

    Warns:
        UserWarning: Close to a strong resonance, where the circle of the normal form may be very small.

    Example:
        >>> import torch
        >>> from kpflow.dynamics import neimark_sacker
        >>> angle = torch.tensor(1.0, dtype=torch.float64)
        >>> turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).reshape(2, 2)
        >>> neimark_sacker(lambda h: torch.tanh(turn @ h), torch.zeros(2, dtype=torch.float64))
        NormalForm(neimark-sacker at 0.540302+0.841471j: d=-0.5)
    """
    expansion = _expansion(step, point, False, tolerance)
    mu = _complex_multiplier(expansion, False, multiplier, tolerance)
    check_resonance(mu, "μ", "d", stacklevel=3)
    critical = expansion.critical(mu)
    rotation = mu / abs(mu)
    parts = _resonant_cubic(expansion, critical, expansion.shifted(1.0), expansion.shifted(rotation**2))
    cubic = 0.5 * float((rotation.conjugate() * parts).real)
    return _normal_form("neimark-sacker", {"d": cubic}, critical)


def hopf(step: Map, point: Tensor, *, multiplier: complex | None = None, tolerance: float = 1e-6) -> NormalForm:
    """The Hopf bifurcation of a flow, z' = i ω z + ω l₁ z |z|² + …, with the first Lyapunov coefficient l₁.

    l₁ = (1/2ω) Re⟨p, C(q, q, q̄) − 2 B(q, A⁻¹ B(q, q̄)) + B(q̄, (2iω I − A)⁻¹ B(q, q))⟩ (Kuznetsov, section 5.4). A cycle
    is born; it is supercritical if l₁ < 0. The step of a discretised flow bifurcates elsewhere: see `neimark_sacker`.

    Args:
        step: The vector field f of h' = f(h), from shape `[n]` to `[n]` in float64, without a batch axis.
        point: The fixed point f(h) = 0, shape `[n]`, float64.
        multiplier: Which eigenvalue, if several pairs may be critical; the nearest to this, else to the imaginary axis.
        tolerance: Of the residual relative to 1 + ‖h‖, and of Re μ = 0.

    Raises:
        ValueError: As `fold`, with a complex pair on the imaginary axis; or 0 or 2iω is an eigenvalue too.

    Example:
        >>> import torch
        >>> from kpflow.dynamics import hopf
        >>> brusselator = lambda x: torch.stack([1 - 3 * x[0] + x[0] ** 2 * x[1], 2 * x[0] - x[0] ** 2 * x[1]])
        >>> form = hopf(brusselator, torch.tensor([1.0, 2.0], dtype=torch.float64))
        >>> f"{form.coefficients['l1']:.6f} at ω = {form.multiplier.imag:.6f}"
        '-0.500000 at ω = 1.000000'
    """
    expansion = _expansion(step, point, True, tolerance)
    mu = _complex_multiplier(expansion, True, multiplier, tolerance)
    critical = expansion.critical(mu)
    parts = _resonant_cubic(expansion, critical, expansion.shifted(0.0), expansion.shifted(2j * mu.imag))
    return _normal_form("hopf", {"l1": float(parts.real) / (2 * mu.imag)}, critical)


def _expansion(step: Map, point: Tensor, flow: bool, tolerance: float) -> Expansion:
    check_positive("tolerance", tolerance)
    return Expansion(step, point, flow, tolerance)


def _joint(step: Callable[[Tensor, Tensor], Tensor], both: Tensor) -> Tensor:
    """F of the state and the parameter in one vector; the parameter's own row is not used."""
    return torch.cat([step(both[:-1], both[-1]), 0 * both[-1:]])


def _real_critical(expansion: Expansion, value: float, tolerance: float, event: str) -> Critical:
    nearest = expansion.nearest(value)
    if not abs(nearest - value) <= tolerance:
        raise ValueError(
            f"`point` has no critical multiplier: a {event} needs {value:g}, within {tolerance:g}; the nearest is "
            f"{nearest:.8g}. Locate the bifurcation first, or raise `tolerance`."
        )
    return expansion.critical(complex(nearest.real))


def _complex_multiplier(expansion: Expansion, flow: bool, wanted: complex | None, tolerance: float) -> complex:
    """The one in the upper half plane nearest to `wanted`, else nearest to criticality; it must be critical."""

    def excess(value: Tensor) -> Tensor:
        return value.real.abs() if flow else (value.abs() - 1).abs()

    multipliers = torch.linalg.eigvals(expansion.jacobian)
    upper = multipliers[multipliers.imag > 0]
    line, event = ("imaginary axis", "Hopf") if flow else ("unit circle", "Neimark–Sacker")
    if not len(upper):
        raise ValueError(f"`point` has no complex multipliers; a {event} bifurcation needs a pair on the {line}.")
    distance = excess(upper) if wanted is None else (upper - complex(wanted.real, abs(wanted.imag))).abs()
    nearest = upper[distance.argmin()]
    if not float(excess(nearest)) <= tolerance:
        raise ValueError(
            f"`point` has no critical multiplier: a {event} bifurcation needs a complex pair on the {line}, within "
            f"{tolerance:g}; the nearest is {complex(nearest.item()):.8g}. Locate the bifurcation first, or raise "
            "`tolerance`."
        )
    return complex(nearest.item())


def _deviation(expansion: Expansion, flow: bool) -> Tensor:
    """I − A of a map, −A of a flow: singular at a fold and regular at a flip."""
    return expansion.shifted(0.0 if flow else 1.0)


def _coefficient(critical: Critical, vector: Tensor) -> float:
    return float(torch.dot(critical.left, vector))


def _quadratic_and_cubic(expansion: Expansion, critical: Critical, flow: bool) -> tuple[float, float]:
    """⟨p, B(q, q)⟩ and ⟨p, C(q, q, q) + 3 B(q, h₂)⟩ of a multiplier 1."""
    right = critical.right
    bend = expansion.derivative(right, right)
    second = _coefficient(critical, bend)
    curved = bordered_solve(_deviation(expansion, flow), bend - second * right, critical)
    cubic = expansion.derivative(right, right, right) + 3 * expansion.derivative(right, curved)
    return second, _coefficient(critical, cubic)


def _resonant_cubic(expansion: Expansion, critical: Critical, mean: Tensor, double: Tensor) -> complex:
    """⟨p, C(q, q, q̄) + 2 B(q, h₁₁) + B(q̄, h₂₀)⟩: `mean` h₁₁ = B(q, q̄) and `double` h₂₀ = B(q, q)."""
    right, second = critical.right, expansion.derivative
    conjugate = right.conj().resolve_conj()
    constant = solve(mean, second(right, conjugate).real, "of the mean, I − A (flows: A),")
    doubled = solve(double, second(right, right), "of the doubled frequency, μ² I − A (flows: 2iω I − A),")
    cubic = second(right, right, conjugate) + 2 * second(right, constant) + second(conjugate, doubled)
    return complex(torch.vdot(critical.left, cubic).item())


def _normal_form(kind: str, coefficients: Mapping[str, float], critical: Critical) -> NormalForm:
    values = {name: value + 0.0 for name, value in coefficients.items()}  # −0 becomes 0
    return NormalForm(kind, values, critical.right, critical.left, critical.multiplier)
