"""State space on the page: three principal components, seen from a fixed direction without perspective."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from .records import Record, covered_steps, has, series
from .style import PALETTE

__all__ = ["component_names", "component_signs", "draw_space", "on_page"]

_TURN, _TILT = np.deg2rad(-35.0), np.deg2rad(24.0)


def component_signs(record: Record) -> xr.DataArray:
    """±1 for each step and component, by which the components agree with those of the last step of the trajectories."""
    paths = series(record, "trajectory")
    if paths.sizes["component"] != 3:
        raise ValueError(f"`record['trajectory']` must have 3 components; got {paths.sizes['component']}.")
    last = paths.isel(step=int(covered_steps(paths)[-1]))
    agreement = (paths * last).sum(["trial", "time"])
    return xr.where(agreement < 0, -1.0, 1.0)


def component_names(record: xr.Dataset, pick: int) -> list[str]:
    """The components by name, with their share of the variance at a step where it is known."""
    names = ["PC 1", "PC 2", "PC 3"]
    if not has(record, "trajectory_variance"):
        return names
    shares = series(record, "trajectory_variance").values[pick]
    return [name if np.isnan(share) else f"{name} {share:.0%}" for name, share in zip(names, shares, strict=True)]


def on_page(points: np.ndarray) -> np.ndarray:
    """Points `[..., 3]` on the page `[..., 2]`: turned about the third axis, then tilted towards the reader."""
    x, y, z = np.moveaxis(points, -1, 0)
    across, away = np.cos(_TURN) * x - np.sin(_TURN) * y, np.sin(_TURN) * x + np.cos(_TURN) * y
    return np.stack([across, np.cos(_TILT) * z + np.sin(_TILT) * away], axis=-1)


def draw_space(axes: Axes, names: list[str]) -> None:
    """Equal scales in all directions, and the directions of the components instead of axes; after all is drawn."""
    bottom = axes.dataLim.y0 - 0.28 * max(axes.dataLim.width, axes.dataLim.height)
    axes.update_datalim([(axes.dataLim.x0, bottom)])  # room for the directions below the trajectories
    axes.autoscale_view()
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_axis_off()
    _tripod(axes, names)


def _tripod(axes: Axes, names: list[str]) -> None:
    """The directions of the three axes, in the lower left corner."""
    for tip, name in zip(on_page(np.eye(3)), names, strict=True):
        axes.annotate(
            name, xy=(0.08, 0.08), xytext=30 * tip, xycoords="axes fraction", textcoords="offset points", fontsize=8,
            color=PALETTE["muted"], ha="left" if tip[0] > 0.1 else "center", va="center", parse_math=False,
            arrowprops={"arrowstyle": "-", "color": PALETTE["muted"], "linewidth": 1, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip
