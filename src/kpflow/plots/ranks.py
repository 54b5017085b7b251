"""How many directions the operators have, and how large they are."""

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .records import Record, check_record, covered_steps, has, series
from .style import (
    OPERATORS,
    PALETTE,
    WIDE,
    grid,
    is_narrow,
    label_ends,
    legend,
    log_axis,
    mark_missing,
    panel,
    step_axis,
)

__all__ = ["effective_ranks", "rank_bounds"]

_TITLES = {"effective_rank": "Effective rank", "trace": "Trace (of P Pᵀ for P)"}


def effective_ranks(record: Record, *, width: float = WIDE) -> Figure:
    """Effective rank (tr A)² / ‖A‖²_F of the NTK, of P Pᵀ and of K over training, and their traces.

    The trace of P Pᵀ is ‖P‖²_F. Bars are one standard error of the estimate; steps without a finite value are
    marked × on the axis.

    Args:
        record: Holds `{ntk,propagator,kernel}_effective_rank(step)`, any of them, and perhaps `…_error`, `…_trace`,
            `…_trace_error`.
        width: Of the figure in inches; below 6 the panels stand below each other.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `width` is no number above 2; `record` has no steps, or the effective rank of none of the three.

    Example:
        >>> import xarray as xr
        >>> record = xr.Dataset({"ntk_effective_rank": ("step", [9.0, 3.0])}, coords={"step": [0, 100]})
        >>> len(effective_ranks(record).axes)
        1
    """
    record = check_record(record)
    operators = [name for name in OPERATORS if has(record, f"{name}_effective_rank")]
    if not operators:
        raise ValueError("`record` must hold the effective rank of an operator, such as 'ntk_effective_rank'.")
    kinds = [kind for kind in _TITLES if any(has(record, f"{name}_{kind}") for name in operators)]
    columns = 1 if is_narrow(width) else len(kinds)
    figure, axes = grid(width, columns, len(kinds) // columns, panel_height=2.7, legend_rows=1)
    for kind, axis in zip(kinds, axes.flat, strict=True):
        _estimates(axis, record, [f"{name}_{kind}" for name in operators if has(record, f"{name}_{kind}")])
        panel(axis, title=_TITLES[kind])
        step_axis(axis, record["step"].values)
    legend(figure, [_key(name) for name in operators], width, columns=3)
    return figure


def rank_bounds(record: Record, *, width: float = WIDE) -> Figure:
    """The NTK's effective rank and norm between what the network's structure allows them, and ranks along each axis.

    Left and middle: the bands are what all networks with this K and such singular values of P may have, the dashed line
    is rank K. Right: effective ranks of the NTK's partial traces on trials, time and units, with standard errors.

    Args:
        record: Holds `ntk_effective_rank(step)`, `ntk_effective_rank_low`, `ntk_effective_rank_high`, `ntk_rank`,
            `ntk_spectrum(step, mode)`, `ntk_norm_low`, `ntk_norm_high`, and `ntk_effective_rank_along(step, axis)`,
            perhaps with `…_error`.
        width: Of the figure in inches; below 6 the panels stand below each other.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `width` is no number above 2; `record` has no steps or lacks one of these variables.

    Example:
        >>> import xarray as xr
        >>> whole = {"effective_rank": 9.0, "effective_rank_low": 1.0, "effective_rank_high": 70.0, "rank": 99.0}
        >>> whole |= {"norm_low": 1.0, "norm_high": 3.0}
        >>> variables = {f"ntk_{name}": ("step", [value]) for name, value in whole.items()}
        >>> variables["ntk_spectrum"] = ("step", "mode"), [[2.0, 1.0]]
        >>> variables["ntk_effective_rank_along"] = ("step", "axis"), [[3.0, 2.0]]
        >>> len(rank_bounds(xr.Dataset(variables, {"step": [0], "axis": ["time", "unit"]})).axes)
        3
    """
    record = check_record(record)
    rank, norm = series(record, "ntk_rank"), series(record, "ntk_spectrum").isel(mode=0)
    keys = _bound_keys()
    columns, legend_rows = (1, len(keys)) if is_narrow(width) else (3, 1)
    figure, axes = grid(width, columns, 3 // columns, panel_height=2.9, legend_rows=legend_rows)
    whole, largest, parts = axes.flat
    _estimates(whole, record, ["ntk_effective_rank"])
    whole.plot(record["step"].values, rank.values, color=PALETTE["kernel"], linestyle="--", linewidth=1.4)
    panel(whole, title="Effective rank within the bounds")
    _band(whole, record, "ntk_effective_rank", rank.values)
    largest.plot(norm["step"].values, norm.values, color=PALETTE["ntk"], marker="o", markersize=2.6, linewidth=1.4)
    mark_missing(largest, norm["step"].values, covered_steps(norm))
    panel(largest, title="Norm within the bounds")
    _band(largest, record, "ntk_norm", norm.values)
    _along_axes(parts, record)
    for panel_axes in axes.flat:
        step_axis(panel_axes, record["step"].values)
    legend(figure, keys, width, columns=len(keys) // legend_rows)
    return figure


def _band(axes: Axes, record: xr.Dataset, name: str, others: np.ndarray) -> None:
    low, high = (series(record, f"{name}_{end}").values for end in ("low", "high"))
    axes.fill_between(record["step"].values, low, high, color=PALETTE["grid"], linewidth=0)
    log_axis(axes, np.concatenate([low, high, others]))


def _along_axes(axes: Axes, record: xr.Dataset) -> None:
    """Effective ranks of the partial traces."""
    along, steps = series(record, "ntk_effective_rank_along"), record["step"].values
    bars = series(record, f"{along.name}_error") if has(record, f"{along.name}_error") else 0 * along
    lines = []
    for name, marker in zip(map(str, along["axis"].values), "os^", strict=False):
        values, errors = (np.asarray(part.sel(axis=name).values) for part in (along, bars))
        axes.errorbar(
            steps, values, yerr=np.nan_to_num(errors), color=PALETTE["ntk"], marker=marker, markersize=2.6,
            linewidth=1.4, elinewidth=1.2, capsize=2.4,
        )  # fmt: skip
        lines.append((steps, values, name, PALETTE["ntk"]))
    mark_missing(axes, steps, covered_steps(along))
    log_axis(axes, along.values)
    panel(axes, title="Effective rank along each axis")
    label_ends(axes, lines)


def _bound_keys() -> list[Artist]:
    return [
        _key("ntk"),
        Line2D([], [], color=PALETTE["kernel"], linestyle="--", linewidth=1.4, label="rank K = rank NTK"),
        Patch(color=PALETTE["grid"], label="what the structure allows"),
    ]


def _key(operator: str) -> Line2D:
    symbol, marker = OPERATORS[operator]
    return Line2D([], [], color=PALETTE[operator], marker=marker, markersize=4, linewidth=1.6, label=symbol)


def _estimates(axes: Axes, record: xr.Dataset, names: list[str]) -> None:
    arrays = {name: series(record, name) for name in names}
    steps = record["step"].values
    for name, values in arrays.items():
        bars = series(record, f"{name}_error").values if has(record, f"{name}_error") else np.zeros(len(steps))
        operator = name.split("_")[0]
        axes.errorbar(
            steps, values.values, yerr=np.nan_to_num(bars), color=PALETTE[operator], marker=OPERATORS[operator][1],
            markersize=2.6, linewidth=1.4, elinewidth=1.2, capsize=2.4,
        )  # fmt: skip
    mark_missing(axes, steps, covered_steps(*arrays.values()))
    log_axis(axes, np.concatenate([values.values for values in arrays.values()]))
