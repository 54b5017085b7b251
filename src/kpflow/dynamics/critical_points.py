"""The multiplier of a fixed point that is nearest to critical, how the parameters move it, and the centre manifold.

What a bifurcation of training is about (arXiv 2605.12763): the direction ∇_θ μ of parameter space that drives the
critical multiplier, and the scalar map on the centre manifold that decides what is born.
"""

import cmath
import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from kpflow._checks import check_positive, check_range, check_tensor
from kpflow.spaces import Space

from .arguments import check_device, check_static_input
from .expansions import Critical, Expansion, checked_point, solve
from .manifolds import complex_coefficients, real_coefficients
from .maps import exact_derivatives, static_map
from .parametric import Named, ParametricMap, parametric_map
from .polish import check_smooth, polished

__all__ = ["CriticalPoint", "Unfolding", "critical"]


@final
class Unfolding(str, enum.Enum):
    """What the gradient of a critical point is the gradient of."""

    MULTIPLIER = "μ: |λ| − 1 of a map, Re λ of a flow, the fixed point moving along"
    MULTIPLIER_AND_FREQUENCY = "μ = |λ| − 1 and ω = arg λ of a map, μ = Re λ and ω = Im λ of a flow: two rows"
    OFFSET = "uᵀf: at a fold the multiplier has no derivative, and uᵀ ∂f/∂θ unfolds it"


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CriticalPoint:
    """A fixed point, its multiplier nearest to critical, and what moves it.

    Args:
        point: h̄, shape `[H]`, float64, after Newton's method.
        residual: ‖f(h̄) − h̄‖ (flows: ‖f(h̄)‖).
        multiplier: λ; of a complex pair the one with Im λ > 0.
        multipliers: All eigenvalues of J = ∂f/∂h, by rising distance from criticality, shape `[H]`.
        right: v with J v = λ v, ‖v‖ = 1 and its largest entry positive, shape `[H]`; complex if λ is.
        left: u with uᵀ J = λ uᵀ and uᵀ v = 1, without a conjugate.
        gradient: ∇_θ of what `unfolding` says, shape `[P]`, or `[2, P]` for a complex pair; flat over `parameters`.
        unfolding: What the gradient is of.
        kind: Of the bifurcation at μ = 0: "fold", "transcritical", "pitchfork", "flip", "neimark-sacker" or "hopf";
            "degenerate" where both a and c are zero.
        coefficients: Of the centre manifold. Real λ: a, c of α' = λ α + a α² + c α³; of a flip also b, of the map
            without its quadratic term; b > 0 is supercritical. Complex: c1 of z' = λ z + c₁ |z|² z, and d or l1.
        forcing: uᵀ ∂f/∂θ, shape `[P]`: how the parameters push along the critical direction; None for a complex λ.
        parameters: The space of θ, by the names of the step's parameters.
        flow: Whether f is the vector field of a flow.
    """

    point: Float[Tensor, "H"]
    residual: float
    multiplier: complex
    multipliers: Complex[Tensor, "H"]
    right: Tensor
    left: Tensor
    gradient: Float[Tensor, "*k P"]
    unfolding: Unfolding
    kind: str
    coefficients: Mapping[str, float | complex]
    forcing: Float[Tensor, "P"] | None
    parameters: Space
    flow: bool

    @property
    def distance(self) -> float:
        """μ: |λ| − 1, which is λ − 1 near 1 and −1 − λ near −1; Re λ of a flow."""
        return self.multiplier.real if self.flow else abs(self.multiplier) - 1

    @property
    def named_gradient(self) -> dict[str, Tensor]:
        """The gradient by parameter, each `[*shape]`, or `[2, *shape]`."""
        return self.parameters.split(self.gradient)

    @property
    def supercritical(self) -> bool:
        """Whether what is born lies on the unstable side: c < 0 of a pitchfork, b > 0 of a flip, Re(λ̄ c₁) < 0.

        Raises:
            ValueError: The kind has no such distinction, or the coefficient is zero.
        """
        name = {"pitchfork": "c", "flip": "b", "neimark-sacker": "d", "hopf": "l1"}.get(self.kind)
        if name is None:
            raise ValueError(f"A {self.kind} bifurcation is neither super- nor subcritical; look at `coefficients`.")
        value = self.coefficients[name]
        if value == 0:
            raise ValueError(f"{self!r} is degenerate: its coefficient {name} is zero, and higher terms decide.")
        return (value.real > 0) == (name == "b")

    def __repr__(self) -> str:
        at = self.multiplier if self.multiplier.imag else self.multiplier.real
        values = ", ".join(f"{name}={value:.6g}" for name, value in self.coefficients.items())
        return f"CriticalPoint({self.kind} at {at:.6g}: {values}; gradient over {self.parameters.size} parameters)"


