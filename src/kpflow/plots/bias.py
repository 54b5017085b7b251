"""The self-referential bias: the kernel's core sees what the states already do."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .records import Record, check_record, chosen_steps, covered_steps, has, series
from .style import (
    PALETTE,
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

__all__ = ["self_referential_bias"]

_CURVES = (("core_spectrum", "kernel", "^", "core of K"), ("state_spectrum", "states", "o", "PCA of the states"))


def self_referential_bias(record: Record, *, width: float = WIDE) -> Figure:
    """The spectrum of K's Kronecker core beside the variances of the states' PCA, each divided by its sum.

    The core of a weight matrix is the Gram matrix of what the weight sees; for the recurrent weights those are the
    states themselves, so gradient descent moves first along what the states already do. Shown at the first and the last
    analysed step; if the record has it, also the overlap of the leading core modes with the states' leading time
    courses.

    Args:
        record: Holds `core_spectrum(step, mode)` and `state_spectrum(step, mode)`, perhaps
            `core_state_overlap(step, mode)`.
        width: Of the figure in inches; below 6 the panels stand below each other.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `width` is no number above 2; `record` has no steps, or lacks one of the two spectra.

    Example:
        >>> import xarray as xr
        >>> spectra = {name: (("step", "mode"), [[3.0, 1.0]]) for name in ("core_spectrum", "state_spectrum")}
        >>> figure = self_referential_bias(xr.Dataset(spectra, coords={"step": [0]}))
        >>> figure.axes[0].lines[0].get_ydata()
        array([0.75, 0.25])
    """
    record = check_record(record)
    shares = {name: _shares(series(record, name)) for name, *_ in _CURVES}
    picks = chosen_steps(covered_steps(*shares.values()), 2)
    overlap = series(record, "core_state_overlap") if has(record, "core_state_overlap") else None
    count = len(picks) + (overlap is not None)
    columns = 1 if is_narrow(width) else count
    figure, axes = grid(width, columns, count // columns, panel_height=2.5, legend_rows=1)
    for pick, axis in zip(picks, axes.flat, strict=False):
        _pair(axis, shares, pick, step_words(float(record["step"].values[pick])).capitalize())
    if overlap is not None:
        _overlap(axes.flat[-1], overlap)
    legend(figure, [_key(role, marker, words) for _, role, marker, words in _CURVES], width)
    return figure


def _key(role: str, marker: str, words: str) -> Line2D:
    return Line2D([], [], color=PALETTE[role], marker=marker, markersize=4, linewidth=1.5, label=words)


def _shares(spectrum: xr.DataArray) -> xr.DataArray:
    return spectrum / spectrum.sum("mode").where(spectrum.notnull().any("mode"))


def _pair(axes: Axes, shares: dict[str, xr.DataArray], pick: int, title: str) -> None:
    for name, role, marker, _ in _CURVES:
        values = shares[name].values[pick]
        axes.plot(
            np.arange(1, len(values) + 1), values, color=PALETTE[role], marker=marker, markersize=3.4, linewidth=1.4
        )
    panel(axes, title=title, x="mode", y="share of the sum")
    whole_numbers(axes)
    log_axis(axes, np.concatenate([shares[name].values[pick] for name, *_ in _CURVES]))


def _overlap(axes: Axes, overlap: xr.DataArray) -> None:
    picks = chosen_steps(covered_steps(overlap), 4)
    for pick, colour in zip(picks, sequence_colours(len(picks)), strict=True):
        words = step_words(float(overlap["step"].values[pick]))
        values = overlap.values[pick]
        axes.plot(np.arange(1, len(values) + 1), values, color=colour, linewidth=1.5, label=words)
    panel(axes, title="Overlap of the subspaces", x="leading modes")
    whole_numbers(axes)
    axes.set_ylim(0, 1.05)
    axes.legend(loc="lower right", frameon=False, fontsize=8.5, labelcolor=PALETTE["ink"], handlelength=1.4)
