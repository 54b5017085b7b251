"""What is known of the fixed points and slow points of a map."""

import collections
import dataclasses
import enum
import math
from typing import final

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

__all__ = ["FixedPoints", "IndexVerdict", "SlowPoints", "Spectrum", "Status", "spectrum"]


@final
class Status(str, enum.Enum):
    """How the search from one seed ended."""

    ROOT = "root"
    """At a fixed point, to the tolerance."""
    SLOW = "slow"
    """At a minimum of ½‖F(h) − h‖² above zero: no fixed point, but the state hardly moves there."""
    MAXITER = "maxiter"
    """Nowhere yet when the steps were used up, or held at the limit |h| = 1 of a gated state."""
    DIVERGED = "diverged"
    """Outside the floating range, or beyond 1e8 times the size of the seeds."""


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


def spectrum(jacobians: Float[Tensor, "k H H"]) -> Spectrum:
    """Eigenvalues μ by falling |μ|, J v = μ v with ‖v‖ = 1, uᵀ J = μ uᵀ with uᵀ v = 1 (no conjugate): U = V⁻ᵀ."""
    values, right = torch.linalg.eig(jacobians)
    order = values.abs().argsort(dim=1, descending=True, stable=True)
    values = values.gather(1, order)
    right = right.gather(2, order[:, None, :].expand_as(right))
    singular = torch.linalg.svdvals(right)
    condition = singular[:, 0] / singular[:, -1]
    left = torch.linalg.pinv(right, rcond=0.0).mT  # the inverse, and finite where J is not diagonalisable
    return Spectrum(values, right, left, condition)


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
    """The distinct fixed points h = F(h) that were found, those with few unstable directions first.

    Args:
        states: h, shape `[k, H]`, float64.
        residual: ‖F(h) − h‖, shape `[k]`.
        error: 2‖(I − J)⁻¹ (F(h) − h)‖, a bound of the distance to the exact point by Newton and Kantorovich where
            F(h) − h is small; twice that where I − J is nearly singular, at most 1e-3 (1 + ‖h‖); shape `[k]`.
        jacobians: J = ∂F/∂h, shape `[k, H, H]`.
        multipliers: Eigenvalues μ of J by falling modulus, complex, shape `[k, H]`.
        right: Right eigenvectors, J v = μ v with ‖v‖ = 1; v of the j-th multiplier is `right[:, :, j]`.
        left: Left eigenvectors, uᵀ J = μ uᵀ with uᵀ v = 1 without a conjugate; u is `left[:, :, j]`.
        condition: Condition number of V = `right`, shape `[k]`; eigenvectors mean little above about 1e8, where J is
            hardly diagonalisable.
        index_sum: Σ sign det(I − J) over the points.
        index_verdict: Whether the index sum applies, and what it tells.
        slow: The slow points, a table of their own.
        status: How the search from each seed ended, n of them.
        point: The row of `states` (of `slow.states` for a slow point) that a seed came to, −1 for none; shape `[n]`.
        dt: Duration of a step, the unit of `timescales`.
        marginal: | |μ| − 1 | below which a point is marginal.
    """

    states: Float[Tensor, "k H"]
    residual: Float[Tensor, "k"]
    error: Float[Tensor, "k"]
    jacobians: Float[Tensor, "k H H"]
    multipliers: Complex[Tensor, "k H"]
    right: Complex[Tensor, "k H H"]
    left: Complex[Tensor, "k H H"]
    condition: Float[Tensor, "k"]
    index_sum: int
    index_verdict: IndexVerdict
    slow: SlowPoints
    status: tuple[Status, ...]
    point: Int[Tensor, "n"]
    dt: float
    marginal: float

    @property
    def timescales(self) -> Float[Tensor, "k H"]:
        """τ = −dt / ln|μ| of each multiplier: inf at |μ| = 1, negative for growth, 0 at μ = 0."""
        logs = self.multipliers.abs().log()
        return torch.where(logs == 0, math.inf, -self.dt / logs)

    @property
    def frequencies(self) -> Float[Tensor, "k H"]:
        """arg μ / (2π dt), in cycles per unit of time."""
        return self.multipliers.angle() / (2 * math.pi * self.dt)

    @property
    def unstable(self) -> Int[Tensor, "k"]:
        """Number of multipliers with |μ| > 1."""
        return (self.multipliers.abs() > 1).sum(dim=1)

    @property
    def kinds(self) -> tuple[str, ...]:
        """For each point "marginal", "stable", or "saddle-j" with j unstable directions, be they all or some."""
        near = ((self.multipliers.abs() - 1).abs() < self.marginal).any(dim=1).tolist()
        counts = self.unstable.tolist()
        return tuple(
            "marginal" if close else f"saddle-{count}" if count else "stable"
            for close, count in zip(near, counts, strict=True)
        )

    def __repr__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in collections.Counter(self.kinds).items())
        ends = ", ".join(f"{count} {end.value}" for end, count in collections.Counter(self.status).items())
        return (
            f"FixedPoints({len(self.states)} points: {kinds or 'none'}; {len(self.slow.states)} slow; index sum "
            f"{self.index_sum}, {self.index_verdict.value.split(':')[0]}; seeds: {ends})"
        )
