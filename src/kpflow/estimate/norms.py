"""Norms: ‖A‖_F deflated, plain, one-sided and exact; ‖A‖₂ by block Krylov."""

import functools
import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from kpflow._checks import check_generator, check_one_of
from kpflow.operators import Gramian, Operator

from .base import (
    MIN_PROBES,
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
    spread,
)
from .krylov import bound_of_largest, leading
from .pairs import METHOD, SIZE, by_pairs, pairs_or
from .products import Products, Samples, basis_blocks, gram, inner, signs
from .sketch import Sketch
from .structured import by_structure, declared, is_worth, smaller_side

__all__ = ["frobenius_norm", "operator_norm"]


LEAST_SHARE_OF_NORM = 0.1
"""Part of ‖A‖²_F that the first basis must hold to grow, for the norm alone. Chosen by experience."""


def frobenius_norm(
    operator: Operator,
    *,
    method: str = "auto",
    rtol: float | None = None,
    budget: int | None = None,
    generator: torch.Generator | None = None,
    raise_on_failure: bool = True,
) -> Estimate:
    """‖A‖_F = √(Σᵢⱼ Aᵢⱼ²) = √(E ‖A g‖²), from products with A.

    Methods, with g random signs, and Q an orthonormal basis of A S for a third of the products:

    - "deflated": symmetric A: ‖A‖²_F = 2 ‖A Q‖² − ‖Qᵀ A Q‖² + E ‖(I−QQᵀ) A (I−QQᵀ) g‖²; otherwise
      ‖A‖²_F = ‖Aᵀ Q‖² + E ‖(I−QQᵀ) A g‖². Exact to rounding if rank A ≤ q. It keeps 2 (q + s) vectors. Where the first
      36 products show no leading modes, Q stays as it is and all further products go to probes g.
    - "hutchinson": mean of ‖A g‖². As good on flat spectra; leading modes need 10 to 20 times the products.
    - "one-sided-reverse": A = F Fᵀ: mean over pairs i ≠ j of ⟨Fᵀ gᵢ, Fᵀ gⱼ⟩² (of F M Fᵀ: ⟨Fᵀ gᵢ, M Fᵀ gⱼ⟩²), products
      with Fᵀ only. It keeps m vectors of the size F takes.
    - "one-sided-blocks": where structure knows independent blocks of rows of F (trials, of the NTK of a recurrent
      network): the same with all blocks apart, Σ_bc ⟨F_bᵀ gᵢ, F_cᵀ gⱼ⟩², so that B blocks make B² samples of a pair.
    - "exact": √(Σᵢ ‖A eᵢ‖²) over the smaller of the two spaces (of A = C Cᵀ: of CᵀC, if smaller), or by structure where
      the operator declares it at less cost (K of a recurrent network); error 0.
    - "auto": exact if that space has at most 64 entries (or as many as a budget that is to be spent as a whole), or if
      structure is predicted to cost no more than 64 products (or that budget); else one-sided-blocks, if blocks are
      known, there is a tolerance and the first probes promise it at little cost; else deflated, of CᵀC for A = C Cᵀ if
      smaller.

    Args:
        operator: A, between any two spaces.
        method: One of the above.
        rtol: As for `trace`: the claim is 2 rtol in 95 % of runs.
        budget: The most products, with A or Aᵀ, or with Fᵀ for the one-sided methods (1000 if not given); without
            `rtol`, all of them are taken.
        generator: Draws the probes; a fresh one with seed 0 if None.
        raise_on_failure: Raise if a product is not finite; otherwise the result's status says so.

    Returns:
        The estimate, with the jackknife's standard error.

    Raises:
        TypeError: `operator` is no operator, or `generator` no generator.
        ValueError: `method` is unknown or does not fit the operator, or a number is out of range.
        FloatingPointError: A product holds NaN or inf.

    References:
        Theory §5.2, §13.1.

    Example:
        >>> from kpflow.operators import Dense
        >>> print(frobenius_norm(Dense(torch.ones(4, 4))))
        4 ± 0 (4 products, exact)
    """
    check_operator("operator", operator)
    check_one_of("method", method, tuple(_METHODS))
    if method == "one-sided-reverse" and not isinstance(operator, Gramian):
        raise ValueError(
            f"`method` 'one-sided-reverse' needs an operator A = F Fᵀ whose factor F is known (a Gramian); "
            f"got {operator!r}. Use 'deflated' or 'auto'."
        )
    effort = Effort.of(rtol, budget)
    size = smaller_side(operator).in_space.size
    quantity = declared(operator, lambda structure: structure.squared_norm())
    if quantity is not None and is_worth(quantity, method, effort, size, cost=2):
        compute = quantity.compute
        return at_the_door(
            "frobenius_norm", operator, method, raise_on_failure, lambda: by_structure(math.sqrt(compute()))
        )
    if method == "auto" and exact_pays(size, effort):
        method = "exact"
    source = check_generator("generator", generator, operator.in_space.device)
    run = _METHODS[method]
    return at_the_door("frobenius_norm", operator, method, raise_on_failure, lambda: run(operator, effort, source))


