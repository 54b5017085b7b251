"""Searches that keep away from the roots already known, by deflation."""

import torch
from jaxtyping import Float
from torch import Tensor

from .maps import StaticMap

__all__ = ["deflated"]


def deflated(mapping: StaticMap, known: Float[Tensor, "k H"], reach: float) -> StaticMap:
    """The map h + m(h) r(h), r(h) = F(h) − h, m(h) = Πᵢ (1 + s²/‖h − hᵢ‖²), whose residual m r vanishes at no hᵢ.

    Its other fixed points are those of F. s is the `reach` of the deflation.

    References:
        Farrell, Birkisson and Funke 2015.
    """

    def function(states: Tensor) -> Tensor:
        return states + _factor(states, known, reach)[0][:, None] * (mapping.function(states) - states)

    def jacobian(states: Tensor) -> Tensor:
        values, jacobians = mapping.linearised(states)
        residual, eye = values - states, torch.eye(states.shape[1], dtype=states.dtype, device=states.device)
        factor, slope = _factor(states, known, reach)
        return eye + factor[:, None, None] * (jacobians - eye + residual[:, :, None] * slope[:, None])

    return StaticMap(function, mapping.bounded, mapping.limits, jacobian)


def _factor(states: Tensor, known: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """The product m, and ∇ log m = −2 Σᵢ (h − hᵢ) / (dᵢ² (1 + dᵢ²/s²)), dᵢ = ‖h − hᵢ‖."""
    apart = states[:, None] - known
    square = apart.square().sum(dim=2)
    slope = -2 * (apart / (square * (1 + square / reach**2))[:, :, None]).sum(dim=1)
    return (1 + reach**2 / square).prod(dim=1), slope
