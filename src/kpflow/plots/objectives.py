"""Several objectives: how they align at each stage from error to change, at some steps and over training."""

import itertools

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .records import Record, check_record, chosen_steps, covered_steps, has, series, shorten
from .style import (
    CATEGORIES,
    DIVERGING,
    PALETTE,
    WIDE,
    grid,
    is_narrow,
    legend,
    mark_missing,
    panel,
    step_axis,
    step_words,
)

__all__ = ["MOST_NAMED", "objective_alignment", "objective_course", "objective_interference"]

MOST_NAMED = 6
"""Objectives whose pairs are shown each in its colour, and whose cosines are written; of more, all pairs look alike."""

BLOCKS = {"ntk_block_size": "NTK blocks, relative size", "ntk_block_alignment": "NTK blocks, alignment"}

STRONG = 0.7
"""Numbers beyond stand in white: the colour below them is strong whatever the page's."""

STAGES = {
    "error": "error",
    "adjoint": "Pᵀ error",
    "gradient": "gradient",
    "immediate": "J gradient",
    "change": "P J gradient",
}


def objective_alignment(record: Record, *, width: float = WIDE, count: int = 3) -> Figure:
    """The cosines between objectives at each stage, side by side, at `count` steps from the first to the last.

    Args:
        record: Holds `objective_alignment(step, objective_stage, objective, other)` with names along its axes.
        width: Of the figure in inches; below 6 the stages stand below each other, and the steps side by side.
        count: How many steps are shown, 1 to 5.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `width` is no number above 2; `record` has no steps, no finite alignment, or objectives without
            names; `count` is not a whole number from 1 to 5.

    Example:
        >>> axes = ("step", "objective_stage", "objective", "other")
        >>> names = {"objective_stage": ["gradient"], "objective": ["a", "b"], "other": ["a", "b"]}
        >>> record = xr.Dataset({"objective_alignment": (axes, np.eye(2)[None, None])}, {"step": [0], **names})
        >>> [axes.get_title(loc="left") for axes in objective_alignment(record).axes]
        ['gradient']
    """
    record = check_record(record)
    tables, names = _tables(record, "objective_alignment")
    picks, narrow = chosen_steps(covered_steps(tables), count), is_narrow(width)
    stages = [str(stage) for stage in tables["objective_stage"].values]
    rows, columns = (len(stages), len(picks)) if narrow else (len(picks), len(stages))
    figure, axes = grid(width, columns, rows, panel_height=min(2.0, 0.95 * width / columns))
    for (row, pick), (column, stage) in itertools.product(enumerate(picks), enumerate(stages)):
        axis = axes[column, row] if narrow else axes[row, column]
        step, words = step_words(float(tables["step"].values[pick])), STAGES.get(stage, shorten(stage))
        top, side = (step, words) if narrow else (words, step)
        at_top, at_side = (column == 0, row == 0) if narrow else (row == 0, column == 0)
        panel(axis, title=top if at_top else "", y=side if at_side else "")
        _heat(axis, tables.values[pick, column], names, named=at_side)
    return figure


