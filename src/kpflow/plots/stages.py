"""The collapse pipeline: how many dimensions are left at each stage between inputs and targets."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .records import Record, check_record, chosen_steps, covered_steps, series, shorten
from .style import (
    PALETTE,
    WIDE,
    grid,
    is_narrow,
    label_ends,
    log_axis,
    mark_missing,
    panel,
    sequence_colours,
    step_axis,
    step_words,
)

__all__ = ["STAGES", "collapse_axes", "collapse_pipeline"]

STAGES = {
    "inputs": ("inputs", "inputs", "D"),
    "states": ("states", "states", "o"),
    "error": ("error", "error", "v"),
    "adjoint": ("Pᵀ error", "propagator", "s"),
    "kernel_adjoint": ("K Pᵀ error", "kernel", "^"),
    "change": ("P K Pᵀ error", "ntk", "o"),
    "targets": ("targets", "targets", "D"),
}
"""Words, colour's role and marker of each stage, in order."""


def collapse_pipeline(record: Record, *, width: float = WIDE, count: int = 4) -> Figure:
    """Effective dimension, tr(C)² / tr(C²) of the uncentred second moment C, of each stage.

    Stages: inputs, states, error ∂L/∂S, adjoint Pᵀ error, K Pᵀ error, the change P K Pᵀ error, and targets. Left: over
    training. Right: along the pipeline at `count` steps.

    Args:
        record: Holds `effective_dimension(step, stage)` with the stages' names as coordinate.
        width: Of the figure in inches; below 6 the panels stand below each other.
        count: How many steps the right panel shows, 1 to 5.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `width` is no number above 2; `record` has no steps, no finite effective dimension, or stages
            without names; `count` is not a whole number from 1 to 5.

    Example:
        >>> import xarray as xr
        >>> coordinates = {"step": [0, 10], "stage": ["states", "targets"]}
        >>> record = xr.Dataset({"effective_dimension": (("step", "stage"), [[6.0, 2.0], [3.0, 2.0]])}, coordinates)
        >>> [text.get_text() for text in collapse_pipeline(record).axes[0].texts]
        ['targets', 'states']
    """
    record = check_record(record)
    dimension = series(record, "effective_dimension")
    if "stage" not in record.coords:
        raise ValueError("`record` must name its stages in a coordinate `stage`; got none.")
    columns = 1 if is_narrow(width) else 2
    figure, axes = grid(width, columns, 2 // columns, panel_height=3.1)
    _over_training(axes.flat[0], dimension, "Over training")
    _along_pipeline(axes.flat[1], dimension, count)
    return figure


def collapse_axes(record: Record, *, width: float = WIDE) -> Figure:
    """Effective dimension of each stage along each axis of trials × time × units, over training.

    Along an axis C is the second moment over all other axes: how many of its directions take part.

    Args:
        record: Holds `effective_dimension_along(step, axis, stage)` with the names of axes and stages as coordinates.
        width: Of the figure in inches; below 6 the panels stand below each other.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `width` is no number above 2; `record` has no steps, no finite effective dimension, or axes or
            stages without names.

    Example:
        >>> import xarray as xr
        >>> values = [[[6.0, 2.0], [4.0, 1.0]], [[3.0, 2.0], [1.5, 1.2]]]
        >>> coordinates = {"step": [0, 10], "axis": ["time", "unit"], "stage": ["states", "targets"]}
        >>> record = xr.Dataset({"effective_dimension_along": (("step", "axis", "stage"), values)}, coordinates)
        >>> [axes.get_title(loc="left") for axes in collapse_axes(record).axes]
        ['Along time', 'Along unit']
    """
    record = check_record(record)
    dimension = series(record, "effective_dimension_along")
    if not {"axis", "stage"} <= set(record.coords):
        raise ValueError("`record` must name its axes and stages in coordinates `axis` and `stage`; got none.")
    names = [str(name) for name in dimension["axis"].values]
    columns = 1 if is_narrow(width) else len(names)
    figure, axes = grid(width, columns, len(names) // columns, panel_height=3.1)
    for panel_axes, name in zip(axes.flat, names, strict=True):
        _over_training(panel_axes, dimension.sel(axis=name), f"Along {name}")
    return figure


def _dress(stage: str) -> tuple[str, str, str]:
    words, role, marker = STAGES.get(stage, (shorten(stage), "muted", "o"))
    return words, PALETTE[role], marker


def _over_training(axes: Axes, dimension: xr.DataArray, title: str) -> None:
    steps, lines = dimension["step"].values, []
    for stage in map(str, dimension["stage"].values):
        values = dimension.sel(stage=stage).values
        words, colour, marker = _dress(stage)
        axes.plot(steps, values, color=colour, marker=marker, markersize=3.4, linewidth=1.5)
        lines.append((steps, values, words, colour))
    mark_missing(axes, steps, covered_steps(dimension))
    panel(axes, title=title, y="effective dimension")
    step_axis(axes, steps)
    log_axis(axes, dimension.values)
    label_ends(axes, lines)


def _along_pipeline(axes: Axes, dimension: xr.DataArray, count: int) -> None:
    picks = chosen_steps(covered_steps(dimension), count)
    stages = [_dress(str(stage))[0] for stage in dimension["stage"].values]
    places = np.arange(len(stages))
    for pick, colour in zip(picks, sequence_colours(len(picks)), strict=True):
        words = step_words(float(dimension["step"].values[pick]))
        axes.plot(places, dimension.values[pick], color=colour, marker="o", markersize=3.4, linewidth=1.5, label=words)
    panel(axes, title="Along the pipeline")
    axes.set_xticks(places, stages, rotation=38, ha="right", rotation_mode="anchor", parse_math=False)
    axes.tick_params(axis="x", labelcolor=PALETTE["ink"])
    log_axis(axes, dimension.values)
    axes.legend(loc="upper right", frameon=False, fontsize=8.5, labelcolor=PALETTE["ink"], handlelength=1.4)
