"""The effective flow of a cumulative bias in closed form: exponentials between the times at which points are cut."""

import bisect
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_finite, check_tensor

from .truncation_maps import check_clusters, check_points, check_rotation, check_shift

__all__ = ["BiasFlow", "Course", "Equilibrium", "bias_flow", "equilibria", "goals"]


def goals(targets: Any, clusters: Any, points: Tensor) -> Float[Tensor, "N Q"]:
    """The target of each point in float64: that of its cluster, of all, or its own."""
    given = check_tensor("targets", targets).detach().double()
    check_finite("targets", given)
    count, width = points.shape
    if clusters is None:
        if tuple(given.shape) not in ((width,), (count, width)):
            raise ValueError(
                f"`targets` must have shape ({width},), the same for all points, or ({count}, {width}), one for each; "
                f"got {tuple(given.shape)}. With one for each cluster, give `clusters`."
            )
        return given.expand(count, width)
    labels = check_clusters(clusters, count)
    if given.ndim != 2 or given.shape[1] != width or len(given) <= int(labels.max()):
        raise ValueError(
            f"`targets` must have shape ({int(labels.max()) + 1}, {width}), one for each cluster; got "
            f"{tuple(given.shape)}."
        )
    return given[labels]


@final
@dataclasses.dataclass(frozen=True)
class Course:
    """β̂_k of one coordinate: in piece e, β̂(t) = level + (start − level) e^{−rate (t − time)}.

    Args:
        times: At which the pieces begin; the first is 0, the others are events: a point is cut off, or released.
        starts: β̂ there.
        rates: n_k / N, divided by the square of the coordinate's scale.
        levels: Minus the mean target of the points that are cut off, towards which β̂ decays.
        counts: n_k.
        end: What becomes of it: "node", β̂ approaches the level of the last piece; "untruncated", no point is cut off
            and nothing moves; "kink", it stays where one more point would push it back.
    """

    times: tuple[float, ...]
    starts: tuple[float, ...]
    rates: tuple[float, ...]
    levels: tuple[float, ...]
    counts: tuple[int, ...]
    end: str

    def at(self, time: float) -> float:
        """β̂ at a time."""
        piece = self._piece(time)
        start, level = self.starts[piece], self.levels[piece]
        return level + (start - level) * math.exp(-self.rates[piece] * (time - self.times[piece]))

    def count_at(self, time: float) -> int:
        """n_k at a time."""
        return self.counts[self._piece(time)]

    @property
    def limit(self) -> float:
        """β̂ at last."""
        return self.levels[-1] if self.rates[-1] > 0 else self.starts[-1]

    def _piece(self, time: float) -> int:
        return bisect.bisect_right(self.times, time) - 1


@final
@dataclasses.dataclass(frozen=True, eq=False)
class BiasFlow:
    """β(t) of one layer under gradient flow of the Euclidean cost, exact.

    Args:
        courses: Of the coordinates β̂_k = R_k·β.
        rotation: R, shape `[Q, Q]`.
        total: N, the number of points.
    """

    courses: tuple[Course, ...]
    rotation: Float[Tensor, "Q Q"]
    total: int

    def at(self, times: Sequence[float] | Tensor) -> Float[Tensor, "T Q"]:
        """β at some times ≥ 0.

        Raises:
            ValueError: A time is negative or not finite.
        """
        return self._table(times, Course.at) @ self.rotation

    def fractions(self, times: Sequence[float] | Tensor) -> Float[Tensor, "T Q"]:
        """n_k / N at some times ≥ 0.

        Raises:
            ValueError: A time is negative or not finite.
        """
        return self._table(times, Course.count_at) / self.total

    @property
    def limit(self) -> Float[Tensor, " Q"]:
        """β at last."""
        return torch.tensor([course.limit for course in self.courses], dtype=torch.float64) @ self.rotation

    @property
    def events(self) -> tuple[float, ...]:
        """All times at which a point is cut off or released by a coordinate."""
        return tuple(sorted(time for course in self.courses for time in course.times[1:]))

    @property
    def collapse_time(self) -> float:
        """When the last point is cut off by the last coordinate, and τ(x) = −β for all; ∞ if that does not happen."""
        return max(
            (course.times[course.counts.index(self.total)] if course.counts[-1] == self.total else math.inf)
            for course in self.courses
        )

    def _table(self, times: Sequence[float] | Tensor, of: Any) -> Tensor:
        asked = [float(time) for time in times]
        for time in asked:
            if not 0 <= time < math.inf:
                raise ValueError(f"`times` must be at least 0 and finite; got {time}. At infinity there is `limit`.")
        return torch.tensor([[of(course, time) for course in self.courses] for time in asked], dtype=torch.float64)


