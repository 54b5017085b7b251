"""Bifurcation diagrams: the other branch at a branch point, and all branches that are connected with given points."""

import collections
import dataclasses
from collections.abc import Callable, Iterable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_positive, check_tensor

from .branch_points import crossing_tangents
from .branches import Branch, Event
from .continuation import Limits, checked_curve, checked_limits, follow_both, polished, started
from .curves import Curve, Place
from .maps import exact_derivatives
from .steps import distance, hermite

__all__ = ["Diagram", "bifurcation_diagram", "distinct_events", "is_known", "switch_branch"]

SAME = 1e-6
"""Places that are nearer, relative to 1 + ‖u‖, are one."""

NEAR = 1e-3
"""The most that a place on a branch may be off the cubic between its points, in units of their distance."""

BRANCHINGS = ("pitchfork", "transcritical", "branch point")


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Diagram:
    """Branches of fixed points and the bifurcations on them.

    Args:
        branches: In the order in which they were followed.
        events: The distinct ones, by λ.
        complete: Whether all that was found was followed; otherwise `branches` or `time_limit` were used up.
    """

    branches: tuple[Branch, ...]
    events: tuple[Event, ...]
    complete: bool

    def __repr__(self) -> str:
        kinds = ", ".join(
            f"{count} {kind}" for kind, count in collections.Counter(e.label for e in self.events).items()
        )
        rest = "" if self.complete else "; incomplete"
        return f"Diagram({len(self.branches)} branches: {kinds or 'no event'}{rest})"


def switch_branch(
    function: Callable[[Tensor, Tensor], Tensor],
    event: Event,
    *,
    bounds: tuple[float, float],
    flow: bool = False,
    max_step: float | None = None,
    steps: int = 1000,
    time_limit: float = 60.0,
    tolerance: float = 1e-12,
) -> Branch:
    """The branch that crosses a known one at a pitchfork or transcritical bifurcation, in both directions.

    Tangents (dh, dλ) = α φ₁ + β φ₂ in the null space of [F_h − I, F_λ] satisfy α² c₁₁ + 2 α β c₁₂ + β² c₂₂ = 0 with
    cᵢⱼ = ⟨ψ, D²G[φᵢ, φⱼ]⟩; one solution is the known branch (Keller 1977; Kuznetsov 2004, section 10.2).

    Args:
        function: As of `continue_branch`.
        event: One of a branch's events.
        bounds: Least and largest λ.
        flow: As of `continue_branch`.
        max_step: As of `continue_branch`.
        steps: As of `continue_branch`.
        time_limit: As of `continue_branch`.
        tolerance: As of `continue_branch`.

    Raises:
        ValueError: The event is no branch point, or as `continue_branch`.

    Example:
        >>> from kpflow.dynamics import continue_branch, switch_branch
        >>> logistic = lambda x, r: r * x * (1 - x)
        >>> zero = continue_branch(logistic, torch.zeros(1, dtype=torch.float64), 0.5, bounds=(0.1, 3.5))
        >>> switch_branch(logistic, zero.events[0], bounds=(0.5, 3.5)).events
        (Event(supercritical flip at 3),)
    """
    if event.kind not in BRANCHINGS:
        raise ValueError(
            f"`event` must be a pitchfork or transcritical one, where branches cross; got {event!r}. The cycle that is "
            "born at a flip is a pair of fixed points of function∘function: follow that."
        )
    limits = checked_limits(bounds, max_step, steps, time_limit)
    with exact_derivatives():
        curve = checked_curve(function, event.state, event.parameter, limits, flow, tolerance)
        return follow_both(curve, _switched(curve, event), limits, switched=True)


