"""How every figure looks: one palette, quiet axes, plain-text labels, and nothing global."""

from collections.abc import Callable, Sequence
from typing import Any, SupportsFloat

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from .records import Conditions

__all__ = [
    "CATEGORIES",
    "DIVERGING",
    "NARROW",
    "OPERATORS",
    "PALETTE",
    "SEQUENCE",
    "STEP_AXIS",
    "WIDE",
    "condition_colours",
    "condition_groups",
    "condition_keys",
    "grid",
    "is_narrow",
    "label_ends",
    "legend",
    "log_axis",
    "mark_missing",
    "panel",
    "sequence_colours",
    "shades",
    "short_step",
    "step_axis",
    "step_words",
    "whole_numbers",
]

WIDE, NARROW = 9.0, 3.7
"""Widths in inches that the figures are laid out for: a page's column, and a phone."""

STEP_AXIS = "step axis"
"""The label of those axes whose abscissa is the training step."""

PALETTE = {
    "ink": "#1b2430",
    "muted": "#667182",
    "rule": "#c9d0d9",
    "grid": "#e7ebf0",
    "ntk": "#0b6bb5",
    "propagator": "#c8500a",
    "kernel": "#078a66",
    "score": "#8e4a9e",
    "inputs": "#7a8594",
    "states": "#5b4bb7",
    "error": "#b8860b",
    "targets": "#c23b6b",
    "stable": "#2f7d32",
    "saddle": "#b3323c",
    "event": "#7a4a12",
    "exponent": "#00748a",
    "early": "#e0912f",
    "early-mid": "#d4564e",
    "middle": "#a83279",
    "late-mid": "#6a2a8c",
    "late": "#2c1a66",
}
"""Every colour of a figure by its role. Each is used for one role only, so that a page can replace them one by one."""

SEQUENCE = ("early", "early-mid", "middle", "late-mid", "late")
"""The roles of colours that run along training."""

OPERATORS = {"ntk": ("NTK", "o"), "propagator": ("P", "s"), "kernel": ("K", "^")}
"""Symbol and marker of each operator; its colour is its role in the palette."""

_FONT = 9.0
_CYCLE = ("#c79a1b", "#d3633a", "#b4478c", "#6f63c7", "#2f86c4", "#2f9d86", "#84a63a", "#c79a1b")
_RAMP = ("#6f5bd0", "#2f86c4", "#2f9d86", "#84a63a", "#d19a2a")
CATEGORIES = ("#2f86c4", "#d3633a", "#2f9d86", "#b4478c", "#c79a1b", "#6f63c7", "#84a63a", "#8a8f98")
"""Colours that are distinct, of middle lightness."""


def _diverging() -> Colormap:
    """Blue to red through transparent, so that zero is the page, whatever its colour."""
    strength = np.linspace(-1, 1, 255)
    colour = np.where(strength[:, None] < 0, [0.12, 0.47, 0.75], [0.83, 0.33, 0.12])
    return ListedColormap(np.column_stack([colour, np.abs(strength) ** 0.8]), name="kpflow-diverging")


DIVERGING = _diverging()
"""Signed values: blue below zero, orange above, transparent at zero."""


def is_narrow(width: float) -> bool:
    """Whether panels must stand below each other at this width in inches.

    Raises:
        ValueError: `width` is no number above 2 inches.
    """
    _check_width(width)
    return width < 6


def _check_width(width: float) -> None:
    if not isinstance(width, int | float) or not 2 < width < np.inf:
        raise ValueError(f"`width` must be a number of inches above 2; got {width!r}.")


def grid(
    width: float,
    columns: int,
    rows: int,
    *,
    panel_height: float,
    legend_rows: int = 0,
    heights: Sequence[float] | None = None,
) -> tuple[Figure, Any]:
    """An empty figure of `rows × columns` panels and its array of axes; `heights` are relative, one per row.

    Raises:
        ValueError: `width` is no number above 2 inches.
    """
    _check_width(width)
    height = (rows if heights is None else sum(heights)) * panel_height + 0.25 * legend_rows
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.05, wspace=0.03, hspace=0.04)  # type: ignore[union-attr]
    return figure, figure.subplots(rows, columns, squeeze=False, height_ratios=heights)


