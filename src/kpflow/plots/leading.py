"""The leading modes of the NTK, over trials and time."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .records import Conditions, Record, check_record, chosen_steps, conditions, covered_steps, has, series, thin
from .style import (
    DIVERGING,
    PALETTE,
    WIDE,
    condition_colours,
    condition_keys,
    grid,
    is_narrow,
    legend,
    panel,
    step_words,
)

__all__ = ["MOST_TIMES", "MOST_TRIALS", "ntk_modes"]

MOST_TRIALS, MOST_TIMES = 60, 300
"""More trials and times than these are thinned evenly."""


def ntk_modes(record: Record, *, width: float = WIDE) -> Figure:
    """The leading eigenvectors of the NTK at the first and at the last analysed step.

    An eigenvector v[trial, time, unit] is shown by its dominant separable part a[trial, time] · b[unit]: a as a heat
    map (trials in the order of their condition, scaled to its largest entry, whose sign is made positive) and as one
    time course per trial, coloured by condition; b as a strip over units. The percentage is the part's share of the
    mode's squared norm.

    Args:
        record: Holds `ntk_mode_time(step, leading, trial, time)`, perhaps `ntk_mode_unit(step, leading, unit)` and
            `ntk_mode_separability(step, leading)`.
        width: Of the figure in inches; below 6 the two steps stand beside each other and the modes below.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `width` is no number above 2; `record` has no steps or no finite mode.

    Example:
        >>> import xarray as xr
        >>> axes = ("step", "leading", "trial", "time")
        >>> record = xr.Dataset({"ntk_mode_time": (axes, np.ones((1, 1, 3, 5)))}, coords={"step": [0]})
        >>> [axes.get_title(loc="left") for axes in ntk_modes(record).axes]
        ['Mode 1', '']
    """
    record = check_record(record)
    modes = series(record, "ntk_mode_time")
    units = series(record, "ntk_mode_unit") if has(record, "ntk_mode_unit") else None
    picks = chosen_steps(covered_steps(modes), 2)
    leading = [k for k in range(modes.sizes["leading"]) if bool(modes[picks, k].notnull().any())]
    narrow = is_narrow(width)
    rows, columns = (len(leading), len(picks)) if narrow else (len(picks), len(leading))
    heights = [1.0, 1.0] if units is None else [1.0, 1.0, 0.4]
    figure, axes = grid(width, columns, len(heights) * rows, panel_height=1.25, legend_rows=2, heights=heights * rows)
    for index, (pick, mode) in enumerate((pick, mode) for pick in picks for mode in leading):
        across, down = divmod(index, len(leading)) if narrow else divmod(index, len(leading))[::-1]
        heat, course, *strip = axes[len(heights) * down : len(heights) * (down + 1), across]
        side = "" if across or narrow else step_words(float(record["step"].values[pick]))
        panel(heat, title=_title(record, pick, mode, narrow=narrow), y=side)
        _pattern(heat, course, conditions(record), modes[pick, mode])
        if units is not None:
            _strip(strip[0], units.values[pick, mode])
    condition = conditions(record)
    legend(figure, condition_keys(condition), width, columns=4 if narrow else 8, title=condition.label)
    return figure


def _title(record: xr.Dataset, pick: int, mode: int, *, narrow: bool) -> str:
    step = step_words(float(record["step"].values[pick])).capitalize()
    words = f"{step} · {mode + 1}" if narrow else f"Mode {mode + 1}"
    if not has(record, "ntk_mode_separability"):
        return words
    share = series(record, "ntk_mode_separability").values[pick, mode]
    return words if np.isnan(share) else f"{words} ({share:.0%})"


def _scaled(pattern: np.ndarray) -> np.ndarray:
    """The pattern over its entry of largest magnitude; as it is if it has none."""
    largest = pattern.flat[np.argmax(np.nan_to_num(np.abs(pattern)))]
    return pattern / largest if np.isfinite(largest) and largest != 0 else pattern


def _pattern(heat: Axes, course: Axes, condition: Conditions, mode: xr.DataArray) -> None:
    trials = condition.order[thin(len(condition.order), MOST_TRIALS)]
    times = thin(mode.sizes["time"], MOST_TIMES)
    pattern = _scaled(mode.values)[:, times]
    instants = np.asarray(mode["time"].values, dtype=float)[times]  # the index where the record gives no times
    ends = float(instants[0]), float(instants[-1] if len(instants) > 1 else instants[0] + 1)
    _image(heat, pattern[trials], (*ends, 0.0, float(len(trials))))
    colours = condition_colours(condition)
    for trial in trials:
        course.plot(instants, pattern[trial], color=colours[trial], linewidth=0.8)
    units = mode["time"].attrs.get("units")
    panel(course, x=f"time ({units})" if units else "time")
    course.axhline(0, color=PALETTE["rule"], linewidth=0.8)
    course.grid(visible=False)
    course.set(ylim=(-1.08, 1.08), yticks=[-1, 0, 1], xlim=ends)


def _strip(axes: Axes, units: np.ndarray) -> None:
    panel(axes, x="units")
    _image(axes, _scaled(units[None]), (0.0, float(len(units)), 0.0, 1.0))
    axes.set(xticks=[])


def _image(axes: Axes, values: np.ndarray, extent: tuple[float, float, float, float]) -> None:
    axes.imshow(
        values, cmap=DIVERGING, vmin=-1, vmax=1, aspect="auto", interpolation="none", extent=extent, origin="lower"
    )
    axes.grid(visible=False)
    axes.set(yticks=[])
    axes.tick_params(labelbottom=False)