def bifurcation_diagram(
    function: Callable[[Tensor, Tensor], Tensor],
    points: Float[Tensor, "k n"],
    parameter: float,
    *,
    bounds: tuple[float, float],
    flow: bool = False,
    max_step: float | None = None,
    steps: int = 1000,
    branches: int = 64,
    time_limit: float = 120.0,
    tolerance: float = 1e-12,
) -> Diagram:
    """All branches of fixed points that are connected with given ones, each followed once, through all branch points.

    The 2-cycle that is born at a flip of F is a pitchfork of fixed points of F∘F: with that function in place of F the
    diagram has both states of the cycle on one branch, and shows the cycle's own bifurcations; fixed points of F are
    fixed points of F∘F too.

    Args:
        function: As of `continue_branch`.
        points: Fixed points at one λ, such as `states` of `find_fixed_points`, shape `[k, n]`, float64.
        parameter: Their λ.
        bounds: Least and largest λ.
        flow: As of `continue_branch`.
        max_step: As of `continue_branch`.
        steps: The most steps of a branch in each direction.
        branches: The most branches.
        time_limit: Seconds for all.
        tolerance: As of `continue_branch`.

    Raises:
        ValueError: As `continue_branch`.

    Example:
        >>> unit = lambda h, w: torch.tanh(w * h)
        >>> bifurcation_diagram(unit, torch.zeros(1, 1, dtype=torch.float64), 0.0, bounds=(-2.0, 2.0))
        Diagram(2 branches: 1 supercritical flip, 1 supercritical pitchfork)

        The 2-cycle of the logistic map, from its birth at r = 3 to its own flip at 1 + √6, at either of its states:

        >>> logistic = lambda h, r: r * h * (1 - h)
        >>> twice = lambda h, r: logistic(logistic(h, r), r)
        >>> start = torch.tensor([[0.6]], dtype=torch.float64)
        >>> bifurcation_diagram(twice, start, 2.5, bounds=(2.5, 3.5)).events[:2]
        (Event(supercritical pitchfork at 3), Event(supercritical flip at 3.449489743))
    """
    check_positive("branches", branches, integer=True)
    check_tensor("points", points)
    if points.ndim != 2 or not len(points):
        raise ValueError(f"`points` must be fixed points, shape (k, n), at least one; got {tuple(points.shape)}.")
    limits = checked_limits(bounds, max_step, steps, time_limit)
    with exact_derivatives():
        curves = [checked_curve(function, point, parameter, limits, flow, tolerance) for point in points]
        return _explored(curves[0], points, parameter, limits, branches)


def _explored(curve: Curve, points: Tensor, parameter: float, limits: Limits, most: int) -> Diagram:
    found: list[Branch] = []
    seen: list[Event] = []
    waiting: collections.deque[Tensor | Event] = collections.deque(points)
    while waiting and len(found) < most and not limits.deadline.over:
        item = waiting.popleft()
        if isinstance(item, Event):
            start = _switched(curve, item)
            if _is_old(curve, found, start, limits):
                continue
            branch = follow_both(curve, start, limits, switched=True)
        elif is_known(found, polished(curve, item, parameter)):
            continue
        else:
            branch = follow_both(curve, started(curve, item, parameter), limits)
        found.append(branch)
        new = [event for event in branch.events if event.kind in BRANCHINGS and not _is_among(event, seen)]
        seen += new
        waiting += new
    return Diagram(tuple(found), distinct_events(found), not waiting)


def distinct_events(branches: Iterable[Branch]) -> tuple[Event, ...]:
    """The events of all branches by λ, one that lies on several of them once."""
    kept: list[Event] = []
    for branch in branches:
        kept += [event for event in branch.events if not _is_among(event, kept)]
    return tuple(sorted(kept, key=lambda event: event.parameter))


def is_known(branches: Iterable[Branch], u: Tensor) -> bool:
    """Whether a place lies on one of the branches, by Hermite's cubic on the pieces around their nearest points."""
    for branch in branches:
        places = torch.cat([branch.states, branch.parameters[:, None]], dim=1)
        nearest = int((places - u).norm(dim=1).argmin())
        if distance(places[nearest], u) <= SAME:
            return True
        for k in range(max(0, nearest - 1), min(nearest + 1, len(places) - 1)):
            first, last, tangent = places[k], places[k + 1], branch.tangents[k]
            at, length = float(tangent @ (u - first)), float(tangent @ (last - first))
            if (
                0 <= at <= length
                and distance(hermite(first, tangent, last, branch.tangents[k + 1], at), u) <= SAME + NEAR * length
            ):
                return True
    return False


def _is_old(curve: Curve, branches: list[Branch], start: Place, limits: Limits) -> bool:
    """Whether the branch of a switched start was followed already."""
    for side in (1, -1):
        guess = start.u + side * 0.1 * limits.longest * start.tangent
        found = curve.corrected(guess, start.tangent)
        if found is not None and is_known(branches, found[0]):
            return True
    return False


def _is_among(event: Event, others: list[Event]) -> bool:
    return any(
        other.kind == event.kind
        and abs(other.parameter - event.parameter) <= SAME * (1 + abs(event.parameter))
        and distance(other.state, event.state) <= SAME
        for other in others
    )


def _switched(curve: Curve, event: Event) -> Place:
    """The place of a branch point, with the tangent of the other branch."""
    u = torch.cat([event.state, event.state.new_tensor([event.parameter])])
    tangent = crossing_tangents(curve, u, event.tangent)[1]
    place = curve.place(u, tangent)
    assert place is not None
    return dataclasses.replace(place, tangent=tangent)
