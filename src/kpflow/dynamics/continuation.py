"""Branches of fixed points along a parameter, by pseudo-arclength continuation, with the bifurcations on them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from kpflow._checks import check_finite, check_positive

from .borders import BEYOND, GRAZING, before_border, crossed, jumped
from .branches import Branch, Ending, Event
from .curves import Curve, Place, null_space
from .deadlines import Deadline, deadline_in
from .events import events_within
from .expansions import checked_point
from .maps import exact_derivatives
from .steps import Step, distance

__all__ = ["Limits", "checked_curve", "continue_branch", "follow_both", "polished", "started"]

TURN = 0.97
"""Least cosine of the angle between neighbouring tangents: a longer step could jump to another branch."""

OFF = 0.3
"""The most that Newton's method may move a guess, in units of the step."""

BENT = 0.02
"""The most that the way between may differ from that of a parabola with both tangents, in units of the step."""

LEAP = 1e-3
"""A step down to this, in units of the longest, is shortened where a branch point within it cannot be refined: it may
have leapt over the gap of an imperfect pitchfork."""

SMALLEST = 1e-7
"""The shortest step, in units of the longest."""

NEAR_START = 1e-6
"""‖G‖ of a point that is polished, relative to 1 + ‖h‖; a worse one is no fixed point."""


@final
@dataclasses.dataclass(frozen=True)
class Limits:
    """How far a branch is followed.

    Args:
        low: Least λ.
        high: Largest λ.
        longest: Longest step.
        steps: The most steps in each direction.
        deadline: When it ends where it is.
    """

    low: float
    high: float
    longest: float
    steps: int
    deadline: Deadline


def continue_branch(
    function: Callable[[Tensor, Tensor], Tensor],
    point: Tensor,
    parameter: float,
    *,
    bounds: tuple[float, float],
    flow: bool = False,
    max_step: float | None = None,
    steps: int = 1000,
    time_limit: float = 60.0,
    tolerance: float = 1e-12,
) -> Branch:
    """The fixed points h = F(h, λ) that are connected with a given one, and the bifurcations on the way.

    Pseudo-arclength continuation in both directions: a step along the tangent, the null vector of [F_h − I, F_λ], then
    Newton's method in the plane normal to it, so that the branch is followed around folds. Steps are as long as
    Newton's method and the turning of the tangent allow. Folds are zeros of the tangent's component along λ; branch
    points of det [F_h − I, F_λ; tangentᵀ]; flips of det(F_h + I); Neimark–Sacker (flows: Hopf) bifurcations of |μ| − 1
    (Re μ) of a complex pair; borders of the argument of a ReLU or clamp. Each is refined in arclength and classified by
    its normal form.

    Args:
        function: F(h, λ), from shapes `[n]` and `[]` to `[n]` in float64: one state, without a batch axis. See
            `input_path` and `checkpoint_path` for networks along inputs and along training.
        point: A fixed point, shape `[n]`, float64.
        parameter: Its λ.
        bounds: Least and largest λ.
        flow: Whether `function` is a vector field f of h' = f(h, λ), at rest where f = 0.
        max_step: Longest step, a distance of (h, λ); None for a fiftieth of the range of λ.
        steps: The most steps in each direction.
        time_limit: Seconds, for both directions together.
        tolerance: Of ‖F(h, λ) − h‖, relative to 1 + ‖h‖.

    Returns:
        The branch, with an `Ending` for each direction: never an error once it has started.

    Raises:
        TypeError: `point` is no floating-point tensor.
        ValueError: `point` is no fixed point, is not finite or not one state in float64; λ is outside `bounds`; the
            function fails, has another shape, no derivative or no finite one there; a number is out of range.

    References:
        Keller 1977; Allgower and Georg 1990 (pseudo-arclength); Kuznetsov 2004, chapter 10 (test functions).

    Example:
        >>> step = lambda h, b: torch.tanh(2 * h + b)
        >>> start = torch.tensor([0.9575040240772687], dtype=torch.float64)
        >>> branch = continue_branch(step, start, 0.0, bounds=(-1.0, 1.0))
        >>> branch.events
        (Event(fold at 0.5328399754), Event(fold at -0.5328399754))
    """
    limits = checked_limits(bounds, max_step, steps, time_limit)
    with exact_derivatives():
        curve = checked_curve(function, point, parameter, limits, flow, tolerance)
        return follow_both(curve, started(curve, point, parameter), limits)


