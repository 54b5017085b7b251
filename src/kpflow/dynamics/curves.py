"""The curve of fixed points of a map or flow with one parameter: derivative, tangent, Newton's method and places."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from .kinks import kinks

__all__ = ["Curve", "Place", "null_space"]

NEWTON = 8
"""The most steps of Newton's method; from a good guess three are enough."""

CONDITION = 1e7
"""A solution this much larger than its right-hand side is one of a nearly singular system: least squares then."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """A place on the curve, with all that tests for bifurcations look at.

    Args:
        u: (h, λ).
        tangent: Unit vector along the curve.
        multipliers: Eigenvalues of ∂F/∂h, by falling modulus (flows: by falling real part).
        sign: Sign of det [DG; tangent], which changes at a branch point.
        log: Its log |det|.
        kinks: Arguments of the ReLUs, which change sign at a border; see `kinks`.
        newton: Steps of Newton's method that it took.
    """

    u: Float[Tensor, "n1"]
    tangent: Float[Tensor, "n1"]
    multipliers: Complex[Tensor, "n"]
    sign: float
    log: float
    kinks: Float[Tensor, "m"]
    newton: int


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """G(u) = 0 at u = (h, λ), where G = F(h, λ) − h of a map and G = f(h, λ) of a flow.

    Args:
        function: F or f, from shapes `[n]` and `[]` to `[n]`, float64.
        flow: Which of both.
        tolerance: Of ‖G‖, relative to 1 + ‖h‖.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    flow: bool
    tolerance: float

    def residual(self, u: Tensor) -> Tensor:
        """G(u)."""
        value = self.function(u[:-1], u[-1])
        return value if self.flow else value - u[:-1]

    def linearised(self, u: Tensor) -> tuple[Float[Tensor, "n"], Float[Tensor, "n n1"]]:
        """G(u) and DG(u) = [F_h − I, F_λ] (flows: [f_h, f_λ])."""
        state, parameter = (part.detach().clone().requires_grad_() for part in (u[:-1], u[-1]))
        value = self.function(state, parameter) - (0.0 if self.flow else state)
        return value.detach(), torch.cat([_jacobian(value, state), _slope(value, parameter)[:, None]], dim=1)

    def is_near(self, u: Tensor, value: Tensor) -> bool:
        """Whether ‖G‖ is within the tolerance."""
        return float(value.norm()) <= self.tolerance * (1 + float(u[:-1].norm()))

    def corrected(self, guess: Tensor, along: Tensor) -> tuple[Tensor, int] | None:
        """The zero of G in the plane through `guess` normal to `along`, and Newton's steps; None if it finds none.

        A guess that is exact is not touched: at a branch point the matrix is singular.
        """
        u = guess
        for count in range(NEWTON + 1):
            value, slopes = self.linearised(u)
            if not bool(torch.isfinite(value).all() & torch.isfinite(slopes).all()):
                return None
            if float(value.norm()) <= 1e-15 * (1 + float(u.norm())):
                return u, count
            offset = torch.cat([value, (along @ (u - guess))[None]])
            new = u - _solved(torch.cat([slopes, along[None]]), offset)
            if self.is_near(u, value):  # a last step, to rounding
                return (new if float(self.residual(new).detach().norm()) < float(value.norm()) else u), count
            u = new
        return None

    def place(self, u: Tensor, along: Tensor, newton: int = 0) -> Place | None:
        """What is to be known of `u`, with the tangent on the side of `along`; None outside the floating range."""
        value, slopes = self.linearised(u)
        if not bool(torch.isfinite(value).all() & torch.isfinite(slopes).all()):
            return None
        tangent = _tangent(slopes, along)
        sign, log = torch.linalg.slogdet(torch.cat([slopes, tangent[None]]))
        margins = kinks(lambda: self.function(u[:-1], u[-1]))
        return Place(u, tangent, self.multipliers(slopes), float(sign), float(log), margins, newton)

    def multipliers(self, slopes: Tensor) -> Tensor:
        """Eigenvalues of ∂F/∂h, the most unstable first."""
        matrix = slopes[:, :-1]
        if not self.flow:
            matrix = matrix + torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        values = torch.linalg.eigvals(matrix)
        return values[self.excess(values).argsort(descending=True, stable=True)]

    def excess(self, multipliers: Tensor) -> Tensor:
        """|μ| − 1 (flows: Re μ), positive for growth."""
        return multipliers.real if self.flow else multipliers.abs() - 1


def _jacobian(value: Tensor, start: Tensor) -> Tensor:
    """Rows of the derivative; in one pass where torch has a batching rule, else one by one."""
    rows = torch.eye(len(value), dtype=value.dtype, device=value.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on what it has no batching rule for
        try:
            return torch.autograd.grad(value, start, rows, retain_graph=True, is_grads_batched=True)[0].detach()
        except RuntimeError:
            return torch.stack([torch.autograd.grad(value, start, row, retain_graph=True)[0] for row in rows])


def _slope(value: Tensor, parameter: Tensor) -> Tensor:
    """The derivative along a parameter, by a transposed vjp: rows would each carry a cotangent of all weights."""
    weights = torch.zeros_like(value, requires_grad=True)
    (pulled,) = torch.autograd.grad(value, parameter, weights, create_graph=True, allow_unused=True)
    if pulled is None or not pulled.requires_grad:
        return torch.zeros_like(value)
    return torch.autograd.grad(pulled, weights, materialize_grads=True)[0].detach()


def _tangent(slopes: Tensor, along: Tensor) -> Tensor:
    unit = torch.zeros_like(along)
    unit[-1] = 1.0
    tangent = _solved(torch.cat([slopes, along[None]]), unit)
    size = tangent.norm()
    return tangent / size if bool(size > 0) else along


def _solved(matrix: Tensor, vector: Tensor) -> Tensor:
    """A⁻¹ v; least squares without the singular directions where A is nearly singular, as at a branch point."""
    solution = torch.linalg.solve_ex(matrix, vector)[0]
    scale = float(vector.norm()) / max(float(torch.linalg.matrix_norm(matrix)), math.ulp(0.0))
    if bool(torch.isfinite(solution).all()) and float(solution.norm()) <= CONDITION * scale:
        return solution
    return torch.linalg.pinv(matrix, rtol=1 / CONDITION) @ vector


def null_space(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The right singular vectors of the `count` least singular values as rows, and the left one of the least."""
    left, _, right = torch.linalg.svd(matrix)
    return right[-count:], left[:, -1]
