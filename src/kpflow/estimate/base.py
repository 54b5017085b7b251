"""What every estimator shares: Estimate and Status, effort, the jackknife, and the checks at the door."""

import dataclasses
import enum
import math
from collections.abc import Callable
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_positive
from kpflow.operators import Operator

from .products import NotFiniteError

__all__ = [
    "DEFAULT_BUDGET",
    "DEFAULT_RTOL",
    "EXACT_SIZE",
    "MIN_PROBES",
    "PILOT",
    "Effort",
    "Estimate",
    "Reading",
    "Status",
    "at_the_door",
    "check_exact_budget",
    "check_least_budget",
    "check_operator",
    "check_symmetric",
    "exact_pays",
    "jackknife",
    "not_finite",
    "relative",
    "settle",
    "spread",
]

DEFAULT_RTOL = 1e-2
"""Relative standard error at which an estimate stops, if neither `rtol` nor `budget` is given."""

DEFAULT_BUDGET = 1000
"""Products that an estimate may take, if no `budget` is given."""

EXACT_SIZE = 64
"""Spaces of at most so many entries are done exactly: about as many products as an estimate to 1 % would take."""

PILOT = 36
"""Products before the first look at the error. Fewer would let a lucky spread of a few probes end the estimate."""

LOOSE_PILOT = 24
"""The same for deflated estimates to 4 % or less exactly: 8 probes beside a basis of 8."""

MIN_PROBES = 8
"""Fewer probes than this say nothing about their spread, which could vanish by chance: the error is then infinite."""


@final
class Status(enum.Enum):
    """How an estimate ended; the value is the message."""

    CONVERGED = "converged: the tolerance is met"
    BUDGET_EXHAUSTED = "budget exhausted: the tolerance is not met"
    NOT_FINITE = "not finite: a product holds NaN or inf, or the ratio is 0/0"


@final
@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its error, what it cost, how it ended and how it was made.

    Args:
        value: The number.
        standard_error: Of the value. 0 for exact results, infinite where too few probes tell nothing. For
            `operator_norm` a bound from the residual.
        num_matvecs: Products taken, with A or Aᵀ, or with F or Fᵀ alone for the one-sided methods of A = F Fᵀ.
        status: How it ended.
        method: The method that was used.

    Example:
        >>> estimate = Estimate(61682.4, 123.4, 36, Status.CONVERGED, "hutch++")
        >>> print(estimate)
        61680 ± 120 (36 products, hutch++)
        >>> float(estimate)
        61682.4
    """

    value: float
    standard_error: float
    num_matvecs: int
    status: Status
    method: str

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        warning = "" if self.status is Status.CONVERGED else f"; {self.status.value}"
        number = _with_error(self.value, self.standard_error)
        return f"{number} ({self.num_matvecs} products, {self.method}{warning})"

    def __repr__(self) -> str:
        return f"Estimate({self})"


@final
@dataclasses.dataclass(frozen=True)
class Reading:
    """What the probes so far say.

    Args:
        value: The number.
        error: Its standard error.
        probes: The number of probes behind it.
        spent: Products.
        scale: Size of what cancels in the value: what rounding is relative to, if that is more than the value.
    """

    value: float
    error: float
    probes: int
    spent: int
    scale: float = 0.0


@final
@dataclasses.dataclass(frozen=True)
class Effort:
    """How far to go: to the relative standard error `rtol`, and never beyond `budget` products.

    A budget without a tolerance is spent as a whole.
    """

    rtol: float
    budget: int
    whole: bool
    given: bool

    @staticmethod
    def of(rtol: float | None, budget: int | None) -> "Effort":
        """Check the user's `rtol` and `budget` and fill in the defaults."""
        if rtol is not None:
            check_positive("rtol", rtol)
        if budget is not None:
            check_positive("budget", budget, integer=True)
        given = budget is not None
        return Effort(float(rtol or DEFAULT_RTOL), budget or DEFAULT_BUDGET, given and rtol is None, given)

    @property
    def pilot(self) -> int:
        """Products of a deflated estimate before the first look."""
        return LOOSE_PILOT if self.rtol >= 0.04 else PILOT

    def times(self, cost: int) -> "Effort":
        """Where a probe takes `cost` products: the default budget is as many times larger, the user's is not."""
        return self if self.given else dataclasses.replace(self, budget=cost * self.budget)

    def met(self, reading: Reading) -> bool:
        """Whether the tolerance is met, by the upper end of what the error itself is known to: 1 ± 1/√(2(s−1))."""
        doubt = 1 + 1 / math.sqrt(2 * max(reading.probes - 1, 1))
        return doubt * reading.error <= self.rtol * abs(reading.value)

    def next(self, total: int, reading: Reading) -> int:
        """Products for the next reading: what the error asks for, but 1.25 to 2 times what was spent."""
        goal = self.rtol * abs(reading.value)
        factor = (1.1 * reading.error / goal) ** 2 if goal > 0 else math.inf
        return min(math.ceil(total * min(max(factor, 1.25), 2.0)), self.budget)


def settle(
    effort: Effort, method: str, read: Callable[[int], Reading], *, pilot: int = PILOT, eps: float = 0.0
) -> Estimate:
    """Read with ever more products until the tolerance is met or the budget is spent.

    Args:
        effort: The tolerance and the budget.
        method: Name for the result.
        read: Takes the products allowed in all, and tells what they say.
        pilot: Products before the first reading.
        eps: Rounding of the products; the error is never below 8 eps of the value, nor of the scale of the reading.
    """
    total = effort.budget if effort.whole else min(pilot, effort.budget)
    reading = read(total)
    while total < effort.budget and math.isfinite(reading.value) and not effort.met(reading):
        total = effort.next(total, reading)
        reading = read(total)
    status = Status.CONVERGED if effort.met(reading) else Status.BUDGET_EXHAUSTED
    error = max(reading.error, 8 * eps * abs(reading.value), 8 * eps * reading.scale)
    return Estimate(reading.value, error, reading.spent, status, method)


