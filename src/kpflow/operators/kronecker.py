"""Operators made of blocks: the tensor product Kronecker and the direct sum BlockDiagonal."""

import math
from collections.abc import Sequence
from typing import final

from torch import Tensor

from kpflow.spaces import Part, Space

from .core import Operator
from .leaves import Identity

__all__ = ["BlockDiagonal", "Kronecker"]


@final
class Kronecker(Operator):
    """A₁ ⊗ … ⊗ Aₖ: each factor acts on its own axes of a tensor; the product is never formed.

    (A₁ ⊗ A₂)[ai, bj] = A₁[a, b] A₂[i, j]. The axes of the space are those of the factors' spaces, one after the other;
    a factor on several parts brings its one flat axis. Of two axes of one name the second is named name_2, etc.

    Args:
        factors: A₁, …, Aₖ, at least one, all of one dtype and device.
        spaces: `(in_space, out_space)`, of the same shapes, to name the axes otherwise.

    Raises:
        ValueError: No factor, factors of different dtypes or devices, or `spaces` of other shapes.

    Example:
        >>> import torch
        >>> from kpflow.operators import Dense, Identity
        >>> core = Dense(torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
        >>> K = Kronecker(core, Identity(Space.of((3,), ("unit",), torch.float32)))
        >>> K
        Kronecker: Space(axis0 2 × unit 3, float32) → Space(axis0 2 × unit 3, float32)
        >>> K(torch.ones(2, 3))
        tensor([[3., 3., 3.],
                [4., 4., 4.]])
    """

    factors: tuple[Operator, ...]
    spaces: tuple[Space, Space]

    def __init__(self, *factors: Operator, spaces: tuple[Space, Space] | None = None) -> None:
        """Make A₁ ⊗ … ⊗ Aₖ of `factors`."""
        self.factors = _checked_blocks("factors", factors)
        ours = (_product([factor.in_space for factor in factors]), _product([factor.out_space for factor in factors]))
        for given, made in zip(spaces or ours, ours, strict=True):
            if not given.same_vectors(made):
                raise ValueError(f"`spaces` must have the shapes, dtype and device of {made}; got {given}.")
        self.spaces = spaces or ours

    @property
    def in_space(self) -> Space:
        return self.spaces[0]

    @property
    def out_space(self) -> Space:
        return self.spaces[1]

    @property
    def symmetric(self) -> bool:
        return self.in_space == self.out_space and all(factor.symmetric for factor in self.factors)

    def _apply(self, vector: Tensor) -> Tensor:
        return _along_axes(self.factors, vector).reshape(len(vector), *self.out_shape)

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        return _along_axes([factor.T for factor in self.factors], vector).reshape(len(vector), *self.in_shape)


@final
class BlockDiagonal(Operator):
    """A₁ ⊕ … ⊕ Aₖ: each block acts on its own part of a vector that holds the parts one after the other.

    Both spaces are flat with one named part per block. A block whose own space has several parts brings one part of
    its flat size: names within it are not kept.

    Args:
        operators: A₁, …, Aₖ, at least one, all of one dtype and device.
        names: Of the parts, one each; block0, block1, … if not given.

    Raises:
        ValueError: No operator, operators of different dtypes or devices, or names that are too few, too many or twice.

    Example:
        >>> import torch
        >>> from kpflow.operators import Diagonal
        >>> A = BlockDiagonal([Diagonal(torch.tensor([1.0, 2.0])), Diagonal(torch.tensor([3.0]))], ["weight", "bias"])
        >>> A(torch.ones(3))
        tensor([1., 2., 3.])
        >>> A.in_space.split(A(torch.ones(3)))["bias"]
        tensor([3.])
    """

    operators: tuple[Operator, ...]
    names: tuple[str, ...]

    def __init__(self, operators: Sequence[Operator], names: Sequence[str] | None = None) -> None:
        """Make A₁ ⊕ … ⊕ Aₖ of `operators`."""
        self.operators = _checked_blocks("operators", operators)
        self.names = tuple(names) if names is not None else tuple(f"block{i}" for i in range(len(self.operators)))
        if len(self.names) != len(self.operators):
            raise ValueError(f"`names` must name each of {len(self.operators)} operators; got {list(self.names)}.")
        self._in_space = _direct_sum(self.names, [operator.in_space for operator in self.operators])
        self._out_space = _direct_sum(self.names, [operator.out_space for operator in self.operators])

    @property
    def in_space(self) -> Space:
        return self._in_space

    @property
    def out_space(self) -> Space:
        return self._out_space

    @property
    def symmetric(self) -> bool:
        return all(operator.symmetric for operator in self.operators)

    def _apply(self, vector: Tensor) -> Tensor:
        parts = self.in_space.split(vector)
        blocks = zip(self.names, self.operators, strict=True)
        return self.out_space.join({name: operator._apply(parts[name]) for name, operator in blocks})

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        parts = self.out_space.split(vector)
        blocks = zip(self.names, self.operators, strict=True)
        return self.in_space.join({name: operator._apply_adjoint(parts[name]) for name, operator in blocks})


def _along_axes(factors: Sequence[Operator], vector: Tensor) -> Tensor:
    """Apply each factor to its own axes of `vector [probes, *in₁, *in₂, …]`, those first that shrink it most."""
    probes, sizes = len(vector), [factor.in_space.size for factor in factors]
    growth = [factor.out_space.size / max(1, size) for factor, size in zip(factors, sizes, strict=True)]
    for i in sorted(range(len(factors)), key=growth.__getitem__):
        factor, size = factors[i], factors[i].out_space.size
        if isinstance(factor, Identity):
            continue
        left, right = probes * math.prod(sizes[:i]), math.prod(sizes[i + 1 :])
        block = vector.reshape(left, sizes[i], right).mT.reshape(left * right, *factor.in_shape)
        vector = factor._apply(block).reshape(left, right, size).mT  # [left, out, right]
        sizes[i] = size
    return vector


def _checked_blocks(name: str, operators: Sequence[Operator]) -> tuple[Operator, ...]:
    """Return `operators` as a tuple if there is one at least and all are of one dtype and device."""
    strangers = [type(operator).__name__ for operator in operators if not isinstance(operator, Operator)]
    if strangers:
        raise TypeError(f"`{name}` must be operators; got {', '.join(strangers)}. Wrap a matrix in Dense(matrix).")
    spaces = [space for operator in operators for space in (operator.in_space, operator.out_space)]
    if len({(space.dtype, space.device) for space in spaces}) != 1:
        raise ValueError(f"`{name}` must be one operator at least, of one dtype and device; got {list(operators)}.")
    return tuple(operators)


def _product(spaces: Sequence[Space]) -> Space:
    """The tensor product: the axes of all `spaces`, one after the other, told apart where names collide."""
    axes: list[str] = []
    for axis in (axis for space in spaces for axis in space.axes):
        names = [axis, *(f"{axis}_{i}" for i in range(2, len(axes) + 2))]
        axes.append(next(name for name in names if name not in axes))
    shape = [size for space in spaces for size in space.shape]
    return Space.of(shape, axes, spaces[0].dtype, spaces[0].device)


def _direct_sum(names: Sequence[str], spaces: Sequence[Space]) -> Space:
    parts = tuple(Part(name, space.axes, space.shape) for name, space in zip(names, spaces, strict=True))
    return Space(parts, spaces[0].dtype, spaces[0].device, "entry")