def _auto(operator: Operator, effort: Effort, generator: torch.Generator) -> Estimate:
    """From pairs, if they are known and promise to be few; else deflated, of the side with less algebra."""
    side = smaller_side(operator) if operator.symmetric else operator
    return pairs_or(operator, SIZE, effort, generator, lambda rest: _deflated(side, rest, generator))


def _of_pairs(operator: Operator, effort: Effort, generator: torch.Generator) -> Estimate:
    return by_pairs(operator, SIZE, effort, generator)


def _deflated(operator: Operator, effort: Effort, generator: torch.Generator) -> Estimate:
    sketch = Sketch([operator], 1 / 3, generator, two_sided=operator.symmetric, least_share=LEAST_SHARE_OF_NORM)
    return settle(effort, "deflated", functools.partial(_read_sketch, sketch), pilot=effort.pilot, eps=sketch.eps)


def _read_sketch(sketch: Sketch, total: int) -> Reading:
    sketch.grow(total)
    held, samples = sketch.inner()
    value, error = jackknife(lambda mean: (held + mean[..., 0]).sqrt(), samples[:, None])
    return Reading(value, error, len(samples), sketch.spent)


def _hutchinson(operator: Operator, effort: Effort, generator: torch.Generator) -> Estimate:
    squares = Samples(Products(operator), generator, _square)
    return settle(effort, "hutchinson", functools.partial(_read_squares, squares), eps=squares.eps)


def _square(_probes: Tensor, image: Tensor) -> Tensor:
    return inner(image, image)


def _read_squares(squares: Samples, total: int) -> Reading:
    squares.draw(total)
    value, error = jackknife(lambda mean: mean[..., 0].sqrt(), squares.values[:, None])
    return Reading(value, error, len(squares.values), squares.products.count)


@final
class _Images:
    """Fᵀ g, all of them kept, for the mean over pairs i ≠ j of ⟨Fᵀ gᵢ, M Fᵀ gⱼ⟩².

    That mean is a U-statistic: unbiased for ‖A‖²_F, with an exact jackknife from the row sums.
    """

    def __init__(self, gramian: Gramian, generator: torch.Generator) -> None:
        self.products = Products(gramian.factor.T)
        self.metric = gramian.metric
        self.generator = generator
        self.images = self.products(signs(gramian.in_space, 0, generator))

    def read(self, total: int) -> Reading:
        """Draw until `total` products are spent."""
        probes = signs(self.products.operator.in_space, total - self.products.count, self.generator)
        self.images = torch.cat([self.images, self.products(probes)])
        right = self.images if self.metric is None else Products(self.metric)(self.images)
        value, error = _pairs(gram(self.images, right).square().fill_diagonal_(0))
        return Reading(value, error, len(self.images), self.products.count)


def _one_sided_reverse(operator: Operator, effort: Effort, generator: torch.Generator) -> Estimate:
    if not isinstance(operator, Gramian):
        raise TypeError(f"The one-sided methods need a Gramian; got {type(operator).__name__}.")
    images = _Images(operator, generator)
    return settle(effort, "one-sided-reverse", images.read, eps=torch.finfo(operator.in_space.dtype).eps)