def jackknife(
    function: Callable[[Float[Tensor, "*S Q"]], Float[Tensor, "*S"]], samples: Float[Tensor, "S Q"]
) -> tuple[float, float]:
    """A smooth function of the means of Q quantities, and its jackknife standard error over the S probes.

    The error is that of `spread`, infinite for fewer than `MIN_PROBES` probes.
    """
    count = len(samples)
    value = float(function(samples.mean(0))) if count else math.nan
    if count < MIN_PROBES:
        return value, math.inf
    return value, spread(function((samples.sum(0) - samples) / (count - 1)))


def spread(left_out: Float[Tensor, " S"]) -> float:
    """Jackknife standard error √((S−1)/S Σᵢ (f₍ᵢ₎ − f̄)²) from the values f₍ᵢ₎ with the i-th probe left out.

    For a mean it is the standard error. It is widened by √((S−1)/(S−3)), so that error over standard error has variance
    one (for normal samples) although the error itself comes from S samples only.
    """
    count = len(left_out)
    variance = (count - 1) / count * float((left_out - left_out.mean()).square().sum())
    return math.sqrt(variance * (count - 1) / (count - 3))


def relative(error: float, value: float) -> float:
    """error/|value|: 0 for no error, infinite for an error of nothing."""
    if not value:
        return math.inf if error else 0.0
    return error / abs(value)


def exact_pays(size: int, effort: Effort, cost: int = 1) -> bool:
    """Whether `size` probes, the unit vectors, are within the budget, and few or to be spent anyway."""
    return cost * size <= effort.budget and (effort.whole or size <= EXACT_SIZE)


def check_exact_budget(size: int, effort: Effort) -> None:
    """Raise if the products of the exact method are beyond the budget."""
    if size > effort.budget:
        raise ValueError(
            f"`budget` must be at least {size} for method 'exact', which takes a product for each unit vector; "
            f"got {effort.budget}. Give budget={size}, or take another method."
        )


def check_least_budget(least: int, effort: Effort, what: str = "one probe") -> None:
    """Raise if the budget does not suffice for one probe, or for what else is the least."""
    if effort.budget < least:
        raise ValueError(f"`budget` must be at least {least} here, for {what}; got {effort.budget}.")


def check_operator(name: str, value: Any, *, square: bool = False, why: str = "") -> Operator:
    """Return `value` if it is an operator (from a space to itself if `square`)."""
    if not isinstance(value, Operator):
        raise TypeError(
            f"`{name}` must be a kpflow operator; got {type(value).__name__}. Wrap a matrix in operators.Dense(matrix)."
        )
    if square and not value.in_space.same_vectors(value.out_space):
        raise ValueError(f"`{name}` must map a space to itself; got {value!r}. {why}".rstrip())
    return value


def check_symmetric(name: str, operator: Any) -> None:
    """Raise unless `operator` is one that is known to be symmetric, which the function `name` needs."""
    check_operator("operator", operator, square=True, why=f"`{name}` needs eigenvalues; take A @ A.T for any other.")
    if not operator.symmetric:
        raise ValueError(
            f"`operator` must be known to be symmetric; got {operator!r}. Take A @ A.T for squared singular values, or "
            f"(A + A.T) / 2 for the symmetric part."
        )


def at_the_door(
    name: str, operator: Operator, method: str, raise_on_failure: bool, compute: Callable[[], Estimate]
) -> Estimate:
    """Run `compute`; a result that is not finite raises, or is an estimate that says so."""
    try:
        estimate = compute()
    except NotFiniteError as failure:
        if raise_on_failure:
            raise not_finite(name, operator, failure.spent) from None
        estimate = Estimate(math.nan, math.inf, failure.spent, Status.NOT_FINITE, method)
    if not math.isfinite(estimate.value):
        estimate = dataclasses.replace(estimate, value=math.nan, standard_error=math.inf, status=Status.NOT_FINITE)
        if raise_on_failure:
            raise undefined(name, operator, estimate.num_matvecs)
    return estimate


def not_finite(name: str, operator: Operator, spent: int) -> FloatingPointError:
    """The error of an operator whose products are not finite."""
    return FloatingPointError(
        f"`{name}` of {operator!r} is not finite: a product holds NaN or inf (after {spent} products). Look for NaN or "
        f"exploding values in the states and weights behind the operator, or use float64."
    )


def undefined(name: str, operator: Operator, spent: int) -> FloatingPointError:
    """The error of a ratio without a value, or of a sum that overflows, though the products are finite."""
    return FloatingPointError(
        f"`{name}` of {operator!r} has no value (after {spent} finite products): an operator is zero, so that the "
        f"ratio is 0/0, or squares overflow. Check that the parameters behind it reach the states, or rescale it."
    )


def _with_error(value: float, error: float) -> str:
    """`value ± error` with two digits of the error, and the value to the same place."""
    if not math.isfinite(value) or not math.isfinite(error) or error == 0:
        return f"{value:.10g} ± {error:g}"
    if error < 1e-10 * abs(value):  # rounding
        return f"{value:.10g} ± {error:.1e}"
    size = max(abs(value), error)
    decimals = 1 - math.floor(math.log10(error))
    if 1e-4 <= size < 1e7:
        places = max(decimals, 0)
        return f"{round(value, decimals):.{places}f} ± {round(error, decimals):.{places}f}"
    digits = min(max(math.floor(math.log10(size)) + decimals, 1), 15)
    return f"{value:.{digits}e} ± {error:.1e}"
