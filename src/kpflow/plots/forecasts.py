"""The loss that a kernel that stays would lead to, from checkpoint to checkpoint, beside the one that was reached."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .records import Record, check_record, covered_steps, has, series
from .style import PALETTE, WIDE, grid, is_narrow, legend, log_axis, mark_missing, panel, step_axis

__all__ = ["TOLERANCE", "forecast_miss", "forecast_verdicts", "loss_forecasts"]

TOLERANCE = 0.1
"""A forecast holds where it is within this part of the loss that was reached."""

VERDICTS = {"holds": ("ntk", "-"), "breaks": ("event", (0, (3, 2))), "is open": ("muted", (0, (1, 1.5)))}
"""Colour and line of each; open is what the forecast's own error does not decide."""

LARGEST = 1e3
"""Where a forecast diverges its miss is drawn here."""


def forecast_miss(record: xr.Dataset) -> xr.DataArray:
    """|L̂ − L| / L at each step, L̂ being the forecast of its loss L from the checkpoint before.

    Example:
        >>> loss = {"loss": ("step", [1.0, 0.5]), "forecast_loss": (("step", "ahead"), [[np.nan] * 2, [1.0, 0.6]])}
        >>> forecast_miss(xr.Dataset(loss, {"step": [0, 10]})).round(3).values
        array([nan, 0.2])
    """
    reached, ahead = series(record, "loss"), series(record, "forecast_loss")
    return abs(ahead.isel(ahead=-1) - reached) / abs(reached)


def forecast_verdicts(record: xr.Dataset) -> np.ndarray:
    """Of each step's forecast one of `VERDICTS`; empty where there is none.

    Example:
        >>> loss = {"loss": ("step", [1.0, 0.5]), "forecast_loss": (("step", "ahead"), [[np.nan] * 2, [1.0, 0.6]])}
        >>> forecast_verdicts(xr.Dataset(loss, {"step": [0, 10]})).tolist()
        ['', 'breaks']
    """
    miss = forecast_miss(record)
    known = has(record, "forecast_error")
    error = series(record, "forecast_error") / abs(series(record, "loss")) if known else xr.zeros_like(miss)
    beyond = np.where(miss - error > TOLERANCE, "breaks", "is open")
    return np.where(miss.isnull(), "", np.where(miss + error <= TOLERANCE, "holds", beyond))


def loss_forecasts(record: Record, *, width: float = WIDE) -> Figure:
    """Forecasts of the loss from each checkpoint to the next beside the loss, and how much they miss it.

    Where the record has it, the NTK's relative change from one checkpoint to the next stands beside the miss.

    Args:
        record: Holds `loss(step)`, `forecast_step(step, ahead)` and `forecast_loss(step, ahead)`, perhaps
            `forecast_error(step)`, the error of the last of them, and `kernel_change(step, since)`.
        width: Of the figure in inches; below 6 the panels stand below each other.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `record` has no steps, or lacks one of the three variables.

    Example:
        >>> axes, nothing = ("step", "ahead"), [np.nan] * 2
        >>> ahead = {"forecast_step": (axes, [nothing, [0, 10]]), "forecast_loss": (axes, [nothing, [1.0, 0.6]])}
        >>> record = xr.Dataset({"loss": ("step", [1.0, 0.5]), **ahead}, {"step": [0, 10]})
        >>> loss_forecasts(record).axes[0].lines[1].get_ydata()
        array([1. , 0.6])
    """
    record = check_record(record)
    loss, at, ahead = (series(record, name) for name in ("loss", "forecast_step", "forecast_loss"))
    miss, steps = forecast_miss(record), record["step"].values
    columns = 1 if is_narrow(width) else 2
    figure, axes = grid(width, columns, 2 // columns, panel_height=2.6, legend_rows=2 if columns == 2 else 3)
    courses, misses = axes.flat
    lines = courses.plot(steps, loss.values, "o", color=PALETTE["ink"], markersize=3.6, label="loss")
    for row, verdict in enumerate(forecast_verdicts(record)):
        if verdict:
            role, style = VERDICTS[verdict]
            lines += courses.plot(
                at.values[row], ahead.values[row], color=PALETTE[role], linewidth=1.4, linestyle=style,
                label=f"forecast that {verdict}",
            )  # fmt: skip
    panel(courses, title="Loss, and its forecasts")
    log_axis(courses, loss.values)
    lines += _misses(misses, record, miss)
    for axis in axes.flat:
        mark_missing(axis, steps, covered_steps(miss))
        step_axis(axis, steps)
    legend(figure, list({line.get_label(): line for line in lines}.values()), width, columns=columns + 1)
    return figure


def _misses(axes: Axes, record: xr.Dataset, miss: xr.DataArray) -> list:
    """The miss of each forecast, and the NTK's change in the same interval, if it is known."""
    steps, values = miss["step"].values, miss.clip(max=LARGEST).values
    axes.axhline(TOLERANCE, color=PALETTE["muted"], linewidth=0.8, linestyle=(0, (4, 3)))
    courses = {"miss of the forecast": (values, "ntk", "o")}
    if has(record, "kernel_change") and "previous" in record.get("since", []):
        change = series(record, "kernel_change").sel(since="previous").values
        courses["change of the NTK"] = (change, "kernel", "^")
    lines = []
    for name, (course, role, marker) in courses.items():
        lines += axes.plot(steps, course, color=PALETTE[role], label=name, marker=marker, markersize=3.2, linewidth=1.4)
    panel(axes, title="Miss at the next checkpoint")
    log_axis(axes, np.concatenate([course for course, _, _ in courses.values()]))
    return lines
