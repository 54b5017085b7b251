"""Spectra: the leading modes of an operator."""

import dataclasses
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_generator, check_one_of, check_positive
from kpflow.operators import Operator

from .arpack import lanczos, least_budget
from .base import Effort, Status, check_operator, not_finite
from .krylov import Triplets, krylov, leading
from .products import NotFiniteError, Products, basis_blocks
from .structured import declared, smaller_side

__all__ = ["Modes", "modes", "no_modes", "shaped_modes", "spectrum"]

MAX_SIDE = 2**13
"""Side of the largest matrix that `spectrum` diagonalises: 512 MiB in float64, and some minutes."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Modes:
    """The K leading modes of an operator: A vᵢ = λᵢ vᵢ if it is symmetric, A vᵢ = σᵢ uᵢ otherwise.

    Args:
        values: λ or σ, largest magnitude first, shape `[K]`; negative eigenvalues keep their sign.
        vectors: Orthonormal eigenvectors, or left singular vectors u, each of the shape of what A gives, `[K, *out]`.
            The entry of largest magnitude is positive.
        right_vectors: The same tensor for symmetric operators; else v, of the shape of what A takes, `[K, *in]`.
        residuals: ‖A v − λ v‖, or ‖Aᵀ u − σ v‖, shape `[K]`: an eigenvalue or singular value of A lies within this
            distance of each value.
        num_matvecs: Products taken, with A or Aᵀ.
        status: How it ended.
        method: The method that was used.
    """

    values: Float[Tensor, " K"]
    vectors: Float[Tensor, "K *out"]
    right_vectors: Float[Tensor, "K *in"]
    residuals: Float[Tensor, " K"]
    num_matvecs: int
    status: Status
    method: str

    def __repr__(self) -> str:
        shown = ", ".join(f"{value:.4g}" for value in self.values[:5].tolist())
        more = ", ..." if len(self.values) > 5 else ""
        warning = "" if self.status is Status.CONVERGED else f"; {self.status.value}"
        return f"Modes([{shown}{more}] ({self.num_matvecs} products, {self.method}{warning}))"


def modes(
    operator: Operator,
    k: int = 10,
    *,
    method: str = "auto",
    tol: float = 1e-5,
    budget: int | None = None,
    generator: torch.Generator | None = None,
    raise_on_failure: bool = True,
) -> Modes:
    """The k modes of largest magnitude: eigenpairs of a symmetric operator, singular triplets of any other.

    - "krylov": randomised block Krylov with full orthogonalisation and thick restarts, with Rayleigh–Ritz on V A Vᵀ
      (symmetric) or the SVD of A V (Musco and Musco 2015). It keeps about 2 max(60, 4 (k + 4)) vectors, finds equal
      eigenvalues, and takes its products in blocks.
    - "lanczos": SciPy's restarted Lanczos method (ARPACK, as `eigsh` and `svds`), on AᵀA for triplets, one product at a
      time, on the CPU's side. It keeps max(20, 2k + 1) vectors, and gives only the modes that have converged.
    - "auto": the matrix, formed and diagonalised, for operators with a side of at most 200 entries (if the budget is
      as large); else krylov.

    Args:
        operator: A. Its own `symmetric` decides between eigenpairs and singular triplets.
        k: How many modes, at most the smaller side of A (for lanczos fewer).
        method: One of the above.
        tol: Converged when every residual is below tol · |λ₁|; at least 100 times the rounding unit. The eigenvalues
            themselves are then far better: their error is of the order of the residual squared over the gap.
        budget: The most products with A and Aᵀ (1000 if not given).
        generator: Draws the first block; a fresh one with seed 0 if None.
        raise_on_failure: Raise if a product is not finite; otherwise the result's status says so, and it has no modes.

    Raises:
        TypeError: `operator` is no operator, or `generator` no generator.
        ValueError: `k` is larger than the operator, the budget does not suffice for one block, `method` is unknown, or
            a number is out of range.
        FloatingPointError: A product holds NaN or inf.

    Example:
        >>> from kpflow.operators import Diagonal
        >>> result = modes(Diagonal(torch.tensor([1.0, -3.0, 2.0])), k=2)
        >>> result.values
        tensor([-3.,  2.])
        >>> result.vectors
        tensor([[0., 1., 0.],
                [0., 0., 1.]])
    """
    check_operator("operator", operator)
    check_one_of("method", method, tuple(_METHODS))
    effort = _check_numbers(operator, k, tol, budget)
    _check_suffices(operator, k, method, effort)
    source = check_generator("generator", generator, operator.in_space.device)
    floor = 100 * torch.finfo(operator.in_space.dtype).eps
    try:
        found = _METHODS[method](operator, k, tol=max(tol, floor), budget=effort.budget, generator=source)
    except NotFiniteError as failure:
        if raise_on_failure:
            raise not_finite("modes", operator, failure.spent) from None
        return no_modes(operator, failure.spent)
    return shaped_modes(operator, found)


def spectrum(operator: Operator) -> Float[Tensor, " K"]:
    """All eigenvalues of a symmetric operator, all singular values of any other, exact, largest first, in float64.

    For A = C Cᵀ those of CᵀC where that is smaller: zeros that A has by its rank alone are left out. For the NTK that
    is the smaller of states and core (what the weights see, at its rank). Taken from the operator's structure where it
    declares it (K, unit by unit); otherwise the matrix is formed, by a product for every unit vector of that side.

    Args:
        operator: A.

    Raises:
        TypeError: `operator` is no operator.
        ValueError: The smaller side has more than 8192 entries.
        FloatingPointError: A product holds NaN or inf.

    References:
        Theory §13.2.

    Example:
        >>> from kpflow.operators import Dense, Diagonal
        >>> spectrum(Diagonal(torch.tensor([1.0, -3.0, 2.0])))
        tensor([ 2.,  1., -3.], dtype=torch.float64)
        >>> spectrum(Dense(torch.tensor([[3.0, 4.0]])))
        tensor([5.], dtype=torch.float64)
    """
    check_operator("operator", operator)
    quantity = declared(operator, lambda structure: structure.spectrum())
    if quantity is not None:
        return quantity.compute()
    side = smaller_side(operator)
    if side.in_space.size > MAX_SIDE:
        raise ValueError(
            f"`operator` must have a side of at most {MAX_SIDE} entries; got {operator!r}. Use `modes` for the leading "
            f"eigenvalues, or `density` for all of them roughly."
        )
    products = Products(side)
    try:
        rows = [products(unit).double() for unit in basis_blocks(side.in_space, products.block)]
    except NotFiniteError as failure:
        raise not_finite("spectrum", operator, failure.spent) from None
    matrix = torch.cat(rows)
    return torch.linalg.eigvalsh((matrix + matrix.mT) / 2).flip(0) if side.symmetric else torch.linalg.svdvals(matrix)


def _check_numbers(operator: Operator, k: int, tol: float, budget: int | None) -> Effort:
    check_positive("k", k, integer=True)
    check_positive("tol", tol)
    effort = Effort.of(None, budget)
    size = min(operator.in_space.size, operator.out_space.size)
    if k > size:
        raise ValueError(f"`k` must be at most {size}, the smaller side of {operator!r}; got {k}.")
    return effort


def _check_suffices(operator: Operator, k: int, method: str, effort: Effort) -> None:
    """Raise if the operator is too small or the budget too tight for the method."""
    if method == "lanczos" and k >= operator.in_space.size:
        raise ValueError(
            f"`k` must be below {operator.in_space.size} for method 'lanczos', on {operator!r}; got {k}. Use 'auto'."
        )
    least = least_budget(operator, k) if method == "lanczos" else k if operator.symmetric else 2 * k
    if effort.budget < least:
        raise ValueError(
            f"`budget` must be at least {least} for {k} modes of this operator, one block; got {effort.budget}."
        )


def shaped_modes(operator: Operator, found: Triplets) -> Modes:
    """The triplets in the shapes and the dtype of the operator's spaces, with their signs fixed."""
    dtype, count = operator.in_space.dtype, len(found.values)
    largest = found.left.abs().argmax(1, keepdim=True)
    flip = torch.where(found.left.gather(1, largest) < 0, -1.0, 1.0).to(dtype)
    vectors = (flip * found.left).reshape(count, *operator.out_shape)
    right = vectors if operator.symmetric else (flip * found.right).reshape(count, *operator.in_shape)
    status = Status.CONVERGED if found.converged else Status.BUDGET_EXHAUSTED
    residuals = found.residuals.to(dtype)
    return Modes(found.values.to(dtype), vectors, right, residuals, found.spent, status, found.method)


def no_modes(operator: Operator, spent: int) -> Modes:
    """The modes of an operator whose products are not finite: none."""
    left, right = operator.out_space.zeros(0), operator.in_space.zeros(0)
    return Modes(left.new_zeros(0), left, right, left.new_zeros(0), spent, Status.NOT_FINITE, "none")


_METHODS: dict[str, Callable[..., Triplets]] = {"auto": leading, "krylov": krylov, "lanczos": lanczos}
