"""How training went: loss and score, and whether one step did what the NTK predicted."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .records import Record, check_record, covered_steps, has, series
from .style import PALETTE, WIDE, grid, is_narrow, legend, log_axis, mark_missing, panel, step_axis

__all__ = ["loss_and_score", "loss_change"]


def loss_and_score(record: Record, *, width: float = WIDE) -> Figure:
    """Loss (logarithmic) and, if the record has it, score at each training step.

    Args:
        record: Holds `loss(step)`, perhaps `score(step)`.
        width: Of the figure in inches; below 6 the panels stand below each other.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `width` is no number above 2; `record` has no steps or no finite loss.

    Example:
        >>> import xarray as xr
        >>> record = xr.Dataset({"loss": ("step", [1.0, 0.1])}, coords={"step": [0, 100]})
        >>> [axes.get_title(loc="left") for axes in loss_and_score(record).axes]
        ['Loss']
    """
    record = check_record(record)
    names = [name for name in ("loss", "score") if name == "loss" or has(record, name)]
    columns = 1 if is_narrow(width) else len(names)
    figure, axes = grid(width, columns, len(names) // columns, panel_height=2.4)
    for name, role, axis in zip(names, ("ink", "score"), axes.flat, strict=False):
        values = series(record, name)
        _line(axis, values, role)
        mark_missing(axis, values["step"].values, covered_steps(values))
        panel(axis, title=name.capitalize())
        step_axis(axis, values["step"].values)
        if name == "loss":
            log_axis(axis, values.values)
    return figure


def loss_change(record: Record, *, width: float = WIDE) -> Figure:
    """The change of the loss by one step of gradient descent: predicted to first order, −η‖∇L‖², and actual.

    Left: both over training. Right: actual / predicted, 1 where a step is small enough for the linear theory.

    Args:
        record: Holds `predicted_loss_change(step)` and `actual_loss_change(step)`.
        width: Of the figure in inches; below 6 the panels stand below each other.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `width` is no number above 2; `record` has no steps, or lacks one of the two variables.

    Example:
        >>> import xarray as xr
        >>> changes = {name: ("step", [-0.1, -0.02]) for name in ("predicted_loss_change", "actual_loss_change")}
        >>> figure = loss_change(xr.Dataset(changes, coords={"step": [0, 100]}))
        >>> figure.axes[1].lines[1].get_ydata()
        array([1., 1.])
    """
    record = check_record(record)
    predicted, actual = series(record, "predicted_loss_change"), series(record, "actual_loss_change")
    columns = 1 if is_narrow(width) else 2
    figure, axes = grid(width, columns, 2 // columns, panel_height=2.4, legend_rows=1)
    both, ratio = axes.flat
    lines = [_line(both, predicted, "ntk", label="predicted"), _line(both, actual, "ink", label="actual", marker="x")]
    for axis in axes.flat:
        mark_missing(axis, record["step"].values, covered_steps(predicted, actual))
    panel(both, title="Change of the loss in one step")
    step_axis(both, record["step"].values)
    ratio.axhline(1, color=PALETTE["muted"], linewidth=0.8, linestyle=(0, (4, 3)))
    _line(ratio, actual / predicted.where(predicted != 0), "ink")
    panel(ratio, title="Actual / predicted")
    step_axis(ratio, record["step"].values)
    legend(figure, lines, width)
    return figure


def _line(axes: Axes, values, role: str, *, label: str = "", marker: str = "o"):
    (line,) = axes.plot(
        values["step"].values,
        values.values,
        color=PALETTE[role],
        linewidth=1.6,
        marker=marker,
        markersize=3.2,
        label=label or role,
    )
    return line
