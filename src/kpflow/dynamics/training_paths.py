"""Fixed points between two checkpoints of a training: which go on, which are born or vanish, and at which step."""

import collections
import copy
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from kpflow._checks import check_positive, check_tensor

from .branches import Branch, Ending, Event
from .continuation import Limits, checked_curve, checked_limits, follow_both, started
from .curves import Curve
from .diagrams import distinct_events
from .fixed_points import find_fixed_points
from .maps import exact_derivatives
from .paths import checkpoint_path

__all__ = ["TrainingPath", "follow_training", "training_path"]

MATCH = 1e-5
"""An arriving branch and a given point are one if they are nearer, relative to 1 + ‖h‖."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class PathEnd:
    """The fixed points at one checkpoint, as the branches tell of them.

    Args:
        given: The points that the user gave, shape `[k, H]`.
        branch: The branch that each of them lies on, −1 for none: unresolved.
        missed: Points where a branch arrives that are not among them, shape `[m, H]`.
        index_sum: Σ sign det(I − J) over both.
    """

    given: Float[Tensor, "k H"]
    branch: tuple[int, ...]
    missed: Float[Tensor, "m H"]
    index_sum: int


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TrainingPath:
    """Fixed points of the interpolant between two checkpoints, θ(s) = (1 − s) θ_a + s θ_b.

    Its events are those of the interpolant: training itself takes another way from θ_a to θ_b, and only that something
    happened between both checkpoints is certain.

    Args:
        branches: Each branch once; their parameter is s.
        events: The distinct ones, by s.
        between: Training steps of both checkpoints.
        first: The points at the first checkpoint.
        last: The points at the last checkpoint.
    """

    branches: tuple[Branch, ...]
    events: tuple[Event, ...]
    between: tuple[float, float]
    first: PathEnd
    last: PathEnd

    @property
    def continued(self) -> tuple[tuple[int, int], ...]:
        """Pairs (i, j): the i-th point of the first checkpoint goes on as the j-th of the last."""
        arrived = self.last.branch
        return tuple((i, arrived.index(b)) for i, b in enumerate(self.first.branch) if b >= 0 and b in arrived)

    @property
    def vanished(self) -> tuple[tuple[int, ...], ...]:
        """Points of the first checkpoint that meet in a fold, as pairs (alone where the other was not given)."""
        return _turning(self.branches, self.first, 0.0)

    @property
    def born(self) -> tuple[tuple[int, ...], ...]:
        """Points of the last checkpoint that come from a fold, as pairs (alone where the other was not given)."""
        return _turning(self.branches, self.last, 1.0)

    @property
    def unresolved(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Points of the first and of the last checkpoint whose branch was not followed to an end."""
        first, last = (
            tuple(i for i, b in enumerate(side.branch) if b < 0 or set(self.branches[b].endings) != {Ending.BOUND})
            for side in (self.first, self.last)
        )
        return first, last

    @property
    def index_sums(self) -> tuple[int, int]:
        """Σ sign det(I − J) at both checkpoints, the missed points with the others: the same, if all is resolved."""
        return self.first.index_sum, self.last.index_sum

    def step_of(self, event: Event) -> float:
        """The training step that an event of the interpolant stands for; it is known to lie in `between` only."""
        low, high = self.between
        return low + event.parameter * (high - low)

    def __repr__(self) -> str:
        low, high = self.between
        events = ", ".join(f"{event.label} at {self.step_of(event):.6g}" for event in self.events)
        count = sum(map(len, self.unresolved))
        return (
            f"TrainingPath(step ∈ [{low:g}, {high:g}]: {len(self.first.branch) + len(self.first.missed)} → "
            f"{len(self.last.branch) + len(self.last.missed)} points; {events or 'no event'} (of the interpolant); "
            f"{count} unresolved; index sums {self.index_sums})"
        )


