"""Stable rank: ‖A‖²_F over ‖A‖²₂."""

import functools
import math

import torch

from kpflow._checks import check_generator, check_one_of
from kpflow.operators import Operator

from .base import (
    PILOT,
    Effort,
    Estimate,
    Reading,
    Status,
    at_the_door,
    check_exact_budget,
    check_least_budget,
    check_operator,
    exact_pays,
    jackknife,
    settle,
)
from .krylov import Triplets, bound_of_largest, leading
from .products import Products, basis_blocks
from .sketch import Sketch

__all__ = ["stable_rank"]


def stable_rank(
    operator: Operator,
    *,
    method: str = "auto",
    rtol: float | None = None,
    budget: int | None = None,
    generator: torch.Generator | None = None,
    raise_on_failure: bool = True,
) -> Estimate:
    """‖A‖²_F/‖A‖²₂ = Σᵢ σᵢ²/σ₁², between 1 and the rank; n for the identity.

    It takes no positivity, and small singular values change it little. The Frobenius norm is deflated as in
    `frobenius_norm`, the largest singular value is that of `modes`, from at most half the products. The error is that
    of the Frobenius norm (jackknife) and the bound on σ₁ from its residual r, 2 r/σ₁ relative, in quadrature. The value
    is rather too large than too small, since Krylov finds σ₁ from below.

    Args:
        operator: A, between any two spaces.
        method: "exact" (the singular values of the matrix), "deflated", or "auto": exact if the smaller space has at
            most 64 entries (or as many as a budget that is to be spent as a whole).
        rtol: As for `trace`: the claim is 2 rtol in 95 % of runs.
        budget: The most products with A or Aᵀ (1000 if not given); without `rtol`, all of them are taken.
        generator: Draws the probes; a fresh one with seed 0 if None.
        raise_on_failure: Raise if a product is not finite, or the operator is zero; otherwise the status says so.

    Raises:
        TypeError: `operator` is no operator, or `generator` no generator.
        ValueError: `method` is unknown, or a number is out of range.
        FloatingPointError: A product holds NaN or inf, or the operator is zero: the ratio is then not defined.

    References:
        Rudelson, Vershynin, J. ACM 54 (2007), where it is the numerical rank; theory §13.1.

    Example:
        >>> from kpflow.operators import Diagonal
        >>> print(stable_rank(Diagonal(torch.tensor([2.0, 1.0, 1.0]))))
        1.5 ± 0 (3 products, exact)
    """
    check_operator("operator", operator)
    check_one_of("method", method, ("auto", "deflated", "exact"))
    effort = Effort.of(rtol, budget)
    check_least_budget(3 if operator.symmetric else 5, effort)
    size = min(operator.in_space.size, operator.out_space.size)
    if method == "auto":
        method = "exact" if exact_pays(size, effort) else "deflated"
    source = check_generator("generator", generator, operator.in_space.device)
    run = _exact if method == "exact" else _deflated
    return at_the_door("stable_rank", operator, method, raise_on_failure, lambda: run(operator, effort, source))


def _exact(operator: Operator, effort: Effort, _generator: torch.Generator) -> Estimate:
    side = operator if operator.in_space.size <= operator.out_space.size else operator.T
    check_exact_budget(side.in_space.size, effort)
    products = Products(side)
    rows = [products(unit) for unit in basis_blocks(side.in_space, products.block)]
    squares = torch.linalg.svdvals(torch.cat(rows).double()).square()
    return Estimate(float(squares.sum() / squares[0]), 0.0, products.count, Status.CONVERGED, "exact")


def _deflated(operator: Operator, effort: Effort, generator: torch.Generator) -> Estimate:
    """σ₁ first, to a quarter of the tolerance, then the Frobenius norm."""
    found = leading(operator, 1, tol=effort.rtol / 4, budget=effort.budget // 2, generator=generator)
    sketch = Sketch([operator], 1 / 3, generator, two_sided=operator.symmetric)
    read = functools.partial(_read, sketch, found, bound_of_largest(operator, found))
    return settle(effort, "deflated", read, pilot=found.spent + PILOT, eps=sketch.eps)


def _read(sketch: Sketch, found: Triplets, bound: float, total: int) -> Reading:
    """The ratio and its error, with a bound on that of σ₁."""
    sketch.grow(total - found.spent)
    top = float(found.values[0].abs())
    if top == 0:
        return Reading(math.nan, math.inf, 0, found.spent + sketch.spent)
    held, samples = sketch.inner()
    value, error = jackknife(lambda mean: (held + mean[..., 0]) / top**2, samples[:, None])
    return Reading(value, math.hypot(error, 2 * bound / top * value), len(samples), found.spent + sketch.spent)
