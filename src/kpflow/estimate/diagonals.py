"""The diagonal of an operator, entry by entry with errors."""

import dataclasses
import math
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_generator, check_one_of
from kpflow.operators import Exact, Gramian, Operator, Structure

from .base import (
    MIN_PROBES,
    PILOT,
    Effort,
    Reading,
    Status,
    check_exact_budget,
    check_least_budget,
    check_operator,
    exact_pays,
    not_finite,
    relative,
    settle,
)
from .leave_one_out import RangeSketch, xdiag
from .products import NotFiniteError, Products, basis_blocks, signs
from .structured import declared, is_worth

__all__ = ["DiagonalEstimate", "diagonal"]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class DiagonalEstimate:
    """The diagonal of an operator with its errors, what it cost, how it ended and how it was made.

    Args:
        values: Aᵢᵢ, of the shape of the vectors that A takes, `[*shape]`.
        standard_errors: Of each value, the same shape; 0 for exact results, infinite where too few probes tell nothing.
        num_matvecs: Products taken, with A or Aᵀ, or with F or Fᵀ alone where A = F Fᵀ is done by one side.
        status: How it ended.
        method: The method that was used.
    """

    values: Float[Tensor, "*shape"]
    standard_errors: Float[Tensor, "*shape"]
    num_matvecs: int
    status: Status
    method: str

    @property
    def relative_error(self) -> float:
        """‖standard errors‖₂/‖values‖₂, which `rtol` is about; 0 for an exact zero, infinite for one with an error."""
        return relative(_norm(self.standard_errors), _norm(self.values))

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.values.shape))
        warning = "" if self.status is Status.CONVERGED else f"; {self.status.value}"
        error = f"relative error {self.relative_error:.2g}"
        return f"DiagonalEstimate({shape} values, {error} ({self.num_matvecs} products, {self.method}{warning}))"


def diagonal(
    operator: Operator,
    *,
    method: str = "auto",
    rtol: float | None = None,
    budget: int | None = None,
    generator: torch.Generator | None = None,
    raise_on_failure: bool = True,
) -> DiagonalEstimate:
    """The diagonal entries Aᵢᵢ = ⟨eᵢ, A eᵢ⟩, from products with A.

    Of an NTK they are ‖∂zᵢ/∂θ‖²: how far each state moves when its own gradient is followed.

    Methods, with g random signs (E g gᵀ = I) and ∘ the product entry by entry:

    - "hutchinson": mean of g ∘ A g; variance Σ_{j≠i} Aᵢⱼ²/m of the i-th entry, for m products.
    - "xdiag": each of m/2 test vectors is both in a sketch of A's range (for all others) and a probe of what the others
      leave (Epperly, Tropp, Webber 2024). Products with A and Aᵀ. It keeps 1.5 m vectors.
    - "one-sided-forward": A = F Fᵀ: mean of (F g) ∘ (F g) with g in the space F takes, products with F only. Every
      entry has a relative error of at most √(2/m), whatever the spectrum.
    - "exact": a product for every unit vector; for A = F Fᵀ with F or Fᵀ, whichever takes fewer, or by structure and
      without a product where the operator declares it at less cost (K and the NTK of a recurrent network); error 0.
    - "auto": exact if the space has at most 64 entries (or as many as a budget that is to be spent as a whole); else
      xdiag, but one-sided-forward for A = F Fᵀ where 36 products of xdiag leave a relative error above √(2/36), or
      exact where these show that structure is cheaper.
      Where neighbours are correlated, as in the NTK of a long sequence, they do: off the diagonal is much more than on
      it (a GRU of 64 units, 750 steps in all: 210 % after 36 products, one-sided-forward 22 %).

    Args:
        operator: A, from a space to itself; it need not be symmetric nor positive.
        method: One of the above. The result says which one "auto" took.
        rtol: Stop when ‖standard errors‖₂ is below rtol · ‖values‖₂, norms over the whole diagonal, looked at as for
            `trace`: single small entries may be far less accurate. 1e-2 if neither `rtol` nor `budget` is given.
        budget: The most products to take (1000 if not given); without `rtol`, all of them are taken.
        generator: Draws the probes; a fresh one with seed 0 if None.
        raise_on_failure: Raise if a product is not finite; otherwise the result's status says so.

    Raises:
        TypeError: `operator` is no operator, or `generator` no generator.
        ValueError: `operator` is not square, `method` is unknown or does not fit the operator, or a number is out of
            range.
        FloatingPointError: A product holds NaN or inf.

    References:
        Bekas, Kokiopoulou and Saad, "An estimator for the diagonal of a matrix", 2007; Epperly, Tropp and Webber,
        "XTrace: Making the Most of Every Sample in Stochastic Trace Estimation", 2024.

    Example:
        >>> from kpflow.operators import Dense
        >>> result = diagonal(Dense(torch.tensor([[2.0, 1.0], [1.0, 3.0]])))
        >>> result.values
        tensor([2., 3.])
        >>> result
        DiagonalEstimate(2 values, relative error 0 (2 products, exact))
    """
    check_operator("operator", operator, square=True, why="The diagonal of A Aᵀ holds the squared rows of A.")
    check_one_of("method", method, ("auto", "exact", *_SAMPLERS))
    _check_fits(operator, method)
    effort = Effort.of(rtol, budget)
    source = check_generator("generator", generator, operator.in_space.device)
    try:
        if method in _SAMPLERS:
            return _sampled(operator, method, effort, source)
        return (_auto if method == "auto" else _exact)(operator, effort, source)
    except NotFiniteError as failure:
        if raise_on_failure:
            raise not_finite("diagonal", operator, failure.spent) from None
        nothing = torch.full(operator.in_space.shape, math.nan)
        return _shaped(operator, nothing, torch.full_like(nothing, math.inf), failure.spent, Status.NOT_FINITE, method)


