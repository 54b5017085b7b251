"""What is known of the fixed points and slow points of a map."""

import collections
import dataclasses
import enum
import math
from typing import final

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

__all__ = ["FixedPoints", "IndexVerdict", "SlowPoints", "Spectrum", "Status", "Stop", "classes", "spectrum"]

SINGULAR = 1e-6
"""Smallest singular value of I − J, relative to 1 + ‖J‖, below which a point may be one of a continuum."""


@final
class Status(str, enum.Enum):
    """How the search from one seed ended."""

    ROOT = "root"
    """At a fixed point, to the tolerance."""
    SLOW = "slow"
    """At a minimum of ½‖F(h) − h‖² above zero: no fixed point, but the state hardly moves there."""
    HELD = "held"
    """At the limit |h| = 1 of a gated state, where ½‖F(h) − h‖² would fall further outside, but no fixed point is."""
    MAXITER = "maxiter"
    """Nowhere yet when the steps were used up, or no step led on: F may be discontinuous, or rounded."""
    TIMEOUT = "timeout"
    """Nowhere yet when the time was used up."""
    DIVERGED = "diverged"
    """Outside the floating range, or beyond 1e8 times the size of the seeds."""


@final
class Stop(str, enum.Enum):
    """Why no more seeds were added to those given."""

    COMPLETE = "complete: the index sum is 1, and the last seeds found nothing new"
    GIVEN = "given: the index sum tells nothing here, so that the given seeds alone were searched from"
    SATURATED = "saturated: the index sum is not 1, but three rounds of more seeds found nothing new"
    ROUNDS = "rounds: the number of rounds was used up while points were missing or new ones turned up"
    TIME = "time: the time was used up"


@final
class IndexVerdict(str, enum.Enum):
    """What the index sum tells."""

    CONSISTENT = "consistent: the sum is 1, as that of all fixed points must be"
    MISSING = "missing: the sum of all fixed points is 1, so that some were not found"
    SINGULAR = "singular: a multiplier is too close to 1 for a sign of det(I − J) that could be trusted"
    NOT_APPLICABLE = "not applicable: the step is not known to map a ball into itself"


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Spectrum:
    """Multipliers and eigenvectors of k Jacobians; the fields are those of `FixedPoints`."""

    multipliers: Complex[Tensor, "k H"]
    right: Complex[Tensor, "k H H"]
    left: Complex[Tensor, "k H H"]
    condition: Float[Tensor, "k"]


def spectrum(jacobians: Float[Tensor, "k H H"], *, flow: bool = False) -> Spectrum:
    """Eigenvalues μ by falling |μ|, J v = μ v with ‖v‖ = 1, uᵀ J = μ uᵀ with uᵀ v = 1 (no conjugate): U = V⁻ᵀ.

    Those of a flow by falling Re μ.
    """
    values, right = torch.linalg.eig(jacobians)
    order = (values.real if flow else values.abs()).argsort(dim=1, descending=True, stable=True)
    values = values.gather(1, order)
    right = right.gather(2, order[:, None, :].expand_as(right))
    singular = torch.linalg.svdvals(right)
    condition = singular[:, 0] / singular[:, -1]
    left = torch.linalg.pinv(right, rcond=0.0).mT  # the inverse, and finite where J is not diagonalisable
    return Spectrum(values, right, left, condition)


def classes(growth: Float[Tensor, "k H"], marginal: float) -> tuple[str, ...]:
    """What points are whose directions grow so, by |μ| − 1 or the real part of an eigenvalue."""
    near, counts = (growth.abs() < marginal).any(dim=1).tolist(), (growth > 0).sum(dim=1).tolist()
    names = {0: "stable", growth.shape[1]: "repeller"}
    return tuple(
        "marginal" if close else names.get(count, f"saddle-{count}") for close, count in zip(near, counts, strict=True)
    )


