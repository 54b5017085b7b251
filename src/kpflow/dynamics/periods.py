"""Which period trajectories settle to."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kpflow._checks import check_positive, check_range

from .arguments import check_search
from .maps import StaticMap, exact_derivatives, static_map

__all__ = ["Periods", "detect_periods", "orbits"]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Periods:
    """Where trajectories settle.

    Args:
        states: The state after the transient, shape `[n, H]`, float64; a lost one is where it was last finite.
        period: The least period up to the maximum, 1 at a fixed point, 0 where there is none; shape `[n]`.
        gap: The largest ‖h_{t+p} − h_t‖ / (1 + ‖h_t‖) of that period p, or the least one of all where there is none.
    """

    states: Float[Tensor, "n H"]
    period: Int[Tensor, "n"]
    gap: Float[Tensor, "n"]


def detect_periods(
    step: Callable[..., Any],
    inputs: Tensor,
    seeds: Tensor,
    max_period: int = 16,
    *,
    transient: int = 1000,
    tolerance: float = 1e-6,
) -> Periods:
    """The least period p ≤ P of the trajectory of each seed under F = step(·, x), once a transient is over.

    p is the least number with ‖h_{t+p} − h_t‖ ≤ tolerance (1 + ‖h_t‖) at P successive t. Near a bifurcation
    trajectories settle slowly: a longer transient or a larger tolerance may be needed.

    Args:
        step: As of `find_fixed_points`.
        inputs: The static input x, shape `[I]`.
        seeds: States to start from, shape `[n, H]`.
        max_period: P.
        transient: Steps before the period is looked for.
        tolerance: See above.

    Returns:
        The settled states, seeds of `find_cycles`, and their periods.

    Raises:
        TypeError: As `find_cycles`.
        ValueError: As `find_cycles`.

    Example:
        >>> logistic = lambda h, x: 3.5 * h * (1 - h) + 0 * x
        >>> detect_periods(logistic, torch.zeros(1), torch.tensor([[0.2], [0.4]])).period
        tensor([4, 4])
    """
    check_search(inputs, seeds, "Cycles")
    check_positive("max_period", max_period, integer=True)
    check_range("transient", transient, 0, integer=True)
    check_positive("tolerance", tolerance)
    with exact_derivatives():
        states = seeds.detach().to(torch.float64).clone()
        mapping = static_map(step, inputs.detach().to(torch.float64).clone(), states)
    for _ in range(transient):
        states = _moved(mapping, states)
    orbit = orbits(mapping, states, 2 * max_period)
    first = orbit[:, :max_period]
    size = 1 + first.norm(dim=2)
    gaps = [((orbit[:, p : p + max_period] - first).norm(dim=2) / size).amax(1) for p in range(1, max_period + 1)]
    gap = torch.stack(gaps, dim=1)
    alive = torch.isfinite(mapping(states)).all(dim=1)
    met = (gap <= tolerance) & alive[:, None]
    period = torch.where(met.any(dim=1), met.int().argmax(dim=1) + 1, 0)
    best = torch.where(period > 0, gap.gather(1, (period - 1).clamp_min(0)[:, None])[:, 0], gap.amin(dim=1))
    return Periods(states, period, torch.where(alive, best, math.inf))


def _moved(mapping: StaticMap, states: Float[Tensor, "n H"]) -> Float[Tensor, "n H"]:
    """F(h), or h itself where F(h) leaves the floating range."""
    values = mapping(states)
    return torch.where(torch.isfinite(values).all(dim=1, keepdim=True), values, states)


def orbits(mapping: StaticMap, states: Float[Tensor, "n H"], steps: int) -> Float[Tensor, "n T H"]:
    """The states and `steps` steps of each, T = steps + 1."""
    orbit = [states]
    for _ in range(steps):
        orbit.append(_moved(mapping, orbit[-1]))
    return torch.stack(orbit, dim=1)
