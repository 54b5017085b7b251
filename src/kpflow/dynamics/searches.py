"""Batched searches for zeros of r(h) = F(h) − h: Adam on ½‖r‖², then Levenberg–Marquardt, then Newton."""

import dataclasses
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .deadlines import NEVER, Deadline
from .maps import StaticMap

__all__ = ["Searched", "held", "judged", "newton", "search"]

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

    @staticmethod
    def joined(parts: "Sequence[Searched]") -> "Searched":
        """One after the other."""
        names = [field.name for field in dataclasses.fields(Searched)]
        return Searched(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def search(
    mapping: StaticMap,
    seeds: Float[Tensor, "n H"],
    unit: float,
    tolerance: float,
    descent: int,
    iterations: int,
    deadline: Deadline = NEVER,
) -> Searched:
    """All three stages, from each seed by itself; `unit` is the size of a state entry.

    Where the map has a target with the same roots, on that first; then, from the seeds that gave none, on itself.
    """
    if mapping.target is None:
        return _searched(mapping, seeds, unit, tolerance, descent, iterations, deadline)
    eased = _searched(mapping.target, seeds, unit, tolerance, descent, iterations, deadline)
    states = torch.where(eased.root[:, None], eased.states, seeds)
    found = judged(mapping, newton(mapping, states, steps=3), seeds, unit, tolerance)
    rest = (~found.root).nonzero()[:, 0]
    again = _searched(mapping, seeds[rest], unit, tolerance, descent, iterations, deadline)
    names = [field.name for field in dataclasses.fields(Searched)]
    return Searched(**{name: getattr(found, name).index_copy(0, rest, getattr(again, name)) for name in names})


def judged(mapping: StaticMap, states: Tensor, seeds: Tensor, unit: float, tolerance: float) -> Searched:
    """What the ends of searches from the seeds are."""
    residual, gradient = mapping.pulled(states)
    size, slope = residual.norm(dim=1), gradient.norm(dim=1)
    limit = FAR * (unit + seeds.norm(dim=1))
    lost = ~(torch.isfinite(size) & torch.isfinite(slope) & (states.norm(dim=1) <= limit))
    inside = (states.abs() <= mapping.limits * (1 + 1e-9)).all(dim=1)
    root = ~lost & inside & (size <= tolerance * (1 + states.norm(dim=1)))
    return Searched(states, size, root, ~lost & ~root & inside & (slope <= NEARLY_FLAT * size), lost)


def held(mapping: StaticMap, states: Float[Tensor, "n H"]) -> Bool[Tensor, "n"]:
    """Whether ½‖r‖² would fall only beyond the limits: where that of a gated state does, there is no fixed point."""
    residual, gradient = mapping.pulled(states)
    pinned = _pinned(mapping, states, gradient)
    return pinned.any(dim=1) & (torch.where(pinned, 0.0, gradient).norm(dim=1) <= NEARLY_FLAT * residual.norm(dim=1))


def _searched(
    mapping: StaticMap,
    seeds: Tensor,
    unit: float,
    tolerance: float,
    descent: int,
    iterations: int,
    deadline: Deadline,
) -> Searched:
    states = _descend(mapping, mapping.confined(seeds), RATE * unit, descent, deadline)
    states = _levenberg_marquardt(mapping, states, tolerance, iterations, deadline)
    return judged(mapping, newton(mapping, states, steps=3), seeds, unit, tolerance)


def _pinned(mapping: StaticMap, states: Tensor, gradient: Tensor) -> Tensor:
    """Entries at their limit that would go on outwards: Kuhn and Tucker let them stay."""
    return (states.abs() >= mapping.limits) & (gradient * states < 0)


def _descend(mapping: StaticMap, states: Tensor, rate: float, steps: int, deadline: Deadline) -> Tensor:
    """Adam on Σ ½‖r‖²: the sum, so that a sample's step does not depend on how many there are."""
    mean, square = torch.zeros_like(states), torch.zeros_like(states)
    for count in range(1, steps + 1):
        if deadline.over:
            break
        _, gradient = mapping.pulled(states)
        fine = torch.isfinite(gradient).all(dim=1, keepdim=True)
        gradient = torch.where(fine, gradient, 0.0)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient.square()
        move = (mean / (1 - 0.9**count)) / ((square / (1 - 0.999**count)).sqrt() + 1e-12)
        states = torch.where(fine, mapping.confined(states - rate * move), states)
    return states


def _levenberg_marquardt(
    mapping: StaticMap, states: Tensor, tolerance: float, iterations: int, deadline: Deadline
) -> Tensor:
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
        at = (open_ & (damping < STUCK)).nonzero()[:, 0]
        h, r, slope = states[at], residuals[at], slopes[at]
        gradient = (slope.mT @ r[:, :, None])[:, :, 0]
        pinned = _pinned(mapping, h, gradient)
        gradient = torch.where(pinned, 0.0, gradient)
        size = r.norm(dim=1)
        going = (size > tolerance * (1 + h.norm(dim=1))) & (gradient.norm(dim=1) > FLAT * size)
        open_[at[~going]] = False
        if deadline.over or not bool(going.any()):
            break
        at, h, r, slope, gradient, pinned = (part[going] for part in (at, h, r, slope, gradient, pinned))
        scales[at] = torch.maximum(scales[at], slope.square().sum(dim=1)).clamp_min(1e-12)
        damped = damping[at, None] * scales[at]
        slope = torch.where(pinned[:, None], 0.0, slope)
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


def newton(mapping: StaticMap, states: Tensor, steps: int) -> Tensor:
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
