"""Cycles of a recurrent step at a static input by multiple shooting."""

import collections
import dataclasses
import enum
import math
from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from kpflow._checks import check_positive

from .arguments import check_search, check_search_numbers
from .deadlines import TIME_LIMIT, deadline_in
from .maps import StaticMap, exact_derivatives, static_map
from .monodromy import cyclic_matrix, monodromy
from .periods import orbits
from .points import classes
from .searches import Searched, search

__all__ = ["CycleStatus", "Cycles", "find_cycles"]

PIECE_ENTRIES = 2**22
"""Entries of the Jacobians that are kept at once: seeds are searched from in pieces."""

COARSE = 1e-3
"""The most that an error bound may merge, relative to 1 + ‖h‖: at a multiplier of 1 it would be infinite."""


@final
class CycleStatus(str, enum.Enum):
    """How the search from one seed ended."""

    CYCLE = "cycle"
    """At a cycle of the period asked for, to the tolerance."""
    SHORTER = "shorter"
    """At a cycle whose period is a proper divisor of the one asked for, such as a fixed point; it is not listed."""
    SLOW = "slow"
    """At a minimum of the squared residual above zero: no cycle, but nearly one, as just before a fold."""
    MAXITER = "maxiter"
    """Nowhere yet when the steps were used up, or held at the limit |h| = 1 of a gated state."""
    DIVERGED = "diverged"
    """Outside the floating range, or beyond 1e8 times the size of the seeds."""
    TIMEOUT = "timeout"
    """Nowhere yet when the time was up."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Cycles:
    """The distinct cycles h₀ → h₁ → … → h_{p−1} → h₀ of one period that were found, the stable ones first.

    Args:
        states: h_j, shape `[c, p, H]`, float64; the phase with the smallest first unit comes first.
        residual: √Σ_j ‖F(h_j) − h_{j+1}‖², shape `[c]`.
        error: 2‖(I − C)⁻¹ r‖ with the residuals r and the block-cyclic matrix C of the Jacobians, a bound of the
            distance to the exact cycle by Newton and Kantorovich where r is small; at most 1e-3 (1 + ‖h‖); `[c]`.
        jacobians: J_j = ∂F/∂h at h_j, shape `[c, p, H, H]`.
        multipliers: Eigenvalues μ of J_{p−1} ⋯ J₀ by falling modulus, complex, shape `[c, H]`.
        right: Right eigenvectors v of norm 1 of the product that starts at each phase; that of the i-th multiplier at
            phase j is `right[:, j, :, i]`. Where |μ| is below rounding of the product they mean little.
        left: Left eigenvectors, uᵀ v = 1 without a conjugate, in the same places.
        condition: Largest condition number of V = `right` over the phases, shape `[c]`.
        status: How the search from each seed ended, n of them.
        cycle: The row of `states` that a seed came to, −1 for none; shape `[n]`.
        period: The least period of the cycle that a seed came to: p, or a divisor of p, or 0 for none; shape `[n]`.
        dt: Duration of a step, the unit of `timescales`.
        marginal: | |μ| − 1 | below which a cycle is marginal.
    """

    states: Float[Tensor, "c p H"]
    residual: Float[Tensor, "c"]
    error: Float[Tensor, "c"]
    jacobians: Float[Tensor, "c p H H"]
    multipliers: Complex[Tensor, "c H"]
    right: Complex[Tensor, "c p H H"]
    left: Complex[Tensor, "c p H H"]
    condition: Float[Tensor, "c"]
    status: tuple[CycleStatus, ...]
    cycle: Int[Tensor, "n"]
    period: Int[Tensor, "n"]
    dt: float
    marginal: float

    @property
    def timescales(self) -> Float[Tensor, "c H"]:
        """τ = −p dt / ln|μ| of each multiplier: inf at |μ| = 1, negative for growth, 0 at μ = 0."""
        logs = self.multipliers.abs().log()
        return torch.where(logs == 0, math.inf, -self.dt * self.states.shape[1] / logs)

    @property
    def unstable(self) -> Int[Tensor, "c"]:
        """Number of multipliers with |μ| > 1."""
        return (self.multipliers.abs() > 1).sum(dim=1)

    @property
    def kinds(self) -> tuple[str, ...]:
        """For each cycle "marginal", "stable", "saddle-j" with j unstable directions, or "repeller" where all are."""
        return classes(self.multipliers.abs() - 1, self.marginal)

    def __repr__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in collections.Counter(self.kinds).items())
        ends = ", ".join(f"{count} {end.value}" for end, count in collections.Counter(self.status).items())
        count, period, _ = self.states.shape
        return f"Cycles({count} of period {period}: {kinds or 'none'}; seeds: {ends})"


def find_cycles(
    step: Callable[..., Any],
    inputs: Tensor,
    seeds: Tensor,
    period: int,
    *,
    tolerance: float = 1e-12,
    descent: int = 100,
    iterations: int = 200,
    merge: float = 1e-8,
    marginal: float = 1e-3,
    dt: float = 1.0,
    time_limit: float | None = TIME_LIMIT,
) -> Cycles:
    """Cycles of period p of F = step(·, x), from many seeds at once, in float64 whatever the dtype of the model.

    Multiple shooting: all p phases are unknowns of one block-cyclic system h_{j+1} = F(h_j), so that nothing is raised
    to the p-th power as in F∘…∘F, and unstable cycles are found as well as stable ones. From every seed by itself:
    Adam on the squared residual, Levenberg–Marquardt, Newton, as in `find_fixed_points`. Cycles that are nearer, at
    some cyclic shift, than the sum of their error bounds plus `merge` (1 + ‖h‖) are one. Cycles whose least period is
    a proper divisor of p are not listed; their seeds have the status "shorter" and their least period in `period`.

    The eigenvalue problem for the multipliers has p H unknowns: a cycle costs (p H)³.

    Args:
        step: As of `find_fixed_points`.
        inputs: The static input x, shape `[I]`.
        seeds: States to start from, shape `[n, H]`, of which p steps are the first guess, or guesses of all phases,
            shape `[n, p, H]`. For attracting cycles take `detect_periods(...).states`.
        period: p, at least 1.
        tolerance: A cycle has a residual of at most tolerance (1 + ‖h‖), with all phases in the norms.
        descent: Steps of Adam.
        iterations: The most steps of Levenberg–Marquardt.
        merge: See above.
        marginal: | |μ| − 1 | below which a cycle counts as marginal.
        dt: Duration of a step, for time scales.
        time_limit: Seconds after which searches end where they are, 120 by default; None for no limit. A call of the
            step is never interrupted, and what was found is described after that.

    Returns:
        The distinct cycles, and how the search from each seed ended.

    Raises:
        TypeError: `inputs` or `seeds` are no floating-point tensors, or the step gives no float64 tensor.
        ValueError: `inputs` is not static, shapes do not fit, a number is out of range or not finite, or the step is
            one that `find_fixed_points` refuses.

    References:
        Keller 1968 (multiple shooting); Kuznetsov 2004, section 10.2; Bojanczyk, Golub and Van Dooren 1992 (products).

    Example:
        >>> logistic = lambda h, x: 3.2 * h * (1 - h) + 0 * x
        >>> cycles = find_cycles(logistic, torch.zeros(1), torch.linspace(0.1, 0.9, 9)[:, None], 2)
        >>> cycles
        Cycles(1 of period 2: 1 stable; seeds: ...)
        >>> round(float(cycles.multipliers[0, 0].real), 12)  # 4 + 2r − r²
        0.16
    """
    check_search(inputs, seeds, "Cycles", phases=True)
    check_positive("period", period, integer=True)
    if seeds.ndim == 3 and seeds.shape[1] != period:
        raise ValueError(
            f"`seeds` of shape (n, phases, H) must have as many phases as `period`, {period}; got {seeds.shape[1]}."
        )
    check_search_numbers(tolerance, descent, iterations, merge, marginal, dt)
    deadline = deadline_in(time_limit)
    with exact_derivatives():
        starts = seeds.detach().to(torch.float64).clone()
        mapping = static_map(step, inputs.detach().to(torch.float64).clone(), starts.flatten(0, -2))
        guesses = starts if starts.ndim == 3 else orbits(mapping, starts, period)[:, :period]
        unit = float(starts.abs().mean(dim=-1).median()) or 1.0
        shooting, flat = _shooting(mapping, period), guesses.flatten(1)
        pieces = flat.split(max(1, PIECE_ENTRIES // flat.shape[1] ** 2))
        found = [search(shooting, piece, unit, tolerance, descent, iterations, deadline) for piece in pieces]
        return _described(mapping, Searched.joined(found), period, deadline.over, merge, marginal, dt)


def _shooting(mapping: StaticMap, period: int) -> StaticMap:
    """G(h₀, …, h_{p−1}) = (F(h_{p−1}), F(h₀), …), whose fixed points are the cycles."""

    def function(states: Tensor) -> Tensor:
        phases = states.unflatten(1, (period, -1))
        moved = mapping.function(phases.flatten(0, 1)).unflatten(0, phases.shape[:2])
        return moved.roll(1, dims=1).flatten(1)

    return StaticMap(function, False, mapping.limits.repeat(period))


def _described(
    mapping: StaticMap, found: Searched, period: int, late: bool, merge: float, marginal: float, dt: float
) -> Cycles:
    """The table of cycles, and who came to them."""
    states = found.states.unflatten(1, (period, -1))
    at = found.root.nonzero()[:, 0]
    at = at[found.residual[at].argsort(stable=True)]
    reach = _bounds(mapping, states[at]) + merge * (1 + states[at].flatten(1).norm(dim=1))
    least = torch.zeros_like(found.root, dtype=torch.long)
    least[at] = _least(states[at], reach)
    whole = least[at] == period
    at, reach = at[whole], reach[whole]
    chosen, labels = _distinct(states[at], reach)
    first = states[at[chosen], :, 0].argmin(dim=1)
    phases = (first[:, None] + torch.arange(period, device=first.device)) % period
    kept = states[at[chosen][:, None], phases]
    jacobians = _linearised(mapping, kept)[1]
    eigen = monodromy(jacobians)
    order = (eigen.multipliers.abs() > 1).sum(dim=1).argsort(stable=True)
    cycle = torch.full_like(least, -1)
    cycle[at] = order.argsort()[labels]
    return Cycles(
        kept[order],
        found.residual[at[chosen]][order],
        _bounds(mapping, kept)[order],
        jacobians[order],
        eigen.multipliers[order],
        eigen.right[order],
        eigen.left[order],
        eigen.condition[order],
        _statuses(found, least, period, late),
        cycle,
        least,
        float(dt),
        float(marginal),
    )


def _linearised(
    mapping: StaticMap, states: Float[Tensor, "c p H"]
) -> tuple[Float[Tensor, "c p H"], Float[Tensor, "c p H H"]]:
    values, jacobians = mapping.linearised(states.flatten(0, 1))
    return values.unflatten(0, states.shape[:2]), jacobians.unflatten(0, states.shape[:2])


def _bounds(mapping: StaticMap, states: Float[Tensor, "c p H"]) -> Float[Tensor, "c"]:
    """2‖(I − C)⁻¹ r‖, at most COARSE (1 + ‖h‖)."""
    most = COARSE * (1 + states.flatten(1).norm(dim=1))
    width = states.shape[1] * states.shape[2]
    bounds = [states.new_zeros(0)]
    for piece in states.split(max(1, PIECE_ENTRIES // width**2)):
        values, jacobians = _linearised(mapping, piece)
        residual = (values.roll(1, dims=1) - piece).flatten(1)
        matrix = torch.eye(width, dtype=piece.dtype, device=piece.device) - cyclic_matrix(jacobians)
        bounds.append(2 * torch.linalg.solve_ex(matrix, residual[:, :, None])[0][:, :, 0].norm(dim=1))
    return torch.minimum(torch.cat(bounds).nan_to_num(nan=torch.inf), most)


def _least(states: Float[Tensor, "m p H"], reach: Float[Tensor, "m"]) -> Int[Tensor, "m"]:
    """The least d that divides p such that a shift by d phases is no farther than twice the reach."""
    period = states.shape[1]
    least = torch.full((len(states),), period, device=states.device)
    for d in range(period - 1, 0, -1):
        if period % d == 0:
            least[(states.roll(d, dims=1) - states).flatten(1).norm(dim=1) <= 2 * reach] = d
    return least


def _distinct(states: Float[Tensor, "m p H"], reach: Float[Tensor, "m"]) -> tuple[Int[Tensor, "c"], Int[Tensor, "m"]]:
    """The first of the cycles that are one up to a cyclic shift, and the one of each."""
    labels = torch.full((len(states),), -1, device=states.device)
    chosen: list[int] = []
    while bool((labels < 0).any()):
        best = int((labels < 0).nonzero()[0])
        shifted = [states[best].roll(j, dims=0) for j in range(states.shape[1])]
        distance = torch.stack([(states - one).flatten(1).norm(dim=1) for one in shifted]).amin(dim=0)
        labels[(distance <= reach + reach[best]) & (labels < 0)] = len(chosen)
        chosen.append(best)
    return torch.tensor(chosen, dtype=torch.long, device=states.device), labels


def _statuses(found: Searched, least: Int[Tensor, "n"], period: int, late: bool) -> tuple[CycleStatus, ...]:
    unfinished = CycleStatus.TIMEOUT if late else CycleStatus.MAXITER
    ends = zip(*(column.tolist() for column in (found.root, found.flat, found.lost, least == period)), strict=True)
    return tuple(
        (CycleStatus.CYCLE if own else CycleStatus.SHORTER)
        if root
        else CycleStatus.SLOW
        if flat
        else CycleStatus.DIVERGED
        if lost
        else unfinished
        for root, flat, lost, own in ends
    )
