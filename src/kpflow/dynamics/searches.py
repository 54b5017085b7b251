"""Batched searches for zeros of r(h) = F(h) − h: Adam on ½‖r‖², then Levenberg–Marquardt, then Newton."""

import dataclasses
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .maps import StaticMap

__all__ = ["Searched", "search"]

RATE = 1e-2
"""Step of Adam, in units of the size of an entry of the seeds; 1, a default elsewhere, loses most points (measured)."""

FAR = 1e8
"""A state is lost that is so many times larger than the seeds."""

FLAT, NEARLY_FLAT = 1e-8, 1e-5
"""‖(J − I)ᵀ r‖ / ‖r‖ at a minimum of ½‖r‖²: where a search stops, and where a stopped one counts as there. At the first
a step gains about 1e-16 of ½‖r‖², which is rounding."""

STUCK = 1e10
"""Damping at which no step gains any more."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Searched:
    """Where the searches ended.

    Args:
        states: h, shape `[n, H]`; a lost one is where it was last finite.
        residual: ‖F(h) − h‖, shape `[n]`.
        root: ‖F(h) − h‖ ≤ tolerance (1 + ‖h‖), shape `[n]`.
        flat: Where ½‖F(h) − h‖² has a zero gradient, to rounding, shape `[n]`.
        lost: States that left the floating range, or went far away, shape `[n]`.
    """

    states: Float[Tensor, "n H"]
    residual: Float[Tensor, "n"]
    root: Bool[Tensor, "n"]
    flat: Bool[Tensor, "n"]
    lost: Bool[Tensor, "n"]


def search(
    mapping: StaticMap, seeds: Float[Tensor, "n H"], unit: float, tolerance: float, descent: int, iterations: int
) -> Searched:
    """All three stages, from each seed by itself; `unit` is the size of a state entry."""
    states = _descend(mapping, mapping.confined(seeds), RATE * unit, descent)
    states = _levenberg_marquardt(mapping, states, tolerance, iterations)
    states = _newton(mapping, states, steps=3)
    residual, gradient = mapping.pulled(states)
    size, slope = residual.norm(dim=1), gradient.norm(dim=1)
    limit = FAR * (unit + seeds.norm(dim=1))
    lost = ~(torch.isfinite(size) & torch.isfinite(slope) & (states.norm(dim=1) <= limit))
    inside = (states.abs() <= mapping.limits * (1 + 1e-9)).all(dim=1)
    root = ~lost & inside & (size <= tolerance * (1 + states.norm(dim=1)))
    return Searched(states, size, root, ~lost & ~root & inside & (slope <= NEARLY_FLAT * size), lost)


def _descend(mapping: StaticMap, states: Tensor, rate: float, steps: int) -> Tensor:
    """Adam on Σ ½‖r‖²: the sum, so that a sample's step does not depend on how many there are."""
    mean, square = torch.zeros_like(states), torch.zeros_like(states)
    for count in range(1, steps + 1):
        _, gradient = mapping.pulled(states)
        fine = torch.isfinite(gradient).all(dim=1, keepdim=True)
        gradient = torch.where(fine, gradient, 0.0)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient.square()
        move = (mean / (1 - 0.9**count)) / ((square / (1 - 0.999**count)).sqrt() + 1e-12)
        states = torch.where(fine, mapping.confined(states - rate * move), states)
    return states


