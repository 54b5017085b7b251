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
    time course per trial, coloured by condition. The percentage is the part's share of the mode's squared norm.

    Args:
        record: Holds `ntk_mode_time(step, leading, trial, time)`, perhaps `ntk_mode_separability(step, leading)`.
        width: Of the figure in inches; below 6 the two steps stand beside each other and the modes below.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `record` has no steps or no finite mode.

    Example:
        >>> import xarray as xr
        >>> axes = ("step", "leading", "trial", "time")
        >>> record = xr.Dataset({"ntk_mode_time": (axes, np.ones((1, 1, 3, 5)))}, coords={"step": [0]})
        >>> [axes.get_title(loc="left") for axes in ntk_modes(record).axes]
        ['Mode 1', '']
    """
    record = check_record(record)
    modes = series(record, "ntk_mode_time")
    picks = chosen_steps(covered_steps(modes), 2)
    leading = [k for k in range(modes.sizes["leading"]) if bool(modes[picks, k].notnull().any())]
    cells = [(pick, mode) for pick in picks for mode in leading]
    narrow = is_narrow(width)
    rows, columns = (len(leading), len(picks)) if narrow else (len(picks), len(leading))
    figure, axes = grid(width, columns, 2 * rows, panel_height=1.25, legend_rows=2)
    for index, (pick, mode) in enumerate(cells):
        across, down = divmod(index, len(leading)) if narrow else divmod(index, len(leading))[::-1]
        pair = axes[2 * down, across], axes[2 * down + 1, across]
        side = "" if across or narrow else step_words(float(record["step"].values[pick]))
        _cell(*pair, record, modes[pick, mode], _title(record, pick, mode, narrow=narrow), side)
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


def _cell(heat: Axes, course: Axes, record: xr.Dataset, mode: xr.DataArray, title: str, side: str) -> None:
    condition = conditions(record)
    trials = condition.order[thin(len(condition.order), MOST_TRIALS)]
    times = thin(mode.sizes["time"], MOST_TIMES)
    pattern = mode.values / mode.values.flat[np.nanargmax(np.abs(mode.values))]
    instants = np.asarray(mode["time"].values, dtype=float)  # the index where the record gives no times
    _heat(heat, pattern[np.ix_(trials, times)], instants[times], title, side)
    _courses(course, pattern[:, times], instants[times], condition, trials)


def _heat(axes: Axes, pattern: np.ndarray, instants: np.ndarray, title: str, side: str) -> None:
    extent = (instants[0], instants[-1] if len(instants) > 1 else instants[0] + 1, 0, len(pattern))
    axes.imshow(
        pattern, cmap=DIVERGING, vmin=-1, vmax=1, aspect="auto", interpolation="none", extent=extent, origin="lower"
    )
    panel(axes, title=title, y=side)
    axes.grid(visible=False)
    axes.set(yticks=[])
    axes.tick_params(labelbottom=False)


def _courses(axes: Axes, pattern: np.ndarray, instants: np.ndarray, condition: Conditions, trials: np.ndarray) -> None:
    colours = condition_colours(condition)
    for trial in trials:
        axes.plot(instants, pattern[trial], color=colours[trial], linewidth=0.8)
    panel(axes, x="time")
    axes.axhline(0, color=PALETTE["rule"], linewidth=0.8)
    axes.grid(visible=False)
    axes.set(ylim=(-1.08, 1.08), yticks=[-1, 0, 1], xlim=(instants[0], instants[-1]) if len(instants) > 1 else None)
