"""The figure of a gallery entry: observed points on predicted curves, beside the view through K and P."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import CATEGORIES, PALETTE, WIDE, grid, is_narrow, panel

__all__ = ["entry_figure"]


def entry_figure(record: Mapping[str, Any], *, width: float = WIDE) -> Figure:
    """Draw the panels of a gallery entry.

    Args:
        record: Of one result: `panels`, each with `title`, `x`, `y`, `log` and `lines`, each of those with `label`,
            `x`, `y`, `observed` (points; else a curve) and `group` (its colour).
        width: Of the figure in inches; below 6 the panels stand below each other.

    Raises:
        ValueError: `width` is no number above 2; `record` has no panels.

    Example:
        >>> line = {"label": "a", "x": [0, 1], "y": [1, 2], "observed": True, "group": 0}
        >>> shown = {"title": "Growth", "x": "time", "y": "a", "log": "", "lines": [line]}
        >>> entry_figure({"panels": [shown]}).axes[0].get_title(loc="left")
        'Growth'
    """
    panels: Sequence[Mapping[str, Any]] = record.get("panels", ())
    if not panels:
        raise ValueError("`record` must hold `panels`, of one result of the gallery; got none.")
    columns = 1 if is_narrow(width) else len(panels)
    figure, axes = grid(width, columns, len(panels) // columns, panel_height=3.2)
    for shown, axis in zip(panels, axes.flat, strict=True):
        _draw(axis, shown)
    return figure


def _draw(axes: Axes, shown: Mapping[str, Any]) -> None:
    for line in shown["lines"]:
        style, marker = ("none", "o") if line["observed"] else ("-", "")
        colour, label = CATEGORIES[line["group"] % len(CATEGORIES)], line["label"] or "_"
        axes.plot(
            line["x"], line["y"], color=colour, label=label, linestyle=style, marker=marker, markersize=4, linewidth=1.4
        )
    if "x" in shown["log"]:
        axes.set_xscale("log")
    if "y" in shown["log"]:
        axes.set_yscale("log")
    panel(axes, title=shown["title"], x=shown["x"], y=shown["y"])
    if any(line["label"] for line in shown["lines"]):
        drawn = axes.legend(frameon=False, fontsize=8, labelcolor=PALETTE["ink"], handlelength=1.4)
        for text in drawn.get_texts():
            text.set(parse_math=False)