@final
@dataclasses.dataclass(frozen=True, eq=False)
class SlowPoints:
    """Minima of q(h) = ½‖F(h) − h‖² that are no fixed points: ghosts of a fold, slow manifolds.

    Args:
        states: h, shape `[m, H]`, float64, the slowest first.
        residual: ‖F(h) − h‖, shape `[m]`, the speed in units of state per step.
        multipliers: Eigenvalues of ∂F/∂h there, by falling modulus, shape `[m, H]`.
    """

    states: Float[Tensor, "m H"]
    residual: Float[Tensor, "m"]
    multipliers: Complex[Tensor, "m H"]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class FixedPoints:
    """The distinct fixed points h = F(h) that were found (of a flow f(h) = 0), the most stable ones first.

    Args:
        states: h, shape `[k, H]`, float64.
        residual: ‖F(h) − h‖ (of a flow ‖f(h)‖), shape `[k]`.
        error: 2‖(I − J)⁻¹ (F(h) − h)‖, a bound of the distance to the exact point by Newton and Kantorovich where
            F(h) − h is small; twice that where I − J is nearly singular, at most 1e-3 (1 + ‖h‖); shape `[k]`.
        kantorovich: β η L, shape `[k]`: see `certified`.
        jacobians: J = ∂F/∂h (of a flow ∂f/∂h), shape `[k, H, H]`.
        input_jacobians: ∂F/∂x (of a flow ∂f/∂x), shape `[k, H, I]`.
        multipliers: Eigenvalues μ of J by falling modulus, complex, shape `[k, H]`; of a flow by falling real part.
        right: Right eigenvectors, J v = μ v with ‖v‖ = 1; v of the j-th multiplier is `right[:, :, j]`.
        left: Left eigenvectors, uᵀ J = μ uᵀ with uᵀ v = 1 without a conjugate; u is `left[:, :, j]`.
        condition: Condition number of V = `right`, shape `[k]`; eigenvectors mean little above about 1e8, where J is
            hardly diagonalisable.
        index_sum: Σ sign det(I − J) over the points, Σ sign det(−J) of a flow.
        index_verdict: Whether the index sum applies, and what it tells.
        slow: The slow points, a table of their own.
        status: How the search from each given seed ended, n of them.
        point: The row of `states` (of `slow.states` for a slow point) that a seed came to, −1 for none; shape `[n]`.
        added: How many seeds were added to those given.
        stopped: Why no more were added.
        outputs: The read-out of the states, if one was given.
        flow: Whether the points are those of a flow.
        dt: Duration of a step, the unit of `timescales`.
        marginal: | |μ| − 1 | (of a flow |Re μ|) below which a point is marginal.
    """

    states: Float[Tensor, "k H"]
    residual: Float[Tensor, "k"]
    error: Float[Tensor, "k"]
    kantorovich: Float[Tensor, "k"]
    jacobians: Float[Tensor, "k H H"]
    input_jacobians: Float[Tensor, "k H I"]
    multipliers: Complex[Tensor, "k H"]
    right: Complex[Tensor, "k H H"]
    left: Complex[Tensor, "k H H"]
    condition: Float[Tensor, "k"]
    index_sum: int
    index_verdict: IndexVerdict
    slow: SlowPoints
    status: tuple[Status, ...]
    point: Int[Tensor, "n"]
    added: int
    stopped: Stop
    outputs: Tensor | None
    flow: bool
    dt: float
    marginal: float

    @property
    def certified(self) -> Bool[Tensor, "k"]:
        """β η L ≤ ½: then Newton's method converges from here, to the only exact root near (Newton, Kantorovich).

        β = ‖(I − J)⁻¹‖, η the length of Newton's step with the rounding of F(h) − h, and L twice ‖∂²F/∂h²‖_F at the
        point by differences (above 64 units in 64 random directions): an estimate of the Lipschitz constant of J
        near the point, which makes this evidence and no proof.
        """
        return self.kantorovich <= 0.5

    @property
    def singular(self) -> Bool[Tensor, "k"]:
        """Whether I − J is nearly singular: the point is at a bifurcation, or one of a continuum (a line, a ring)."""
        eye = torch.eye(self.states.shape[1], dtype=self.states.dtype, device=self.states.device)
        values = torch.linalg.svdvals(self.jacobians if self.flow else eye - self.jacobians)
        return values[:, -1] <= SINGULAR * (1 + torch.linalg.matrix_norm(self.jacobians, 2))

    @property
    def timescales(self) -> Float[Tensor, "k H"]:
        """τ = −dt / ln|μ| of each multiplier: inf at |μ| = 1, negative for growth, 0 at μ = 0; of a flow −1 / Re μ."""
        rates = self.multipliers.real if self.flow else self.multipliers.abs().log() / self.dt
        return torch.where(rates == 0, math.inf, -1 / rates)

    @property
    def frequencies(self) -> Float[Tensor, "k H"]:
        """arg μ / (2π dt), in cycles per unit of time; of a flow Im μ / 2π."""
        turns = self.multipliers.imag if self.flow else self.multipliers.angle() / self.dt
        return turns / (2 * math.pi)

    @property
    def unstable(self) -> Int[Tensor, "k"]:
        """Number of multipliers with |μ| > 1, of a flow with Re μ > 0."""
        return (self._growth > 0).sum(dim=1)

    @property
    def kinds(self) -> tuple[str, ...]:
        """For each point "marginal", "stable", "saddle-j" with j unstable directions, or "repeller" where all are."""
        return classes(self._growth, self.marginal)

    @property
    def spiral(self) -> Bool[Tensor, "k"]:
        """Whether the leading multiplier is one of a complex pair, so that states turn as they come, or go, slowest.

        A focus then, if the point is stable or a repeller, and a node if not.
        """
        return self.multipliers[:, 0].imag != 0

    def distance(self, states: Tensor) -> Float[Tensor, "k"]:
        """How far each point is from the nearest of other states `[*, H]`, such as those of trajectories.

        Raises:
            ValueError: The states have another number of units.
        """
        if states.ndim < 2 or states.shape[-1] != self.states.shape[1] or not states.numel():
            raise ValueError(
                f"`states` must be states of the same units, shape (*, {self.states.shape[1]}), at least one; got "
                f"{tuple(states.shape)}."
            )
        others = states.detach().to(self.states).flatten(0, -2)
        return torch.cdist(self.states, others, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)

    @property
    def _growth(self) -> Float[Tensor, "k H"]:
        """What is positive in unstable directions."""
        return self.multipliers.real if self.flow else self.multipliers.abs() - 1

    def __repr__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in collections.Counter(self.kinds).items())
        ends = ", ".join(f"{count} {end.value}" for end, count in collections.Counter(self.status).items())
        return (
            f"FixedPoints({len(self.states)} points: {kinds or 'none'}; {len(self.slow.states)} slow; index sum "
            f"{self.index_sum}, {self.index_verdict.value.split(':')[0]}; seeds: {ends}; {self.added} added, "
            f"{self.stopped.value.split(':')[0]})"
        )
