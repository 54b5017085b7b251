"""Linear solves A x = b for blocks of right-hand sides of several systems: restarted GMRES, or a factorisation."""

import abc
import dataclasses
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

__all__ = ["Direct", "Gmres", "Solution", "Step", "solved"]

GAIN = 0.9
"""A step that leaves more than this of the smallest residual so far has not helped, nor would another one."""

FLOOR = 16.0
"""Residuals below so many roundings of x are rounding."""

Product = Callable[[Tensor], Tensor]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
    """What a solve gives.

    Args:
        value: x, shape `[S, G, n]`.
        residual: The largest ‖b − A x‖ / ‖b‖ of any system.
        iterations: Products with A, of the system that took most.
        converged: Whether every system reached the tolerance.
    """

    value: Tensor
    residual: float
    iterations: int
    converged: bool


class Step(abc.ABC):
    """A way to make a residual smaller."""

    @abc.abstractmethod
    def __call__(self, product: Product, rest: Tensor, target: Tensor) -> tuple[Tensor, int]:
        """An approximate solution of A x = r, and the products that it took.

        Args:
            product: A, on blocks `[S, G, n]`.
            rest: r, shape `[S, G, n]`.
            target: The norm that r − A x should have at most, shape `[S, G]`.
        """


def solved(product: Product, step: Step, right: Tensor, tolerance: float) -> Solution:
    """Solve A x = b for all systems at once, by steps from the true residual.

    A system is solved where ‖b − A x‖ ≤ tolerance ‖b‖, or where the residual is rounding: 16 ε ‖x‖, if that is at most
    √ε ‖b‖ (a badly conditioned system with ‖A‖ of order one). Systems that a step does not help are left.

    Args:
        product: A, on blocks `[S, G, n]`; each of the G systems by itself.
        step: How the residual is made smaller.
        right: b, shape `[S, G, n]`.
        tolerance: Relative to b.
    """
    eps = torch.finfo(right.dtype).eps
    unit = right.abs().amax(dim=-1, keepdim=True)  # so that no square is too small or too large
    unit = torch.where(unit > 0, unit, 1.0)
    right = right / unit
    size = _norm(right)
    solution, rest = torch.zeros_like(right), right.clone()
    left, best = size, torch.full_like(size, torch.inf)
    iterations = 0
    while True:
        rounding = torch.minimum(FLOOR * eps * _norm(solution), eps**0.5 * size)
        open_ = ~(left <= torch.maximum(tolerance * size, rounding))  # NaN is open
        helped = open_ & (left < GAIN * best)
        rows = helped.any(dim=1).nonzero()[:, 0]
        if not len(rows):
            break
        correction, count = step(product, rest[rows], tolerance * size[rows])
        solution[rows] += correction
        rest[rows] = right[rows] - product(solution[rows])
        best, left = torch.minimum(best, left), left.clone()
        left[rows] = _norm(rest[rows])
        iterations += count + 1
    relative = torch.where(size > 0, left / size, 0.0).nan_to_num(nan=torch.inf)
    return Solution(solution * unit, float(relative.max()), iterations, not bool(open_.any()))


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Gmres(Step):
    """One cycle of GMRES: the smallest residual in a Krylov space of at most `basis` vectors (Saad and Schultz 1986).

    All systems of all right-hand sides go through each product together, each with a Krylov space of its own.
    Orthogonalised by classical Gram-Schmidt twice, which is as good as Householder's to rounding.

    Args:
        basis: Products in one cycle, at most.
    """

    basis: int

    def __call__(self, product: Product, rest: Tensor, target: Tensor) -> tuple[Tensor, int]:
        start = _norm(rest)
        vectors = rest.new_zeros(*start.shape, self.basis + 1, rest.shape[-1])  # V, orthonormal rows for every system
        vectors[:, :, 0] = _scaled(rest, start, start > target)
        small = {"dtype": torch.float64, "device": rest.device}
        triangle = torch.zeros(*start.shape, self.basis, self.basis, **small)  # R, of the Hessenberg matrix Qᵀ R
        rotations = torch.eye(self.basis + 1, **small).repeat(*start.shape, 1, 1)  # Q
        k = 0
        while k < self.basis:
            j, k = k, k + 1
            image, column = _orthogonalised(vectors[:, :, : j + 1], product(vectors[:, :, j].contiguous()))
            height = _norm(image)
            column = torch.cat([column, height.unsqueeze(-1)], dim=-1).to(torch.float64)
            triangle[..., : j + 1, j] = _rotated(rotations, column, j)
            estimate = start * rotations[..., j + 1, 0].abs()
            open_ = (estimate > target) & (height > 0)
            vectors[:, :, j + 1] = _scaled(image, height, open_)
            if not bool(open_.any()):
                break
        weights = start.to(torch.float64).unsqueeze(-1) * rotations[..., :k, 0]
        weights = torch.linalg.solve_triangular(triangle[..., :k, :k], weights.unsqueeze(-1), upper=True)
        return (weights.mT.to(rest.dtype) @ vectors[:, :, :k])[:, :, 0], k


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Direct(Step):
    """The solution by a factorisation of A for each system; steps after the first refine it.

    Args:
        factors: Those of torch.linalg.lu_factor for the matrices `[G, n, n]`.
        pivots: Shape `[G, n]`.
        transposed: Whether the systems are those of Aᵀ.
    """

    factors: Tensor
    pivots: Tensor
    transposed: bool = False

    def __call__(self, product: Product, rest: Tensor, target: Tensor) -> tuple[Tensor, int]:  # noqa: ARG002
        columns = rest.permute(1, 2, 0).contiguous()  # [G, n, S]
        found = torch.linalg.lu_solve(self.factors, self.pivots, columns, adjoint=self.transposed)
        return found.permute(2, 0, 1), 0


