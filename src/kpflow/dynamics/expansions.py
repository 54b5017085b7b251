"""Directional derivatives of a map at a fixed point, its critical multiplier with vectors, and linear systems."""

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor

from kpflow._checks import check_finite, check_tensor

__all__ = ["Critical", "Expansion", "bordered_solve", "check_resonance", "checked_point", "solve"]

Map = Callable[[Tensor], Tensor]

SINGULAR = 1e-8
"""Singular values below this, relative to the largest, are zero: a double multiplier splits by the root of rounding."""

CONDITION = 1e6
"""Above this condition number of a multiplier its left and right vectors count as orthogonal (a Jordan block)."""

RESONANT = 1e-6
"""|μᵏ − 1| below this, for k up to 4, is a strong resonance."""

NEARLY_RESONANT = 0.02
"""|μᵏ − 1| below this, for k up to 4, gives a warning: a number chosen by experience, as steps of flows lie near 1."""


@final
class Critical(NamedTuple):
    """A multiplier μ with A q = μ q, pᴴ A = μ pᴴ, ‖q‖ = 1 and pᴴ q = 1; the largest entry of q is positive."""

    multiplier: complex
    right: Tensor
    left: Tensor


@final
class Expansion:
    """The Taylor expansion of F at a fixed point: DF(h), D²F(h), … in given directions.

    Args:
        step: F, from shape `[n]` to `[n]`.
        point: h, shape `[n]`, float64.
        flow: Whether F is a vector field, h' = F(h), at rest where F(h) = 0; otherwise a map, at rest where F(h) = h.
        tolerance: Of the residual, relative to 1 + ‖h‖.
    """

    def __init__(self, step: Map, point: Tensor, flow: bool, tolerance: float) -> None:
        self._step = step
        self._point = checked_point(point).detach()
        value = self._evaluated()
        residual = float(torch.linalg.vector_norm(value if flow else value - self._point))
        allowed = tolerance * (1 + float(torch.linalg.vector_norm(self._point)))
        if not residual <= allowed:
            rest = "step(point) = 0" if flow else "step(point) = point"
            raise ValueError(
                f"`point` must be a fixed point, {rest}; its residual is {residual:.2e}, above {allowed:.2e}. Polish "
                f"it by Newton's method; or is `step` {'a map, not a flow' if flow else 'a flow, not a map'}?"
            )

    @functools.cached_property
    def jacobian(self) -> Tensor:
        """A = DF(h), column by column: no vmap, which some recurrent layers of torch do not survive."""
        columns = torch.eye(len(self._point), dtype=torch.float64, device=self._point.device)
        return torch.stack([self.derivative(column) for column in columns], dim=1)

    def derivative(self, *directions: Tensor) -> Tensor:
        """DᵏF(h)[v₁, …, v_k], by k nested jvps; linear in each vᵢ, so complex ones go by real and imaginary part."""
        for place, direction in enumerate(directions):
            if direction.is_complex():
                before, after = directions[:place], directions[place + 1 :]
                real = self.derivative(*before, direction.real, *after)
                return real + 1j * self.derivative(*before, direction.imag, *after)
        function = self._step
        for direction in directions:
            function = _along(function, direction)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", message="`torch.jit.script` is", category=DeprecationWarning
                )  # torch's
                value = function(self._point)
        except RuntimeError as error:
            raise ValueError(
                f"`step` must be differentiable {len(directions)} times by nested torch.func.jvp; it raised: {error} "
                "Write it with torch's own functions, without in-place operations."
            ) from error
        check_finite(f"D{len(directions)} step(point)", value, ("unit",), "It must be smooth there.")
        return value

    def nearest(self, value: float | complex) -> complex:
        """The eigenvalue of A = DF(h) nearest to `value`."""
        multipliers = torch.linalg.eigvals(self.jacobian)
        return complex(multipliers[(multipliers - value).abs().argmin()].item())

    def shifted(self, value: float | complex) -> Tensor:
        """The matrix value · I − A."""
        matrix = self.jacobian.to(torch.complex128) if isinstance(value, complex) else self.jacobian
        return value * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device) - matrix

    def critical(self, multiplier: complex) -> Critical:
        """The vectors of an eigenvalue of A, which must be simple: the null vectors of A − μ."""
        real = multiplier.imag == 0
        matrix = self.jacobian if real else self.jacobian.to(torch.complex128)
        identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        u, values, vh = torch.linalg.svd(matrix - (multiplier.real if real else multiplier) * identity)
        right, left = vh[-1].conj().resolve_conj(), u[:, -1]
        largest = right[right.abs().argmax()]
        right = right * (largest.conj() / largest.abs())
        product = torch.vdot(left, right)
        scale = float(torch.linalg.matrix_norm(matrix, 2)) + abs(multiplier)
        double = len(matrix) > 1 and float(values[-2]) <= SINGULAR * scale
        if double or float(product.abs()) * CONDITION < 1:
            raise ValueError(
                f"The bordered matrix of the multiplier {multiplier:.6g} at `point` is singular: the multiplier is not "
                "simple (two bifurcations at once), and its normal form has more than one direction."
            )
        return Critical(multiplier, right, left / product.conj())

    def _evaluated(self) -> Tensor:
        value = check_tensor("step(point)", self._step(self._point))
        if value.shape != self._point.shape or value.dtype != torch.float64:
            raise ValueError(
                f"`step` must return shape {tuple(self._point.shape)} in float64, like `point`; got shape "
                f"{tuple(value.shape)} in {value.dtype}. A module is converted by module.double()."
            )
        check_finite("step(point)", value, ("unit",), "The map leaves the floating range at `point`.")
        return value


