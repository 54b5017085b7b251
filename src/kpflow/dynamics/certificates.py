"""Whether a root of r(h) = F(h) − h lies near an approximate one: the theorem of Newton and Kantorovich."""

import torch
from jaxtyping import Float
from torch import Tensor

from .maps import StaticMap

__all__ = ["kantorovich"]

DIRECTIONS = 64
"""Directions in which the second derivative is taken: all of them up to so many units, else so many random ones."""

SHORT = 1e-4
"""Half the way between two Jacobians, relative to 1 + ‖h‖: the error is about its square, or 1e-16 over it."""


def kantorovich(
    mapping: StaticMap, states: Float[Tensor, "k H"], jacobians: Float[Tensor, "k H H"]
) -> Float[Tensor, "k"]:
    """β η L of each point: ≤ ½ where Newton's method converges from it, to a root within 2η that is the only one near.

    β = ‖(I − J)⁻¹‖₂, η = ‖(I − J)⁻¹ r‖ + β ε with ε the rounding of r, and L twice the Frobenius norm of D²F(h), from
    central differences of J: at the point a bound of the Lipschitz constant of J, up to the error of the differences.
    The factor 2 is for the ball of radius 2η around it, where D²F is not looked at; above 64 units L comes from random
    directions. An estimate then, no proof.
    """
    width = states.shape[1]
    eye = torch.eye(width, dtype=states.dtype, device=states.device)
    beta = 1 / torch.linalg.svdvals(eye - jacobians)[:, -1]
    residual = mapping(states) - states
    moved = torch.linalg.solve_ex(eye - jacobians, residual[:, :, None])[0][:, :, 0].norm(dim=1)
    rounding = torch.finfo(states.dtype).eps * width**0.5 * (1 + states.norm(dim=1))
    curvature = torch.stack([_curvature(mapping, state) for state in states]) if len(states) else beta
    return (beta * (moved + beta * rounding) * 2 * curvature).nan_to_num(nan=torch.inf)


def _curvature(mapping: StaticMap, state: Float[Tensor, "H"]) -> Float[Tensor, ""]:
    """‖D²F‖_F = √Σᵢⱼₗ (∂ⱼ∂ₗFᵢ)² at one point."""
    width = len(state)
    directions = torch.eye(width, dtype=state.dtype, device=state.device)
    if width > DIRECTIONS:
        source = torch.Generator(device=state.device).manual_seed(0)
        white = torch.randn(width, DIRECTIONS, generator=source, dtype=state.dtype, device=state.device)
        directions = torch.linalg.qr(white)[0].mT
    half = SHORT * (1 + state.norm())
    total = state.new_zeros(())
    for piece in directions.split(max(1, 2**22 // width**2)):
        ahead, behind = (mapping.linearised(state + sign * half * piece)[1] for sign in (1, -1))
        total = total + ((ahead - behind) / (2 * half)).square().sum()
    return (total * width / len(directions)).sqrt()
