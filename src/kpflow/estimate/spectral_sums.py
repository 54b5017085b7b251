"""Sums over the spectrum of a symmetric operator, Σᵢ f(λᵢ): any f, log det, counts, and the entropy rank."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_generator, check_one_of, check_positive, check_range
from kpflow.operators import Operator

from .base import Effort, Estimate, Status, at_the_door, check_least_budget, check_operator, check_symmetric, exact_pays
from .krylov import DENSE_SIZE
from .measure import BUDGET_FACTOR, SpectralMeasure, exact_measure, measured
from .products import gram_operator
from .quadrature import Count, DomainError, Functional, Rules, Sums

__all__ = ["METHODS", "Spectrum", "check_function", "count_above", "entropy_rank", "log_determinant", "spectral_sum"]

METHODS = ("deflated", "slq", "exact")

FORMED_SIZE = 2000
"""Operators of at most so many entries are formed by "auto" where sampling has taken as many products in vain."""

NEGATIVE = 100
"""Eigenvalues down to so many times their rounding below 0 count as 0. Chosen by experience."""


def spectral_sum(
    operator: Operator,
    function: Callable[[Tensor], Tensor],
    *,
    method: str = "auto",
    rtol: float | None = None,
    budget: int | None = None,
    steps: int | None = None,
    generator: torch.Generator | None = None,
    raise_on_failure: bool = True,
) -> Estimate:
    """tr f(A) = Σᵢ f(λᵢ) over the eigenvalues of a symmetric operator, from products with A.

    Stochastic Lanczos quadrature: for a probe g, ⟨g, f(A) g⟩ ≈ ‖g‖² Σⱼ wⱼ f(θⱼ), with θ the eigenvalues of the k × k
    Lanczos matrix and w the squared first entries of its eigenvectors, exact for polynomials of degree 2k − 1.

    - "slq": the mean over probes g uniform on the sphere of radius √N (Ubaru, Chen, Saad 2017); constants in f are
      exact. Variance 2 N/(N + 2) (‖f(A)‖²_F − tr² f(A)/N) for a probe.
    - "deflated": Q is half a block Krylov basis made with a third of the products, tr f(A) = tr(Qᵀ f(A) Q) +
      E ⟨g, f(A) g⟩ with g on the sphere of the complement of Q (Chen, Hallman 2023): few probes if few modes matter.
    - "exact": all eigenvalues of the matrix, one product for each of its columns.
    - "auto": exact if the space has at most 200 entries (or as many as a budget that is to be spent as a whole); else
      deflated, but exact after all where N ≤ 2000 products do not meet the tolerance.

    The error has three parts: the spread over probes (jackknife), the truncation to k steps (from what k/4, k/2 and
    3k/4 steps give), and the rounding of eigenvalues by 8 eps ‖A‖ (which, for f of infinite slope at 0, such as a root,
    and many eigenvalues that vanish, is the largest part). The truncation is an estimate, not a bound: it knows nothing
    of eigenvalues that no step has seen, and steps or poles of f between nodes mislead it; for counts see
    `count_above`, which bounds it.

    Args:
        operator: A, symmetric. For singular values use A @ A.T.
        function: f, on a float64 tensor of numbers, entry by entry, e.g. `torch.sqrt`. It is called at nodes, which may
            be anywhere between the extreme eigenvalues, and below 0 by rounding: clamp what is positive by theory.
        method: One of the above.
        rtol: As for `trace`: the claim is 2 rtol in 95 % of runs. 1e-2 if neither `rtol` nor `budget` is given.
        budget: The most products with A (10 000 if not given); without `rtol`, all of them are taken (but for the rest
            that is no whole probe).
        steps: k; None for as few as make the truncation small beside the error over the probes. One step says nothing
            of its truncation: the error is then infinite.
        generator: Draws the probes; a fresh one with seed 0 if None.
        raise_on_failure: Raise if a product, or f at a node, is not finite; otherwise the result's status says so.

    Raises:
        TypeError: `operator` is no operator, `function` gives no tensor, or `generator` is no generator.
        ValueError: `operator` is not known to be symmetric, `method` is unknown, a number is out of range, or f is not
            finite at a node or gives another shape.
        FloatingPointError: A product holds NaN or inf.

    References:
        Theory §13.1; Ubaru, Chen, Saad, SIAM J. Matrix Anal. Appl. 38 (2017) 1075; Chen, Hallman, ibid. 44 (2023) 1218.

    Example:
        >>> from kpflow.operators import Diagonal
        >>> A = Diagonal(torch.arange(1.0, 1001.0, dtype=torch.float64) / 1000)
        >>> estimate = spectral_sum(A, torch.sqrt, rtol=1e-3)
        >>> abs(float(estimate) / float(A.diagonal.sqrt().sum()) - 1) < 2e-3
        True
    """
    check_function(function)
    spectrum = Spectrum("spectral_sum", operator, method, rtol, budget, steps, generator, raise_on_failure)
    return spectrum.estimate(Sums(functools.partial(_checked, function), _first))


def log_determinant(
    operator: Operator,
    *,
    shift: float = 0.0,
    method: str = "auto",
    rtol: float | None = None,
    budget: int | None = None,
    steps: int | None = None,
    generator: torch.Generator | None = None,
    raise_on_failure: bool = True,
) -> Estimate:
    """log det(A + λ I) = Σᵢ log(λᵢ + λ) of a positive operator: evidence, volume, degrees of freedom.

    A must be positive definite, or λ > 0. The smaller λ beside ‖A‖, the more steps it takes. Near zero, where volumes
    cancel, a relative tolerance cannot be met.

    Args:
        operator: A, symmetric and positive semi-definite.
        shift: λ, in the units of A; at least 0.
        method: As for `spectral_sum`, like the rest.
        rtol: Relative to the log determinant.
        budget: The most products with A (10 000 if not given).
        steps: Lanczos steps for each probe.
        generator: Draws the probes.
        raise_on_failure: Raise if a product is not finite or A + λ I is singular; otherwise the status says so.

    Raises:
        TypeError: `operator` is no operator, or `generator` no generator.
        ValueError: As for `spectral_sum`; `shift` is negative; or A + λ I has an eigenvalue that is not positive, to
            rounding.
        FloatingPointError: A product holds NaN or inf.

    Example:
        >>> from kpflow.operators import Diagonal
        >>> print(log_determinant(Diagonal(torch.tensor([1.0, 3.0], dtype=torch.float64)), shift=1.0))
        2.079441542 ± 4.0e-15 (2 products, exact)
    """
    check_range("shift", shift, 0)
    spectrum = Spectrum("log_determinant", operator, method, rtol, budget, steps, generator, raise_on_failure)
    return spectrum.estimate(Sums(functools.partial(_log, float(shift)), _first))


def count_above(
    operator: Operator,
    threshold: float,
    *,
    method: str = "auto",
    rtol: float | None = None,
    budget: int | None = None,
    steps: int | None = None,
    generator: torch.Generator | None = None,
    raise_on_failure: bool = True,
) -> Estimate:
    """#{i: λᵢ > t}, the number of eigenvalues of a symmetric operator above a threshold.

    The step at t is no polynomial. For each probe the Gauss–Radau rule with a node at t brackets what k steps can say
    (Chebyshev, Markov, Stieltjes); the value is the middle of the mean bracket, and the error includes its width/√12.
    The truth is beyond √3 of that only by the spread over probes. In a gap the bracket closes exponentially with k.
    Inside a continuum it is about the number of eigenvalues in π/k of the width of the spectrum, and many steps help
    little: the budget is exhausted, honestly. An eigenvalue at t is as good as on either side.

    Args:
        operator: A, symmetric.
        threshold: t, in the units of A.
        method: As for `spectral_sum`, like the rest.
        rtol: Relative to the count.
        budget: The most products with A (10 000 if not given).
        steps: Lanczos steps for each probe.
        generator: Draws the probes.
        raise_on_failure: Raise if a product is not finite; otherwise the status says so.

    Raises:
        TypeError: `operator` is no operator, or `generator` no generator.
        ValueError: As for `spectral_sum`; or `threshold` is no number.
        FloatingPointError: A product holds NaN or inf.

    Example:
        >>> from kpflow.operators import Diagonal
        >>> print(count_above(Diagonal(torch.tensor([1.0, 3.0, 5.0])), threshold=2.0))
        2 ± 0 (3 products, exact)
    """
    check_range("threshold", threshold, -math.inf)
    spectrum = Spectrum("count_above", operator, method, rtol, budget, steps, generator, raise_on_failure)
    return spectrum.estimate(Count(float(threshold)))


def entropy_rank(
    operator: Operator,
    *,
    method: str = "auto",
    rtol: float | None = None,
    budget: int | None = None,
    steps: int | None = None,
    generator: torch.Generator | None = None,
    raise_on_failure: bool = True,
) -> Estimate:
    """exp(−Σᵢ pᵢ log pᵢ) with pᵢ = λᵢ/tr A: the number of eigenvalues that take part, by entropy.

    n for the identity, 1 for rank one, and never below `effective_rank`, which weighs the largest ones more. Of a
    symmetric operator A, which must be positive semi-definite (eigenvalues below 0 by rounding count as 0). For any
    other operator G it is that of G Gᵀ. Trace and entropy are of the same probes; the error is the
    jackknife's, which is too small where the rank is stationary, as for some spectra of two values.

    Args:
        operator: A or G.
        method: As for `spectral_sum`, like the rest.
        rtol: Relative to the rank.
        budget: The most products with A (10 000 if not given), or with G and Gᵀ (20 000).
        steps: Lanczos steps for each probe.
        generator: Draws the probes.
        raise_on_failure: Raise if a product is not finite, or the operator is zero; otherwise the status says so.

    Raises:
        TypeError: `operator` is no operator, or `generator` no generator.
        ValueError: As for `spectral_sum`; or an eigenvalue is negative beyond rounding.
        FloatingPointError: A product holds NaN or inf, or the operator is zero.

    References:
        Roy, Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.

    Example:
        >>> from kpflow.operators import Diagonal
        >>> round(float(entropy_rank(Diagonal(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)))), 9)
        2.0
    """
    check_operator("operator", operator)
    symmetric, cost = (operator, 1) if operator.symmetric else (gram_operator(operator), 2)
    spectrum = Spectrum(
        "entropy_rank", symmetric, method, rtol, budget, steps, generator, raise_on_failure, cost=cost, shown=operator
    )
    return spectrum.estimate(Sums(_entropy, _exponential))


@final
class Spectrum:
    """A checked task on a symmetric operator: the operator, the method, the effort, the steps, the generator.

    Args:
        name: Of the public function, for messages.
        operator: A.
        method: "auto" or one of `METHODS`.
        rtol: As the user gave it.
        budget: As the user gave it.
        steps: As the user gave it.
        generator: As the user gave it.
        raise_on_failure: As the user gave it.
        cost: What a product with A counts.
        shown: The operator that the user gave, if A is its Gram operator.
    """

    def __init__(
        self,
        name: str,
        operator: Operator,
        method: str,
        rtol: float | None,
        budget: int | None,
        steps: int | None,
        generator: torch.Generator | None,
        raise_on_failure: bool,
        *,
        cost: int = 1,
        shown: Operator | None = None,
    ) -> None:
        check_symmetric(name, operator)
        check_one_of("method", method, ("auto", *METHODS))
        if steps is not None:
            check_positive("steps", steps, integer=True)
        self.name, self.operator, self.shown, self.cost = name, operator, shown or operator, cost
        self.steps, self.raise_on_failure = steps, raise_on_failure
        self.effort = Effort.of(rtol, budget).times(cost * BUDGET_FACTOR)
        check_least_budget(cost, self.effort)
        self.generator = check_generator("generator", generator, operator.in_space.device)
        self.measure: SpectralMeasure | None = None
        self.exact_products = 0
        self.auto = method == "auto"
        self.method = self._resolved() if method == "auto" else method

    def _resolved(self) -> str:
        size = self.operator.in_space.size
        small = self.cost * size <= self.effort.budget and size <= DENSE_SIZE
        return "exact" if small or exact_pays(size, self.effort, self.cost) else "deflated"

    @property
    def spent(self) -> int:
        """Products so far."""
        return self.exact_products + (0 if self.measure is None else self.measure.products.count)

    def estimate(self, functional: Functional) -> Estimate:
        """Run, with failures as the user wants them."""
        try:
            compute = functools.partial(self.run, functional)
            return at_the_door(self.name, self.shown, self.method, self.raise_on_failure, compute)
        except DomainError as failure:
            if self.raise_on_failure:
                raise ValueError(f"`{self.name}` of {self.shown!r}: {failure}") from None
            return Estimate(math.nan, math.inf, self.spent, Status.NOT_FINITE, self.method)

    def run(self, functional: Functional) -> Estimate:
        """The estimate, by the method."""
        return self.reading(functional)[2]

    def reading(self, functional: Functional) -> tuple[Rules | None, Rules | None, Estimate]:
        """What is held, the samples, and the estimate."""
        if self.method == "exact":
            return self._exact(functional)
        size = self.cost * self.operator.in_space.size
        may_form = self.auto and not self.effort.whole and size <= min(self.effort.budget // 2, self.cost * FORMED_SIZE)
        effort = dataclasses.replace(self.effort, budget=size) if may_form else self.effort
        self.measure = SpectralMeasure(
            self.operator,
            functional,
            effort,
            self.generator,
            deflated=self.method == "deflated",
            steps=self.steps,
            cost=self.cost,
        )
        found = measured(self.measure, self.method)
        if not may_form or found.status is Status.CONVERGED:
            return self.measure.held, self.measure.samples, found
        return self._exact(functional)

    def _exact(self, functional: Functional) -> tuple[Rules, None, Estimate]:
        rules, delta, self.exact_products = exact_measure(self.operator, self.effort, self.cost)
        outcome = functional(rules, None, delta)
        return rules, None, Estimate(outcome.value, outcome.rounding, self.spent, Status.CONVERGED, "exact")


def _first(sums: Float[Tensor, "*S Q"]) -> Float[Tensor, "*S"]:
    return sums[..., 0]


def _exponential(sums: Float[Tensor, "*S 2"]) -> Float[Tensor, "*S"]:
    """exp(log τ − s/τ), with τ = Σ λ and s = Σ λ log λ."""
    total = sums[..., 0]
    return (total.log() - sums[..., 1] / total).exp()


def check_function(function: Any) -> None:
    """Raise unless `function` can be called."""
    if not callable(function):
        raise TypeError(f"`function` must be a function of a tensor; got {type(function).__name__}.")


def _checked(function: Callable[[Tensor], Tensor], nodes: Tensor, _delta: float) -> Tensor:
    """f as the integrand, `[...] → [..., 1]`."""
    values = function(nodes)
    if not isinstance(values, Tensor):
        raise TypeError(f"`function` must give a tensor; got {type(values).__name__}. Write it with torch functions.")
    if values.shape != nodes.shape:
        raise ValueError(
            f"`function` must give a tensor of the shape that it takes, {tuple(nodes.shape)}; "
            f"got {tuple(values.shape)}."
        )
    good = torch.isfinite(values)
    if not bool(good.all()):
        raise DomainError(
            f"`function` must be finite at all eigenvalues; got {float(values[~good][0]):g} at "
            f"{float(nodes[~good][0]):g}. Clamp the eigenvalues to where it exists, or shift the operator."
        )
    return values.double()[..., None]


def _log(shift: float, nodes: Tensor, delta: float) -> Tensor:
    shifted = nodes + shift
    if float(shifted.min()) <= delta:
        raise DomainError(
            f"A + λ I must be positive definite beyond rounding ({delta:.1e}); got an eigenvalue "
            f"{float(shifted.min()):g} at shift {shift:g}. Give a larger `shift`."
        )
    return shifted.log()[..., None]


def _entropy(nodes: Tensor, delta: float) -> Tensor:
    """λ and λ log λ."""
    if float(nodes.min()) < -NEGATIVE * delta:
        raise DomainError(
            f"the operator must be positive semi-definite to rounding ({NEGATIVE * delta:.1e}); got an eigenvalue "
            f"{float(nodes.min()):g}. Take that of A @ A, of the squared eigenvalues."
        )
    values = nodes.clamp(min=0)
    return torch.stack([values, torch.special.xlogy(values, values)], dim=-1)
