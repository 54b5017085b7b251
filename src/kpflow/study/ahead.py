"""From one checkpoint to the next: what becomes of the loss if the kernel stays, as arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor, nn
from torch.optim import Optimizer

from kpflow.states import Linearisation

__all__ = ["LEFT_OUT", "look_ahead"]

LEFT_OUT = "forecast_left_out"
"""The attribute that says, in a sentence, why there is no forecast."""

UNKNOWN = "the optimizer is not known; it is no SGD, Adam or AdamW, or was not kept by Recorder(optimizer_state=True)."

POINTS = 9
"""Steps of an interval at which its forecast is kept, both ends among them."""

KRYLOV = 6
"""The largest Krylov space, by what it costs; one of n vectors is exact for n steps."""


def look_ahead(
    forecast: Callable[..., Any],
    lin: Linearisation,
    loss: Callable[[Tensor], Tensor],
    optimizer: Optimizer | None,
    model: nn.Module,
    between: tuple[int, int],
) -> xr.Dataset:
    """The forecast of the loss from one checkpoint to the next, by the optimizer as it stood at the first.

    Args:
        forecast: `kpflow.optim.forecast_optimizer`, or what is called as it is and gives losses and their error.
        lin: The linearised state equation at the first checkpoint.
        loss: From the outputs to a scalar.
        optimizer: Of the parameters of `model`; None if it is not known.
        model: That of the first checkpoint.
        between: Both training steps.

    Returns:
        At `step` the later of both: `forecast_step` and `forecast_loss` on the axis `ahead`, and `forecast_error`, the
        most that the last of them may be off in its Krylov space. NaN, and the attribute `LEFT_OUT`, where the
        optimizer is not known or cannot be forecast.
    """
    count = between[1] - between[0]
    at = np.linspace(0, count, POINTS).round().astype(int)
    losses, error, said = np.full(POINTS, np.nan), np.nan, {}
    try:
        if optimizer is None:
            raise ValueError(UNKNOWN)
        ahead = forecast(lin, loss, optimizer, model, steps=count, krylov=min(count, KRYLOV))
        losses, error = ahead.losses.numpy()[at], ahead.error if count > KRYLOV else 0.0
    except (ValueError, TypeError) as problem:
        said[LEFT_OUT] = f"No forecast of the loss from step {between[0]} on: {problem}"
    return xr.Dataset(
        {
            "forecast_step": (("step", "ahead"), [(between[0] + at).astype(float)]),
            "forecast_loss": (("step", "ahead"), [losses]),
            "forecast_error": ("step", [error]),
        },
        {"step": [between[1]]},
        said,
    )