def checked_limits(bounds: tuple[float, float], max_step: float | None, steps: int, time_limit: float) -> Limits:
    """The limits, if they make sense."""
    given: Any = bounds
    if not (isinstance(given, (tuple, list)) and len(given) == 2 and all(map(_is_number, given))):
        raise ValueError(f"`bounds` must be two finite numbers, least and largest λ; got {bounds!r}.")
    low, high = (float(value) for value in given)
    if not low < high:
        raise ValueError(f"`bounds` must be in order, least λ first; got {bounds!r}.")
    if max_step is not None:
        check_positive("max_step", max_step)
    check_positive("steps", steps, integer=True)
    return Limits(low, high, max_step or (high - low) / 50, steps, deadline_in(time_limit))


def checked_curve(
    function: Callable[[Tensor, Tensor], Tensor],
    point: Tensor,
    parameter: float,
    limits: Limits,
    flow: bool,
    tolerance: float,
) -> Curve:
    """The curve, if the function is one of a state and a parameter and the point is a fixed point of it."""
    check_positive("tolerance", tolerance)
    if not _is_number(parameter) or not limits.low <= parameter <= limits.high:
        raise ValueError(
            f"`parameter` must be a number within `bounds`, {limits.low:g} to {limits.high:g}; got {parameter!r}."
        )
    state = checked_point(point).detach()
    try:
        value = function(state.clone().requires_grad_(), state.new_tensor(parameter).requires_grad_())
    except Exception as error:
        raise ValueError(
            f"`function` fails as function(h, λ) with h of shape {tuple(state.shape)} and λ of shape (), float64: "
            f"{type(error).__name__}: {error}. A step of a network along inputs is made by input_path."
        ) from error
    if not isinstance(value, Tensor) or value.shape != state.shape or value.dtype != torch.float64:
        got = f"{tuple(value.shape)} in {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"`function` must return shape {tuple(state.shape)} in float64, like `point`; got {got}.")
    if not value.requires_grad:
        raise ValueError("`function` must be differentiable in h and λ; its result has no gradient. Do not detach.")
    check_finite("function(point, parameter)", value.detach(), ("unit",), "It leaves the floating range there.")
    curve = Curve(function, bool(flow), float(tolerance))
    size = float(curve.residual(torch.cat([state, state.new_tensor([parameter])])).detach().norm())
    if not size <= NEAR_START * (1 + float(state.norm())):
        rest = "function(h, λ) = 0" if flow else "function(h, λ) = h"
        raise ValueError(
            f"`point` must be a fixed point, {rest} at λ = {parameter:g}; its residual is {size:.2e}. Find one with "
            f"find_fixed_points; or is `function` {'a map, not a flow' if flow else 'a flow, not a map'}?"
        )
    return curve


def polished(curve: Curve, point: Tensor, parameter: float) -> Tensor:
    """u = (h, λ) of a point, by Newton's method at fixed λ, or left alone where that would move it far: at a fold."""
    u = torch.cat([point.detach(), point.new_tensor([parameter])])
    found = curve.corrected(u, _upwards(u))
    return found[0] if found is not None and distance(u, found[0]) <= 1e-3 else u


def started(curve: Curve, point: Tensor, parameter: float) -> Place:
    """The place of a point, with a tangent towards growing λ."""
    u = polished(curve, point, parameter)
    value, slopes = curve.linearised(u)
    if not bool(torch.isfinite(value).all() & torch.isfinite(slopes).all()):
        raise ValueError(f"`function` must have finite derivatives at `point`; at λ = {parameter:g} they are not.")
    tangent = null_space(slopes, 1)[0][0]
    place = curve.place(u, tangent if float(tangent[-1]) >= 0 else -tangent)
    assert place is not None
    return place