@final
class _Means:
    """Means over probes of vectors measure(g, B g), entry by entry, from running sums."""

    def __init__(self, side: Operator, generator: torch.Generator, measure: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.products = Products(side)
        self.generator = generator
        self.measure = measure
        self.sum = torch.zeros(side.out_space.size, dtype=torch.float64, device=side.out_space.device)
        self.square = self.sum.clone()

    def draw(self, total: int) -> None:
        """Draw until `total` products are spent."""
        while (room := total - self.products.count) > 0:
            probes = signs(self.products.in_space, min(room, self.products.block), self.generator)
            samples = self.measure(probes, self.products(probes)).double()
            self.sum += samples.sum(0)
            self.square += samples.square().sum(0)

    def read(self) -> tuple[Tensor, Tensor, int, int]:
        """Values and variances `[N]`, probes, products."""
        count = self.products.count
        mean = self.sum / count
        if count < MIN_PROBES:
            return mean, torch.full_like(mean, math.inf), count, count
        return mean, (self.square / count - mean.square()).clamp(min=0) / (count - 3), count, count


@final
class _LeftOut:
    """XDiag, with what `_Means` has."""

    def __init__(self, operator: Operator, generator: torch.Generator) -> None:
        self.sketch = RangeSketch(operator, "signs", generator, adjoint=True)

    def draw(self, total: int) -> None:
        self.sketch.grow(total)

    def read(self) -> tuple[Tensor, Tensor, int, int]:
        sketch = self.sketch
        if sketch.complete:
            values = (sketch.basis * sketch.images).sum(0, dtype=torch.float64)
            rounding = 8 * torch.finfo(sketch.basis.dtype).eps * sketch.images.double()  # its norm is that of a row
            return values, rounding.square().sum(0), len(sketch.basis), sketch.spent
        return *xdiag(sketch), len(sketch.vectors), sketch.spent


def _hutchinson(operator: Operator, generator: torch.Generator) -> _Means:
    return _Means(operator, generator, torch.mul)


def _forward(operator: Operator, generator: torch.Generator) -> _Means:
    if not isinstance(operator, Gramian):
        raise TypeError(f"The one-sided methods need a Gramian; got {type(operator).__name__}.")
    return _Means(operator.factor, generator, lambda _probes, image: image.double().square())


_SAMPLERS: dict[str, Callable[[Operator, torch.Generator], _Means | _LeftOut]] = {
    "hutchinson": _hutchinson,
    "xdiag": _LeftOut,
    "one-sided-forward": _forward,
}


@final
class _Run:
    """A sampler, and the values and errors of its last reading."""

    def __init__(self, operator: Operator, method: str, generator: torch.Generator) -> None:
        self.operator = operator
        self.method = method
        self.sampler = _SAMPLERS[method](operator, generator)
        self.values = self.errors = torch.zeros(0)

    def settle(self, effort: Effort) -> DiagonalEstimate:
        """Go on until the tolerance is met or the budget is spent."""
        ended = settle(effort, self.method, self._read)
        errors = torch.maximum(self.errors, 8 * torch.finfo(self.operator.in_space.dtype).eps * self.values.abs())
        return _shaped(self.operator, self.values, errors, ended.num_matvecs, ended.status, self.method)

    def _read(self, total: int) -> Reading:
        self.sampler.draw(total)
        self.values, variances, probes, spent = self.sampler.read()
        self.errors = variances.sqrt()
        return Reading(_norm(self.values), _norm(self.errors), probes, spent)


def _sampled(operator: Operator, method: str, effort: Effort, generator: torch.Generator) -> DiagonalEstimate:
    check_least_budget(2 if method == "xdiag" else 1, effort)
    return _Run(operator, method, generator).settle(effort)


def _xdiag_or_other(
    operator: Operator, quantity: Exact[Tensor] | None, effort: Effort, generator: torch.Generator
) -> DiagonalEstimate:
    """XDiag, unless the pilot shows that structure is cheaper, or one-sided probes, of relative error ≤ √(2/m)."""
    if effort.budget <= PILOT:
        return _sampled(operator, "one-sided-forward", effort, generator)
    run = _Run(operator, "xdiag", generator)
    pilot = run.settle(dataclasses.replace(effort, budget=PILOT))
    left = effort.budget - pilot.num_matvecs
    needed = min(PILOT * pilot.relative_error**2, 2) / effort.rtol**2
    if quantity is not None and not effort.whole and quantity.cost < min(needed, left):
        return dataclasses.replace(_by_structure(operator, quantity), num_matvecs=pilot.num_matvecs)
    if pilot.relative_error**2 <= 2 / PILOT:
        return run.settle(effort)
    rest = dataclasses.replace(effort, budget=left)
    result = _sampled(operator, "one-sided-forward", rest, generator)
    return dataclasses.replace(result, num_matvecs=result.num_matvecs + pilot.num_matvecs)


def _auto(operator: Operator, effort: Effort, generator: torch.Generator) -> DiagonalEstimate:
    size, quantity = _exact_size(operator), declared(operator, _of_structure)
    if quantity is not None and is_worth(quantity, "auto", effort, size):
        return _by_structure(operator, quantity)
    if exact_pays(size, effort):
        return _exact(operator, effort, generator)
    if isinstance(operator, Gramian) and operator.metric is None:
        return _xdiag_or_other(operator, quantity, effort, generator)
    return _sampled(operator, "xdiag", effort, generator)


def _exact(operator: Operator, effort: Effort, _generator: torch.Generator) -> DiagonalEstimate:
    """⟨eᵢ, A eᵢ⟩; of F M Fᵀ ⟨Fᵀ eᵢ, M Fᵀ eᵢ⟩, or Σₖ (F eₖ)² with fewer products."""
    quantity = declared(operator, _of_structure)
    if quantity is not None and is_worth(quantity, "exact", effort, _exact_size(operator)):
        return _by_structure(operator, quantity)
    check_exact_budget(_exact_size(operator), effort)
    gramian = isinstance(operator, Gramian)
    metric = operator.metric if gramian else None
    forward = gramian and metric is None and operator.factor.in_space.size < operator.in_space.size
    side = operator
    if isinstance(operator, Gramian):
        side = operator.factor if forward else operator.factor.T
    products, weigh = Products(side), None if metric is None else Products(metric)
    parts = []
    for unit in basis_blocks(side.in_space, products.block):
        image = products(unit)
        other = (image if weigh is None else weigh(image)) if gramian else unit
        parts.append((image * other).sum(0 if forward else 1, dtype=torch.float64))
    values = torch.stack(parts).sum(0) if forward else torch.cat(parts)
    return _shaped(operator, values, torch.zeros_like(values), products.count, Status.CONVERGED, "exact")


def _of_structure(structure: Structure) -> Exact[Tensor] | None:
    return structure.diagonal()


def _by_structure(operator: Operator, quantity: Exact[Tensor]) -> DiagonalEstimate:
    """An exact result that took no product."""
    values = quantity.compute()
    return _shaped(operator, values, torch.zeros_like(values), 0, Status.CONVERGED, "exact")


def _shaped(
    operator: Operator, values: Tensor, errors: Tensor, spent: int, status: Status, method: str
) -> DiagonalEstimate:
    """The result in the shape and the dtype of the operator's space."""
    space = operator.in_space
    shaped = [part.to(space.dtype).reshape(space.shape) for part in (values, errors)]
    return DiagonalEstimate(shaped[0], shaped[1], spent, status, method)


def _exact_size(operator: Operator) -> int:
    """Products of the exact method."""
    if isinstance(operator, Gramian) and operator.metric is None:
        return min(operator.in_space.size, operator.factor.in_space.size)
    return operator.in_space.size


def _check_fits(operator: Operator, method: str) -> None:
    """Raise if the one-sided method is asked for where A is not known to be F Fᵀ."""
    if method == "one-sided-forward" and not (isinstance(operator, Gramian) and operator.metric is None):
        raise ValueError(
            f"`method` 'one-sided-forward' needs an operator A = F Fᵀ whose factor F is known (a Gramian without a "
            f"metric); got {operator!r}. Use 'xdiag' or 'hutchinson'."
        )


def _norm(vector: Tensor) -> float:
    return math.sqrt(float(vector.double().square().sum()))
