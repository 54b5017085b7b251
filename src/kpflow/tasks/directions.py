"""Directions on a circle: how they are drawn, written into channels, read back, weighed in the loss and scored."""

import math
from collections.abc import Mapping
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from .timing import to_steps

__all__ = ["Epochs", "angular_distance", "draw_angles", "read_angle", "response_weights", "ring", "to_channels"]

Epochs: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]

RING_PEAK, RING_WIDTH = 0.8, math.pi / 8


def draw_angles(B: int, generator: torch.Generator | None) -> Float[Tensor, " B"]:
    """U[0, 2π), or the grid 2π b/B."""
    if generator is None:
        return 2 * math.pi * torch.arange(B, dtype=torch.float64) / B
    return 2 * math.pi * torch.rand(B, generator=generator, dtype=torch.float64)


def angular_distance(a: Tensor, b: Tensor) -> Tensor:
    """The distance of two angles on the circle, in [0, π].

    Example:
        >>> round(float(angular_distance(torch.tensor(0.1), torch.tensor(6.2))), 3)
        0.183
    """
    difference = a - b
    return torch.atan2(difference.sin(), difference.cos()).abs()


def to_channels(angle: Float[Tensor, "*n"], order: str) -> Float[Tensor, "*n 2"]:
    """(cos θ, sin θ), or (sin θ, cos θ) with `order="sin_cos"`."""
    pair = (angle.cos(), angle.sin())
    return torch.stack(pair if order == "cos_sin" else pair[::-1], dim=-1)


def ring(angle: Float[Tensor, "*n"], units: int) -> Float[Tensor, "*n units"]:
    """Bumps 0.8 exp(−½ (Δ/(π/8))²) on units with preferred angles 2π k/units, Δ the distance (Yang et al. 2019)."""
    preferred = 2 * math.pi * torch.arange(units, dtype=angle.dtype, device=angle.device) / units
    return RING_PEAK * torch.exp(-0.5 * (angular_distance(angle[..., None], preferred) / RING_WIDTH) ** 2)


def read_angle(channels: Float[Tensor, "*n C"], order: str | None) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """The angle that channels point to, and how strongly: the argument and modulus of Σ_k y_k exp(i φ_k).

    Args:
        channels: Two channels in `order`, or the units of a ring if `order` is None.
        order: "cos_sin", "sin_cos" or None.

    Example:
        >>> angle = torch.tensor([0.3, 4.0], dtype=torch.float64)
        >>> read_angle(ring(angle, 32), None)[0] % (2 * math.pi)
        tensor([0.3000, 4.0000], dtype=torch.float64)
    """
    if order is None:
        units = channels.shape[-1]
        preferred = 2 * math.pi * torch.arange(units, dtype=channels.dtype, device=channels.device) / units
        cos, sin = (channels * preferred.cos()).sum(-1), (channels * preferred.sin()).sum(-1)
    else:
        cos, sin = channels.unbind(-1) if order == "cos_sin" else channels.flip(-1).unbind(-1)
    return torch.atan2(sin, cos), torch.hypot(sin, cos)


def response_weights(
    epochs: Epochs, T: int, *, grace: int | float, dt: int | float, weighting: str, channels: int
) -> Float[Tensor, "B T C"]:
    """The mask of tasks with a fixation and a response: 0 in the grace period of the response and in the padding.

    Args:
        epochs: Has "response".
        T: Number of steps.
        grace: ms from the beginning of the response without weight.
        dt: Duration of a step, ms.
        weighting: "uniform" for weight 1 elsewhere; "driscoll" for 1 before the response, 25 after the grace, each
            times 4 for the fixation output, which is the first, and 0 in the first `grace` ms of the trial too.
        channels: Number of outputs.
    """
    step = torch.arange(T)
    go, end = (times[:, None] for times in epochs["response"])
    quiet = to_steps(grace, dt)
    before, after = (step < go).double(), ((go + quiet <= step) & (step < end)).double()  # [B, T] each
    if weighting == "uniform":
        return (before + after)[:, :, None].repeat(1, 1, channels)
    weight = before * (step >= quiet) + 25 * after
    return torch.cat((4 * weight[:, :, None], weight[:, :, None].repeat(1, 1, channels - 1)), dim=-1)