def follow_both(curve: Curve, start: Place, limits: Limits, switched: bool = False) -> Branch:
    """The branch in both directions; if `switched`, the start is a branch point and is not looked at again."""
    half = dataclasses.replace(limits, deadline=limits.deadline.halfway)
    ahead = _Run(curve, _sided(curve, start, 1.0), half, switched)
    if ahead.ending is Ending.CLOSED:
        return _joined(None, ahead)
    back = dataclasses.replace(start, tangent=-start.tangent, sign=-start.sign)
    return _joined(_Run(curve, _sided(curve, back, -1.0), limits, switched), ahead)


def _sided(curve: Curve, start: Place, direction: float) -> Place:
    """A start on a border with the tangent of its branch on one side in λ, where that can be found; others as it is."""
    if not bool((start.kinks.abs() <= GRAZING).any()):
        return start
    upwards = direction * _upwards(start.u)
    found = curve.corrected(start.u + BEYOND * (1 + start.u.norm()) * upwards, upwards)
    if found is None or distance(start.u, found[0]) > 1e-3:
        return start
    beside = curve.place(found[0], (found[0] - start.u) / (found[0] - start.u).norm())
    return start if beside is None else dataclasses.replace(beside, u=start.u, newton=0)


@final
class _Run:
    """One direction from a start: places, their arclengths, events, and why it ended."""

    def __init__(self, curve: Curve, start: Place, limits: Limits, switched: bool) -> None:
        self.curve, self.limits = curve, limits
        self.places, self.lengths = [start], [0.0]
        self.events: list[Event] = []
        self.fresh = switched
        self.size = limits.longest / 10
        self.ending = self._walk()

    def _walk(self) -> Ending:
        for _ in range(self.limits.steps):
            if self.limits.deadline.over:
                return Ending.TIME
            ending = self._advance()
            if ending is not None:
                return ending
        return Ending.STEPS

    def _advance(self) -> Ending | None:
        """One step, as long as it can be; an ending if there is none, or it is the last."""
        here, finite = self.places[-1], True
        if self._leaves(here.u + SMALLEST * self.limits.longest * here.tangent) and self._on_bound(here):
            return Ending.BOUND
        while self.size >= SMALLEST * self.limits.longest:
            new, finite = self._tried(here)
            if new is not None and self._taken(here, new):
                slow = new.newton > 4
                self.size = self.size * 0.7 if slow else min(self.limits.longest, 1.5 * self.size)
                return self._ended(here)
            self.size /= 2
        if self._jump(here, 4 * self.size):
            self.size = self.limits.longest / 100
            return None
        return Ending.STALLED if finite else Ending.RANGE

    def _tried(self, here: Place) -> tuple[Place | None, bool]:
        """The next place, None if it is not one that is surely next; and whether it failed for the floating range."""
        guess = here.u + self.size * here.tangent
        found = self.curve.corrected(guess, here.tangent)
        if found is None:
            return None, bool(torch.isfinite(self.curve.linearised(guess)[0]).all())
        if float((found[0] - guess).norm()) > OFF * self.size:
            return None, True
        new = self.curve.place(found[0], here.tangent, found[1])
        if new is None:
            return None, False
        return (new if self._is_next(here, new) else None), True

    def _is_next(self, here: Place, new: Place) -> bool:
        """Whether tangents at both ends, and the way between, are those of one smooth piece, or there is a border."""
        if float(new.tangent @ here.tangent) <= TURN:
            return False
        bend = new.u - here.u - 0.5 * self.size * (here.tangent + new.tangent / (new.tangent @ here.tangent))
        return float(bend.norm()) <= BENT * self.size or bool(crossed(here.kinks, new.kinks))

    def _taken(self, here: Place, new: Place) -> bool:
        """Append a place, or that on the bound before it, and the events on the way; False if borders forbid it."""
        if self._leaves(new.u):
            bound = self._bounded(here, new)
            if bound is None:
                return False
            new = bound
        if crossed(here.kinks, new.kinks):
            found = before_border(self.curve, here, new)
            if found is None:
                return False
            if found[0] > 0 and not self._append(here, found[1]):
                return False
            return self._jump(self.places[-1], max(1e-5 * self.size, 1e-7))
        return self._append(here, new)

    def _append(self, here: Place, new: Place) -> bool:
        """Append a place and the events on the way; False where a seeming branch point tells of a leap between two."""
        length = self.lengths[-1]
        found = [] if self.fresh else events_within(self.curve, here, new, length)
        if self.size > LEAP * self.limits.longest and any(event.kind == "branch point" for event in found):
            return False
        self.events.extend(found)
        self.fresh = False
        self.places.append(new)
        self.lengths.append(length + float((new.u - here.u).norm()))
        return True

    def _jump(self, here: Place, reach: float) -> bool:
        """Go over a border that is ahead, if there is one."""
        found = jumped(self.curve, here, reach, self.lengths[-1])
        if found is None:
            return False
        event, place = found
        self.events.append(event)
        self.lengths.append(self.lengths[-1] + float((place.u - here.u).norm()))
        self.places.append(place)
        return True

    def _ended(self, before: Place) -> Ending | None:
        here, start = self.places[-1], self.places[0]
        if self._on_bound(here) and self._leaves(here.u + SMALLEST * self.limits.longest * here.tangent):
            return Ending.BOUND
        if len(self.places) > 5 and self._passed(before, here, start):
            return Ending.CLOSED
        return None

    def _passed(self, before: Place, here: Place, start: Place) -> bool:
        """Whether the last step went over the start, in its direction."""
        step = Step(self.curve, before, here)
        at = float(before.tangent @ (start.u - before.u))
        if not 0 < at <= step.length or float(start.tangent @ before.tangent) < TURN - 0.1:
            return False
        return distance(step.guess(at), start.u) <= 1e-4 * self.limits.longest + 1e-6

    def _leaves(self, u: Tensor) -> bool:
        return not self.limits.low <= float(u[-1]) <= self.limits.high

    def _on_bound(self, here: Place) -> bool:
        return float(here.u[-1]) in (self.limits.low, self.limits.high)

    def _bounded(self, here: Place, new: Place) -> Place | None:
        """The place on the bound, exactly there, that the step goes over."""
        bound = self.limits.high if float(new.u[-1]) > self.limits.high else self.limits.low
        root = Step(self.curve, here, new).root(lambda place: float(place.u[-1]) - bound)
        if root is None:
            return None
        u = root.place.u.clone()
        u[-1] = bound
        found = self.curve.corrected(u, _upwards(u))
        return self.curve.place(found[0] if found is not None and distance(u, found[0]) < 1e-6 else u, here.tangent)


def _joined(back: "_Run | None", ahead: _Run) -> Branch:
    """Both directions as one branch; None for a closed one."""
    places, lengths, events = list(ahead.places), list(ahead.lengths), list(ahead.events)
    first = ahead.ending
    if back is not None:
        turned = [dataclasses.replace(item, tangent=-item.tangent) for item in back.places[:0:-1]]
        places, lengths = turned + places, [-length for length in back.lengths[:0:-1]] + lengths
        events = [_reversed(event) for event in back.events[::-1]] + events
        first = back.ending
    u = torch.stack([place.u for place in places])
    multipliers = torch.stack([place.multipliers for place in places])
    stable = (ahead.curve.excess(multipliers) < 0).all(dim=1)
    tangents = torch.stack([place.tangent for place in places])
    arclength = u.new_tensor(lengths)
    return Branch(u[:, :-1], u[:, -1], multipliers, stable, arclength, tangents, tuple(events), (first, ahead.ending))


def _reversed(event: Event) -> Event:
    return dataclasses.replace(event, arclength=-event.arclength, tangent=-event.tangent)


def _upwards(u: Tensor) -> Tensor:
    unit = torch.zeros_like(u)
    unit[-1] = 1.0
    return unit


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