def _orthogonalised(vectors: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """`image` without its parts along the vectors `[S, G, J, n]`, and these parts `[S, G, J]`."""
    parts = image.new_zeros(vectors.shape[:-1])
    for _ in range(2):
        overlap = (vectors @ image.unsqueeze(-1))[..., 0]
        image = image - (overlap.unsqueeze(-2) @ vectors)[..., 0, :]
        parts += overlap
    return image, parts


def _rotated(rotations: Tensor, column: Tensor, j: int) -> Tensor:
    """Column j of R from that of the Hessenberg matrix `[S, G, j + 2]`; Q gets one more Givens rotation."""
    rotated = (rotations[..., : j + 2, : j + 2] @ column.unsqueeze(-1))[..., 0]
    radius = torch.hypot(rotated[..., j], rotated[..., j + 1])
    ended = radius == 0  # nothing is left, and the basis vector is zero or A is singular
    cosine = torch.where(ended, 1.0, rotated[..., j] / radius).unsqueeze(-1)
    sine = torch.where(ended, 0.0, rotated[..., j + 1] / radius).unsqueeze(-1)
    upper, lower = rotations[..., j, :].clone(), rotations[..., j + 1, :].clone()
    rotations[..., j, :] = cosine * upper + sine * lower
    rotations[..., j + 1, :] = cosine * lower - sine * upper
    diagonal = torch.where(ended, 1.0, radius).unsqueeze(-1)
    return torch.cat([rotated[..., :j], diagonal], dim=-1)


def _scaled(vector: Tensor, norm: Tensor, wanted: Tensor) -> Tensor:
    """Unit vectors; zero where none is wanted."""
    return torch.where(wanted.unsqueeze(-1), vector / norm.unsqueeze(-1), 0.0)


def _norm(block: Tensor) -> Tensor:
    """Of the last axis, with sums in float64."""
    return torch.linalg.vector_norm(block, dim=-1, dtype=torch.float64).to(block.dtype)