def panel(axes: Axes, *, title: str = "", x: str = "", y: str = "") -> None:
    """Dress a panel: title at the left, plain text, thin rules, a faint horizontal grid."""
    axes.set_title(title, loc="left", fontsize=_FONT, color=PALETTE["ink"], fontweight="bold", parse_math=False)
    axes.set_xlabel(x, fontsize=_FONT, color=PALETTE["ink"], parse_math=False)
    axes.set_ylabel(y, fontsize=_FONT, color=PALETTE["ink"], parse_math=False)
    axes.set_facecolor("none")
    axes.tick_params(which="major", labelsize=_FONT - 0.5, color=PALETTE["rule"], labelcolor=PALETTE["muted"], length=3)
    axes.tick_params(which="minor", length=0)
    axes.grid(visible=True, axis="y", which="major", color=PALETTE["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=PALETTE["rule"], linewidth=0.8)


def step_words(step: SupportsFloat) -> str:
    r"""A training step in words, its thousands apart.

    Example:
        >>> step_words(20500)
        'step 20\u202f500'
    """
    return f"step {float(step):,.0f}".replace(",", "\u202f")


def short_step(step: float, _: int | None = None) -> str:
    """A training step as it stands at an axis.

    Example:
        >>> short_step(20500.0)
        '20.5k'
    """
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if step >= size:
            return f"{step / size:g}{letter}"
    return f"{step:g}"


def step_axis(axes: Axes, steps: np.ndarray, *, label: bool = True) -> None:
    """Make the abscissa the training step: logarithmic, with room for step 0."""
    positive = steps[steps > 0]
    first, last = (float(positive.min()), float(positive.max())) if len(positive) else (1.0, 1.0)
    axes.set_xscale("symlog", linthresh=first, linscale=0.4)
    axes.set_xlim(float(steps.min()) - 0.25 * first, last * 1.12)
    decades = 10.0 ** np.arange(np.ceil(np.log10(first)), np.floor(np.log10(last)) + 1)
    axes.xaxis.set_major_locator(FixedLocator([*([0.0] if steps.min() == 0 else []), *decades]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(short_step))
    axes.set_label(STEP_AXIS)
    axes.set_xlabel("training step" if label else "", fontsize=_FONT, color=PALETTE["ink"])


def log_axis(axes: Axes, values: np.ndarray) -> None:
    """Make the ordinate logarithmic, unless a value is not positive; labels in plain text."""
    finite = values[np.isfinite(values)]
    if len(finite) == 0 or finite.min() <= 0:
        return
    low, high = float(finite.min()), float(finite.max())
    axes.set_yscale("log")
    axes.set_ylim(low / 1.35, high * 1.35)
    if high / low > 30:
        axes.yaxis.set_major_locator(LogLocator(base=10, numticks=6))
    else:
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(_log_words))
    axes.yaxis.set_minor_locator(NullLocator())


def _log_words(value: float, _: int | None = None) -> str:
    if 1e-2 <= value < 1e3:
        return f"{value:g}"
    exponent = int(np.floor(np.log10(value) + 1e-9))
    power = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    mantissa = value / 10.0**exponent
    return power if abs(mantissa - 1) < 1e-6 else f"{mantissa:.0f}·{power}"


def mark_missing(axes: Axes, steps: np.ndarray, covered: np.ndarray) -> None:
    """Mark on the step axis, by ×, the steps that a panel leaves out."""
    missing = np.delete(steps, covered)
    if len(missing) == 0:
        return
    axes.plot(
        missing, np.full(len(missing), 0.03), "x", transform=axes.get_xaxis_transform(), color=PALETTE["muted"],
        markersize=4, markeredgewidth=1, clip_on=False,
    )  # fmt: skip


def legend(figure: Figure, handles: Sequence[Any], width: float, columns: int | None = None, title: str = "") -> None:
    """One legend for all panels, above them; nothing if there are no handles."""
    if len(handles) == 0:
        return
    count = columns or (2 if is_narrow(width) else len(handles))
    drawn = figure.legend(
        handles=list(handles), loc="outside upper left", ncols=min(count, len(handles)), frameon=False,
        fontsize=_FONT, labelcolor=PALETTE["ink"], handlelength=1.6, columnspacing=1.4, borderaxespad=0.2, title=title,
        title_fontsize=_FONT, alignment="left",
    )  # fmt: skip
    for text in [*drawn.get_texts(), drawn.get_title()]:
        text.set(parse_math=False, color=PALETTE["ink"])


def label_ends(axes: Axes, lines: Sequence[tuple[np.ndarray, np.ndarray, str, str]]) -> None:
    """Name lines at the right edge, moved apart where they would overlap.

    Args:
        axes: A panel whose limits are set.
        lines: Per line: abscissae and ordinates, its name, its colour; those without a finite ordinate get no name.
    """
    to_unit: Callable[[float], float] = lambda y: float(  # noqa: E731
        axes.transAxes.inverted().transform(axes.transData.transform((1.0, y)))[1]
    )
    ends = [
        (float(x[last[-1]]), float(y[last[-1]]), name, colour)
        for x, y, name, colour in lines
        if len(last := np.flatnonzero(np.isfinite(y)))
    ]
    ordered = sorted(ends, key=lambda end: end[1])
    heights = _spread([to_unit(end[1]) for end in ordered], gap=0.075)
    for (x, y, name, colour), height in zip(ordered, heights, strict=True):
        axes.annotate(
            name, xy=(x, y), xycoords="data", xytext=(1.04, height), textcoords="axes fraction", va="center",
            fontsize=_FONT - 0.5, color=colour, parse_math=False, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4},
        )  # fmt: skip


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """The nearest increasing heights at least `gap` apart, kept above −0.02.

    Example:
        >>> [round(height, 2) for height in _spread([0.5, 0.5, 0.9], 0.1)]
        [0.45, 0.55, 0.9]
    """
    groups: list[list[float]] = []  # [sum of wished first heights, count]: pool adjacent violators
    for index, height in enumerate(heights):
        groups.append([height - index * gap, 1.0])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            total, count = groups.pop()
            groups[-1][0] += total
            groups[-1][1] += count
    bases = [total / count for total, count in groups for _ in range(int(count))]
    return [max(base, -0.02) + index * gap for index, base in enumerate(bases)]


def sequence_colours(count: int) -> list[str]:
    """Colours along training for `count` ≤ 5 chosen steps, from the palette's sequence."""
    picks = np.linspace(0, len(SEQUENCE) - 1, count).round().astype(int) if count > 1 else [len(SEQUENCE) - 1]
    return [PALETTE[SEQUENCE[pick]] for pick in picks]


def shades(count: int) -> list[float]:
    """Opacities of `count` lines of one colour, the first the strongest.

    Example:
        >>> shades(3)
        [1.0, 0.725, 0.45]
    """
    return np.linspace(1.0, 0.45, count).round(3).tolist()


def condition_colours(conditions: Conditions) -> list[str]:
    """One colour per trial: around a circle for angles, along a ramp for numbers, distinct for categories.

    All are of middle lightness, readable on a light and on a dark page; NaN is muted.

    Example:
        >>> condition_colours(Conditions("cue", np.array([0.0, 1.0, 0.0]), "category", ("left", "right")))
        ['#2f86c4', '#d3633a', '#2f86c4']
    """
    return _colours_of(conditions, conditions.values)


def _colours_of(conditions: Conditions, values: np.ndarray) -> list[str]:
    if conditions.kind == "category":
        colours = [CATEGORIES[int(code) % len(CATEGORIES)] for code in np.nan_to_num(values)]
    else:
        ramp = LinearSegmentedColormap.from_list("cycle", _CYCLE if conditions.kind == "angle" else _RAMP)
        low, span = (0.0, 2 * np.pi) if conditions.kind == "angle" else _range(conditions.values)
        colours = [to_hex(ramp((value - low) / span)) for value in values]
    return np.where(np.isfinite(values), colours, PALETTE["muted"]).tolist()


def _range(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    return low, (high - low) or 1.0


def condition_groups(conditions: Conditions) -> list[tuple[str, str, np.ndarray]]:
    """Trials of like condition: the name, the colour and the trials of each group, empty groups left out.

    Categories are groups; angles fall into eight sectors around 0, π/4, …; numbers into five equal intervals. Trials
    whose condition is NaN are in none.

    Example:
        >>> [name for name, _, _ in condition_groups(Conditions("angle (rad)", np.array([0.1, 3.0, 6.2]), "angle"))]
        ['0', 'π']
    """
    known = np.flatnonzero(np.isfinite(conditions.values))
    values = conditions.values[known]
    if conditions.kind == "category":
        centres, names = np.arange(len(conditions.categories), dtype=float), list(conditions.categories)
        member = values.astype(int)
    elif conditions.kind == "angle":
        centres, names = np.arange(8) * np.pi / 4, ["0", "π/4", "π/2", "3π/4", "π", "5π/4", "3π/2", "7π/4"]
        member = np.round(values / (np.pi / 4)).astype(int) % 8
    else:
        low, span = _range(values)
        centres = low + span * np.linspace(0, 1, 5)
        names = [f"{centre:.3g}" for centre in centres]
        member = np.round((values - low) / span * 4).astype(int)
    colours = _colours_of(conditions, centres)
    groups = [(name, colours[k], known[member == k]) for k, name in enumerate(names)]
    return [group for group in groups if len(group[2])]


def condition_keys(conditions: Conditions) -> list[Line2D]:
    """Keys for a legend: one line in the colour of each group of conditions, at most eight."""
    groups = condition_groups(conditions)[:8]
    return [Line2D([], [], color=colour, linewidth=2.4, label=name) for name, colour, _ in groups]


def whole_numbers(axes: Axes) -> None:
    """Ticks of the abscissa at whole numbers alone."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
