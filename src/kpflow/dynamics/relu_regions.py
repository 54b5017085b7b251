"""Exact fixed points of ReLU networks, region by region."""

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from kpflow._checks import (
    check_finite,
    check_generator,
    check_one_of,
    check_positive,
    check_range,
    check_tensor,
)

from .arguments import check_static_input
from .deadlines import TIME_LIMIT, Deadline, deadline_in
from .merging import index
from .piecewise import PiecewiseLinear, piecewise_linear
from .points import IndexVerdict, classes, spectrum
from .regions import Continuum, Solved, continuum, distinct, parts, slacks, solve_regions

__all__ = ["RegionPoints", "find_region_points"]

PIECE_ENTRIES = 2**20
"""Entries of the Jacobians that are kept at once."""

BATCH = 256
"""Regions that are solved at once while their successors are still wanted."""

MOST_UNITS = 24
"""The most units whose regions are all gone through."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class RegionPoints:
    """The fixed points of a ReLU network, those with few unstable directions first.

    Args:
        states: h, shape `[k, H]`, float64, exact to the rounding of one linear solve.
        residual: ‖F(h) − h‖, shape `[k]`.
        active: The units above zero, M of them, shape `[k, M]`.
        border: min |C h + d| over the units, the distance to a border collision in units of preactivation; 0 where
            h is on a border to rounding, and J belongs to one side of it (zero counts as inactive); shape `[k]`.
        border_unit: The unit that is nearest to its border, shape `[k]`.
        jacobians: J = A + B D C, shape `[k, H, H]`.
        multipliers: Eigenvalues μ of J by falling modulus, complex, shape `[k, H]`.
        right: Right eigenvectors of norm 1; v of the j-th multiplier is `right[:, :, j]`.
        left: Left eigenvectors, uᵀ J = μ uᵀ with uᵀ v = 1 without a conjugate; u is `left[:, :, j]`.
        condition: Condition number of V = `right`, shape `[k]`.
        index_sum: Σ sign det(I − J) over the points.
        index_verdict: Whether the index sum applies, and what it tells.
        continua: The continuous sets of fixed points, a part for each region that a set passes, with a state on it, its
            directions and the active units; a point on such a set, or at its end, is no row of `states`.
        regions: Number of regions that were solved.
        complete: Whether these are all regions, and so all fixed points.
        marginal: | |μ| − 1 | below which a point is marginal.
    """

    states: Float[Tensor, "k H"]
    residual: Float[Tensor, "k"]
    active: Bool[Tensor, "k M"]
    border: Float[Tensor, "k"]
    border_unit: Int[Tensor, "k"]
    jacobians: Float[Tensor, "k H H"]
    multipliers: Complex[Tensor, "k H"]
    right: Complex[Tensor, "k H H"]
    left: Complex[Tensor, "k H H"]
    condition: Float[Tensor, "k"]
    index_sum: int
    index_verdict: IndexVerdict
    continua: tuple[Continuum, ...]
    regions: int
    complete: bool
    marginal: float

    @property
    def unstable(self) -> Int[Tensor, "k"]:
        """Number of multipliers with |μ| > 1."""
        return (self.multipliers.abs() > 1).sum(dim=1)

    @property
    def kinds(self) -> tuple[str, ...]:
        """For each point "border", or else its class as of `FixedPoints.kinds`."""
        inside = classes(self.multipliers.abs() - 1, self.marginal)
        return tuple("border" if on else kind for on, kind in zip((self.border == 0).tolist(), inside, strict=True))

    def __repr__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in collections.Counter(self.kinds).items())
        return (
            f"RegionPoints({len(self.states)} points: {kinds or 'none'}; {len(self.continua)} continuous sets; index "
            f"sum {self.index_sum}, {self.index_verdict.value.split(':')[0]}; "
            f"{'all ' if self.complete else ''}{self.regions} regions)"
        )


def find_region_points(
    step: Callable[..., Any],
    inputs: Tensor | None = None,
    *,
    seeds: Tensor | None = None,
    method: str = "auto",
    budget: int = 20_000,
    bounded: bool = False,
    marginal: float = 1e-3,
    generator: torch.Generator | None = None,
    time_limit: float | None = TIME_LIMIT,
) -> RegionPoints:
    """Fixed points of h = A h + B relu(C h + d) + e, exact: where the active units D are known the equation is linear.

    A solution h of (I − A − B D C) h = B D d + e is a fixed point if C h + d is positive for the units of D alone.
    "enumerate" goes through all 2ᴹ sets D and is complete. "iterate" goes on from a D to that of the region where the
    solution lies, as Eisenmann et al. do, until it stays or comes to a region that was solved before; it starts from
    the regions of `seeds`, from sets of random size, and from the neighbours of points already found. "auto" enumerates
    if 2ᴹ ≤ `budget`. Iteration may miss points: with 14 units it found all in an eighth of the regions, with 40
    competing units none in 20 000. Give it the states of `find_fixed_points` as seeds then, which it makes exact.

    Where I − J is singular the region has no fixed point or a continuous set of them; a linear program tells, and the
    sets are listed apart. A point on a border, such as 0 in a network without bias and input, is listed once.

    Args:
        step: `nn.RNN` of one layer or `nn.RNNCell` with nonlinearity "relu"; `RateRNN` or `LowRankRNN` with ReLU;
            or a `PiecewiseLinear`.
        inputs: The static input x, shape `[I]`; None for a `PiecewiseLinear`.
        seeds: States whose regions are solved first, shape `[n, H]`.
        method: "auto", "enumerate" or "iterate".
        budget: The most regions that are solved when iterating.
        bounded: Whether F maps some ball into itself, so that the index sum must be 1.
        marginal: | |μ| − 1 | below which a point counts as marginal.
        generator: Source of the random sets; None for a fresh one seeded with 0.
        time_limit: Seconds after which no further regions are solved, 120 by default; None for no limit.

    Returns:
        The fixed points, the continuous sets, and whether all regions were solved.

    Raises:
        TypeError: The step is of another kind; `inputs` or `seeds` are no floating-point tensors.
        ValueError: The nonlinearity is not ReLU, shapes do not fit, something is not finite or out of range, or there
            are more than 24 units to enumerate.

    References:
        Eisenmann, Monfared, Göring and Durstewitz 2023 (NeurIPS; SCYFI).

    Example:
        >>> net = PiecewiseLinear.inside(torch.zeros(1, 1), torch.full((1, 1), -2.0), torch.ones(1))
        >>> points = find_region_points(net)
        >>> points
        RegionPoints(1 points: 1 repeller; 0 continuous sets; index sum 1, not applicable; all 2 regions)
        >>> round(float(points.states[0, 0]), 12), round(float(points.border[0]), 12)
        (0.333333333333, 0.333333333333)
    """
    _check_arguments(inputs, seeds, method, budget, marginal)
    deadline = deadline_in(time_limit)
    network = piecewise_linear(step, inputs)
    units = len(network.offset)
    generator = check_generator("generator", generator, network.offset.device)
    if seeds is not None and (seeds.ndim != 2 or seeds.shape[1] != len(network.constant)):
        raise ValueError(f"`seeds` must have shape (n, {len(network.constant)}); got {tuple(seeds.shape)}.")
    if method == "enumerate" and units > MOST_UNITS:
        raise ValueError(
            f"`method` 'enumerate' goes through 2ᴹ regions, M at most {MOST_UNITS}; got {units} units. Use 'iterate'."
        )
    every = method == "enumerate" or (method == "auto" and units <= MOST_UNITS and 2**units <= budget)
    pieces = _all(network) if every else _followed(network, seeds, budget, generator)
    return _described(network, _searched(network, pieces, deadline), bounded, float(marginal))


@final
@dataclasses.dataclass(eq=False)
class _Search:
    """What was found so far."""

    states: list[Tensor]
    radius: list[Tensor]
    continua: list[Continuum]
    regions: int


def _searched(network: PiecewiseLinear, pieces: Iterator[tuple[Tensor, Solved]], deadline: Deadline) -> _Search:
    """Go through the pieces until they or the time are used up."""
    found = _Search([], [], [], 0)
    for active, solved in pieces:
        found.states.append(solved.states[solved.consistent])
        found.radius.append(solved.radius[solved.consistent])
        for pattern in active[solved.singular]:
            if deadline.over:
                return found
            one = continuum(network, pattern)
            found.continua += [] if one is None else [one]
        found.regions += len(active)
        if deadline.over:
            break
    return found


def _all(network: PiecewiseLinear) -> Iterator[tuple[Tensor, Solved]]:
    """Every region, in pieces."""
    size, units = network.outgoing.shape
    bits = 2 ** torch.arange(units, device=network.offset.device)
    for numbers in torch.arange(2**units, device=bits.device).split(max(1, PIECE_ENTRIES // size**2)):
        active = (numbers[:, None] & bits) > 0
        yield active, solve_regions(network, active)


def _followed(
    network: PiecewiseLinear, seeds: Tensor | None, budget: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Solved]]:
    """Regions on the way from region to region of the solution, each once, until the budget is spent."""
    units, device = len(network.offset), network.offset.device
    known: set[bytes] = set()
    queue = _random(units, BATCH, generator)
    if seeds is not None:
        queue = torch.cat([network.preactivations(seeds.detach().to(network.offset)) > 0, queue])
    flips = torch.eye(units, dtype=torch.bool, device=device)
    idle = 0
    while len(known) < budget and idle < 100:  # 100 draws with nothing new: all sets are known, or nearly
        queue, rest = queue[:BATCH], queue[BATCH:]
        fresh = _new(queue, known)[: budget - len(known)]
        known.update(_key(row) for row in fresh)
        idle = 0 if len(fresh) else idle + 1
        if len(fresh):
            solved = solve_regions(network, fresh)
            yield fresh, solved
            around = (fresh[solved.consistent][:, None] ^ flips).flatten(0, 1)
            rest = torch.cat([solved.landed[~solved.singular & ~solved.consistent], around, rest])
        queue = rest if len(rest) >= BATCH else torch.cat([rest, _random(units, BATCH - len(rest), generator)])


def _random(units: int, count: int, generator: torch.Generator) -> Bool[Tensor, "n M"]:
    """Sets of units, each with its own share of active ones."""
    share = torch.rand(count, 1, generator=generator, device=generator.device)
    return torch.rand(count, units, generator=generator, device=generator.device) < share


def _key(pattern: Bool[Tensor, "M"]) -> bytes:
    return pattern.cpu().numpy().tobytes()


def _new(patterns: Bool[Tensor, "n M"], known: set[bytes]) -> Bool[Tensor, "m M"]:
    """Those that are not known, each once."""
    first = {key: i for i, key in reversed([*enumerate(map(_key, patterns))]) if key not in known}
    return patterns[sorted(first.values())]


def _described(network: PiecewiseLinear, found: _Search, bounded: bool, marginal: float) -> RegionPoints:
    """The table of points."""
    nothing = network.constant.new_zeros(0, len(network.constant))
    states, radius = torch.cat([nothing, *found.states]), torch.cat([nothing[:, 0], *found.radius])
    continua = parts(network, found.continua)
    at = distinct(network, states, radius, continua)
    states, radius = states[at], radius[at]
    before, slack = network.preactivations(states), slacks(network, states, radius)
    distance = torch.where(before.abs() <= slack, 0.0, before.abs())
    active = before > slack
    jacobians = network.jacobians(active)
    eigen = spectrum(jacobians)
    order = (eigen.multipliers.abs() > 1).sum(dim=1).argsort(stable=True)
    border, unit = distance.min(dim=1)
    loose = bool((border == 0).any()) or bool(continua)
    total, verdict = index(jacobians, eigen.multipliers, bounded)
    if loose and verdict is not IndexVerdict.NOT_APPLICABLE:
        verdict = IndexVerdict.SINGULAR
    return RegionPoints(
        states[order],
        (network(states) - states).norm(dim=1)[order],
        active[order],
        border[order],
        unit[order],
        jacobians[order],
        eigen.multipliers[order],
        eigen.right[order],
        eigen.left[order],
        eigen.condition[order],
        total,
        verdict,
        tuple(continua),
        found.regions,
        found.regions == 2 ** len(network.offset),
        marginal,
    )


def _check_arguments(inputs: Tensor | None, seeds: Tensor | None, method: str, budget: int, marginal: float) -> None:
    if inputs is not None:
        check_static_input("inputs", inputs)
    if seeds is not None:
        check_tensor("seeds", seeds)
        check_finite("seeds", seeds, ("seed", "unit"), "Leave such states out.")
    check_one_of("method", method, ("auto", "enumerate", "iterate"))
    check_positive("budget", budget, integer=True)
    check_range("marginal", marginal, 0)
