"""Structure: exact quantities of an operator that cost far less than a product for every unit vector."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Generic, TypeVar, final

from torch import Tensor

from .core import Operator

__all__ = ["Exact", "Sampled", "SampledParts", "Structure"]

T = TypeVar("T")


@final
@dataclasses.dataclass(frozen=True)
class Exact(Generic[T]):
    """An exact quantity that an operator declares: what it would cost, and how to get it.

    Args:
        cost: Predicted cost in products, of the kind that the cheapest estimate takes: with F or Fᵀ alone for A = F Fᵀ.
        compute: Computes it; exact up to rounding.

    Example:
        >>> quantity = Exact(2.5, lambda: 6.0)
        >>> quantity.compute() if quantity.cost < 100 else "estimate it"
        6.0
    """

    cost: float
    compute: Callable[[], T]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Sampled:
    """A quantity of A as a mean over probes g with E g gᵀ = I, of less variance than that of ⟨g, A g⟩.

    Args:
        operator: B, which costs as much as one side of A = F Fᵀ.
        energy: From blocks B g `[S, *shape]` to float64 samples `[S]`.
    """

    operator: Operator
    energy: Callable[[Tensor], Tensor]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class SampledParts:
    """Vectors y_p of some parts p for every probe g, of which A's trace and size are means.

    The y of different parts and of different probes are independent, and

        tr A = E Σ_p ‖y_p‖²,    ‖A‖²_F = Σ_pq E ⟨y_p, y'_q⟩²,

    with y' of another probe, or of another part of the same one. So m probes give nearly m² samples of every term. For
    A = F Fᵀ and F with independent blocks of rows F_p: y_p = F_pᵀ g_p, with E g gᵀ = I.

    Args:
        operator: B, which costs as much as one side of A.
        gram: From blocks B g `[S, *shape]` and B g' `[S', *shape]` to float64 ⟨y_sp, y'_s'q⟩ `[S, P, S', P]`.
        parts: P.
        pair_cost: What the inner products of one pair of probes cost, in products with B.
    """

    operator: Operator
    gram: Callable[[Tensor, Tensor], Tensor]
    parts: int
    pair_cost: float


class Structure(abc.ABC):
    """The exact quantities of a symmetric operator A, beside its products.

    Every method gives None where structure makes the quantity no cheaper than products with unit vectors. Nothing is
    computed before `compute` is called on what it gives, except what the predicted cost depends on.
    """

    @abc.abstractmethod
    def trace(self) -> Exact[float] | None:
        """tr A."""

    @abc.abstractmethod
    def sampled_trace(self) -> Sampled | None:
        """Samples whose mean is tr A, without the noise of blocks of A that do not count for the trace."""

    @abc.abstractmethod
    def sampled_parts(self) -> SampledParts | None:
        """Samples whose means are tr A and ‖A‖²_F, many for each product."""

    @abc.abstractmethod
    def matrix(self) -> Exact[Tensor] | None:
        """A as a matrix, over its entries in row-major order, in the dtype of the operator."""

    @abc.abstractmethod
    def diagonal(self) -> Exact[Tensor] | None:
        """The diagonal of A in float64, of the shape of the vectors that A takes."""

    @abc.abstractmethod
    def partial_trace(self, axes: tuple[str, ...]) -> Exact[Tensor] | None:
        """The trace over all axes but `axes` in float64, a matrix in row-major order of `axes` as they are named."""

    @abc.abstractmethod
    def squared_norm(self) -> Exact[float] | None:
        """‖A‖²_F."""

    @abc.abstractmethod
    def spectrum(self) -> Exact[Tensor] | None:
        """The eigenvalues of A in float64, largest first, without those that vanish because A has low rank."""
