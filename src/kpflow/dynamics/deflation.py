"""Newton's method that keeps away from the roots already known, by deflation."""

import torch
from jaxtyping import Float
from torch import Tensor

from .deadlines import Deadline
from .maps import StaticMap
from .searches import Searched, judged, newton

__all__ = ["deflated"]

HALVINGS = 5
"""How often a step is halved that does not lower the deflated residual; then it is taken all the same."""


def deflated(
    mapping: StaticMap,
    known: Float[Tensor, "k H"],
    seeds: Float[Tensor, "n H"],
    unit: float,
    tolerance: float,
    iterations: int,
    deadline: Deadline,
) -> Searched:
    """Newton's method on m(h) r(h), m(h) = Πᵢ (1 + s²/‖h − hᵢ‖²), from each seed by itself; hᵢ are the known roots.

    m r does not vanish at them. Its Newton step is τ δ, with δ that of r and 1/τ = 1 − ∇log m · δ (Sherman and
    Morrison). A step has at most length s, the size of a state, and is halved while ‖m r‖ does not fall.

    References:
        Farrell, Birkisson and Funke 2015.
    """
    searched = mapping if mapping.target is None else mapping.target
    size = unit * seeds.shape[1] ** 0.5
    states = mapping.confined(seeds).clone()
    open_ = torch.ones_like(states[:, 0], dtype=torch.bool)
    for _ in range(iterations):
        at = open_.nonzero()[:, 0]
        if deadline.over or not len(at):
            break
        h = states[at]
        values, jacobians = searched.linearised(h)
        residual = values - h
        eye = torch.eye(h.shape[1], dtype=h.dtype, device=h.device)
        newton_step = torch.linalg.solve_ex(eye - jacobians, residual[:, :, None])[0][:, :, 0]
        step = newton_step / (1 - (_slope(h, known, size) * newton_step).sum(dim=1))[:, None]
        step = step * (size / step.norm(dim=1).clamp_min(1e-300)).clamp_max(1.0)[:, None]
        going = torch.isfinite(step).all(dim=1) & (residual.norm(dim=1) > tolerance * (1 + h.norm(dim=1)))
        open_[at[~going]] = False
        states[at[going]] = _shortened(searched, h[going], step[going], residual[going].norm(dim=1), known, size)
    return judged(mapping, newton(mapping, newton(searched, states, steps=2), steps=2), seeds, unit, tolerance)


def _shortened(mapping: StaticMap, h: Tensor, step: Tensor, residual: Tensor, known: Tensor, size: float) -> Tensor:
    """h + t step, with t halved until ‖m r‖ falls."""
    before = residual.log() + _log(h, known, size)
    fraction = torch.ones_like(residual)
    for _ in range(HALVINGS):
        trial = mapping.confined(h + fraction[:, None] * step)
        after = (mapping(trial) - trial).norm(dim=1).log() + _log(trial, known, size)
        fraction = torch.where(after < before, fraction, 0.5 * fraction)  # NaN is not less
    return mapping.confined(h + fraction[:, None] * step)


def _log(h: Tensor, known: Tensor, size: float) -> Tensor:
    """The logarithm of m."""
    return (size / torch.cdist(h, known).clamp_min(1e-150)).square().log1p().sum(dim=1)


def _slope(h: Tensor, known: Tensor, size: float) -> Tensor:
    """∇ log m = −2 Σᵢ (h − hᵢ) / (dᵢ² (1 + dᵢ²/s²)), dᵢ = ‖h − hᵢ‖."""
    apart = h[:, None] - known
    square = apart.square().sum(dim=2).clamp_min(1e-300)
    return -2 * (apart / (square * (1 + square / size**2))[:, :, None]).sum(dim=1)
