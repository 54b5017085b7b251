"""Operators made from tensors and functions: Identity, Dense, Diagonal, LowRank, Function."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_finite, check_tensor
from kpflow.spaces import Space

from .core import Operator

__all__ = ["Dense", "Diagonal", "Function", "Identity", "LowRank"]


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Identity(Operator):
    """I on a space.

    Example:
        >>> Identity(Space.of((2, 3), ("trial", "unit")))
        Identity: Space(trial 2 × unit 3, float64) → Space(trial 2 × unit 3, float64)
    """

    space: Space

    @property
    def in_space(self) -> Space:
        return self.space

    @property
    def out_space(self) -> Space:
        return self.space

    @property
    def symmetric(self) -> bool:
        return True

    def _apply(self, vector: Tensor) -> Tensor:
        return vector

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        return vector


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dense(Operator):
    """The operator of an explicit matrix.

    Args:
        matrix: Shape `(out, in)`, over the row-major entries of the two spaces.
        spaces: `(in_space, out_space)` if they are more than one unnamed axis each.

    Raises:
        TypeError: `matrix` is no floating-point tensor.
        ValueError: `matrix` has not two axes, is not finite, or does not fit the shapes, dtype or device of `spaces`.

    Example:
        >>> Dense(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))(torch.tensor([3.0, 4.0]))
        tensor([4., 6.])
    """

    matrix: Float[Tensor, "out in"]
    spaces: tuple[Space, Space] | None = None

    def __post_init__(self) -> None:
        check_tensor("matrix", self.matrix)
        if self.matrix.ndim != 2:
            raise ValueError(f"`matrix` must have two axes (out, in); got shape {tuple(self.matrix.shape)}.")
        check_finite("matrix", self.matrix, ("row", "column"))
        sizes = (self.out_space.size, self.in_space.size)
        if sizes != tuple(self.matrix.shape):
            raise ValueError(f"`matrix` must have shape {sizes} to fit `spaces`; got {tuple(self.matrix.shape)}.")
        _check_place("matrix", self.matrix, self.in_space, self.out_space)

    @property
    def in_space(self) -> Space:
        return self.spaces[0] if self.spaces else _vectors(self.matrix, self.matrix.shape[1])

    @property
    def out_space(self) -> Space:
        return self.spaces[1] if self.spaces else _vectors(self.matrix, self.matrix.shape[0])

    @property
    def symmetric(self) -> bool:
        return self._equals_transpose

    @functools.cached_property
    def _equals_transpose(self) -> bool:
        return self.in_space == self.out_space and torch.equal(self.matrix, self.matrix.mT)

    def _apply(self, vector: Tensor) -> Tensor:
        return (_rows(vector) @ self.matrix.mT).reshape(len(vector), *self.out_shape)

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        return (_rows(vector) @ self.matrix).reshape(len(vector), *self.in_shape)


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Diagonal(Operator):
    """Entrywise multiplication by a tensor of the space's shape.

    Args:
        diagonal: Shape of the space.
        space: The space, if its axes have names.

    Raises:
        TypeError: `diagonal` is no floating-point tensor.
        ValueError: `diagonal` is not finite or not of the shape, dtype and device of `space`.

    Example:
        >>> Diagonal(torch.tensor([1.0, 2.0]))(torch.ones(2))
        tensor([1., 2.])
    """

    diagonal: Float[Tensor, "..."]
    space: Space | None = None

    def __post_init__(self) -> None:
        check_tensor("diagonal", self.diagonal)
        if tuple(self.diagonal.shape) != self.in_shape:
            raise ValueError(f"`diagonal` must have shape {self.in_shape}; got {tuple(self.diagonal.shape)}.")
        _check_place("diagonal", self.diagonal, self.in_space)
        check_finite("diagonal", self.diagonal, self.in_space.axes)

    @property
    def in_space(self) -> Space:
        return self.space or Space.of(self.diagonal.shape, None, self.diagonal.dtype, self.diagonal.device)

    @property
    def out_space(self) -> Space:
        return self.in_space

    @property
    def symmetric(self) -> bool:
        return True

    def _apply(self, vector: Tensor) -> Tensor:
        return vector * self.diagonal

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        return vector * self.diagonal


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LowRank(Operator):
    """U Vᵀ from two thin factors, or the Gram operator U Uᵀ from one; the product is never formed.

    Args:
        left: U, shape `(out, rank)`.
        right: V, shape `(in, rank)`; None for V = U.
        spaces: `(in_space, out_space)` if they are more than one unnamed axis each.

    Raises:
        TypeError: A factor is no floating-point tensor.
        ValueError: The factors do not fit each other or the shapes, dtype or device of `spaces`, or are not finite.

    Example:
        >>> LowRank(torch.tensor([[1.0], [2.0]]))(torch.tensor([1.0, 0.0]))
        tensor([1., 2.])
    """

    left: Float[Tensor, "out rank"]
    right: Float[Tensor, "in rank"] | None = None
    spaces: tuple[Space, Space] | None = None

    def __post_init__(self) -> None:
        for name, factor in (("left", self.left), ("right", self._right)):
            check_tensor(name, factor)
            if factor.ndim != 2:
                raise ValueError(f"`{name}` must have two axes (size, rank); got shape {tuple(factor.shape)}.")
            check_finite(name, factor, ("row", "column"))
        if self.left.shape[1] != self._right.shape[1]:
            raise ValueError(
                f"`left` and `right` must have the same rank; got {self.left.shape[1]} and {self._right.shape[1]}."
            )
        sizes = (self.out_space.size, self.in_space.size)
        if sizes != (self.left.shape[0], self._right.shape[0]):
            got = (self.left.shape[0], self._right.shape[0])
            raise ValueError(f"The factors must have {sizes} rows to fit `spaces`; got {got}.")
        _check_place("left", self.left, self.in_space, self.out_space)
        _check_place("right", self._right, self.in_space, self.out_space)

    @property
    def _right(self) -> Tensor:
        return self.left if self.right is None else self.right

    @property
    def in_space(self) -> Space:
        return self.spaces[0] if self.spaces else _vectors(self._right, self._right.shape[0])

    @property
    def out_space(self) -> Space:
        return self.spaces[1] if self.spaces else _vectors(self.left, self.left.shape[0])

    @property
    def symmetric(self) -> bool:
        return self.right is None and self.in_space == self.out_space

    def _apply(self, vector: Tensor) -> Tensor:
        return ((_rows(vector) @ self._right) @ self.left.mT).reshape(len(vector), *self.out_shape)

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        return ((_rows(vector) @ self.left) @ self._right.mT).reshape(len(vector), *self.in_shape)


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Function(Operator):
    """A linear map given by two functions on blocks of vectors.

    Args:
        forward: Takes a block `[probes, *in_shape]`, gives A v `[probes, *out_shape]`.
        backward: Takes a block `[probes, *out_shape]`, gives Aᵀ v; None for a symmetric map.
        domain: The space of v.
        codomain: The space of A v; None for `domain`.

    Raises:
        TypeError: When applied: a function gives no tensor, or one of another dtype than its space.
        ValueError: `backward` is missing for a map between two spaces. When applied: a function gives another shape or
            device than its space.

    Example:
        >>> line = Space.of((3,), ("unit",))
        >>> shift = Function(lambda v: v.roll(1, -1), lambda v: v.roll(-1, -1), line)
        >>> shift.T(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
        tensor([2., 3., 1.], dtype=torch.float64)
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor] | None
    domain: Space
    codomain: Space | None = None

    def __post_init__(self) -> None:
        if self.backward is None and self.codomain is not None and self.codomain != self.domain:
            raise ValueError(
                f"`backward` may be None for a symmetric map only; got {self.domain} → {self.codomain}. "
                f"Give the adjoint."
            )

    @property
    def in_space(self) -> Space:
        return self.domain

    @property
    def out_space(self) -> Space:
        return self.codomain or self.domain

    @property
    def symmetric(self) -> bool:
        return self.backward is None

    def _apply(self, vector: Tensor) -> Tensor:
        return _checked(self.forward(vector), len(vector), self.out_space, "forward")

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        backward = self.backward or self.forward
        return _checked(backward(vector), len(vector), self.in_space, "backward")


def _vectors(tensor: Tensor, size: int) -> Space:
    """The space of plain vectors of `size` entries, of the tensor's dtype and device."""
    return Space.of((size,), None, tensor.dtype, tensor.device)


def _rows(block: Tensor) -> Tensor:
    """`[probes, *shape]` to `[probes, size]`."""
    return block.reshape(len(block), math.prod(block.shape[1:]))


def _check_place(name: str, tensor: Tensor, *spaces: Space) -> None:
    for space in spaces:
        if (tensor.dtype, tensor.device) != (space.dtype, space.device):
            raise ValueError(
                f"`{name}` must be {space.dtype} on {space.device} like {space}; got {tensor.dtype} on {tensor.device}."
            )


def _checked(block: Tensor, probes: int, space: Space, name: str) -> Tensor:
    """Return what the function `name` gave if it is a block of vectors of `space`."""
    space.check(f"{name}(v)", block)
    if tuple(block.shape) != (probes, *space.shape):
        raise ValueError(f"`{name}` must give a block {(probes, *space.shape)}; got {tuple(block.shape)}.")
    return block
