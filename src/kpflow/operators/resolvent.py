"""The inverse of a shifted positive operator, by conjugate gradients."""

import dataclasses
from typing import Any, final

import torch
from torch import Tensor

from kpflow._checks import check_positive
from kpflow.spaces import Space

from .core import Operator

__all__ = ["Resolvent"]


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Resolvent(Operator):
    """(A + λ)⁻¹ of a positive semi-definite operator A, a system solved for every vector of a block at once.

    By conjugate gradients: a vector takes about √(λ_max(A) / λ) log(1 / tolerance) / 2 products at most, and no more
    than A has distinct eigenvalues. With F = JᵀJ it is the metric of damped natural gradient.

    Args:
        operator: A, symmetric; that it has no negative eigenvalue is the caller's promise.
        shift: λ > 0.
        tolerance: A solution x has ‖(A + λ) x − b‖ ≤ tolerance ‖b‖; at least 100 rounding units are allowed.
        steps: The most products.

    Raises:
        TypeError: `operator` is no operator.
        ValueError: It is not symmetric, or a number is out of range.
        FloatingPointError: When applied: the tolerance is not reached in `steps`, or A is not positive.

    Example:
        >>> from kpflow.operators import Diagonal
        >>> inverse = Resolvent(Diagonal(torch.tensor([1.0, 3.0])), shift=1.0)
        >>> inverse(torch.tensor([1.0, 1.0]))
        tensor([0.5000, 0.2500])
    """

    operator: Any  # checked below, for a message of our own
    shift: float
    tolerance: float = 1e-8
    steps: int = 1000

    def __post_init__(self) -> None:
        if not isinstance(self.operator, Operator):
            raise TypeError(f"`operator` must be an operator; got {type(self.operator).__name__}.")
        if not self.operator.symmetric:
            raise ValueError(f"`operator` must be symmetric; got {self.operator}, which is not known to be.")
        check_positive("shift", self.shift)
        check_positive("tolerance", self.tolerance)
        check_positive("steps", self.steps, integer=True)

    @property
    def in_space(self) -> Space:
        return self.operator.in_space

    @property
    def out_space(self) -> Space:
        return self.operator.in_space

    @property
    def symmetric(self) -> bool:
        return True

    def _apply(self, vector: Tensor) -> Tensor:
        solution, residual = torch.zeros_like(vector), vector.clone()
        direction, size = residual.clone(), _squares(residual)
        allowed = size * max(self.tolerance, 100 * torch.finfo(vector.dtype).eps) ** 2
        for _ in range(self.steps):
            if not bool((size > allowed).any()):  # NaN is not above, and is caught below
                break
            image = self.operator(direction) + self.shift * direction
            curvature = _squares(direction, image)
            rate = torch.where(size > allowed, size / curvature, 0.0)
            solution += _over(rate, solution) * direction
            residual -= _over(rate, residual) * image
            before, size = size, _squares(residual)
            direction = residual + _over(torch.where(before > 0, size / before, 0.0), direction) * direction
        if not bool((size <= allowed).all()):
            raise FloatingPointError(
                f"(A + λ)⁻¹ was not reached in {self.steps} products to a relative residual of {self.tolerance:g}. "
                f"Take a larger `shift` than {self.shift:g}, or more `steps`; is A positive?"
            )
        return solution

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        return self._apply(vector)


def _squares(one: Tensor, other: Tensor | None = None) -> Tensor:
    """⟨one, other⟩ of each vector of a block, in float64."""
    left = one.flatten(1).double()
    return (left * (left if other is None else other.flatten(1).double())).sum(dim=1)


def _over(factors: Tensor, like: Tensor) -> Tensor:
    """One factor a vector, of the shape and dtype of a block."""
    return factors.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))
