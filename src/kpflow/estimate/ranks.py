"""Effective rank: the participation ratio of a spectrum, of the whole operator or along some axes."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_generator, check_one_of
from kpflow.operators import Exact, Operator, Structure
from kpflow.spaces import Space

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
from .pairs import METHOD, RANK, by_pairs, pairs_or
from .products import BLOCK_ENTRIES, Products, basis_blocks, gram_operator, inner
from .sketch import LEAST_SHARE, Sketch
from .structured import by_structure, declared, is_worth, smaller_side

__all__ = ["effective_rank"]


def effective_rank(
    operator: Operator,
    *,
    axes: tuple[str, ...] | None = None,
    method: str = "auto",
    rtol: float | None = None,
    budget: int | None = None,
    generator: torch.Generator | None = None,
    raise_on_failure: bool = True,
) -> Estimate:
    """(tr A)² / ‖A‖²_F, the number of eigenvalues that take part: n for the identity, 1 for rank one.

    For a symmetric operator A, which must be positive semi-definite to make sense of the number. For any other operator
    G the effective rank of A = G Gᵀ, the participation ratio (Σσ²)²/Σσ⁴ of its squared singular values.

    With `axes`, the effective rank along these axes: that of the partial trace M = tr_others A over all other axes, as
    M[i, j] = Σ_bt A[bti, btj] for axes=("unit",). Of G Gᵀ, M is the covariance of G's outputs for white inputs.

    Trace and norm come from the same probes g (random signs), deflated by the same basis Q of A's range:
    A = (A − P A P) + P A P with P = I − Q Qᵀ; the first is known, the second is E (P A P g) gᵀ. With Cⱼ the partial
    trace of the first plus that of the j-th sample, E Cⱼ = M, and ‖M‖²_F is the mean of ⟨Cᵢ, Cⱼ⟩ over pairs i ≠ j.

    Where structure knows independent blocks of rows F_b of A = F Fᵀ (trials, of the NTK of a recurrent network), half
    products tell as much, with y_b = F_bᵀ g_b of all blocks b apart and y' that of another probe:
    tr A = E Σ_b ‖y_b‖², ‖A‖²_F = E Σ_bc ⟨y_b, y'_c⟩². Eight probes of fifteen trials make 7140 such pairs.

    Args:
        operator: A or G.
        axes: Axes, by name, of the space that the operator gives; None for all of it.
        method: "exact" (a product for every unit vector, those of CᵀC for A = C Cᵀ if fewer, or by structure where the
            operator declares it at less cost; error 0), "deflated", "one-sided-blocks" (all of A only), or "auto":
            exact if the space has at most 64 entries (or the products fit into a budget that is to be spent as a
            whole), or if structure is predicted to cost no more than as many products; else one-sided-blocks, if
            blocks are known, there is a tolerance and the first probes promise it at little cost; else deflated, of CᵀC
            for A = C Cᵀ if smaller.
        rtol: As for `trace`: the claim is 2 rtol in 95 % of runs.
        budget: The most products with A (1000 if not given), or with G and Gᵀ (2000); without `rtol`, all are taken.
            For one-sided-blocks they are half products.
        generator: Draws the probes; a fresh one with seed 0 if None.
        raise_on_failure: Raise if a product is not finite, or the operator is zero; otherwise the status says so.

    Returns:
        The estimate, with the jackknife's standard error.

    Raises:
        TypeError: `operator` is no operator, or `generator` no generator.
        ValueError: `axes` are empty, unknown, repeated or all, `method` is unknown or does not fit the operator or
            `axes`, or a number is out of range.
        FloatingPointError: A product holds NaN or inf, or the operator is zero: the ratio is then not defined.

    References:
        Theory §0, §1.5, §13.1.

    Example:
        >>> from kpflow.operators import Diagonal
        >>> print(effective_rank(Diagonal(torch.tensor([1.0, 1.0, 0.0]))))
        2 ± 0 (3 products, exact)
    """
    check_operator("operator", operator)
    check_one_of("method", method, tuple(_METHODS))
    if method == METHOD and axes is not None:
        raise ValueError(f"`method` {METHOD!r} cannot go with `axes`; got {axes!r}. Use 'deflated' or 'auto'.")
    symmetric, cost = (operator, 1) if operator.symmetric else (gram_operator(operator), 2)
    kept = None if axes is None else _Kept(operator.out_space, _check_axes(operator.out_space, axes))
    effort = Effort.of(rtol, budget).times(cost)
    check_least_budget(cost, effort)
    smallest = smaller_side(operator) if operator.symmetric and kept is None else symmetric
    quantity = declared(operator, functools.partial(_by_structure, axes=None if kept is None else kept.axes))
    if quantity is not None and is_worth(quantity, method, effort, smallest.in_space.size, cost=2):
        compute = quantity.compute
        return at_the_door("effective_rank", operator, method, raise_on_failure, lambda: by_structure(compute()))
    if method == "auto" and exact_pays(smallest.in_space.size, effort, cost=cost):
        method = "exact"
    source = check_generator("generator", generator, operator.in_space.device)
    run, side = _METHODS[method], smallest if method == "exact" else symmetric
    return at_the_door(
        "effective_rank", operator, method, raise_on_failure, lambda: run(side, cost, kept, effort, source)
    )


def _by_structure(structure: Structure, axes: tuple[str, ...] | None) -> Exact[float] | None:
    """(tr A)²/‖A‖²_F, or that of a partial trace, from what the operator declares."""
    if axes is not None:
        partial = structure.partial_trace(axes)
        return None if partial is None else Exact(partial.cost, lambda: _ratio(partial.compute()))
    trace, square = structure.trace(), structure.squared_norm()
    if trace is None or square is None:
        return None
    return Exact(trace.cost + square.cost, lambda: _divided(trace.compute() ** 2, square.compute()))


def _ratio(matrix: Float[Tensor, "D D"]) -> float:
    return _divided(float(matrix.trace().square()), float(matrix.square().sum()))


def _divided(numerator: float, denominator: float) -> float:
    """The ratio; NaN where it is 0/0."""
    return numerator / denominator if denominator else math.nan


@final
class _Kept:
    """The partial trace of outer products of vectors: the named axes are kept, the others are summed over."""

    def __init__(self, space: Space, axes: tuple[str, ...]) -> None:
        self.axes = axes
        self.shape = space.shape
        self.positions = tuple(space.axis(name) for name in axes)
        self.size = math.prod(space.shape[i] for i in self.positions)
        self.traced = space.size // self.size

    def matrices(self, left: Float[Tensor, "S N"]) -> Float[Tensor, "S D R"]:
        """The vectors as matrices, kept entries by traced entries, in float64."""
        tensor = left.reshape(len(left), *self.shape)
        kept = [i + 1 for i in self.positions]
        return tensor.movedim(kept, list(range(1, len(kept) + 1))).reshape(len(left), self.size, self.traced).double()

    def of(self, left: Float[Tensor, "S N"], right: Float[Tensor, "S N"]) -> Float[Tensor, "S D D"]:
        """Partial trace of leftⱼ rightⱼᵀ, made symmetric, for each j."""
        outer = self.matrices(left) @ self.matrices(right).mT
        return (outer + outer.mT) / 2

    def sum(self, left: Float[Tensor, "S N"], right: Float[Tensor, "S N"]) -> Float[Tensor, "D D"]:
        """Partial trace of Σⱼ leftⱼ rightⱼᵀ, made symmetric."""
        total = torch.zeros(self.size, self.size, dtype=torch.float64, device=left.device)
        for one, other in self.blocks(left, right):
            total += self.of(one, other).sum(0)
        return total

    def blocks(self, left: Float[Tensor, "S N"], right: Float[Tensor, "S N"]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of vectors, as many at a time as their matrices fit into a block."""
        count = max(1, BLOCK_ENTRIES // max(self.size**2, left.shape[1]))
        return zip(left.split(count), right.split(count), strict=True)


def _auto(operator: Operator, cost: int, kept: _Kept | None, effort: Effort, generator: torch.Generator) -> Estimate:
    """From pairs, if they are known and promise to be few; else deflated, of the side with less algebra."""
    if kept is not None:
        return _deflated(operator, cost, kept, effort, generator)
    side = smaller_side(operator)
    return pairs_or(operator, RANK, effort, generator, lambda rest: _deflated(side, cost, None, rest, generator))


def _of_pairs(
    operator: Operator, _cost: int, _kept: _Kept | None, effort: Effort, generator: torch.Generator
) -> Estimate:
    return by_pairs(operator, RANK, effort, generator)


def _deflated(
    operator: Operator, cost: int, kept: _Kept | None, effort: Effort, generator: torch.Generator
) -> Estimate:
    sketch = Sketch([operator], 1 / 3, generator, two_sided=True, cost=cost, least_share=LEAST_SHARE)
    return settle(effort, "deflated", functools.partial(_read, sketch, kept), pilot=cost * effort.pilot, eps=sketch.eps)


def _read(sketch: Sketch, kept: _Kept | None, total: int) -> Reading:
    sketch.grow(total)
    value, error = _whole(sketch) if kept is None else _along(sketch, kept)
    return Reading(value, error, len(sketch.probes), sketch.spent)


def _whole(sketch: Sketch) -> tuple[float, float]:
    """(tr A)²/‖A‖²_F and its error."""
    (trace, traces), (square, squares) = sketch.trace(), sketch.inner()
    return jackknife(
        lambda mean: (trace + mean[..., 0]).square() / (square + mean[..., 1]), torch.stack([traces, squares], dim=1)
    )


def _along(sketch: Sketch, kept: _Kept) -> tuple[float, float]:
    """(tr M)²/‖M‖²_F of the partial trace M, from the samples Cⱼ, and its error.

    With T = Σ Cⱼ the mean over pairs is (‖T‖² − Σ‖Cⱼ‖²)/(S(S−1)); without the i-th sample
    (‖T‖² − 2⟨Cᵢ, T⟩ − Σ‖Cⱼ‖² + 2‖Cᵢ‖²)/((S−1)(S−2)). No sample is kept: two passes make them, a block at a time.
    """
    residual, probes = sketch.residual(), sketch.probes
    held, count = _held(sketch, kept), len(probes)
    total = count * held + kept.sum(residual, probes)
    rows = []
    for block in kept.blocks(residual, probes):
        sample = held + kept.of(*block)
        trace = sample.diagonal(dim1=1, dim2=2).sum(1)
        rows.append(torch.stack([trace, (sample * total).sum((1, 2)), sample.square().sum((1, 2))]))
    traces, withs, squares = torch.cat(rows, dim=1)
    pairs = total.square().sum() - squares.sum()
    mean = total / count
    if count < MIN_PROBES or not bool(pairs > 0):
        return float(mean.trace().square() / mean.square().sum()), math.inf
    value = float(mean.trace().square() / pairs * (count * (count - 1)))
    pairs_out = (pairs - 2 * withs + 2 * squares) / ((count - 1) * (count - 2))
    return value, spread(((traces.sum() - traces) / (count - 1)).square() / pairs_out)


def _held(sketch: Sketch, kept: _Kept) -> Float[Tensor, "D D"]:
    """Partial trace of A − P A P = W Qᵀ + Q Wᵀ − Q (Qᵀ W) Qᵀ, with W = A Q."""
    basis, image = sketch.basis, sketch.images[0]
    return kept.sum(2 * image - sketch.core().to(basis.dtype) @ basis, basis)


def _exact(operator: Operator, cost: int, kept: _Kept | None, effort: Effort, _generator: torch.Generator) -> Estimate:
    check_exact_budget(cost * operator.in_space.size, effort)
    products = Products(operator, cost)
    trace = torch.zeros((), dtype=torch.float64, device=operator.in_space.device)
    square = trace.clone() if kept is None else trace.new_zeros(kept.size, kept.size)
    for unit in basis_blocks(operator.in_space, products.block):
        image = products(unit)
        trace = trace + inner(unit, image).sum()
        square = square + (inner(image, image).sum() if kept is None else kept.sum(image, unit))
    norm = square if kept is None else square.square().sum()
    return Estimate(float(trace.square() / norm), 0.0, products.count, Status.CONVERGED, "exact")


_METHODS: dict[str, Callable[[Operator, int, _Kept | None, Effort, torch.Generator], Estimate]] = {
    "auto": _auto,
    "deflated": _deflated,
    METHOD: _of_pairs,
    "exact": _exact,
}


def _check_axes(space: Space, axes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names if they are some, but not all, axes of the space."""
    names = (axes,) if isinstance(axes, str) else tuple(axes)
    known = ", ".join(map(repr, space.axes))
    if not names or set(names) == set(space.axes):
        raise ValueError(
            f"`axes` must name some of the axes {known}, but not all; got {names}. For the whole operator leave it out."
        )
    if len(set(names)) != len(names) or not set(names) <= set(space.axes):
        raise ValueError(f"`axes` must be different names out of {known}; got {names}.")
    return names