def objective_course(record: Record, *, width: float = WIDE) -> Figure:
    """The cosines between pairs of objectives over training, a panel for each stage.

    Where the record has them, more panels have the sizes of the NTK's blocks between the groups of trials, and how they
    are aligned, with bars of one standard error. Of up to 6 objectives each pair has its colour; of more, all pairs are
    thin and their median is bold.

    Args:
        record: Holds `objective_alignment(step, objective_stage, objective, other)` with names along its axes, perhaps
            `ntk_block_size(step, group, other_group)`, `ntk_block_alignment`, and `…_error` of both.
        width: Of the figure in inches; below 6 the panels stand below each other.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `width` is no number above 2; `record` has no steps, no finite alignment, or objectives without
            names.

    Example:
        >>> axes = ("step", "objective_stage", "objective", "other")
        >>> names = {"objective_stage": ["gradient"], "objective": ["a", "b"], "other": ["a", "b"]}
        >>> record = xr.Dataset({"objective_alignment": (axes, np.full((2, 1, 2, 2), 0.5))}, {"step": [0, 9], **names})
        >>> objective_course(record).axes[0].lines[1].get_ydata()
        array([0.5, 0.5])
    """
    record = check_record(record)
    tables, names = _tables(record, "objective_alignment")
    panels: list[tuple[str, xr.DataArray, list[str], xr.DataArray | None]]
    panels = [(STAGES.get(str(stage), shorten(str(stage))), tables.sel(objective_stage=stage), names, None)
              for stage in tables["objective_stage"].values]  # fmt: skip
    for name, title in BLOCKS.items():
        if has(record, name):
            bars = series(record, f"{name}_error") if has(record, f"{name}_error") else None
            table, own = _tables(record, name)
            panels.append((title, table, own, bars))
    columns = 1 if is_narrow(width) else 3
    rows = -(-len(panels) // columns)
    figure, axes = grid(width, columns, rows, panel_height=2.1, legend_rows=2)
    for spare in axes.flat[len(panels) :]:
        spare.remove()
    lines = []
    for (title, table, own, bars), axis in zip(panels, axes.flat, strict=False):
        drawn = _pairs(axis, table, own, bars)
        lines = lines or drawn
        panel(axis, title=title)
        mark_missing(axis, table["step"].values, covered_steps(table))
        step_axis(axis, table["step"].values)
    legend(figure, lines, width, columns=1 if is_narrow(width) else 3)
    return figure


def objective_interference(record: Record, *, width: float = WIDE, count: int = 3) -> Figure:
    """What a step on one objective (columns) does to the loss of another (rows), at `count` steps.

    Shown is −⟨g_i, g_j⟩ / ⟨g_j, g_j⟩, in units of what the step takes from its own loss.

    Args:
        record: Holds `objective_interference(step, objective, other)`, −⟨g_i, g_j⟩, with names along its axes.
        width: Of the figure in inches; below 6 the steps stand below each other.
        count: How many steps are shown, 1 to 5.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `width` is no number above 2; `record` has no steps, no finite interference, or objectives without
            names; `count` is not a whole number from 1 to 5.

    Example:
        >>> names = {"objective": ["a", "b"], "other": ["a", "b"]}
        >>> axes, values = ("step", "objective", "other"), [[[-4.0, 1.0], [1.0, -2.0]]]
        >>> record = xr.Dataset({"objective_interference": (axes, values)}, {"step": [0], **names})
        >>> objective_interference(record).axes[0].images[0].get_array().tolist()
        [[-1.0, 0.5], [0.25, -1.0]]
    """
    record = check_record(record)
    tables, names = _tables(record, "objective_interference")
    picks, narrow = chosen_steps(covered_steps(tables), count), is_narrow(width)
    rows, columns = (len(picks), 1) if narrow else (1, len(picks))
    figure, axes = grid(width, columns, rows, panel_height=min(2.6, 0.95 * width / columns))
    for place, (pick, axis) in enumerate(zip(picks, axes.flat, strict=True)):
        table = tables.values[pick]
        panel(axis, title=step_words(float(tables["step"].values[pick])))
        _heat(axis, table / np.abs(table.diagonal()), names, named=narrow or place == 0)
    return figure


def _tables(record: xr.Dataset, name: str) -> tuple[xr.DataArray, list[str]]:
    tables = series(record, name)
    if not all(axis in record.coords for axis in tables.dims):
        missing = [str(axis) for axis in tables.dims if axis not in record.coords]
        raise ValueError(f"`record` must name what stands along {', '.join(missing)}; got no such coordinate.")
    return tables, [shorten(str(value), 18) for value in tables[tables.dims[-1]].values]


def _heat(axes: Axes, table: np.ndarray, names: list[str], *, named: bool) -> None:
    axes.imshow(table, cmap=DIVERGING, vmin=-1, vmax=1, interpolation="none")
    axes.grid(visible=False)
    places = range(len(names))
    axes.set_xticks([])
    axes.set_yticks(places if named else [], names if named else [], parse_math=False)
    axes.tick_params(axis="y", labelsize=7 if len(names) <= MOST_NAMED else 5, length=0)
    if len(names) > MOST_NAMED:
        return
    for i, j in itertools.product(places, places):
        if np.isfinite(table[i, j]):
            colour = "white" if abs(table[i, j]) > STRONG else PALETTE["ink"]
            words = f"{table[i, j].round(1) + 0.0:.1f}"
            axes.text(j, i, words, ha="center", va="center", fontsize=6.5, color=colour)


def _pairs(axes: Axes, table: xr.DataArray, names: list[str], bars: xr.DataArray | None) -> list:
    """A line for each pair, with bars of one standard error if any; those that a legend names."""
    axes.axhline(0, color=PALETTE["rule"], linewidth=0.8)
    steps, places = table["step"].values, list(itertools.combinations(range(len(names)), 2))
    values = [table.values[:, i, j] for i, j in places]
    if not values:
        return []
    if len(names) > MOST_NAMED:
        for value in values:
            axes.plot(steps, value, color=PALETTE["muted"], linewidth=0.5, alpha=0.5)
        median = np.median(np.stack(values), axis=0)
        return axes.plot(steps, median, color=PALETTE["ink"], linewidth=1.8, label=f"median of {len(values)} pairs")
    lines = []
    for number, ((i, j), value) in enumerate(zip(places, values, strict=True)):
        colour, style = CATEGORIES[number % len(CATEGORIES)], "-" if number < len(CATEGORIES) else "--"
        lines += axes.plot(
            steps, value, color=colour, linestyle=style, linewidth=1.4, marker="o", markersize=2.8,
            label=f"{names[i]}, {names[j]}",
        )  # fmt: skip
        if bars is not None:
            spread = np.nan_to_num(bars.values[:, i, j])
            axes.errorbar(steps, value, yerr=spread, color=colour, linestyle="none", elinewidth=1, capsize=2)
    return lines
