"""Inertia of a symmetric operator: how many of its eigenvalues are positive, zero and negative."""

import dataclasses
import math
from typing import final

import torch

from kpflow._checks import check_positive
from kpflow.operators import Operator
from kpflow.spaces import Space

from .base import Effort, Estimate, Status, not_finite
from .ends import Ends, ends_within
from .products import NotFiniteError
from .quadrature import Count, Functional, Outcome, Rules
from .spectral_sums import Spectrum

__all__ = ["Inertia", "inertia", "signs_for_sure"]

END_TOL = 1e-5
"""Of the ends of the spectrum, as in `modes`."""


@final
@dataclasses.dataclass(frozen=True)
class Inertia:
    """The signs of the N eigenvalues of a symmetric operator, as far as they are known.

    Args:
        positive: How many are above `zero_below`.
        zero: How many are within ± `zero_below`; its error is at most the sum of those of the others.
        negative: How many are below −`zero_below`.
        sure: Of the positive and of the negative ones, how many there are at least, whatever was not seen.
        least: λ_min, with a bound as its error: see `extreme_eigenvalues`.
        largest: λ_max, likewise.
        zero_below: Magnitude up to which eigenvalues count as zero, in the units of the operator.
    """

    positive: Estimate
    zero: Estimate
    negative: Estimate
    sure: tuple[int, int]
    least: Estimate
    largest: Estimate
    zero_below: float

    @property
    def num_matvecs(self) -> int:
        """Products taken."""
        ends = (self.least, self.largest) if self.least.method != "exact" else ()
        return self.positive.num_matvecs + sum(end.num_matvecs for end in ends)

    @property
    def positive_definite(self) -> bool | None:
        """Whether all eigenvalues are positive beyond `zero_below`; None if that is not resolved.

        "No" is certain, but for rounding. "Yes" rests on λ_min, as sure as Krylov's ends are.
        """
        if self.sure[1] or self.least.value <= self.zero_below:
            return False
        return True if self.least.value - self.least.standard_error > self.zero_below else None

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {getattr(self, name)}" for name in ("positive", "zero", "negative"))
        return f"{counts}; λ from {self.least} to {self.largest}"


