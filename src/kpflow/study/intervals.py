"""Between two checkpoints: what becomes of the fixed points, and the bifurcations on the way, as arrays."""

import warnings
from collections.abc import Callable, Mapping

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from kpflow.dynamics import Event, TrainingPath, checkpoint_path, training_path
from kpflow.dynamics.maps import exact_derivatives
from kpflow.dynamics.parametric import parametric_map

from .ahead import LEFT_OUT
from .dynamics import Held

__all__ = ["KINDS", "follow_interval", "points_of", "with_intervals"]

KINDS = (
    "fold",
    "imperfect pitchfork",
    "pitchfork",
    "transcritical",
    "branch point",
    "flip",
    "neimark-sacker",
    "hopf",
    "border",
)
"""What the numbers of `event_kind` stand for."""

EVENTS = ("event_step", "event_kind", "event_since")
"""The variables that are of events, of which an interval has any number."""

WIDTH = 64
"""The most events of one interval that are kept."""

LONGEST = 0.2
"""Longest step of the continuation, a distance of (h, s) with s from 0 to 1 over the interval."""


def points_of(record: xr.Dataset) -> Float[Tensor, "k H"]:
    """The fixed points of a record of one step, slow points left out."""
    kept = record["fixed_point_slow"].values == 0
    return torch.from_numpy(record["fixed_point_state"].transpose("point", "unit").values[kept].astype(np.float64))


def follow_interval(
    first: Held,
    last: Held,
    points: tuple[Float[Tensor, "a H"], Float[Tensor, "b H"]],
    between: tuple[int, int],
    *,
    time_limit: float,
) -> xr.Dataset:
    """The events on the straight line between the parameters of two checkpoints, by continuation from both ends.

    Where an encoder makes another static input at each, that too is on the straight line between both.

    Args:
        first: The recurrent core at the first checkpoint, with its static input.
        last: The same at the last checkpoint.
        points: The fixed points at both, float64.
        between: Both training steps.
        time_limit: Seconds; what is not followed to an end by then is unresolved.

    Returns:
        At `step` the later of both: `event_step` and `event_kind` (an index of `KINDS`) on the axis `slot`, padded by
        NaN; `event_since`, the earlier step; `unresolved_points`, how many points of both checkpoints were not followed
        to an end. A path that fails leaves all of its points unresolved.
    """
    count = len(points[0]) + len(points[1])
    path = _path(first, last, points, between, time_limit) if count else None
    events = path.events[:WIDTH] if path else ()
    steps, kinds = np.full(WIDTH, np.nan), np.full(WIDTH, np.nan)
    for slot, event in enumerate(events):
        assert path is not None
        steps[slot], kinds[slot] = path.step_of(event), KINDS.index(_kind(event))
    unresolved = sum(map(len, path.unresolved)) if path else count
    return xr.Dataset(
        {
            "event_step": (("step", "slot"), steps[None]),
            "event_kind": (("step", "slot"), kinds[None]),
            "event_since": ("step", [float(between[0])]),
            "unresolved_points": ("step", [float(unresolved)]),
        },
        {"step": [between[1]]},
    )


def with_intervals(record: xr.Dataset, intervals: xr.Dataset) -> xr.Dataset:
    """The record with what is known of its intervals, at the later step of each; NaN at steps without one before them.

    The events of all are on an axis `event`, in order; `event_since` and `event_until` are the checkpoints that bracket
    each.
    """
    at_steps = [name for name in intervals.data_vars if name not in EVENTS]
    merged = record.merge(intervals[at_steps].reindex(step=record["step"].values))
    if LEFT_OUT in intervals.attrs and not bool(merged["forecast_loss"].notnull().any()):
        merged = merged.assign_attrs({LEFT_OUT: intervals.attrs[LEFT_OUT]})
    return _with_events(merged, intervals) if "event_step" in intervals else merged


def _with_events(record: xr.Dataset, intervals: xr.Dataset) -> xr.Dataset:
    step, slot = np.nonzero(np.isfinite(intervals["event_step"].values))
    at = intervals["event_step"].values[step, slot]
    order = np.argsort(at, kind="stable")
    columns = {
        "event_step": at,
        "event_kind": intervals["event_kind"].values[step, slot].astype(int),
        "event_since": intervals["event_since"].values[step].astype(int),
        "event_until": intervals["step"].values[step],
    }
    merged = record.assign({name: ("event", values[order]) for name, values in columns.items()})
    merged["event_kind"].attrs["names"] = list(KINDS)
    return merged


def _kind(event: Event) -> str:
    return "imperfect pitchfork" if event.imperfect else event.kind


def _path(
    first: Held, last: Held, points: tuple[Tensor, Tensor], between: tuple[int, int], time_limit: float
) -> TrainingPath | None:
    """The path; None if one of the checkpoints cannot be followed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            step = _interpolant(first, last, torch.cat(points))
            return training_path(
                step,
                step,
                first.inputs,
                *points,
                parameters=({"s": torch.zeros(())}, {"s": torch.ones(())}),
                between=(float(between[0]), float(between[1])),
                max_step=LONGEST,
                time_limit=time_limit,
            )
        except Exception:  # whatever a user's module raises: the analysis goes on, and the points are unresolved
            return None


def _interpolant(first: Held, last: Held, points: Float[Tensor, "k H"]) -> Callable[..., Tensor]:
    """step(h, x, {"s": s}) with the parameters (1 − s) θ_a + s θ_b and the input (1 − s) x_a + s x_b."""
    checkpoint_path(first.core, last.core, first.inputs, points[0])  # refuses cores that do not fit each other
    x, moved = (held.inputs.to(points) for held in (first, last))
    with exact_derivatives():
        old, new = parametric_map(first.core, x, points), parametric_map(last.core, moved, points)
    theta = {name: (value, new.parameters[name] - value) for name, value in old.parameters.items()}

    def step(h: Tensor, _: Tensor, named: Mapping[str, Tensor]) -> Tensor:
        s = named["s"]
        rows = (x + s * (moved - x)).expand(len(h), -1)
        return old.function(h, rows, {name: value + s * change for name, (value, change) in theta.items()})

    return step
