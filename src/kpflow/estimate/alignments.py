"""Alignment: the cosine between two operators."""

import functools
from collections.abc import Callable

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
from .products import Products, basis_blocks, inner
from .sketch import LEAST_SHARE, Sketch

__all__ = ["alignment"]


def alignment(
    left: Operator,
    right: Operator,
    *,
    method: str = "auto",
    rtol: float | None = None,
    budget: int | None = None,
    generator: torch.Generator | None = None,
    raise_on_failure: bool = True,
) -> Estimate:
    """⟨A, B⟩_F / (‖A‖_F ‖B‖_F), the cosine of the angle between two operators; 1 for positive multiples of each other.

    The three inner products come from the same probes, ⟨A, B⟩ = E ⟨A g, B g⟩ with random signs g, deflated by a common
    basis of the ranges of A and B (see `frobenius_norm`), so that their errors cancel: alignment(A, c A) is 1 to
    rounding, with any number of probes, and the result is never beyond ±1. The denominator is ‖A‖_F ‖B‖_F, not
    tr(A Bᵀ), which some public formulas print.

    Kernels of different models can be compared if their states have the same shape, e.g. on the same trials with as
    many units; otherwise compare the NTKs of their outputs.

    Args:
        left: A, between any two spaces.
        right: B, between the same two spaces.
        method: "exact" (a product with each for every unit vector; error 0), "deflated", or "auto": exact if the space
            has at most 64 entries (or the products fit into a budget that is to be spent as a whole).
        rtol: As for `trace`: the claim is 2 rtol in 95 % of runs.
        budget: The most products, with A and B together (2000 if not given); without `rtol`, all of them are taken.
        generator: Draws the probes; a fresh one with seed 0 if None.
        raise_on_failure: Raise if a product is not finite, or an operator is zero; otherwise the status says so.

    Returns:
        The estimate, with the jackknife's standard error.

    Raises:
        TypeError: An argument is no operator, or `generator` no generator.
        ValueError: The spaces differ, `method` is unknown, or a number is out of range.
        FloatingPointError: A product holds NaN or inf, or an operator is zero: the angle is then not defined.

    References:
        Theory §5.1, §5.2 and §8 (10).

    Example:
        >>> from kpflow.operators import Dense, Identity
        >>> A = Dense(torch.diag(torch.tensor([3.0, 4.0], dtype=torch.float64)))
        >>> print(alignment(A, Identity(A.in_space)))
        0.9899494937 ± 0 (4 products, exact)
    """
    _check_pair(left, right)
    check_one_of("method", method, ("auto", *_METHODS))
    effort = Effort.of(rtol, budget).times(2)
    check_least_budget(2, effort)
    if method == "auto":
        method = "exact" if exact_pays(left.in_space.size, effort, cost=2) else "deflated"
    source = check_generator("generator", generator, left.in_space.device)
    run = _METHODS[method]
    return at_the_door("alignment", left, method, raise_on_failure, lambda: run(left, right, effort, source))


def _deflated(left: Operator, right: Operator, effort: Effort, generator: torch.Generator) -> Estimate:
    two_sided = left.symmetric and right.symmetric
    sketch = Sketch([left, right], 1 / 3, generator, two_sided=two_sided, least_share=LEAST_SHARE)

    return settle(effort, "deflated", functools.partial(_read, sketch), pilot=2 * PILOT, eps=sketch.eps)


def _read(sketch: Sketch, total: int) -> Reading:
    sketch.grow(total)
    parts = [sketch.inner(0, 1), sketch.inner(0, 0), sketch.inner(1, 1)]
    held = torch.tensor([part[0] for part in parts], dtype=torch.float64, device=parts[0][1].device)
    samples = torch.stack([part[1] for part in parts], dim=1)
    value, error = jackknife(lambda mean: _cosine(held + mean), samples)
    return Reading(value, error, len(samples), sketch.spent, scale=1.0)


def _exact(left: Operator, right: Operator, effort: Effort, _generator: torch.Generator) -> Estimate:
    check_exact_budget(2 * left.in_space.size, effort)
    first, second = Products(left), Products(right)
    sums = torch.zeros(3, dtype=torch.float64, device=left.in_space.device)
    for unit in basis_blocks(left.in_space, first.block):
        one, other = first(unit), second(unit)
        sums += torch.stack([inner(one, other).sum(), inner(one, one).sum(), inner(other, other).sum()])
    return Estimate(float(_cosine(sums)), 0.0, first.count + second.count, Status.CONVERGED, "exact")


def _cosine(products: torch.Tensor) -> torch.Tensor:
    """⟨A, B⟩/√(⟨A, A⟩⟨B, B⟩) from the three, on the last axis: exactly 1 if they are equal."""
    return products[..., 0] / (products[..., 1] * products[..., 2]).sqrt()


_METHODS: dict[str, Callable[[Operator, Operator, Effort, torch.Generator], Estimate]] = {
    "deflated": _deflated,
    "exact": _exact,
}


def _check_pair(left: Operator, right: Operator) -> None:
    check_operator("left", left)
    check_operator("right", right)
    if left.in_space.same_vectors(right.in_space) and left.out_space.same_vectors(right.out_space):
        return
    raise ValueError(
        f"`left` and `right` must act between the same spaces; got {left!r} and {right!r}. Kernels of different models "
        f"can be compared on the same trials and steps with as many units; otherwise compare the NTKs of their "
        f"outputs, or restrict both operators to states that correspond."
    )
