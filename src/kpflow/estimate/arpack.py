"""Leading eigenpairs and singular triplets by SciPy's restarted Lanczos method (ARPACK)."""

import functools

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, eigsh
from torch import Tensor

from kpflow.operators import Function, Operator, to_scipy
from kpflow.spaces import Space

from .krylov import Triplets, singular_ritz, symmetric_ritz
from .products import Products
from .sketch import orthonormal_rows

__all__ = ["lanczos", "least_budget"]

LEAST_BASIS = 20
"""Lanczos vectors, at least; 2k + 1 for more modes. SciPy's default."""


def lanczos(operator: Operator, k: int, *, tol: float, budget: int, generator: torch.Generator) -> Triplets:
    """The k leading eigenpairs (symmetric A) or singular triplets (from the eigenvectors v of AᵀA).

    ARPACK says little of its errors, so its vectors get one more Rayleigh–Ritz step, whose products tell the residuals:
    k with A for eigenpairs, k with A and k with Aᵀ for triplets. They count, and the budget leaves room for them. What
    has not converged within the budget is left out.

    Args:
        operator: A.
        k: How many; fewer than A takes entries.
        tol: Converged when every residual is below tol · |σ₁|.
        budget: The most products with A and Aᵀ; at least `least_budget`.
        generator: Draws the first vector.
    """
    forward, adjoint = Products(operator), Products(operator.T)
    cost = 1 if operator.symmetric else 2
    steps = budget // cost - k
    basis = min(operator.in_space.size, max(2 * k + 1, LEAST_BASIS), (steps - 1 + k) // 2)
    restarts = (steps - 1 - basis) // (basis - k)
    found = _vectors(_counted(operator, forward, adjoint), k, basis, restarts, tol, generator)
    count = len(found)
    images = forward(found)
    ritz_of = symmetric_ritz if operator.symmetric else functools.partial(singular_ritz, adjoint)
    ritz = ritz_of(found, images, count)
    spent = forward.count + adjoint.count
    top = float(ritz.values[0].abs()) if count else 0.0
    converged = count == k and bool((ritz.errors <= tol * top).all())
    return Triplets(ritz.values, ritz.left, ritz.right, ritz.errors, spent, converged, "lanczos")


def least_budget(operator: Operator, k: int) -> int:
    """Products for a basis of k + 1 vectors, one restart, and the residuals."""
    return (2 * k + 3) * (1 if operator.symmetric else 2)


def _counted(operator: Operator, forward: Products, adjoint: Products) -> Operator:
    """A, or AᵀA, with its products counted and checked."""
    space = operator.in_space

    def apply(block: Tensor) -> Tensor:
        image = forward(block.reshape(len(block), space.size))
        return (image if operator.symmetric else adjoint(image)).reshape(block.shape)

    return Function(apply, None, space)


def _vectors(
    operator: Operator, k: int, basis: int, restarts: int, tol: float, generator: torch.Generator
) -> Float[Tensor, "K N"]:
    """Those of the k leading eigenvectors that have converged, as orthonormal rows."""
    space = operator.in_space
    rows = torch.randn(k, space.size, generator=generator, dtype=space.dtype, device=space.device)
    settings = {"k": k, "which": "LM", "ncv": basis, "maxiter": restarts, "tol": tol, "v0": rows[0].cpu().numpy()}
    try:
        rows = _tensor(eigsh(to_scipy(operator), **settings)[1], space)
    except ArpackNoConvergence as failure:
        rows = _tensor(failure.eigenvectors, space)
    except ArpackError:  # as for the zero operator: any vectors then, and their residuals say whether they are right
        pass
    return orthonormal_rows(rows, rows[:0])


def _tensor(vectors: NDArray, space: Space) -> Float[Tensor, "K N"]:
    return torch.from_numpy(np.ascontiguousarray(vectors.T)).to(space.dtype).to(space.device)
