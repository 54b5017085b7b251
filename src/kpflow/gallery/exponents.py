"""Powers by which errors and times grow."""

import numpy as np
import torch

from .entry import Numbers

__all__ = ["exponent"]


def exponent(sizes: Numbers, values: Numbers) -> float:
    """p of values ∝ sizesᵖ, the slope of their logarithms by least squares.

    Example:
        >>> round(exponent([1.0, 2.0, 4.0], [3.0, 12.0, 48.0]), 12)
        2.0
    """
    x, y = (torch.as_tensor(part, dtype=torch.float64).log().numpy() for part in (sizes, values))
    return float(np.polyfit(x, y, 1)[0])
