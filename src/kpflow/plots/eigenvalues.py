"""The leading eigenvalues of the NTK and of K, and the singular values of P."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .records import Record, check_record, chosen_steps, covered_steps, has, series
from .style import (
    OPERATORS,
    WIDE,
    grid,
    is_narrow,
    legend,
    log_axis,
    panel,
    sequence_colours,
    step_words,
    whole_numbers,
)

__all__ = ["spectra"]

_TITLES = {"ntk": "NTK: eigenvalues", "propagator": "P: singular values", "kernel": "K: eigenvalues"}


def spectra(record: Record, *, width: float = WIDE, count: int = 4) -> Figure:
    """Leading eigenvalues of NTK and K and singular values of P at `count` steps from the first to the last.

    Args:
        record: Holds `{ntk,propagator,kernel}_spectrum(step, mode)`, any of them, padded with NaN.
        width: Of the figure in inches; below 6 the panels stand below each other.
        count: How many steps to show, 1 to 5.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `width` is no number above 2; `record` has no steps or none of the spectra; `count` is not a whole
            number from 1 to 5.

    Example:
        >>> import xarray as xr
        >>> record = xr.Dataset({"kernel_spectrum": (("step", "mode"), [[4.0, 1.0]])}, coords={"step": [0]})
        >>> spectra(record).axes[0].lines[0].get_ydata()
        array([4., 1.])
    """
    record = check_record(record)
    names = [name for name in OPERATORS if has(record, f"{name}_spectrum")]
    if not names:
        raise ValueError("`record` must hold the spectrum of an operator, such as 'ntk_spectrum'.")
    arrays = {name: series(record, f"{name}_spectrum") for name in names}
    picks = chosen_steps(covered_steps(*arrays.values()), count)
    columns = 1 if is_narrow(width) else len(names)
    figure, axes = grid(width, columns, len(names) // columns, panel_height=2.5, legend_rows=1)
    steps, colours = record["step"].values, sequence_colours(len(picks))
    for name, axis in zip(names, axes.flat, strict=True):
        values = arrays[name].values
        for pick, colour in zip(picks, colours, strict=True):
            modes = np.arange(1, values.shape[1] + 1)
            axis.plot(modes, values[pick], color=colour, marker="o", markersize=2.8, linewidth=1.3)
        panel(axis, title=_TITLES[name], x="mode")
        whole_numbers(axis)
        log_axis(axis, values[picks])
    keys = zip(picks, colours, strict=True)
    legend(figure, [Line2D([], [], color=c, lw=2, label=step_words(steps[k])) for k, c in keys], width)
    return figure