def checked_point(point: Tensor) -> Tensor:
    """Return `point` if it is one finite state `[n]` in float64."""
    check_tensor("point", point)
    if point.ndim != 1 or point.dtype != torch.float64 or not len(point):
        raise ValueError(
            f"`point` must be one state of shape (n,) in float64; got shape {tuple(point.shape)} in {point.dtype}. "
            "Take one state of a batch, and convert it with point.double()."
        )
    check_finite("point", point, ("unit",))
    return point


def check_resonance(multiplier: complex, symbol: str, coefficient: str, stacklevel: int) -> None:
    """Refuse μᵏ = 1 for k ≤ 4, and warn close to it: the coefficient says nothing there.

    Args:
        multiplier: μ.
        symbol: The letter that it has in the caller's formulas.
        coefficient: That of the cubic term, which decides elsewhere.
        stacklevel: Of the warning, 1 for this function.
    """
    order = min((1, 2, 3, 4), key=lambda power: abs(multiplier**power - 1))
    distance = abs(multiplier**order - 1)
    if distance <= RESONANT:
        raise ValueError(
            f"The multiplier {multiplier:.6g} at `point` is a strong resonance, {symbol}^{order} = 1: the coefficient "
            f"{coefficient} does not decide there. Move along a second parameter, away from the resonance."
        )
    if distance < NEARLY_RESONANT:
        warnings.warn(
            f"The multiplier {multiplier:.6g} at `point` is close to a strong resonance, |{symbol}^{order} − 1| = "
            f"{distance:.2g}: {coefficient} holds only very near the bifurcation.",
            stacklevel=stacklevel,
        )


def solve(matrix: Tensor, vector: Tensor, name: str) -> Tensor:
    """Solve with a matrix that must be regular; `name` says which one it is where it is not."""
    values = torch.linalg.svdvals(matrix)
    if not float(values[-1]) > SINGULAR * float(values[0]):
        raise ValueError(
            f"The matrix {name} at `point` is singular: another multiplier is critical or resonant there, and the "
            "coefficient does not exist. Move along a second parameter, away from where both meet."
        )
    return torch.linalg.solve(matrix, vector)


def bordered_solve(matrix: Tensor, vector: Tensor, critical: Critical) -> Tensor:
    """The x with `matrix` x = vector and ⟨p, x⟩ = 0, where `matrix` q = 0 and ⟨p, vector⟩ = 0."""
    right, left = critical.right, critical.left
    above = torch.cat([matrix, right[:, None]], dim=1)
    below = torch.cat([left, left.new_zeros(1)])[None]
    return torch.linalg.solve(torch.cat([above, below]), torch.cat([vector, vector.new_zeros(1)]))[:-1]


def _along(function: Map, direction: Tensor) -> Map:
    return lambda state: torch.func.jvp(function, (state,), (direction,))[1]