def bias_flow(
    points: Tensor,
    targets: Tensor,
    shift: Tensor,
    rotation: Tensor | None = None,
    *,
    clusters: Tensor | None = None,
    scales: Tensor | None = None,
) -> BiasFlow:
    """Gradient flow of β for ½ ⟨|τ(x) − y|²⟩ and aligned weights W = W_* R that are held, event by event.

    In the coordinates of R, dβ̂_k/dt = −Σ_j (n_jk / N) (β̂_k + ŷ_jk), with n_jk the points of cluster j that coordinate k
    cuts off. Between events that is an exponential of rate n_k / N towards minus the mean target of these points, and
    the time from β̂ to β̂' is (N / n_k) ln((β̂ − level) / (β̂' − level)). Coordinates do not see each other.

    Args:
        points: x, shape `[N, Q]`.
        targets: y in input space: `[Q]` for all points, `[J, Q]` with `clusters`, or `[N, Q]`.
        shift: β(0), shape `[Q]`.
        rotation: R, shape `[Q, Q]`; None for the identity.
        clusters: Of each point, whole numbers from 0, shape `[N]`.
        scales: Diagonal of W_*, shape `[Q]`, for gradient flow of b = W β in place of β: rates n_k / (N W_*k²).

    Raises:
        TypeError: A tensor is not of floating point, or `clusters` not of whole numbers.
        ValueError: A shape does not fit, R is not orthogonal, or a scale is not positive.

    References:
        Chen 2025 (arXiv 2501.07400), the effective equations for cluster-separated truncations; the kinks of
        clusters that are not separated, and the factor W_*⁻², are derived here.

    Example:
        >>> flow = bias_flow(torch.tensor([[-1.0], [1.0]]), torch.tensor([3.0]), torch.tensor([0.0]))
        >>> flow.courses[0].rates, round(flow.events[0] / math.log(3 / 2), 12), flow.limit.tolist()
        ((0.5, 1.0), 2.0, [-3.0])
    """
    given = check_points(points)
    width = given.shape[1]
    turn, wanted = check_rotation(rotation, width), goals(targets, clusters, given)
    start = check_shift(shift, width)
    pace = _paces(scales, width)
    inputs, outputs, shifts = given @ turn.mT, wanted @ turn.mT, turn @ start
    courses = []
    for k in range(width):
        order = inputs[:, k].argsort(stable=True)
        walls, ends = inputs[order, k].tolist(), outputs[order, k].tolist()
        courses.append(_course(walls, ends, -float(shifts[k]), pace[k]))
    return BiasFlow(tuple(courses), turn, len(given))


def _paces(scales: Tensor | None, width: int) -> list[float]:
    if scales is None:
        return [1.0] * width
    given = check_tensor("scales", scales).double()
    if tuple(given.shape) != (width,) or not bool((given > 0).all()):
        raise ValueError(f"`scales` must be {width} positive numbers, the norms of the rows of W; got {scales}.")
    return given.pow(-2).tolist()


