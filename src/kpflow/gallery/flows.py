"""Integration of learning dynamics: gradient flow as an ordinary differential equation."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["rk4"]


def rk4(field: Callable[[Tensor], Tensor], start: Tensor, step: float, count: int, *, every: int = 1) -> Tensor:
    """The states of ẏ = field(y) at times 0, every·step, … by the classical Runge–Kutta method of order 4.

    Args:
        field: From a state to its velocity, of the same shape.
        start: y(0).
        step: Of time.
        count: Number of steps.
        every: Steps between states that are kept; the last one is kept if `count` is a multiple.

    Returns:
        Shape `[1 + count // every, *shape]`.

    Example:
        >>> float(rk4(lambda y: -y, torch.ones((), dtype=torch.float64), 0.1, 10)[-1])
        0.36787977...
    """
    state, kept = start, [start]
    for done in range(1, count + 1):
        first = field(state)
        second = field(state + 0.5 * step * first)
        third = field(state + 0.5 * step * second)
        fourth = field(state + step * third)
        state = state + step / 6 * (first + 2 * second + 2 * third + fourth)
        if done % every == 0:
            kept.append(state)
    return torch.stack(kept)