def critical(
    step: Callable[..., Any],
    point: Tensor,
    inputs: Tensor,
    *,
    multiplier: complex | float | None = None,
    parameters: Named | None = None,
    flow: bool = False,
    tolerance: float = 1e-12,
    zero: float = 1e-6,
    reach: float = 0.1,
) -> CriticalPoint:
    """The multiplier λ of a fixed point nearest to critical, with vectors, gradient, kind and coefficients.

    With λ = uᵀ J v at the fixed point h̄(θ), and w a solution of (I − J)ᵀ w = ∂(uᵀ J v)/∂h,

        ∇_θ λ = uᵀ (∂J/∂θ) v + wᵀ ∂f/∂θ,

    one linear system and one backward pass; the second term is the motion of the fixed point. The gradient is that of
    μ = |λ| − 1, thus −∇λ at a flip; of a complex pair of μ and ω = arg λ. At λ = 1 the system is solved without its
    critical direction, which is exact where the fixed point persists (uᵀ ∂f/∂θ = 0), and at a fold the gradient is
    uᵀ ∂f/∂θ. The coefficients are those of the centre manifold off criticality too, where λ is any simple multiplier.

    Args:
        step: As of `find_fixed_points`; or a function step(h, x, parameters) with `parameters`. A flow's vector field
            if `flow`.
        point: Near the fixed point, shape `[H]`; Newton's method moves it there.
        inputs: The static input x, shape `[I]`.
        multiplier: Which λ, the nearest to this; None for the nearest to the unit circle (flows: imaginary axis).
        parameters: θ by name, of a step that is a function.
        flow: Whether `step` is the vector field of h' = f(h): at rest where f = 0, critical where Re λ = 0.
        tolerance: A fixed point has a residual of at most tolerance (1 + ‖h̄‖).
        zero: Below this |λ − 1|, a and |uᵀ ∂f/∂θ| count as zero.
        reach: The most that Newton's method may move the point, relative to 1 + ‖h‖.

    Returns:
        The critical point; its gradient goes to `kpflow.flow.channels`.

    Raises:
        TypeError: `point` or `inputs` are no floating-point tensors, or the step gives no float64 tensor.
        ValueError: The step is refused by `find_fixed_points`; Newton's method does not reach a fixed point; the step
            has a kink there; the multiplier is not simple; another multiplier makes I − J singular, or resonates with
            λ² or |λ|²; or λ is a strong resonance, λᵏ = 1 with k ≤ 4.

    Warns:
        UserWarning: Close to a strong resonance.

    References:
        arXiv 2605.12763; Kuznetsov, *Elements of Applied Bifurcation Theory*, chapter 5.

    Example:
        >>> weight = torch.tensor([[1.0, 0.5], [0.0, 0.2]])
        >>> step = lambda h, x, p: torch.tanh(h @ p["W"].mT)
        >>> found = critical(step, torch.zeros(2), torch.zeros(1), parameters={"W": weight})
        >>> found
        CriticalPoint(pitchfork at 1: a=0, c=-0.333333; gradient over 4 parameters)
        >>> found.supercritical, found.named_gradient["W"]  # u vᵀ
        (True, tensor([[1.0000, 0.0000],
                [0.6250, 0.0000]], dtype=torch.float64))
    """
    _check_arguments(point, inputs, multiplier, tolerance, zero, reach)
    with exact_derivatives():
        start, x = point.detach().to(torch.float64), inputs.detach().to(torch.float64)
        mapping = parametric_map(step, x, start[None], parameters)
        static_map(_two_arguments(step, mapping, parameters), x, torch.stack([start, 0.5 * start]))  # refuses
        state, residual = polished(mapping, x, start, flow, tolerance, reach)
        check_smooth(mapping, x, state)
        expansion = Expansion(lambda h: mapping(h[None], x)[0], state, flow, 2 * tolerance)
        values = torch.linalg.eigvals(expansion.jacobian)
        values = values[_excess(values, flow).argsort(stable=True)]
        pair = expansion.critical(_chosen(values, multiplier))
        unfolded = _unfolded(_Sensitivities(mapping, x, state, expansion, pair, flow), zero)
    shapes = {name: tuple(mapping.parameters[name].shape) for name in mapping.trainable}
    return CriticalPoint(
        point=state,
        residual=residual,
        multiplier=pair.multiplier,
        multipliers=values,
        right=pair.right,
        left=pair.left.conj().resolve_conj(),
        gradient=unfolded.gradient,
        unfolding=unfolded.unfolding,
        kind=unfolded.kind,
        coefficients=unfolded.coefficients,
        forcing=unfolded.forcing,
        parameters=Space.of_parts(shapes, "parameter", device=state.device),
        flow=flow,
    )


@final
class _Unfolded(NamedTuple):
    gradient: Tensor
    unfolding: Unfolding
    kind: str
    coefficients: Mapping[str, float | complex]
    forcing: Tensor | None


