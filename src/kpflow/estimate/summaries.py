"""Summary: trace, norms, effective and stable rank, and leading modes of an operator from one set of products."""

import dataclasses
import math
from typing import Any, final

import torch

from kpflow._checks import check_generator, check_positive
from kpflow.operators import Operator

from .base import EXACT_SIZE, Effort, Estimate, Reading, Status, check_operator, jackknife, not_finite, undefined
from .krylov import Triplets, symmetric_ritz
from .products import NotFiniteError, Products, basis_blocks, inner
from .sketch import LEAST_SHARE, Sketch
from .spectra import Modes, no_modes, shaped_modes

__all__ = ["Summary", "summary"]

FRACTION = 1 / 3
"""Part of the products that goes into the basis, and as much again into its images: Hutch++'s classical split."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Summary:
    """What one set of products says of a symmetric positive operator A.

    Args:
        trace: tr A.
        frobenius_norm: ‖A‖_F.
        effective_rank: (tr A)²/‖A‖²_F.
        operator_norm: ‖A‖₂, from below; its `standard_error` is the residual's bound, as for `operator_norm`.
        stable_rank: ‖A‖²_F/‖A‖₂².
        modes: The leading Ritz pairs, with their residuals. They come from one application of A to random vectors, so
            modes that do not stand out have large residuals; `modes` takes more products and gets them to a tolerance.
        num_matvecs: Products taken, for all of it.
        status: Whether trace, norm and effective rank met the tolerance.
    """

    trace: Estimate
    frobenius_norm: Estimate
    effective_rank: Estimate
    operator_norm: Estimate
    stable_rank: Estimate
    modes: Modes
    num_matvecs: int
    status: Status

    def __repr__(self) -> str:
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("num_matvecs", "status")]
        lines = "".join(f"\n  {name:15} {getattr(self, name)}" for name in names)
        return f"Summary({self.num_matvecs} products, {self.status.value}){lines}"


def summary(
    operator: Any,
    *,
    k: int = 10,
    rtol: float | None = None,
    budget: int | None = None,
    generator: torch.Generator | None = None,
    raise_on_failure: bool = True,
) -> Summary:
    """Trace, Frobenius norm, effective rank, operator norm, stable rank and k leading modes, from the same products.

    With signs S and g, Q an orthonormal basis of A S, W = A Q and R = (I−QQᵀ) A (I−QQᵀ) g:

        tr A    = tr(Qᵀ W) + E ⟨g, R⟩,      ‖A‖²_F = 2 ‖W‖² − ‖Qᵀ W‖² + E ‖R‖²,

    and the eigenpairs of Qᵀ W are Ritz pairs of A, with residuals ‖W c − θ Q c‖ that need no further product. Each of
    the numbers alone would take as many products as all of them together. The errors of trace and norm are correlated;
    that of the effective rank takes this into account (jackknife over the probes g).

    Args:
        operator: A, symmetric; for the ranks to make sense also positive semi-definite.
        k: How many modes, at most the size of A.
        rtol: Stop when trace, norm and effective rank have standard errors below rtol of their values; 1e-2 if neither
            `rtol` nor `budget` is given. As for `trace`, the claim is 2 rtol in 95 % of runs, for each.
        budget: The most products (1000 if not given); without `rtol`, all of them are taken.
        generator: Draws the probes; a fresh one with seed 0 if None.
        raise_on_failure: Raise if a product is not finite or A is zero; otherwise the status says so.

    Raises:
        TypeError: `operator` is no operator, or `generator` no generator.
        ValueError: `operator` is not symmetric, or a number is out of range.
        FloatingPointError: A product holds NaN or inf, or A is zero: its ranks are then not defined.

    References:
        Theory §13.1, and the shared sketch measured in the developers' notes; Meyer, Musco, Musco, Woodruff 2021.

    Example:
        >>> from kpflow.operators import Diagonal
        >>> result = summary(Diagonal(torch.tensor([3.0, 1.0, 0.0])), k=2)
        >>> print(result.trace, result.effective_rank, result.modes.values.tolist())
        4 ± 0 (3 products, exact) 1.6 ± 0 (3 products, exact) [3.0, 1.0]
    """
    check_operator("operator", operator)
    if not operator.symmetric:
        raise ValueError(f"`operator` must be symmetric; got {operator!r}. Of any other G take G @ G.T.")
    check_positive("k", k, integer=True)
    size = operator.in_space.size
    if k > size:
        raise ValueError(f"`k` must be at most {size}, the size of {operator!r}; got {k}.")
    effort = Effort.of(rtol, budget)
    source = check_generator("generator", generator, operator.in_space.device)
    try:
        exact = size <= EXACT_SIZE and size <= effort.budget
        result = _exact(operator, k) if exact else _sampled(operator, effort, k, source)
    except NotFiniteError as failure:
        if raise_on_failure:
            raise not_finite("summary", operator, failure.spent) from None
        return _nothing(operator, failure.spent)
    if not math.isfinite(result.effective_rank.value):
        if raise_on_failure:
            raise undefined("summary", operator, result.num_matvecs)
        result = dataclasses.replace(result, status=Status.NOT_FINITE)
    return result


def _sampled(operator: Operator, effort: Effort, k: int, generator: torch.Generator) -> Summary:
    sketch = Sketch([operator], FRACTION, generator, two_sided=True, least_share=LEAST_SHARE)
    total = effort.budget if effort.whole else min(effort.pilot, effort.budget)
    while True:
        sketch.grow(total)
        readings = _readings(sketch)
        wanting = [reading for reading in readings if not effort.met(reading)]
        if total >= effort.budget or not wanting:
            break
        total = max(effort.next(total, reading) for reading in wanting)
    status = Status.BUDGET_EXHAUSTED if wanting else Status.CONVERGED
    ritz = symmetric_ritz(sketch.basis, sketch.images[0], min(k, len(sketch.basis)))
    found = Triplets(ritz.values, ritz.left, ritz.right, ritz.errors, sketch.spent, not wanting, "deflated")
    estimates = [
        Estimate(
            reading.value,
            max(reading.error, 8 * sketch.eps * abs(reading.value)),
            sketch.spent,
            Status.CONVERGED if effort.met(reading) else Status.BUDGET_EXHAUSTED,
            "deflated",
        )
        for reading in readings
    ]
    return _together(operator, estimates, found, status)


def _readings(sketch: Sketch) -> list[Reading]:
    """Of the trace, the norm and the effective rank."""
    (trace, traces), (square, squares) = sketch.trace(), sketch.inner()
    samples = torch.stack([traces, squares], dim=1)
    functions = (
        lambda mean: trace + mean[..., 0],
        lambda mean: (square + mean[..., 1]).sqrt(),
        lambda mean: (trace + mean[..., 0]).square() / (square + mean[..., 1]),
    )
    return [Reading(*jackknife(function, samples), len(samples), sketch.spent) for function in functions]


def _exact(operator: Operator, k: int) -> Summary:
    """From the matrix, a product for each unit vector."""
    products = Products(operator)
    matrix = torch.cat([products(unit) for unit in basis_blocks(operator.in_space, products.block)])
    trace = float(matrix.diagonal().sum(dtype=torch.float64))
    square = float(inner(matrix, matrix).sum())
    values = (trace, math.sqrt(square), trace**2 / square if square else math.nan)
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    ritz = symmetric_ritz(identity, (matrix + matrix.mT) / 2, k)
    found = Triplets(ritz.values, ritz.left, ritz.right, ritz.errors, products.count, True, "dense")
    estimates = [Estimate(value, 0.0, products.count, Status.CONVERGED, "exact") for value in values]
    return _together(operator, estimates, found, Status.CONVERGED)


def _together(operator: Operator, estimates: list[Estimate], found: Triplets, status: Status) -> Summary:
    """The summary of trace, norm and effective rank, and of Ritz pairs."""
    trace, norm, rank = estimates
    value = float(found.values[0].abs()) if len(found.values) else 0.0  # no basis at all: A is zero
    bound = float(found.residuals[0]) if found.method != "dense" and len(found.values) else 0.0
    top = dataclasses.replace(norm, value=value, standard_error=bound)
    return Summary(trace, norm, rank, top, _ratio(norm, top), shaped_modes(operator, found), found.spent, status)


def _ratio(norm: Estimate, top: Estimate) -> Estimate:
    """‖A‖²_F/‖A‖₂², with the errors of both."""
    if not top.value:
        return dataclasses.replace(norm, value=math.nan, standard_error=math.inf)
    value = (norm.value / top.value) ** 2
    error = 2 * value * math.hypot(norm.standard_error / norm.value, top.standard_error / top.value)
    return dataclasses.replace(norm, value=value, standard_error=error)


def _nothing(operator: Operator, spent: int) -> Summary:
    nothing = Estimate(math.nan, math.inf, spent, Status.NOT_FINITE, "none")
    modes = no_modes(operator, spent)
    return Summary(nothing, nothing, nothing, nothing, nothing, modes, spent, Status.NOT_FINITE)