def training_path(
    step_a: Callable[..., Any],
    step_b: Callable[..., Any],
    inputs: Tensor,
    points_a: Float[Tensor, "a H"],
    points_b: Float[Tensor, "b H"],
    *,
    parameters: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None = None,
    between: tuple[float, float] = (0.0, 1.0),
    max_step: float | None = None,
    steps: int = 1000,
    time_limit: float = 60.0,
    tolerance: float = 1e-12,
) -> TrainingPath:
    """What becomes of the fixed points between two checkpoints, along the straight line between their parameters.

    Branches are followed from both ends: points that are born in between are connected with none of the first
    checkpoint, and following forward would never meet them. Branches that arrive at a checkpoint are matched one to one
    with its points, by least total distance. Each point must so go on as one of the other checkpoint, or end in a fold
    with another one of its own; the others are `unresolved`.

    Args:
        step_a: The step at the first checkpoint, as of `find_fixed_points`; a function is step(h, x, parameters).
        step_b: The same at the second checkpoint.
        inputs: The static input x, shape `[I]`.
        points_a: Fixed points at the first checkpoint, float64; shape `[0, H]` for none.
        points_b: Fixed points at the second checkpoint.
        parameters: θ_a and θ_b by name, of a function.
        between: Training steps of both checkpoints.
        max_step: As of `continue_branch`, a distance of (h, s).
        steps: As of `continue_branch`.
        time_limit: Seconds for all.
        tolerance: As of `continue_branch`.

    Raises:
        TypeError: Points or inputs are no floating-point tensors.
        ValueError: The checkpoints do not fit each other, a point is no fixed point of its checkpoint, or as
            `continue_branch` and `find_fixed_points`.

    Example:
        >>> step = lambda h, x, theta: torch.tanh(theta["w"] * h + x)
        >>> theta = {"w": torch.tensor(0.5)}, {"w": torch.tensor(2.0)}
        >>> points = [find_fixed_points(lambda h, x: step(h, x, named), torch.full((1,), 0.01),
        ...     torch.linspace(-1, 1, 20)[:, None]).states for named in theta]
        >>> training_path(step, step, torch.full((1,), 0.01), *points, parameters=theta, between=(100.0, 120.0))
        TrainingPath(step ∈ [100, 120]: 1 → 3 points; imperfect pitchfork at 107.487 (of the interpolant); ...
    """
    low, high = between
    if not low < high:
        raise ValueError(f"`between` must be the training steps of both checkpoints, in order; got {between!r}.")
    for name, value in (("points_a", points_a), ("points_b", points_b)):
        check_tensor(name, value)
        if value.ndim != 2:
            raise ValueError(f"`{name}` must be fixed points, shape (k, H); got {tuple(value.shape)}.")
    if not len(points_a) + len(points_b):
        raise ValueError("`points_a` and `points_b` must hold at least one fixed point; got none.")
    if points_a.shape[1] != points_b.shape[1]:
        raise ValueError(
            f"`points_b` must have states of the size of `points_a`, {points_a.shape[1]}; got {points_b.shape[1]}."
        )
    limits = checked_limits((0.0, 1.0), max_step, steps, time_limit)
    sample = points_a[0] if len(points_a) else points_b[0]
    path = checkpoint_path(step_a, step_b, inputs, sample, parameters=parameters)
    with exact_derivatives():
        for point in points_a:
            checked_curve(path, point, 0.0, limits, False, tolerance)
        for point in points_b:
            checked_curve(path, point, 1.0, limits, False, tolerance)
        branches = _branches(Curve(path, False, tolerance), points_a, points_b, limits)
    sides = (_side(branches, points_a, 0.0), _side(branches, points_b, 1.0))
    return TrainingPath(tuple(branches), distinct_events(branches), (float(low), float(high)), *sides)