def _unfolded(sensitivities: "_Sensitivities", zero: float) -> _Unfolded:
    """What kind the bifurcation is, and what unfolds it."""
    expansion, pair, flow = sensitivities.expansion, sensitivities.pair, sensitivities.flow
    if pair.multiplier.imag:
        kind, coefficients = complex_coefficients(expansion, pair, flow)
        gradient = torch.stack([sensitivities.multiplier(weight) for weight in _polar(pair.multiplier, flow)])
        return _Unfolded(gradient, Unfolding.MULTIPLIER_AND_FREQUENCY, kind, coefficients, None)
    forcing = sensitivities.push(pair.left)
    persists = float(torch.linalg.vector_norm(forcing)) <= zero
    kind, coefficients = real_coefficients(expansion, pair, flow, persists, zero)
    singular = abs(pair.multiplier - (0.0 if flow else 1.0)) <= zero
    if kind == "fold" and singular:
        return _Unfolded(forcing, Unfolding.OFFSET, kind, coefficients, forcing)
    gradient = sensitivities.multiplier(-1.0 if kind == "flip" else 1.0, singular)
    return _Unfolded(gradient, Unfolding.MULTIPLIER, kind, coefficients, forcing)


@final
@dataclasses.dataclass(frozen=True, eq=False)
class _Sensitivities:
    """Derivatives with respect to the parameters, each one backward pass."""

    mapping: ParametricMap
    x: Tensor
    state: Tensor
    expansion: Expansion
    pair: Critical
    flow: bool

    def value(self, state: Tensor, theta: Tensor) -> Tensor:
        """F(h, θ)."""
        return self.mapping(state[None], self.x, self.mapping.named(theta))[0]

    @property
    def theta(self) -> Tensor:
        return self.mapping.flat(self.mapping.parameters)

    def push(self, weight: Tensor) -> Tensor:
        """wᵀ ∂f/∂θ."""
        return torch.func.grad(lambda theta: torch.dot(weight, self.value(self.state, theta)))(self.theta)

    def multiplier(self, weight: complex | float, bordered: bool = False) -> Tensor:
        """∇_θ Re(weight · λ) along the moving fixed point; `bordered` leaves out what moves along v."""
        left = weight * self.pair.left.conj()
        v = self.pair.right

        def rate(state: Tensor, theta: Tensor) -> Tensor:
            """Re(weight uᵀ J v)."""

            def along(direction: Tensor) -> Tensor:
                return torch.func.jvp(lambda h: self.value(h, theta), (state,), (direction.contiguous(),))[1]

            if not v.is_complex():
                return torch.dot(left.real, along(v))
            return torch.dot(left.real.contiguous(), along(v.real)) - torch.dot(left.imag.contiguous(), along(v.imag))

        slope = torch.func.grad(rate)(self.state, self.theta)
        adjoint = self._adjoint(slope, bordered)

        def total(theta: Tensor) -> Tensor:
            return rate(self.state, theta) + torch.dot(adjoint, self.value(self.state, theta))

        return torch.func.grad(total)(self.theta)

    def _adjoint(self, slope: Tensor, bordered: bool) -> Tensor:
        """w with (I − J)ᵀ w = slope (flows: −Jᵀ w); bordered: with uᵀ dh̄ = 0 for every motion dh̄ of the point."""
        matrix = self.expansion.shifted(0.0 if self.flow else 1.0).mT
        if not bordered:
            return solve(matrix, slope, "−A" if self.flow else "I − A")
        left, right = self.pair.left, self.pair.right
        above = torch.cat([matrix, left[:, None]], dim=1)
        below = torch.cat([right, right.new_zeros(1)])[None]
        return solve(torch.cat([above, below]), torch.cat([slope, slope.new_zeros(1)]), "I − A, bordered,")[:-1]


def _polar(multiplier: complex, flow: bool) -> tuple[complex, complex]:
    """Weights w with dμ = Re(w dλ) and dω = Re(w' dλ): of polar coordinates, or Cartesian ones of a flow."""
    if flow:
        return 1.0 + 0j, -1j
    conjugate = multiplier.conjugate()
    return conjugate / abs(multiplier), -1j * conjugate / abs(multiplier) ** 2


def _excess(values: Tensor, flow: bool) -> Tensor:
    return values.real.abs() if flow else (values.abs() - 1).abs()


def _chosen(values: Tensor, wanted: complex | float | None) -> complex:
    """The first, or the nearest to `wanted`, of the upper half plane."""
    upper = values[values.imag >= 0]
    at = 0 if wanted is None else int((upper - complex(complex(wanted).real, abs(complex(wanted).imag))).abs().argmin())
    return complex(upper[at].item())


def _two_arguments(step: Any, mapping: ParametricMap, parameters: Named | None) -> Any:
    """The step as step(h, x), as `static_map` takes it."""
    return step if parameters is None else (lambda h, x: mapping.function(h, x, mapping.parameters))


def _check_arguments(
    point: Tensor, inputs: Tensor, multiplier: complex | float | None, tolerance: float, zero: float, reach: float
) -> None:
    checked_point(check_tensor("point", point).double())
    check_device("inputs", check_tensor("inputs", inputs), "point", point)
    check_static_input("inputs", inputs)
    if multiplier is not None and not cmath.isfinite(multiplier):
        raise ValueError(f"`multiplier` must be a finite number, near which λ is; got {multiplier!r}.")
    check_positive("tolerance", tolerance)
    check_range("zero", zero, 0)
    check_positive("reach", reach)
