"""The ends of the spectrum of a symmetric operator: its least and its largest eigenvalue."""

import dataclasses
import math
from typing import final

import torch

from kpflow._checks import check_generator, check_positive
from kpflow.operators import Identity, Operator

from .base import Effort, Estimate, Status, check_least_budget, check_symmetric, not_finite
from .krylov import Triplets, bound_of_largest, leading
from .products import NotFiniteError

__all__ = ["Ends", "ends_within", "extreme_eigenvalues"]


@final
@dataclasses.dataclass(frozen=True)
class Ends:
    """The ends of a spectrum. Each `standard_error` is no spread but a bound, see `extreme_eigenvalues`.

    Args:
        least: λ_min.
        largest: λ_max.
    """

    least: Estimate
    largest: Estimate


def extreme_eigenvalues(
    operator: Operator,
    *,
    tol: float = 1e-5,
    budget: int | None = None,
    generator: torch.Generator | None = None,
    raise_on_failure: bool = True,
) -> Ends:
    """λ_min and λ_max of a symmetric operator, which may be indefinite, from products.

    Block Krylov, as in `modes`, for the end λ₁ of larger magnitude, and again for A − 2λ₁ I, whose largest magnitude is
    at the other end. But for rounding, neither value is beyond the end that it stands for. An eigenvalue lies within
    the residual ‖A v − λ v‖ of each value, which is the bound given as its error, with the rounding; a random start
    makes it the extreme one with near certainty. Fewer than 20 products for an end that have not met the tolerance say
    nothing: the error is then infinite. Eigenvalues that crowd at an end take many products.

    Args:
        operator: A, symmetric.
        tol: Converged when the residuals are below tol · |λ₁| and tol · |2λ₁ − λ|; at least 100 times the rounding
            unit.
        budget: The most products, half of them for each end (2000 if not given). A space of at most 200 entries is done
            by its matrix.
        generator: Draws the first block; a fresh one with seed 0 if None.
        raise_on_failure: Raise if a product is not finite; otherwise the results' status says so.

    Raises:
        TypeError: `operator` is no operator, or `generator` no generator.
        ValueError: `operator` is not known to be symmetric, or a number is out of range.
        FloatingPointError: A product holds NaN or inf.

    Example:
        >>> from kpflow.operators import Diagonal
        >>> ends = extreme_eigenvalues(Diagonal(torch.tensor([1.0, -3.0, 2.0], dtype=torch.float64)))
        >>> round(float(ends.least), 9), round(float(ends.largest), 9)
        (-3.0, 2.0)
    """
    check_symmetric("extreme_eigenvalues", operator)
    check_positive("tol", tol)
    effort = Effort.of(None, budget).times(2)
    check_least_budget(2, effort, "one product for each end")
    source = check_generator("generator", generator, operator.in_space.device)
    try:
        return ends_within(operator, tol, effort.budget // 2, source)
    except NotFiniteError as failure:
        if raise_on_failure:
            raise not_finite("extreme_eigenvalues", operator, failure.spent) from None
        nothing = Estimate(math.nan, math.inf, failure.spent, Status.NOT_FINITE, "block Krylov")
        return Ends(nothing, nothing)


def ends_within(operator: Operator, tol: float, budget: int, generator: torch.Generator) -> Ends:
    """Both ends, of an operator that is known to be symmetric, from at most `budget` products for each."""
    eps = torch.finfo(operator.in_space.dtype).eps
    settings = {"tol": max(tol, 100 * eps), "budget": budget, "generator": generator}
    first = leading(operator, 1, **settings)
    top = float(first.values[0])
    shifted = operator - 2 * top * Identity(operator.in_space)
    second = leading(shifted, 1, **settings)
    rounding = 8 * eps * max(abs(top), abs(float(second.values[0])))
    found = [_end(operator, first, 0.0, rounding), _end(shifted, second, 2 * top, rounding)]
    least, largest = sorted(found, key=lambda end: end.value)
    return Ends(least, largest)


def _end(operator: Operator, found: Triplets, shift: float, rounding: float) -> Estimate:
    status = Status.CONVERGED if found.converged else Status.BUDGET_EXHAUSTED
    bound = bound_of_largest(operator, found) + rounding
    return Estimate(float(found.values[0]) + shift, bound, found.spent, status, found.method)