def follow_training(
    module: nn.Module,
    checkpoints: Sequence[Mapping[str, Tensor]],
    inputs: Tensor,
    seeds: Float[Tensor, "n H"],
    *,
    every: float = 1.0,
    time_limit: float = 60.0,
) -> tuple[TrainingPath, ...]:
    """The fixed points at each checkpoint, and `training_path` from each to the next.

    Neighbours without any fixed point have no path: `between` tells the checkpoints of each of the others.

    Args:
        module: The network, as of `find_fixed_points`; it is not changed.
        checkpoints: What `module.state_dict()` was, at least twice, in order.
        inputs: The static input x, shape `[I]`.
        seeds: As of `find_fixed_points`, for every checkpoint.
        every: Training steps between checkpoints.
        time_limit: Seconds for each path.

    Raises:
        ValueError: There are fewer than two checkpoints, one does not fit the module; as `training_path`.

    Example:
        >>> cell = nn.RNNCell(1, 1)
        >>> checkpoints = [{name: torch.full_like(value, weight * (name == "weight_hh"))
        ...     for name, value in cell.state_dict().items()} for weight in (0.5, 0.6, 0.8)]
        >>> paths = follow_training(cell, checkpoints, torch.zeros(1), torch.linspace(-1, 1, 3)[:, None], every=20.0)
        >>> [(path.between, path.continued) for path in paths]
        [((0.0, 20.0), ((0, 0),)), ((20.0, 40.0), ((0, 0),))]
    """
    check_positive("every", every)
    if len(checkpoints) < 2:
        raise ValueError(f"`checkpoints` must be at least two state dicts; got {len(checkpoints)}.")
    models = [_loaded(module, place, state) for place, state in enumerate(checkpoints)]
    points = [find_fixed_points(model, inputs, seeds).states for model in models]
    return tuple(
        training_path(*pair, inputs, *ends, between=(every * k, every * (k + 1)), time_limit=time_limit)
        for k, (pair, ends) in enumerate(zip(itertools.pairwise(models), itertools.pairwise(points), strict=True))
        if len(ends[0]) + len(ends[1])
    )


def _loaded(module: nn.Module, place: int, state: Mapping[str, Tensor]) -> nn.Module:
    model = copy.deepcopy(module)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"`checkpoints[{place}]` must fit the module; {error}") from error
    return model


def _branches(curve: Curve, points_a: Tensor, points_b: Tensor, limits: Limits) -> list[Branch]:
    """From all points, those excepted where a branch already begins or arrives."""
    found: list[Branch] = []
    for points, s in ((points_a, 0.0), (points_b, 1.0)):
        for point in points:
            arrived = [state for _, state in _arrivals(found, s)]
            if not any(_is_same(point, state) for state in arrived):
                found.append(follow_both(curve, started(curve, point, s), limits))
    return found


def _arrivals(branches: Sequence[Branch], s: float) -> list[tuple[int, Tensor]]:
    """The ends of branches at a checkpoint: which branch, and the state."""
    ends = [(number, branch, end) for number, branch in enumerate(branches) for end in (0, -1)]
    return [(number, branch.states[end]) for number, branch, end in ends if float(branch.parameters[end]) == s]


def _is_same(point: Tensor, state: Tensor) -> bool:
    return float((point - state).norm()) <= MATCH * (1 + float(point.norm()))


def _side(branches: Sequence[Branch], points: Tensor, s: float) -> PathEnd:
    """Arrivals and given points, matched one to one."""
    arrivals = _arrivals(branches, s)
    labels, free = [-1] * len(points), set(range(len(arrivals)))
    if arrivals and len(points):
        states = torch.stack([state for _, state in arrivals])
        rows, columns = linear_sum_assignment(torch.cdist(points, states).cpu().numpy())
        for i, j in zip(rows.tolist(), columns.tolist(), strict=True):
            if _is_same(points[i], states[j]):
                labels[i] = arrivals[j][0]
                free.discard(j)
    missed = [arrivals[j][1] for j in sorted(free)]
    ends = [(branch, end) for branch in branches for end in (0, -1) if float(branch.parameters[end]) == s]
    index = sum(_index(branch.multipliers[end]) for branch, end in ends)
    return PathEnd(points, tuple(labels), torch.stack(missed) if missed else points[:0], index)


def _index(multipliers: Tensor) -> int:
    """Sign of det(I − J): complex pairs have none."""
    real = multipliers.real[multipliers.imag == 0]
    return int((1 - real).sign().prod())


def _turning(branches: Sequence[Branch], side: PathEnd, s: float) -> tuple[tuple[int, ...], ...]:
    """Given points by branch, of the branches that begin and end at this side."""
    groups: dict[int, list[int]] = collections.defaultdict(list)
    for i, number in enumerate(side.branch):
        if number >= 0 and branches[number].parameters[[0, -1]].tolist() == [s, s]:
            groups[number].append(i)
    return tuple(tuple(members) for members in groups.values())