def _course(points: list[float], targets: list[float], wall: float, pace: float) -> Course:
    """The wall w = −β̂ among points in rising order: w' = −(1/N) Σ_{x ≤ w} (w − y), which is monotone in time."""
    total = len(points)
    sums = [0.0]
    for target in targets:
        sums.append(sums[-1] + target)
    cut, time, pieces, end = bisect.bisect_right(points, wall), 0.0, [], "node"
    while True:
        level = sums[cut] / cut if cut else wall
        rate = cut / total * pace
        pieces.append((time, -wall, rate, -level, cut))
        if not cut or level == wall:
            end = "node" if cut else "untruncated"
            break
        rises = level > wall
        knot = (points[cut] if cut < total else math.inf) if rises else points[cut - 1]
        if (knot >= level) if rises else (knot <= level):
            break
        time += math.log((wall - level) / (knot - level)) / rate
        wall, cut = knot, (bisect.bisect_right if rises else bisect.bisect_left)(points, knot)
        push = sums[cut] - cut * wall
        if (push <= 0) if rises else (push >= 0):  # beyond the knot nothing drives it on
            end = "kink" if cut else "untruncated"
            pieces.append((time, -wall, 0.0, -wall, cut))
            break
    times, starts, rates, levels, counts = zip(*pieces, strict=True)
    return Course(times, starts, rates, levels, counts, end)


@final
@dataclasses.dataclass(frozen=True)
class Equilibrium:
    """Where one coordinate of β is at rest.

    Args:
        coordinate: k, from 0.
        shift: β̂_k.
        count: n_k there; of a kink, of its far side.
        kind: "node", attracting, at minus the mean target of n_k points; "kink", attracting, at minus the coordinate of
            a point; "repelling", there too; "untruncated", all β̂_k ≥ `shift`, where no point is cut off. Where a mean
            target is the coordinate of a point too, the two sides differ: node from one, kink or repelling from the
            other, and one of them is named.
    """

    coordinate: int
    shift: float
    count: int
    kind: str


def equilibria(
    points: Tensor, targets: Tensor, rotation: Tensor | None = None, *, clusters: Tensor | None = None
) -> tuple[Equilibrium, ...]:
    """All equilibria of `bias_flow`, coordinate by coordinate, falling in β̂.

    Args:
        points: As of `bias_flow`.
        targets: As of `bias_flow`.
        rotation: As of `bias_flow`.
        clusters: As of `bias_flow`.

    Raises:
        TypeError: As `bias_flow`.
        ValueError: As `bias_flow`.

    Example:
        >>> for found in equilibria(torch.tensor([[-1.0], [1.0]]), torch.tensor([3.0])):
        ...     print(found)
        Equilibrium(coordinate=0, shift=1.0, count=0, kind='untruncated')
        Equilibrium(coordinate=0, shift=-3.0, count=2, kind='node')
    """
    given = check_points(points)
    turn, wanted = check_rotation(rotation, given.shape[1]), goals(targets, clusters, given)
    inputs, outputs = given @ turn.mT, wanted @ turn.mT
    found = []
    for k in range(given.shape[1]):
        order = inputs[:, k].argsort(stable=True)
        found.extend(_resting(k, inputs[order, k].tolist(), outputs[order, k].tolist()))
    return tuple(found)


def _resting(coordinate: int, points: list[float], targets: list[float]) -> list[Equilibrium]:
    """Those of one coordinate, walls rising."""
    result = [Equilibrium(coordinate, -points[0], 0, "untruncated")]
    knots = sorted(set(points))
    for knot, after in zip(knots, [*knots[1:], math.inf], strict=True):
        below, count = bisect.bisect_left(points, knot), bisect.bisect_right(points, knot)
        before = sum(targets[:below]) - below * knot
        beyond = sum(targets[:count]) - count * knot
        if below and before > 0 >= beyond:
            result.append(Equilibrium(coordinate, -knot, count, "kink"))
        if below and before < 0 < beyond:
            result.append(Equilibrium(coordinate, -knot, below, "repelling"))
        level = sum(targets[:count]) / count
        if (beyond > 0 and level <= after) or (beyond == 0 and not (below and before >= 0)):
            result.append(Equilibrium(coordinate, -level, count, "node"))
    return result
