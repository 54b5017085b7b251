"""Branch points: refined by Newton's method on a regular system, and the tangent of the branch that crosses there."""

import dataclasses
import math

import torch
from torch import Tensor

from .curves import Curve, Place, null_space
from .steps import distance

__all__ = ["crossing_tangents", "refined_branch_point"]

STEPS = 12
"""The most steps of Newton's method."""

FAR = 0.05
"""The most that it may move a branch point, relative to 1 + ‖u‖."""

DEGENERATE = 1e-8
"""Coefficients of the bifurcation equation that are as good as zero, relative to the largest second derivative."""


def refined_branch_point(curve: Curve, place: Place, tangent: Tensor) -> Place | None:
    """The branch point near a place, to rounding, by a minimally augmented system; None if there is none.

    It has the tangent of the branch that is nearest to `tangent`.

    Along a branch, a branch point is known to the root of rounding only, for Newton's method is singular there. With
    the null vectors N of DG (two) and ψ of DGᵀ, the system G(u) + β ψ = 0, g(u) = 0 is regular, where DG X + ψ g = 0
    and N X = I (Govaerts 2000, chapter 6).
    """
    u, beta = place.u, place.u.new_zeros(1)
    nulls, left = null_space(curve.linearised(u)[1], 2)
    for _ in range(STEPS):
        value, slopes = curve.linearised(u)
        bordered = _bordered(slopes, left, nulls)
        unit = torch.eye(len(bordered), dtype=u.dtype, device=u.device)
        columns = torch.linalg.solve_ex(bordered, unit[:, -2:])[0]
        weights = torch.linalg.solve_ex(bordered.mT, unit[:, -1])[0][: len(value)]
        rows = -torch.stack([_curvature(curve, u, weights, column) for column in columns[:-1].unbind(dim=1)])
        system = _bordered(slopes, left, rows)
        change = torch.linalg.solve_ex(system, torch.cat([value + beta * left, columns[-1]]))[0]
        u, beta = u - change[:-1], beta - change[-1:]
        if not bool(torch.isfinite(u).all()) or distance(place.u, u) > FAR:
            return None
        if float(change.norm()) <= 1e-14 * (1 + float(u.norm())):
            break
    if not curve.is_near(u, curve.linearised(u)[0]):
        return None
    own = crossing_tangents(curve, u, tangent)[0]
    found = curve.place(u, own)
    return None if found is None else dataclasses.replace(found, tangent=own)


def crossing_tangents(curve: Curve, u: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """The tangents of both branches, from the equation α² c₁₁ + 2 α β c₁₂ + β² c₂₂ = 0 of tangents α φ₁ + β φ₂.

    φ₁ is the projection of `near`, an approximate tangent of one of them, on the null space of DG, φ₂ normal to it
    there; cᵢⱼ = ⟨ψ, D²G[φᵢ, φⱼ]⟩. The tangent nearest to `near` comes first. Where the equation is degenerate, they
    are φ₁ and φ₂.
    """
    nulls, left = null_space(curve.linearised(u)[1], 2)
    first = nulls.mT @ (nulls @ near)
    first = first / first.norm()
    second = nulls - (nulls @ first)[:, None] * first
    second = second[second.norm(dim=1).argmax()]
    second = second / second.norm()
    bends = [_curvature(curve, u, left, direction) for direction in (first, second)]
    own, mixed, other = (float(value) for value in (bends[0] @ first, bends[0] @ second, bends[1] @ second))
    root = mixed + math.copysign(math.sqrt(max(mixed**2 - own * other, 0.0)), mixed)
    if abs(root) <= DEGENERATE * (1 + float(bends[0].norm()) + float(bends[1].norm())):
        return first, second
    one, two = first - own / root * second, second - other / root * first
    return one / one.norm(), two / two.norm()


def _bordered(slopes: Tensor, column: Tensor, rows: Tensor) -> Tensor:
    """[[DG, ψ], [rows, 0]], square."""
    return torch.cat(
        [torch.cat([slopes, column[:, None]], dim=1), torch.cat([rows, rows.new_zeros(len(rows), 1)], dim=1)]
    )


def _curvature(curve: Curve, u: Tensor, weights: Tensor, direction: Tensor) -> Tensor:
    """⟨w, D²G(u)[v, ·]⟩, by two backward passes."""
    start = u.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(weights @ curve.residual(start), start, create_graph=True)
    product = slope @ direction
    if not product.requires_grad:  # G is linear
        return torch.zeros_like(u)
    return torch.autograd.grad(product, start)[0]