def _levenberg_marquardt(mapping: StaticMap, states: Tensor, tolerance: float, iterations: int) -> Tensor:
    """Levenberg–Marquardt with Moré's scaling (1978) and Nielsen's damping by the gain ratio, a damping per sample.

    A damping of 1 at first: small ones leave saddles for the stable points beside them (measured).
    """
    states = states.clone()
    values, jacobians = mapping.linearised(states)
    residuals, slopes = values - states, jacobians - _eye(states)
    scales = torch.zeros_like(states)
    damping, growth = states.new_ones(len(states)), states.new_full((len(states),), 2.0)
    open_ = torch.isfinite(residuals).all(dim=1) & torch.isfinite(slopes).all(dim=2).all(dim=1)
    for _ in range(iterations):
        open_ &= ~_settled(states, residuals, slopes, tolerance) & (damping < STUCK)
        at = open_.nonzero()[:, 0]
        if not len(at):
            break
        h, r, slope = states[at], residuals[at], slopes[at]
        scales[at] = torch.maximum(scales[at], slope.square().sum(dim=1)).clamp_min(1e-12)
        damped = damping[at, None] * scales[at]
        gradient = (slope.mT @ r[:, :, None])[:, :, 0]
        # Kuhn and Tucker: at a limit, entries that would go on outwards stay
        pinned = (h.abs() >= mapping.limits) & (gradient * h < 0)
        slope, gradient = torch.where(pinned[:, None], 0.0, slope), torch.where(pinned, 0.0, gradient)
        step = -_solved(slope.mT @ slope + torch.diag_embed(damped), gradient)
        trial = mapping.confined(h + step)
        moved = mapping(trial) - trial
        promised = 0.5 * (step * (damped * step - gradient)).sum(dim=1)
        gain = 0.5 * (r.square().sum(dim=1) - moved.square().sum(dim=1)) / promised
        better = (gain > 1e-4) & (promised > 0)  # NaN is no gain
        factor = (1 - (2 * gain - 1) ** 3).clamp_min(1 / 3)
        damping[at] = torch.where(better, damping[at] * factor, damping[at] * growth[at]).clamp_min(1e-16)
        growth[at] = torch.where(better, 2.0, 2 * growth[at])
        _move(mapping, at[better], trial[better], states, residuals, slopes, open_)
    return states


def _move(
    mapping: StaticMap, at: Tensor, h: Tensor, states: Tensor, residuals: Tensor, slopes: Tensor, open_: Tensor
) -> None:
    """Accept states, in place; a state whose derivative is not finite is left where it is, for good."""
    if not len(at):
        return
    values, jacobians = mapping.linearised(h)
    fine = torch.isfinite(jacobians).all(dim=2).all(dim=1)
    open_[at[~fine]] = False
    at, h = at[fine], h[fine]
    states[at], residuals[at], slopes[at] = h, values[fine] - h, jacobians[fine] - _eye(h)


def _settled(states: Tensor, residuals: Tensor, slopes: Tensor, tolerance: float) -> Tensor:
    """At a zero, or at a minimum of ½‖r‖²."""
    size = residuals.norm(dim=1)
    gradient = (slopes.mT @ residuals[:, :, None])[:, :, 0]
    return (size <= tolerance * (1 + states.norm(dim=1))) | (gradient.norm(dim=1) <= FLAT * size)


def _newton(mapping: StaticMap, states: Tensor, steps: int) -> Tensor:
    """Newton's method, each step taken where it lowers ‖r‖: to rounding."""
    for _ in range(steps):
        values, jacobians = mapping.linearised(states)
        residual = values - states
        finite = torch.isfinite(residual).all(dim=1) & torch.isfinite(jacobians).all(dim=2).all(dim=1)
        matrix = torch.where(finite[:, None, None], _eye(states) - jacobians, _eye(states))
        trial = states + _solved(matrix, torch.where(finite[:, None], residual, 0.0))
        better = (mapping(trial) - trial).norm(dim=1) < residual.norm(dim=1)  # NaN is not
        states = torch.where((better & finite)[:, None], trial, states)
    return states


def _solved(matrices: Tensor, vectors: Tensor) -> Tensor:
    """A⁻¹ v of each; not finite where A is singular, which no caller accepts."""
    return torch.linalg.solve_ex(matrices, vectors[:, :, None])[0][:, :, 0]


def _eye(states: Tensor) -> Tensor:
    return torch.eye(states.shape[1], dtype=states.dtype, device=states.device)
