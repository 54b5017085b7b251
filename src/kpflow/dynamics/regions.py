"""Linear regions of a piecewise-linear map: the fixed points of each, isolated or continuous."""

import dataclasses
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import linprog
from torch import Tensor

from .piecewise import PiecewiseLinear

__all__ = ["Continuum", "Solved", "continuum", "distinct", "parts", "slacks", "solve_regions"]

EPS = torch.finfo(torch.float64).eps

MERGE = 1e-12
"""Points of different regions that are nearer, relative to 1 + ‖h‖ and beside their rounding, are one."""

SINGULAR = 1e12
"""Condition number of I − J above which a region is taken for singular."""

INTERIOR = 1e-9
"""Relative margin by which a continuous set must enter a region to be counted as its own."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Solved:
    """The solution of (I − A − B D C) h = B D d + e for each pattern D.

    Args:
        states: h, zero where the region is singular, shape `[n, H]`.
        singular: Where I − J has a condition number beyond 1e12, shape `[n]`.
        consistent: Where h lies in the region that it was solved for, its border included, shape `[n]`.
        landed: The pattern of the region that h lies in, shape `[n, M]`.
        radius: A bound of the rounding of h, shape `[n]`.
    """

    states: Float[Tensor, "n H"]
    singular: Bool[Tensor, "n"]
    consistent: Bool[Tensor, "n"]
    landed: Bool[Tensor, "n M"]
    radius: Float[Tensor, "n"]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Continuum:
    """A continuous set of fixed points in one region: h + V z, as far as the region goes.

    Args:
        state: h, far from the borders of the region, shape `[H]`.
        directions: V, orthonormal columns, shape `[H, d]`.
        active: The units above zero in the region, shape `[M]`.
    """

    state: Float[Tensor, "H"]
    directions: Float[Tensor, "H d"]
    active: Bool[Tensor, "M"]


def solve_regions(network: PiecewiseLinear, active: Bool[Tensor, "n M"]) -> Solved:
    """Solve in all these regions at once, with one step of refinement."""
    jacobians, right = network.jacobians(active), network.constants(active)[:, :, None]
    matrices = torch.eye(jacobians.shape[1]).to(jacobians) - jacobians
    inverse, failed = torch.linalg.inv_ex(matrices)
    condition = torch.linalg.matrix_norm(matrices, 1) * torch.linalg.matrix_norm(inverse, 1)
    singular = (failed > 0) | ~(condition < SINGULAR)
    inverse = torch.where(singular[:, None, None], 0.0, inverse)
    states = inverse @ right
    states = (states + inverse @ (right - matrices @ states))[:, :, 0]
    radius = 8 * EPS * torch.where(singular, 0.0, condition) * states.norm(dim=1)
    before, slack = network.preactivations(states), slacks(network, states, radius)
    consistent = (torch.where(active, before, -before) >= -slack).all(dim=1) & ~singular
    return Solved(states, singular, consistent, before > slack, radius)


def slacks(network: PiecewiseLinear, states: Float[Tensor, "n H"], radius: Float[Tensor, "n"]) -> Float[Tensor, "n M"]:
    """What of C h + d may be rounding."""
    rows = network.incoming.norm(dim=1)
    return 8 * EPS * (states.norm(dim=1)[:, None] * rows + network.offset.abs()) + radius[:, None] * rows


def continuum(network: PiecewiseLinear, active: Bool[Tensor, "M"]) -> Continuum | None:
    """The continuous set of fixed points of a singular region, or None where it has none inside.

    The solutions of (I − J) h = B D d + e are h₀ + N z; a linear program finds the z that is farthest from the borders.
    """
    jacobian, right = network.jacobians(active[None])[0], network.constants(active[None])[0]
    matrix = torch.eye(len(right)).to(right) - jacobian
    u, sizes, vh = torch.linalg.svd(matrix)
    rank = min(int((sizes > 10 / SINGULAR * sizes.max().clamp_min(1)).sum()), len(right) - 1)
    start = vh[:rank].mT @ ((u[:, :rank].mT @ right) / sizes[:rank])
    if float((matrix @ start - right).norm()) > 1e-10 * float(1 + right.norm()):
        return None
    directions = vh[rank:].mT
    sign = torch.where(active, 1.0, -1.0).to(start)
    before, slopes = sign * network.preactivations(start), sign[:, None] * (network.incoming @ directions)
    scale = network.incoming.norm(dim=1) * (1 + start.norm()) + network.offset.abs()
    fixed = slopes.norm(dim=1) <= INTERIOR * network.incoming.norm(dim=1)
    if bool((before[fixed] < -INTERIOR * scale[fixed]).any()):
        return None
    free = ~fixed
    z = _deepest((before[free] / scale[free]).cpu().numpy(), (slopes[free] / scale[free, None]).cpu().numpy())
    return None if z is None else Continuum(start + directions @ torch.as_tensor(z).to(start), directions, active)


def _deepest(before: np.ndarray, slopes: np.ndarray) -> np.ndarray | None:
    """The z that maximises the least entry t ≤ 1 of before + slopes z, or None where none is positive."""
    size = slopes.shape[1]
    if not len(before):
        return np.zeros(size)
    program = linprog(
        np.append(np.zeros(size), -1.0),
        A_ub=np.hstack([-slopes, np.ones((len(slopes), 1))]),
        b_ub=before,
        bounds=[(None, None)] * size + [(None, 1.0)],
    )
    return program.x[:size] if program.success and program.x[size] > INTERIOR else None


def parts(network: PiecewiseLinear, continua: list[Continuum]) -> list[Continuum]:
    """Those that are not a part of another, such as a face of a cone, each once."""
    kept: list[Continuum] = []
    for one in sorted(continua, key=lambda one: -one.directions.shape[1]):
        state = one.state[None]
        if not any(bool(_lie_on(network, state, INTERIOR * (1 + state.norm(dim=1)), other)) for other in kept):
            kept.append(one)
    return kept


def distinct(
    network: PiecewiseLinear, states: Float[Tensor, "m H"], radius: Float[Tensor, "m"], continua: list[Continuum]
) -> list[int]:
    """The first of those that are one, without those on a continuous set or at its end."""
    left = torch.ones_like(radius, dtype=torch.bool)
    for one in continua:
        left &= ~_lie_on(network, states, radius + INTERIOR * (1 + states.norm(dim=1)), one)
    reach = radius + MERGE * (1 + states.norm(dim=1))
    chosen = []
    while bool(left.any()):
        best = int(left.nonzero()[0])
        left &= (states - states[best]).norm(dim=1) > reach + reach[best]
        left[best] = False
        chosen.append(best)
    return chosen


def _lie_on(
    network: PiecewiseLinear, states: Float[Tensor, "m H"], reach: Float[Tensor, "m"], one: Continuum
) -> Bool[Tensor, "m"]:
    """Whether states are on a continuous set, its ends included, to within the reach."""
    offset = states - one.state
    apart = (offset - (offset @ one.directions) @ one.directions.mT).norm(dim=1)
    before, slack = network.preactivations(states), reach[:, None] * (1 + network.incoming.norm(dim=1))
    return (apart <= reach) & (torch.where(one.active, before, -before) >= -slack).all(dim=1)
