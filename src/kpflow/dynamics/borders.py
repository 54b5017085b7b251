"""Borders: places on a curve where the argument of a ReLU changes sign, and how the curve goes on behind one."""

import torch
from torch import Tensor

from .branches import Event
from .curves import Curve, Place, null_space
from .kinks import kinks
from .steps import Step

__all__ = ["BEYOND", "GRAZING", "before_border", "crossed", "jumped"]

GRAZING = 1e-10
"""An argument that stays below this on both sides is zero, and changes sign by rounding only."""

NEAR = 1e-7
"""How far before a border the place is that stands for it, in units of the step."""

BEYOND = 1e-7
"""How far behind a border the other linear piece is looked at, relative to 1 + ‖u‖."""


def crossed(one: Tensor, other: Tensor) -> list[int]:
    """Which arguments change sign between two places."""
    large = torch.maximum(one.abs(), other.abs()) > GRAZING
    return ((one * other < 0) & large).nonzero()[:, 0].tolist()


def before_border(curve: Curve, start: Place, end: Place) -> tuple[float, Place] | None:
    """How far the first border is within a step that was taken, and the place just before it."""
    step = Step(curve, start, end)
    roots = [step.root(lambda place, i=i: float(place.kinks[i])) for i in crossed(start.kinks, end.kinks)]
    at = min((root.at for root in roots if root is not None), default=None)
    if at is None:
        return None
    at = max(0.0, at - NEAR * step.length)
    place = step.place(at) if at > 0 else start
    return None if place is None else (at, place)


def jumped(curve: Curve, start: Place, reach: float, arclength: float) -> tuple[Event, Place] | None:
    """The border just before `start`, within `reach`, that the step along its tangent meets; None if there is none.

    Returns the event, and a place on the border whose tangent and multipliers are those behind it. The curve may turn
    there by any angle, so that no step over it would be found by Newton's method.
    """
    ahead = _arguments(curve, start.u + reach * start.tangent)
    units = crossed(start.kinks, ahead)
    if not units:
        return None
    shares = start.kinks[units] / (start.kinks[units] - ahead[units])
    first = float(shares.min())
    units = [unit for unit, share in zip(units, shares.tolist(), strict=True) if share <= first + 1e-6]
    u = start.u + first * reach * start.tangent
    value, slopes = curve.linearised(u + BEYOND * (1 + u.norm()) * start.tangent)
    if not bool(torch.isfinite(value).all() & torch.isfinite(slopes).all()):
        return None
    tangent = null_space(slopes, 1)[0][0]
    expected = _arguments(curve, u + BEYOND * (1 + u.norm()) * start.tangent)
    if float(expected[units[0]]) * float(_slope(curve, u, tangent)[units[0]]) < 0:
        tangent = -tangent
    multipliers = curve.multipliers(slopes)
    sign, log = torch.linalg.slogdet(torch.cat([slopes, tangent[None]]))
    behind = torch.where(start.kinks * expected < 0, expected, start.kinks)
    place = Place(u, tangent, multipliers, float(sign), float(log), behind, 0)
    return _event(curve, start, place, units, arclength + first * reach), place


def _slope(curve: Curve, u: Tensor, direction: Tensor) -> Tensor:
    """How the arguments change from u on."""
    return _arguments(curve, u + BEYOND * (1 + u.norm()) * direction) - _arguments(curve, u)


def _arguments(curve: Curve, u: Tensor) -> Tensor:
    return kinks(lambda: curve.function(u[:-1], u[-1]))


def _event(curve: Curve, before: Place, place: Place, units: list[int], arclength: float) -> Event:
    parameter = float(place.u[-1])
    edges = (parameter, float(before.u[-1]))
    turned = float(before.tangent[-1]) * float(place.tangent[-1]) < 0
    counts = [int((curve.excess(item.multipliers) > 0).sum()) for item in (before, place)]
    note = "The branch turns back in the parameter: a non-smooth fold. " if turned else "The branch goes on. "
    note += f"Unstable directions: {counts[0]} before, {counts[1]} behind."
    return Event(
        "border",
        parameter,
        (min(edges), max(edges)),
        place.u[:-1],
        complex(place.multipliers[0].item()),
        None,
        arclength,
        place.tangent,
        units=tuple(units),
        note=note,
    )
