"""Leading eigenpairs and singular triplets by block Krylov with thick restarts, from products alone."""

import dataclasses
import functools
import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow.operators import Operator

from .products import Products, basis_blocks, gram, inner
from .sketch import orthonormal_rows

__all__ = ["DENSE_SIZE", "Triplets", "bound_of_largest", "krylov", "leading", "singular_ritz", "symmetric_ritz"]

DENSE_SIZE = 200
"""Operators whose smaller side has at most so many entries are formed and diagonalised. Chosen by experience."""

OVERSAMPLING = 4
"""Vectors in a block beyond those asked for: they speed up and make a missed mode unlikely."""

LEAST_EXPANSIONS = 3
"""Expansions before convergence is believed: a random block could look converged on inner modes."""

LEAST_PRODUCTS = (1 + OVERSAMPLING) * (1 + LEAST_EXPANSIONS)
"""Products with A that a block for one mode and these expansions take."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Triplets:
    """σᵢ, uᵢ, vᵢ with A vᵢ ≈ σᵢ uᵢ, largest |σ| first; for symmetric A the σ are eigenvalues, with sign, and u = v.

    `residuals` are ‖A v − λ v‖ for symmetric A, ‖Aᵀ u − σ v‖ otherwise (there A v = σ u holds to rounding).
    """

    values: Float[Tensor, " K"]
    left: Float[Tensor, "K M"]
    right: Float[Tensor, "K N"]
    residuals: Float[Tensor, " K"]
    spent: int
    converged: bool
    method: str


@final
@dataclasses.dataclass(frozen=True, eq=False)
class _Ritz:
    """The leading triplets of A on a basis V: the triplets, their residual vectors, and all coefficients `[R, Q]`."""

    values: Float[Tensor, " K"]
    left: Float[Tensor, "K M"]
    right: Float[Tensor, "K N"]
    residual: Float[Tensor, "K N"]
    coefficients: Float[Tensor, "R Q"]

    @property
    def errors(self) -> Float[Tensor, " K"]:
        return inner(self.residual, self.residual).sqrt()


def leading(operator: Operator, k: int, *, tol: float, budget: int, generator: torch.Generator) -> Triplets:
    """The k leading eigenpairs (symmetric A) or singular triplets.

    Small operators are formed. Otherwise a random block V is extended by the residuals of its Ritz vectors, made
    orthogonal to all of V, which spans a block Krylov space (Musco and Musco 2015); when V is large, its leading Ritz
    vectors are kept and the rest dropped (thick restart).

    Args:
        operator: A.
        k: How many.
        tol: Converged when every residual is below tol · |σ₁|.
        budget: The most products with A and Aᵀ.
        generator: Draws the first block.
    """
    size = min(operator.in_space.size, operator.out_space.size)
    if size <= min(DENSE_SIZE, budget):
        return _dense(operator, k)
    return krylov(operator, k, tol=tol, budget=budget, generator=generator)


def krylov(operator: Operator, k: int, *, tol: float, budget: int, generator: torch.Generator) -> Triplets:
    """The same, whatever the size."""
    products, adjoint = Products(operator), Products(operator.T)  # the second one is for singular triplets only
    ritz_of = symmetric_ritz if operator.symmetric else functools.partial(singular_ritz, adjoint)
    per_vector = 1 if operator.symmetric else 2
    size = min(operator.in_space.size, operator.out_space.size)
    block = min(k + OVERSAMPLING, size, budget // per_vector)
    most = min(max(60, 4 * block), size)
    basis = _random_rows(operator, block, generator)
    images, expansions = products(basis), 0
    while True:
        ritz = ritz_of(basis, images, block)
        top = float(ritz.values[0].abs())
        settled = bool((ritz.errors[:k] <= tol * top).all())
        room = budget - products.count - adjoint.count - (0 if operator.symmetric else block)
        fresh = orthonormal_rows(ritz.residual[: max(room, 0)], basis, floor=1e-2 * tol * top)
        if (settled and expansions >= LEAST_EXPANSIONS) or not len(fresh):
            break
        if len(basis) + len(fresh) > most:
            keep = ritz.coefficients[: max(most - len(fresh), block)]
            basis, images = keep @ basis, keep @ images
        basis, images = torch.cat([basis, fresh]), torch.cat([images, products(fresh)])
        expansions += 1
    return _triplets(ritz, k, products.count + adjoint.count, settled, "block Krylov")


def bound_of_largest(operator: Operator, found: Triplets) -> float:
    """A bound on the error of |σ₁|: the residual ‖A v − λ v‖, or ‖Aᵀ u − σ v‖/√2.

    Infinite where so few products were taken that the leading mode may not have been seen.
    """
    least = LEAST_PRODUCTS * (1 if operator.symmetric else 2)
    if not found.converged and found.spent < least:
        return math.inf
    return float(found.residuals[0]) / (1.0 if operator.symmetric else math.sqrt(2))


def symmetric_ritz(basis: Float[Tensor, "Q N"], images: Float[Tensor, "Q N"], count: int) -> _Ritz:
    """Rayleigh–Ritz: the eigenpairs of V A Vᵀ, largest |λ| first."""
    core = gram(basis, images)
    values, vectors = torch.linalg.eigh((core + core.mT) / 2)
    order = values.abs().argsort(descending=True, stable=True)
    coefficients = vectors[:, order].mT.to(basis.dtype)
    values = values[order[:count]]
    right = coefficients[:count] @ basis
    residual = coefficients[:count] @ images - values.to(basis.dtype)[:, None] * right
    return _Ritz(values, right, right, residual, coefficients)


def singular_ritz(adjoint: Products, basis: Float[Tensor, "Q N"], images: Float[Tensor, "Q M"], count: int) -> _Ritz:
    """Rayleigh–Ritz for singular triplets: the SVD of A V, and the residual Aᵀ u − σ v."""
    q, r = torch.linalg.qr(images.mT)
    u, values, coefficients = torch.linalg.svd(r)
    left = (q @ u[:, :count]).mT.contiguous()
    right = coefficients[:count] @ basis
    residual = adjoint(left) - values[:count, None] * right
    return _Ritz(values[:count].double(), left, right, residual, coefficients)


def _dense(operator: Operator, k: int) -> Triplets:
    """From the matrix, formed by one product for each unit vector of the smaller side."""
    wide = operator.in_space.size > operator.out_space.size
    products = Products(operator.T if wide else operator)
    columns = torch.cat([products(unit) for unit in basis_blocks(products.operator.in_space, products.block)])
    matrix = columns if wide else columns.mT
    if operator.symmetric:
        identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        ritz = symmetric_ritz(identity, (matrix + matrix.mT) / 2, k)
    else:
        u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
        residual = u[:, :k].mT @ matrix - values[:k, None] * vh[:k]
        ritz = _Ritz(values[:k].double(), u[:, :k].mT, vh[:k], residual, vh)
    return _triplets(ritz, k, products.count, True, "dense")


def _triplets(ritz: _Ritz, k: int, spent: int, converged: bool, method: str) -> Triplets:
    return Triplets(ritz.values[:k], ritz.left[:k], ritz.right[:k], ritz.errors[:k], spent, converged, method)


def _random_rows(operator: Operator, count: int, generator: torch.Generator) -> Float[Tensor, "K N"]:
    """Gaussian, not signs: a sign vector of few entries may be orthogonal to the leading mode."""
    space = operator.in_space
    rows = torch.randn(count, space.size, dtype=space.dtype, device=space.device, generator=generator)
    return orthonormal_rows(rows, rows[:0])