def inertia(
    operator: Operator,
    *,
    zero_below: float | None = None,
    method: str = "auto",
    rtol: float | None = None,
    budget: int | None = None,
    steps: int | None = None,
    generator: torch.Generator | None = None,
    raise_on_failure: bool = True,
) -> Inertia:
    """The numbers n₊, n₀ and n₋ of positive, zero and negative eigenvalues of a symmetric operator.

    Learning by the NTK Θ, ṙ = −Θ r, is stable in n₊ directions, and diverges in n₋: for a rule with signs or a metric D
    on the parameters, Θ = P J D Jᵀ Pᵀ may be indefinite (`Ntk(lin, metric=signs)`). By Sylvester's law n₋ is at most
    the number of negative signs.

    Counts are those of `count_above` at ± `zero_below`, with its methods and errors. `sure` are the signs of a
    compression V A Vᵀ to what products have seen, which A has at least (Cauchy's interlacing). The ends of the spectrum
    are those of `extreme_eigenvalues`, from products of their own.

    Args:
        operator: A, symmetric.
        zero_below: Magnitude up to which eigenvalues count as zero, in the units of A; √eps ‖A‖ if None. Samples do not
            resolve less than 1e-9 ‖A‖.
        method: As for `spectral_sum`: "exact" (the matrix), "slq", "deflated" or "auto".
        rtol: Stop when the standard errors of n₊ and n₋ are below rtol · N; 1e-2 if neither `rtol` nor `budget` is
            given.
        budget: The most products for the counts (10 000 if not given; without `rtol`, all of them are taken), and as
            many again for the ends (2000 if not given).
        steps: Lanczos steps for each probe.
        generator: Draws the probes; a fresh one with seed 0 if None.
        raise_on_failure: Raise if a product is not finite; otherwise the results' status says so.

    Raises:
        TypeError: `operator` is no operator, or `generator` no generator.
        ValueError: `operator` is not known to be symmetric, `method` is unknown, or a number is out of range.
        FloatingPointError: A product holds NaN or inf.

    References:
        Curl descent, Ninou, Kadmon, Cayco-Gajic 2025, arXiv 2510.02765: `kpflow.gallery`, "curl".

    Example:
        >>> from kpflow.operators import Diagonal
        >>> found = inertia(Diagonal(torch.tensor([2.0, -1.0, 0.0, 3.0])))
        >>> int(found.positive.value), int(found.zero.value), int(found.negative.value), found.positive_definite
        (2, 1, 1, False)
    """
    if zero_below is not None:
        check_positive("zero_below", zero_below)
    spectrum = Spectrum("inertia", operator, method, rtol, budget, steps, generator, raise_on_failure)
    signs = _Signs(zero_below, operator.in_space)
    try:
        held, samples, counted = spectrum.reading(signs)
        if counted.method == "exact":
            ends = _exact_ends(signs, held, counted)
        else:
            ends = ends_within(operator, END_TOL, Effort.of(None, budget).times(2).budget // 2, spectrum.generator)
    except NotFiniteError as failure:
        if raise_on_failure:
            raise not_finite("inertia", operator, failure.spent) from None
        nothing = Estimate(math.nan, math.inf, failure.spent, Status.NOT_FINITE, spectrum.method)
        return Inertia(nothing, nothing, nothing, (0, 0), nothing, nothing, math.nan)
    return _shaped(signs, held, samples, counted, ends)


@final
@dataclasses.dataclass(frozen=True)
class _Signs(Functional):
    """The counts above ± a threshold: N, with the error of the worse of them."""

    zero_below: float | None
    space: Space

    def __call__(self, held: Rules | None, samples: Rules | None, delta: float) -> Outcome:
        worst = max(self.above(held, samples, delta), key=lambda outcome: outcome.error)
        return dataclasses.replace(worst, value=float(self.space.size))

    def above(self, held: Rules | None, samples: Rules | None, delta: float) -> tuple[Outcome, Outcome]:
        """The numbers above the threshold, and above minus it."""
        threshold = self.threshold(delta)
        return Count(threshold)(held, samples, delta), Count(-threshold)(held, samples, delta)

    def threshold(self, delta: float) -> float:
        """√eps ‖A‖ if none was given, not quite 0 for A = 0; `delta` is 8 eps ‖A‖."""
        if self.zero_below is not None:
            return self.zero_below
        return max(delta / (8 * math.sqrt(torch.finfo(self.space.dtype).eps)), torch.finfo(torch.float64).tiny)

    def delta(self, *parts: Rules | None) -> float:
        """What rounding does to eigenvalues."""
        largest = max(float(rules.nodes[0].abs().max()) for rules in parts if rules is not None)
        return 8 * torch.finfo(self.space.dtype).eps * largest


def _exact_ends(signs: _Signs, held: Rules | None, counted: Estimate) -> Ends:
    assert held is not None
    values = held.nodes[0]
    least, largest = (
        dataclasses.replace(counted, value=float(end), standard_error=signs.delta(held)) for end in values.aminmax()
    )
    return Ends(least, largest)


def _shaped(signs: _Signs, held: Rules | None, samples: Rules | None, counted: Estimate, ends: Ends) -> Inertia:
    size, delta = signs.space.size, signs.delta(held, samples)
    threshold = signs.threshold(delta)
    above, not_below = signs.above(held, samples, delta)
    errors = above.error, above.error + not_below.error, not_below.error
    values = above.value, not_below.value - above.value, size - not_below.value
    positive, zero, negative = (
        dataclasses.replace(counted, value=value, standard_error=error)
        for value, error in zip(values, errors, strict=True)
    )
    return Inertia(
        positive, zero, negative, signs_for_sure(held, samples, threshold), ends.least, ends.largest, threshold
    )


def signs_for_sure(held: Rules | None, samples: Rules | None, threshold: float) -> tuple[int, int]:
    """The signs that every compression V A Vᵀ has, at the most; those that ended early are padded, and left out."""
    compressions = [] if held is None else [held.matrix]
    compressions += [] if samples is None else [samples.matrix[~samples.exact]]
    values = [torch.linalg.eigvalsh(matrices) for matrices in compressions if len(matrices)]
    most = [(int((part > threshold).sum(1).max()), int((part < -threshold).sum(1).max())) for part in values]
    return max((up for up, _ in most), default=0), max((down for _, down in most), default=0)