def _pairs(squares: Tensor) -> tuple[float, float]:
    """√ of the mean over pairs of a symmetric `[S, S]` with zero diagonal, and its jackknife error."""
    count, rows = len(squares), squares.sum(1)
    value = math.sqrt(float(rows.sum()) / max(count * (count - 1), 1))
    if count < MIN_PROBES:
        return value, math.inf
    left_out = (rows.sum() - 2 * rows) / ((count - 1) * (count - 2))
    return value, spread(left_out.sqrt())


def _exact(operator: Operator, effort: Effort, _generator: torch.Generator) -> Estimate:
    side = smaller_side(operator)
    size = side.in_space.size
    check_exact_budget(size, effort)
    products, total = Products(side), 0.0
    for unit in basis_blocks(side.in_space, products.block):
        image = products(unit)
        total += float(inner(image, image).sum())
    return Estimate(math.sqrt(total), 0.0, products.count, Status.CONVERGED, "exact")


def operator_norm(
    operator: Operator,
    *,
    rtol: float | None = None,
    budget: int | None = None,
    generator: torch.Generator | None = None,
    raise_on_failure: bool = True,
) -> Estimate:
    """‖A‖₂ = max ‖A v‖/‖v‖: the largest |λ| of a symmetric operator, the largest singular value of any other.

    Block Krylov (of a small operator, the matrix itself), as in `modes`. The value is a lower bound on ‖A‖₂. The
    `standard_error` is no spread but a bound: a singular value of A lies within the residual, ‖A v − λ v‖, or
    ‖Aᵀ u − σ v‖/√2, of the value, and a random start makes it the largest one with near certainty. The true error is
    of the order of the residual squared over the gap to the next value. Fewer than 20 products (40 with A and Aᵀ) that
    have not met the tolerance say nothing of what they may have missed: the error is then infinite.

    Args:
        operator: A, between any two spaces.
        rtol: Stop when the bound is below rtol · value; 1e-2 if not given.
        budget: The most products with A and Aᵀ (1000 if not given).
        generator: Draws the first block; a fresh one with seed 0 if None.
        raise_on_failure: Raise if a product is not finite; otherwise the result's status says so.

    Raises:
        TypeError: `operator` is no operator, or `generator` no generator.
        ValueError: A number is out of range, or the budget does not suffice for one product with A and one with Aᵀ.
        FloatingPointError: A product holds NaN or inf.

    References:
        Theory §13.1; Musco and Musco 2015.

    Example:
        >>> from kpflow.operators import Dense
        >>> print(operator_norm(Dense(torch.tensor([[3.0, 0.0], [0.0, -4.0]]))))
        4 ± 0 (2 products, dense)
    """
    check_operator("operator", operator)
    effort = Effort.of(rtol, budget)
    source = check_generator("generator", generator, operator.in_space.device)
    check_least_budget(1 if operator.symmetric else 2, effort)
    return at_the_door(
        "operator_norm", operator, "block Krylov", raise_on_failure, lambda: _largest(operator, effort, source)
    )


def _largest(operator: Operator, effort: Effort, generator: torch.Generator) -> Estimate:
    found = leading(operator, 1, tol=effort.rtol, budget=effort.budget, generator=generator)
    value, bound = float(found.values[0].abs()), bound_of_largest(operator, found)
    rounding = math.sqrt(operator.in_space.size) * torch.finfo(operator.in_space.dtype).eps
    bound = 0.0 if found.method == "dense" else max(bound, rounding * value)
    status = Status.CONVERGED if found.converged else Status.BUDGET_EXHAUSTED
    return Estimate(value, bound, found.spent, status, found.method)


_METHODS: dict[str, Callable[[Operator, Effort, torch.Generator], Estimate]] = {
    "auto": _auto,
    "deflated": _deflated,
    "hutchinson": _hutchinson,
    "one-sided-reverse": _one_sided_reverse,
    METHOD: _of_pairs,
    "exact": _exact,
}
