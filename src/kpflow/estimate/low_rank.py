"""Nyström: a low-rank approximation of a positive operator, with an estimate of its error."""

import dataclasses
import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_generator, check_positive, check_range
from kpflow.operators import LowRank, Operator

from .base import Effort, Estimate, Reading, Status, check_operator, jackknife, not_finite, relative
from .products import NotFiniteError, Products, gram, inner, norm, signs
from .sketch import orthonormal_rows

__all__ = ["Nystrom", "nystrom"]

OVERSAMPLING = 10
"""Columns of the sketch beyond the rank asked for. Chosen by experience (Halko, Martinsson, Tropp 2011: 5 or 10)."""

FIRST_RANK = 16
"""Columns of the first sketch, where a tolerance decides on the rank."""

DEFAULT_PROBES = 10
"""Probes for the error."""

NEGATIVE = 1e3
"""Eigenvalues of ΩᵀAΩ down to so many shifts below 0 count as rounding. Chosen by experience."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Nystrom:
    """A low-rank approximation Â = Σᵢ λᵢ uᵢ uᵢᵀ of a positive operator A, with 0 ⪯ Â ⪯ A up to rounding.

    Args:
        values: λ, largest first, positive, shape `[K]`; each is at most the eigenvalue of A of its rank.
        vectors: Orthonormal u, of the shape of what A takes, `[K, *shape]`.
        operator: Â, with products in K vectors, symmetric.
        error: ‖A − Â‖_F, from probes that Â does not depend on (the square is unbiased).
        trace_error: tr(A − Â) from the same probes, unbiased; tr Â plus this estimates tr A.
        num_matvecs: Products taken, those for the error included.
        status: How it ended: without a tolerance, converged.
        method: The method that was used.
    """

    values: Float[Tensor, " K"]
    vectors: Float[Tensor, "K *shape"]
    operator: LowRank
    error: Estimate
    trace_error: Estimate
    num_matvecs: int
    status: Status
    method: str

    @property
    def relative_error(self) -> float:
        """‖A − Â‖_F/‖Â‖_F, not below ‖A − Â‖_F/‖A‖_F, as ‖Â‖_F ≤ ‖A‖_F; 0 for A = 0, infinite for Â = 0 otherwise."""
        return relative(self.error.value, float(self.values.double().norm()))

    def __repr__(self) -> str:
        warning = "" if self.status is Status.CONVERGED else f"; {self.status.value}"
        error = f"error {self.error.value:.2g} ± {self.error.standard_error:.1g}"
        return f"Nystrom(rank {len(self.values)}, {error} ({self.num_matvecs} products, {self.method}{warning}))"


def nystrom(
    operator: Operator,
    rank: int | None = None,
    *,
    rtol: float | None = None,
    budget: int | None = None,
    probes: int = DEFAULT_PROBES,
    generator: torch.Generator | None = None,
    raise_on_failure: bool = True,
) -> Nystrom:
    """A ≈ (A Ω)(Ωᵀ A Ω)⁺ (A Ω)ᵀ for a positive semi-definite operator, from products with random orthonormal Ω.

    For preconditioners, leverage scores, and kernels that are to be kept; each λᵢ is a lower bound, which on slow
    spectra may be short by much: for accurate modes take `modes`. With ν = √N eps ‖A Ω‖ the factorisation is
    that of A + ν I, and ν is taken off the eigenvalues again, which makes it stable (Tropp, Yurtsever, Udell, Cevher
    2017). With `rank` the sketch has 10 columns more, and the leading ones are kept. With `rtol` the sketch grows, to
    twice its size each time, and all of it is kept.

    The error is measured with random signs g that Ω does not know: ‖(A − Â) g‖² and ⟨g, (A − Â) g⟩. Where a tolerance
    decides when to stop, they are looked at more than once; the upper end of the error (1.24 of it for 10 probes) must
    be within the tolerance.

    Args:
        operator: A, symmetric and positive semi-definite, e.g. the NTK or K.
        rank: K, at most N; fewer where A has less rank.
        rtol: Grow until ‖A − Â‖_F is below rtol · ‖Â‖_F. Give `rank` or `rtol`, one of them.
        budget: The most products with A (1000 if not given).
        probes: Number of probes for the error; below 8 its own error is unknown, and infinite.
        generator: Draws Ω and the probes; a fresh one with seed 0 if None.
        raise_on_failure: Raise if a product is not finite; otherwise the result's status says so, and its rank is 0.

    Raises:
        TypeError: `operator` is no operator, or `generator` no generator.
        ValueError: `operator` is not known to be symmetric, or is found not to be positive; neither or both of `rank`
            and `rtol` are given; a number is out of range, or the budget does not suffice for sketch and probes.
        FloatingPointError: A product holds NaN or inf.

    References:
        Theory §13.1; Tropp, Yurtsever, Udell, Cevher, "Fixed-rank approximation of a positive-semidefinite matrix from
        streaming data", NeurIPS 2017, Algorithm 3.

    Example:
        >>> from kpflow.operators import Diagonal
        >>> A = Diagonal(2.0 ** -torch.arange(100, dtype=torch.float64))
        >>> result = nystrom(A, rtol=1e-3)
        >>> result.values[:3].round(decimals=3)
        tensor([1.0000, 0.5000, 0.2500], dtype=torch.float64)
        >>> result.operator(A.in_space.zeros()).shape
        torch.Size([100])
    """
    check_operator("operator", operator, square=True, why="Take A @ A.T for the left singular vectors of A.")
    effort = _checked_effort(operator, rank, rtol, budget, probes)
    source = check_generator("generator", generator, operator.in_space.device)
    sketch = _Sketch(operator, source)
    try:
        sketch.add_probes(probes)
        return _fixed(sketch, rank) if rank is not None else _adaptive(sketch, effort)
    except NotFiniteError:
        if raise_on_failure:
            raise not_finite("nystrom", operator, sketch.products.count) from None
        return _nothing(sketch)


def _fixed(sketch: "_Sketch", rank: int) -> Nystrom:
    sketch.grow(min(rank + OVERSAMPLING, sketch.size))
    return sketch.result(rank, Status.CONVERGED)


def _adaptive(sketch: "_Sketch", effort: Effort) -> Nystrom:
    """Twice the sketch each time, until the error is small, or the budget or the space is at an end."""
    probes = sketch.products.count
    columns = min(FIRST_RANK, sketch.size, effort.budget - probes)
    while True:
        sketch.grow(columns)
        found = sketch.result(columns, Status.CONVERGED)
        reading = Reading(float(found.values.double().norm()), found.error.value, probes, found.num_matvecs)
        if effort.met(reading):
            return found
        most = min(sketch.size, effort.budget - probes)
        if columns == most:
            return dataclasses.replace(found, status=Status.BUDGET_EXHAUSTED)
        columns = min(2 * columns, most)


@final
class _Sketch:
    """Ω, A Ω, probes g and A g, which can grow."""

    def __init__(self, operator: Operator, generator: torch.Generator) -> None:
        self.products = Products(operator)
        self.space = operator.in_space
        self.size = self.space.size
        self.generator = generator
        empty = self.space.zeros(0).reshape(0, self.size)
        self.omega: Float[Tensor, "L N"] = empty
        self.images: Float[Tensor, "L N"] = empty
        self.probes: Float[Tensor, "S N"] = empty
        self.probe_images: Float[Tensor, "S N"] = empty

    def add_probes(self, count: int) -> None:
        self.probes = signs(self.space, count, self.generator)
        self.probe_images = self.products(self.probes)

    def grow(self, columns: int) -> None:
        """Let Ω have so many orthonormal columns."""
        count, space = columns - len(self.omega), self.space
        rows = torch.randn(count, self.size, generator=self.generator, dtype=space.dtype, device=space.device)
        fresh = orthonormal_rows(rows, self.omega)
        self.omega, self.images = torch.cat([self.omega, fresh]), torch.cat([self.images, self.products(fresh)])

    def result(self, rank: int, status: Status) -> Nystrom:
        values, rows = self._eigenpairs()
        values, rows = values[:rank], rows[:rank]
        vectors = rows.reshape(len(rows), *self.space.shape)
        root = (values.sqrt().to(rows.dtype)[:, None] * rows).mT
        operator = LowRank(root, None, (self.space, self.space))
        error, trace = self._errors(values, rows)
        return Nystrom(values.to(rows.dtype), vectors, operator, error, trace, self.products.count, status, "Nyström")

    def _eigenpairs(self) -> tuple[Float[Tensor, " K"], Float[Tensor, "K N"]]:
        """Eigenpairs of Â, those to rounding left out. [Tropp et al. 2017, Algorithm 3]."""
        shift = math.sqrt(self.size) * torch.finfo(self.space.dtype).eps * norm(self.images)
        if shift == 0:
            return self.images.new_zeros(0, dtype=torch.float64), self.images[:0]
        core = gram(self.omega, self.images)
        values, turn = torch.linalg.eigh((core + core.mT) / 2)
        if len(values) and float(values[0]) < -NEGATIVE * shift:
            raise ValueError(
                f"`operator` must be positive semi-definite; got {self.products.operator!r}, with an eigenvalue of at "
                f"most {float(values[0]):.3g} (rounding: {NEGATIVE * shift:.1e}). Take A @ A, or modes(A) instead."
            )
        inverse = turn / (values.clamp(min=0) + shift).sqrt()
        rows = inverse.mT.to(self.images.dtype) @ (self.images + shift * self.omega)  # [L, N], Σ rows rowsᵀ = Â + ν
        short = gram(rows, rows)
        squares, mix = torch.linalg.eigh(short)
        kept = squares > 2 * shift
        squares, mix = squares[kept].flip(0), mix[:, kept].flip(1)
        vectors = (mix / squares.sqrt()).mT.to(rows.dtype) @ rows
        return squares - shift, vectors

    def _errors(self, values: Tensor, rows: Tensor) -> tuple[Estimate, Estimate]:
        """‖A − Â‖_F and tr(A − Â), from the probes."""
        inside = gram(self.probes, rows)
        residual = self.probe_images - (inside * values).to(rows.dtype) @ rows
        samples = torch.stack([inner(residual, residual), inner(self.probes, residual)], dim=1)
        spent, floor = self.products.count, 8 * torch.finfo(rows.dtype).eps
        norm = jackknife(lambda mean: mean[..., 0].clamp(min=0).sqrt(), samples)
        trace = jackknife(lambda mean: mean[..., 1], samples)
        bounds = floor * float(values.norm()), floor * float(values.sum())
        return (
            Estimate(norm[0], max(norm[1], bounds[0]), spent, Status.CONVERGED, "probes"),
            Estimate(trace[0], max(trace[1], bounds[1]), spent, Status.CONVERGED, "probes"),
        )


def _nothing(sketch: _Sketch) -> Nystrom:
    """The result of an operator whose products are not finite."""
    space, spent = sketch.space, sketch.products.count
    unknown = Estimate(math.nan, math.inf, spent, Status.NOT_FINITE, "probes")
    zero = LowRank(space.zeros(0).reshape(0, space.size).mT, None, (space, space))
    vectors = space.zeros(0)
    values = vectors.flatten()
    return Nystrom(values, vectors, zero, unknown, unknown, spent, Status.NOT_FINITE, "Nyström")


def _checked_effort(
    operator: Operator, rank: int | None, rtol: float | None, budget: int | None, probes: int
) -> Effort:
    if not operator.symmetric:
        raise ValueError(
            f"`operator` must be known to be symmetric; got {operator!r}. Take A @ A.T, or modes(A) for both sides."
        )
    if (rank is None) == (rtol is None):
        raise ValueError(f"Give `rank` or `rtol`, one of them; got rank={rank}, rtol={rtol}.")
    check_positive("probes", probes, integer=True)
    effort, size = Effort.of(rtol, budget), operator.in_space.size
    if rank is not None:
        check_range("rank", rank, 1, size, integer=True)
    least = probes + (1 if rank is None else min(rank + OVERSAMPLING, size))
    if effort.budget < least:
        raise ValueError(
            f"`budget` must be at least {least} here, for {probes} probes and the sketch; got {effort.budget}."
        )
    return effort
