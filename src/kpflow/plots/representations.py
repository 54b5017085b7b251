"""What the states tell apart: neural collapse over training, and how alike the states of checkpoints are."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .records import Record, check_record, covered_steps, series, shorten, thin
from .style import (
    CATEGORIES,
    DIVERGING,
    PALETTE,
    WIDE,
    grid,
    is_narrow,
    legend,
    log_axis,
    mark_missing,
    panel,
    short_step,
    step_axis,
    step_words,
)

__all__ = ["neural_collapse", "state_similarity"]

MEASURES = {
    "nc1": "NC1 within classes",
    "nc2_norms": "NC2 norms",
    "nc2_angles": "NC2 angles",
    "nc3": "NC3 read-out",
    "nc4": "NC4 decisions",
    "nc5": "NC5 other data",
}
"""Words for each measure, in order."""


def neural_collapse(record: Record, *, width: float = WIDE) -> Figure:
    """The measures of neural collapse over training: NC1 by itself, the others beside it; 0 is collapse.

    Args:
        record: Holds `neural_collapse(step, measure)` with the measures' names as coordinate.
        width: Of the figure in inches; below 6 the panels stand below each other.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `width` is no number above 2; `record` has no steps, no finite measure, or measures without names.

    Example:
        >>> coordinates = {"step": [0, 10], "measure": ["nc1", "nc4"]}
        >>> record = xr.Dataset({"neural_collapse": (("step", "measure"), [[2.0, 0.5], [0.1, 0.0]])}, coordinates)
        >>> [axes.get_title(loc="left") for axes in neural_collapse(record).axes]
        ['NC1 within classes', 'NC2 to NC5']
    """
    record = check_record(record)
    values = series(record, "neural_collapse")
    if "measure" not in record.coords:
        raise ValueError("`record` must name its measures in a coordinate `measure`; got none.")
    names = [str(name) for name in values["measure"].values]
    others = [name for name in names if name != "nc1" and bool(values.sel(measure=name).notnull().any())]
    columns = 1 if is_narrow(width) else 2
    figure, axes = grid(width, columns, 2 // columns, panel_height=2.6, legend_rows=1)
    first, rest = axes.flat
    _courses(first, values, {name: PALETTE["ink"] for name in names if name == "nc1"}, MEASURES["nc1"])
    log_axis(first, values.sel(measure=values["measure"] == "nc1").values)
    legend(figure, _courses(rest, values, dict(zip(others, CATEGORIES, strict=False)), "NC2 to NC5"), width)
    return figure


def state_similarity(record: Record, *, width: float = WIDE) -> Figure:
    """CKA of the states of all pairs of checkpoints, and over training with the first and the last of them.

    Args:
        record: Holds `state_similarity(step, other_step)`.
        width: Of the figure in inches; below 6 the panels stand below each other.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `width` is no number above 2; `record` has no steps, or no finite similarity.

    Example:
        >>> table = (("step", "other_step"), [[1.0, 0.6], [0.6, 1.0]])
        >>> record = xr.Dataset({"state_similarity": table}, {"step": [0, 10], "other_step": [0, 10]})
        >>> state_similarity(record).axes[1].lines[0].get_ydata()
        array([1. , 0.6])
    """
    record = check_record(record)
    table = series(record.sortby("other_step"), "state_similarity")
    columns = 1 if is_narrow(width) else 2
    figure, axes = grid(width, columns, 2 // columns, panel_height=3.1, legend_rows=1)
    pairs, course = axes.flat
    _pairs(pairs, table)
    steps, covered = table["step"].values, covered_steps(table)
    lines = []
    for index, role in zip(covered[[0, -1]], ("early", "late"), strict=True):
        lines += course.plot(
            steps, table.values[:, index], color=PALETTE[role], linewidth=1.5, marker="o", markersize=3.2,
            label=f"with {step_words(steps[index])}",
        )  # fmt: skip
    panel(course, title="CKA over training")
    mark_missing(course, steps, covered)
    step_axis(course, steps)
    legend(figure, lines, width)
    return figure


def _courses(axes: Axes, values: xr.DataArray, colours: dict[str, str], title: str) -> list:
    """A line for each of the measures that have a colour."""
    steps, lines = values["step"].values, []
    for name, colour in colours.items():
        lines += axes.plot(
            steps, values.sel(measure=name).values, color=colour, linewidth=1.5, marker="o", markersize=3.2,
            label=MEASURES.get(name, shorten(name)),
        )  # fmt: skip
    panel(axes, title=title)
    mark_missing(axes, steps, covered_steps(values))
    step_axis(axes, steps)
    return lines


def _pairs(axes: Axes, table: xr.DataArray) -> None:
    """A heat map over checkpoints, from the least value that is there, transparent, to 1."""
    low = min(float(np.nanmin(table.values)), 1 - 1e-6)
    axes.imshow(1 - (1 - table.values) / (1 - low), cmap=DIVERGING, vmin=-1, vmax=1, interpolation="none")
    panel(axes, title=f"CKA of pairs, {low:.2g} to 1", x="training step")
    axes.grid(visible=False)
    places = thin(len(table["step"]), 4)
    words = [short_step(float(step)) for step in table["step"].values[places]]
    axes.set_xticks(places, words, parse_math=False)
    axes.set_yticks(places, words, parse_math=False)
