"""How far the NTK moved between checkpoints."""

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .records import Record, check_record, covered_steps, has, series, shorten
from .style import PALETTE, WIDE, grid, is_narrow, legend, mark_missing, panel, step_axis

__all__ = ["kernel_movement"]

PANELS = {"kernel_change": "Change ‖Θ − Θₛ‖ / ‖Θₛ‖", "kernel_alignment": "Alignment of Θ and Θₛ"}

SINCE = {"first": "early", "previous": "ntk"}
"""The colour's role for each checkpoint that one is compared with."""


def kernel_movement(record: Record, *, width: float = WIDE) -> Figure:
    """How far the NTK Θ is from that of the first checkpoint and of the one before: relative change, and alignment.

    Bars are one standard error, where the record has it.

    Args:
        record: Holds `kernel_change(step, since)` and `kernel_alignment(step, since)` with names along `since`, perhaps
            `…_error` of both.
        width: Of the figure in inches; below 6 the panels stand below each other.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `width` is no number above 2; `record` has no steps, lacks one of the two, or names along `since`.

    Example:
        >>> values = {name: (("step", "since"), [[0.1, 0.1], [0.4, 0.2]]) for name in PANELS}
        >>> record = xr.Dataset(values, {"step": [1, 9], "since": ["first", "previous"]})
        >>> kernel_movement(record).axes[0].lines[0].get_ydata()
        array([0.1, 0.4])
    """
    record = check_record(record)
    tables = [series(record, name) for name in PANELS]
    if "since" not in record.coords:
        raise ValueError("`record` must name the checkpoints compared with in a coordinate `since`; got none.")
    columns = 1 if is_narrow(width) else 2
    figure, axes = grid(width, columns, 2 // columns, panel_height=2.4, legend_rows=3 - columns)
    lines = []
    for axis, table in zip(axes.flat, tables, strict=True):
        name = str(table.name)
        errors = series(record, f"{name}_error") if has(record, f"{name}_error") else None
        lines = [_course(axis, table, errors, str(since)) for since in table["since"].values]
        panel(axis, title=PANELS[name])
        mark_missing(axis, table["step"].values, covered_steps(table))
        step_axis(axis, table["step"].values)
    legend(figure, lines, width, columns=columns)
    return figure


def _course(axes: Axes, table: xr.DataArray, errors: xr.DataArray | None, since: str):
    colour = PALETTE[SINCE.get(since, "ink")]
    (line,) = axes.plot(
        table["step"].values, table.sel(since=since).values, color=colour, linewidth=1.5, marker="o", markersize=3.2,
        label=f"since the {shorten(since)} checkpoint",
    )  # fmt: skip
    if errors is not None:
        axes.errorbar(
            table["step"].values, table.sel(since=since).values, yerr=errors.sel(since=since).fillna(0).values,
            color=colour, linestyle="none", elinewidth=1, capsize=2,
        )  # fmt: skip
    return line
