"""State trajectories in their three principal components."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .records import Conditions, Record, check_record, chosen_steps, conditions, covered_steps, series, thin
from .space import component_names, component_signs, draw_space, on_page
from .style import WIDE, condition_colours, condition_keys, grid, is_narrow, legend, panel, step_words

__all__ = ["MOST_PATHS", "MOST_POINTS", "aligned_trajectories", "trajectories"]

MOST_PATHS, MOST_POINTS = 60, 150
"""More trials, and more times per trial, than these are thinned evenly."""


def trajectories(record: Record, *, width: float = WIDE, count: int = 3) -> Figure:
    """The states of each trial in their first three principal components at `count` steps of training.

    Seen from a fixed direction without perspective; coloured by condition, a dot at the end of each trial. The
    components are those of each step's own states; their signs are chosen to agree with the last step.

    Args:
        record: Holds `trajectory(step, trial, time, component)`, perhaps `trajectory_variance(step, component)`.
        width: Of the figure in inches; below 6 the panels stand below each other.
        count: How many steps to show, 1 to 5.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `width` is no number above 2; `record` has no steps, or no finite trajectory with three components;
            `count` is not a whole number from 1 to 5.

    Example:
        >>> import xarray as xr
        >>> axes = ("step", "trial", "time", "component")
        >>> record = xr.Dataset({"trajectory": (axes, np.ones((1, 2, 4, 3)))}, coords={"step": [5]})
        >>> [axes.get_title(loc="left") for axes in trajectories(record).axes]
        ['Step 5']
    """
    record = check_record(record)
    paths = aligned_trajectories(record)
    picks = chosen_steps(covered_steps(paths), count)
    columns = 1 if is_narrow(width) else len(picks)
    figure, axes = grid(width, columns, len(picks) // columns, panel_height=min(3.2, width / columns), legend_rows=2)
    for pick, axis in zip(picks, axes.flat, strict=True):
        _draw_trials(axis, paths[pick].values, conditions(record))
        panel(axis, title=step_words(float(record["step"].values[pick])).capitalize())
        draw_space(axis, component_names(record, pick))
    condition = conditions(record)
    legend(figure, condition_keys(condition), width, columns=4 if is_narrow(width) else 8, title=condition.label)
    return figure


def aligned_trajectories(record: Record) -> xr.DataArray:
    """`trajectory(step, trial, time, component)`, each component's sign chosen to agree with the last step.

    A principal component has no sign of its own. Its sign at step k is that of ⟨component at k, component at the last⟩.

    Raises:
        ValueError: `record` has no finite trajectory with three components.

    Example:
        >>> import xarray as xr
        >>> path = np.ones((2, 1, 4, 3)) * np.array([-1.0, 1.0])[:, None, None, None]
        >>> axes = ("step", "trial", "time", "component")
        >>> aligned_trajectories(xr.Dataset({"trajectory": (axes, path)}, coords={"step": [0, 1]})).values.min()
        np.float64(1.0)
    """
    return series(record, "trajectory") * component_signs(record)


def _draw_trials(axes: Axes, paths: np.ndarray, condition: Conditions) -> None:
    colours = condition_colours(condition)
    times = thin(paths.shape[1], MOST_POINTS)
    for trial in condition.order[thin(len(condition.order), MOST_PATHS)]:
        page = on_page(paths[trial][times])
        axes.plot(*page.T, color=colours[trial], linewidth=0.9)
        seen = page[np.isfinite(page).all(-1)]
        axes.plot(*seen[-1:].T, "o", color=colours[trial], markersize=2.8)
