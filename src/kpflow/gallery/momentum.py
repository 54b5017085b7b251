"""Methods with momentum: how they are tuned, what they do to a quadratic, and their paths."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, final

import numpy as np
from numpy import ndarray

__all__ = ["Method", "iterate", "radius", "tuned"]


@final
class Method(NamedTuple):
    """x⁺ = x + β(x − x₋) − α ∇f(x + γ(x − x₋))."""

    rate: float
    momentum: float
    look: float


def tuned(low: float, high: float, nudge: float = 0.0) -> tuple[Method, Method, Method]:
    """Nesterov's method, the heavy ball, and triple momentum, for curvatures between two.

    Example:
        >>> [round(method.rate, 12) for method in tuned(1.0, 4.0)]
        [0.25, 0.444444444444, 0.375]
    """
    root = math.sqrt(high / low)
    beta, rho = (root - 1) / (root + 1), 1 - 1 / root
    return (
        Method(1 / high, beta + nudge, beta),
        Method(4 / (math.sqrt(high) + math.sqrt(low)) ** 2, beta**2 + nudge, 0.0),
        Method((1 + rho) / high, rho**2 / (2 - rho) + nudge, rho**2 / ((1 + rho) * (2 - rho))),
    )


def radius(method: Method, condition: float) -> float:
    """The largest root, double and so known to 1e-8 only, of z² − (1 + β − αλ(1 + γ)) z + β − αλγ for λ from 1 to κ.

    Example:
        >>> round(radius(Method(1.0, 0.0, 0.0), 1.5), 12)  # gradient descent: |1 − αλ|
        0.5
    """
    values = np.linspace(1.0, condition, 1001)
    half = (1 + method.momentum - method.rate * values * (1 + method.look)) / 2
    product = method.momentum - method.rate * values * method.look
    return float(np.abs(np.abs(half) + np.sqrt((half**2 - product).astype(complex))).max())


def iterate(method: Method, slope: Callable[[Any], Any], start: Any, count: int, *, fading: bool = False) -> ndarray:
    """The path of a method, its momentum times (k − 1)/(k + 2) if fading.

    Example:
        >>> iterate(Method(0.5, 0.0, 0.0), float, 1.0, 2)
        array([1.  , 0.5 , 0.25])
    """
    path = [start, start]
    for k in range(count):
        moved = (path[-1] - path[-2]) * ((k - 1) / (k + 2) if fading else 1.0)
        path.append(path[-1] + method.momentum * moved - method.rate * slope(path[-1] + method.look * moved))
    return np.array(path[1:])
