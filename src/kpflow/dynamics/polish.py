"""Newton's method from near a fixed point, and whether the step is smooth there."""

import torch
from torch import Tensor

from .maps import StaticMap
from .parametric import ParametricMap

__all__ = ["check_smooth", "polished"]

STEPS = 60
"""Of Newton's method: enough for its rate of ⅔ at a triple root."""

HALVINGS = 10
"""Lengths of a step that are tried, each half the last, for the longest that lowers the residual."""

PROBE = 1e-6
"""Size of the moves that look for a kink, relative to 1 + ‖h‖: a corner that is nearer is at the point."""

BEND = 1e-3
"""The most that the slope may change over such a move, relative to 1: an analytic step would need ‖B‖ of 1e3."""


def polished(
    function: ParametricMap, x: Tensor, start: Tensor, flow: bool, tolerance: float, reach: float
) -> tuple[Tensor, float]:
    """The fixed point that Newton's method comes to from `start`, and its residual.

    Every step lowers the residual, the last ones down to rounding.

    Raises:
        ValueError: There is none within `tolerance` and `reach`.
    """
    mapping = StaticMap(lambda states: function(states, x), False, torch.full_like(start, torch.inf))
    state, rest = start, 0.0 if flow else 1.0
    residual = mapping(state[None])[0] - rest * state
    for _ in range(STEPS):
        _, jacobian = mapping.linearised(state[None])
        matrix = jacobian[0] - rest * torch.eye(len(state), dtype=state.dtype, device=state.device)
        if not bool(torch.isfinite(matrix).all()):
            break
        step = -torch.linalg.pinv(matrix, rtol=1e-13) @ residual
        trials = state + step / 2.0 ** torch.arange(HALVINGS, dtype=state.dtype, device=state.device)[:, None]
        after = mapping(trials) - rest * trials
        better = (after.norm(dim=1) < residual.norm()).nonzero()[:, 0]  # NaN is not
        if not len(better):
            break
        state, residual = trials[better[0]], after[better[0]]
    size, moved = float(residual.norm()), float((state - start).norm())
    if not size <= tolerance * (1 + float(state.norm())) or moved > reach * (1 + float(start.norm())):
        rule = "f(h) = 0" if flow else "f(h) = h"
        raise ValueError(
            f"`point` must be near a fixed point, {rule}; Newton's method came to a residual of {size:.2e} at a "
            f"distance of {moved:.2e}, with `tolerance` {tolerance:g} and `reach` {reach:g} (1 + ‖h‖). Start from a "
            f"point of find_fixed_points, at the same input; or is `step` {'a map, not a flow' if flow else 'a flow'}?"
        )
    return state, size


def check_smooth(mapping: ParametricMap, x: Tensor, state: Tensor) -> None:
    """Refuse a kink: F(h + d) + F(h − d) − 2 F(h) is of the order of d² only where F is smooth.

    Along four directions drawn at random, from a generator of our own.
    """
    random = torch.Generator(device=state.device).manual_seed(0)
    directions = torch.randn(4, len(state), generator=random, dtype=state.dtype, device=state.device)
    size = PROBE * (1 + float(state.norm()))
    moves = size * directions / directions.norm(dim=1, keepdim=True)
    with torch.no_grad():
        bend = mapping(state + moves, x) + mapping(state - moves, x) - 2 * mapping(state[None], x)
    worst = float(bend.norm(dim=1).max()) / size
    if not worst <= BEND:
        raise ValueError(
            f"`step` must be smooth at `point`; its slope jumps by {worst:.2g} within {size:.1e} of it (a ReLU at its "
            "corner). Multipliers and coefficients do not exist there: what happens is a border collision. Take a "
            "point away from the corner, or a smooth nonlinearity."
        )
