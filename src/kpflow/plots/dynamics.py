"""Fixed points over training: where they are, how many, the bifurcations between them, and Lyapunov exponents."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .records import Record, check_record, chosen_steps, covered_steps, has, series, thin
from .space import component_names, component_signs, draw_space, on_page
from .style import PALETTE, WIDE, grid, is_narrow, legend, mark_missing, panel, shades, step_axis, step_words

__all__ = ["bifurcations", "fixed_points", "lyapunov"]

MOST_PATHS, MOST_POINTS = 30, 100
"""More trials, and more times per trial, than these are thinned evenly behind the fixed points."""

MARKERS = ("^", "P", "v", "D", "d", "s", "h", "H", "*", "X", "p", "8")
"""One for each kind of event, in the order of its names."""


def fixed_points(record: Record, *, width: float = WIDE, count: int = 3) -> Figure:
    """Fixed points at a static input among the states of all trials, at `count` steps of training.

    In the principal components and from the direction of `trajectories`: filled where stable, open where some |μ| > 1,
    small crosses where the state is slow but does not stand still; the trajectories are thin and grey.

    Args:
        record: Holds `fixed_point_position(step, point, component)`, `fixed_point_{stable,slow}(step, point)` and
            `trajectory(step, trial, time, component)`.
        width: Of the figure in inches; below 6 the panels stand below each other.
        count: How many steps to show, 1 to 5.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `width` is no number above 2; `record` has no steps, or lacks one of the variables; `count` is not a
            whole number from 1 to 5.

    Example:
        >>> points = {name: (("step", "point"), [[value]]) for name, value in (
        ...     ("fixed_point_stable", 1.0), ("fixed_point_slow", 0.0))}
        >>> record = xr.Dataset({
        ...     "trajectory": (("step", "trial", "time", "component"), np.ones((1, 2, 4, 3))),
        ...     "fixed_point_position": (("step", "point", "component"), np.zeros((1, 1, 3))), **points},
        ...     coords={"step": [5]})
        >>> [axes.get_title(loc="left") for axes in fixed_points(record).axes]
        ['Step 5: 1 stable']
    """
    record = check_record(record)
    positions = series(record, "fixed_point_position")
    signs = component_signs(record)
    paths = series(record, "trajectory") * signs
    positions = positions * signs
    kinds = _kinds(record)
    picks = chosen_steps(covered_steps(paths, positions), count)
    columns = 1 if is_narrow(width) else len(picks)
    figure, axes = grid(width, columns, len(picks) // columns, panel_height=min(3.2, width / columns), legend_rows=1)
    for pick, axis in zip(picks, axes.flat, strict=True):
        _draw_paths(axis, paths.values[pick])
        for name, members in kinds.items():
            page = on_page(positions.values[pick][members[pick]])
            axis.plot(*page.T, linestyle="none", zorder=3, **_LOOKS[name])
        words = ", ".join(
            f"{int(members[pick].sum())} {name}" for name, members in kinds.items() if members[pick].any()
        )
        panel(axis, title=f"{step_words(float(record['step'].values[pick])).capitalize()}: {words}")
        draw_space(axis, component_names(record, pick))
    legend(figure, [Line2D([], [], linestyle="none", label=name, **_LOOKS[name]) for name in kinds], width, columns=3)
    return figure


_LOOKS = {
    "stable": {"marker": "o", "color": PALETTE["stable"], "markersize": 6},
    "saddle": {
        "marker": "o", "color": PALETTE["saddle"], "markersize": 6, "markerfacecolor": "none", "markeredgewidth": 1.4,
    },
    "slow": {"marker": "x", "color": PALETTE["ink"], "markersize": 4, "markeredgewidth": 1},
}  # fmt: skip


def _kinds(record: xr.Dataset) -> dict[str, np.ndarray]:
    """Which entries `[step, point]` are stable fixed points, other fixed points, and slow points."""
    stable, slow = (series(record, name).values for name in ("fixed_point_stable", "fixed_point_slow"))
    return {"stable": (slow == 0) & (stable == 1), "saddle": (slow == 0) & (stable == 0), "slow": slow == 1}


def _draw_paths(axes: Axes, paths: np.ndarray) -> None:
    times = thin(paths.shape[1], MOST_POINTS)
    for trial in thin(len(paths), MOST_PATHS):
        axes.plot(*on_page(paths[trial][times]).T, color=PALETTE["muted"], linewidth=0.5, alpha=0.6)


def bifurcations(record: Record, *, width: float = WIDE) -> Figure:
    """How many fixed points there are over training, the largest |μ| of each, and the bifurcations between steps.

    Events are marked above the counts, at the training step at which the straight line between the parameters of both
    checkpoints around them has them. A point is unstable where |μ| > 1.

    Args:
        record: Holds `fixed_point_{stable,slow,multiplier}(step, point)`, perhaps `event_step(event)` and
            `event_kind(event)`, indices of its attribute `names`.
        width: Of the figure in inches; below 6 the panels stand below each other.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `width` is no number above 2; `record` has no steps, or lacks one of the variables of points.

    Example:
        >>> points = {f"fixed_point_{name}": (("step", "point"), [[value]]) for name, value in (
        ...     ("stable", 1.0), ("slow", 0.0), ("multiplier", 0.9))}
        >>> bifurcations(xr.Dataset(points, coords={"step": [5]})).axes[1].lines[0].get_ydata()
        array([0.9])
    """
    record = check_record(record)
    sizes, kinds = series(record, "fixed_point_multiplier"), _kinds(record)
    covered, steps = covered_steps(series(record, "fixed_point_slow")), record["step"].values
    columns = 1 if is_narrow(width) else 2
    figure, axes = grid(width, columns, 2 // columns, panel_height=2.7, legend_rows=1 if width > 6 else 2)
    counts, multipliers = axes.flat
    for name in ("stable", "saddle"):
        number, look = kinds[name].sum(axis=1)[covered], {**_LOOKS[name], "markersize": 3.4}
        counts.plot(steps[covered], number, drawstyle="steps-post", linewidth=1.4, **look)
        step, point = np.nonzero(kinds[name])
        multipliers.plot(steps[step], sizes.values[step, point], linestyle="none", **look)
    events = _mark_events(counts, record)
    multipliers.axhline(1.0, color=PALETTE["muted"], linewidth=0.8)
    for axis, title in ((counts, "Number of fixed points"), (multipliers, "Largest |μ| of each")):
        panel(axis, title=title)
        step_axis(axis, steps)
        mark_missing(axis, steps, covered)
    most = max(float(kinds[name].sum(axis=1).max()) for name in ("stable", "saddle"))
    counts.set_ylim(-0.12 * (most + 1), 1.3 * (most + 1))
    counts.yaxis.get_major_locator().set_params(integer=True)
    keys = [Line2D([], [], linestyle="none", label=name, **_LOOKS[name]) for name in ("stable", "saddle")]
    legend(figure, [*keys, *events], width, columns=3 if is_narrow(width) else None)
    return figure


def _mark_events(axes: Axes, record: xr.Dataset) -> list[Line2D]:
    """Ticks from the top of the panel, with a marker for the kind; returns a key for each kind."""
    if not has(record, "event_step") or not has(record, "event_kind"):
        return []
    at, codes = series(record, "event_step").values, series(record, "event_kind").values.astype(int)
    names = record["event_kind"].attrs.get("names", [])
    keys = []
    for code in np.unique(codes):
        look = {"marker": MARKERS[code % len(MARKERS)], "color": PALETTE["event"], "markersize": 5}
        here = at[codes == code]
        across = axes.get_xaxis_transform()
        axes.vlines(here, 0.86, 1.0, transform=across, color=PALETTE["event"], linewidth=0.9)
        axes.plot(here, np.full(len(here), 0.86), transform=across, linestyle="none", **look)
        name = names[code] if code < len(names) else f"kind {code}"
        keys.append(Line2D([], [], linestyle="none", label=str(name), **look))
    return keys


def lyapunov(record: Record, *, width: float = WIDE) -> Figure:
    """The leading Lyapunov exponents at a static input over training, per time step, with one standard error.

    Args:
        record: Holds `lyapunov_exponent(step, exponent)`, perhaps `lyapunov_exponent_error(step, exponent)`.
        width: Of the figure in inches.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `width` is no number above 2; `record` has no steps, or no finite exponent.

    Example:
        >>> exponents = (("step", "exponent"), [[-0.1, -0.3], [0.02, -0.1]])
        >>> figure = lyapunov(xr.Dataset({"lyapunov_exponent": exponents}, coords={"step": [0, 100]}))
        >>> figure.axes[0].lines[0].get_ydata()
        array([-0.1 ,  0.02])
    """
    record = check_record(record)
    values, steps = series(record, "lyapunov_exponent"), record["step"].values
    bars = np.zeros(values.shape)
    if has(record, "lyapunov_exponent_error"):
        bars = np.nan_to_num(series(record, "lyapunov_exponent_error").values)
    figure, axes = grid(width, 1, 1, panel_height=2.9, legend_rows=1)
    (axis,) = axes.flat
    shown = np.flatnonzero(values.notnull().any("step").values)
    keys = []
    for k, alpha in zip(shown, shades(len(shown)), strict=True):
        axis.errorbar(
            steps, values.values[:, k], yerr=bars[:, k], color=PALETTE["exponent"], alpha=alpha, marker="o",
            markersize=2.6, linewidth=1.6 if k == 0 else 1.0, elinewidth=1.0, capsize=2,
        )  # fmt: skip
        keys.append(Line2D([], [], color=PALETTE["exponent"], alpha=alpha, linewidth=1.6, label=f"λ{k + 1}"))
    axis.axhline(0.0, color=PALETTE["muted"], linewidth=0.8)
    panel(axis, title="Lyapunov exponents per time step")
    step_axis(axis, steps)
    mark_missing(axis, steps, covered_steps(values))
    legend(figure, [keys[0], keys[-1]] if len(keys) > 1 else keys, width)
    return figure
