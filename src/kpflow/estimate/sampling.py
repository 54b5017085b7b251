"""Chosen entries and blocks of an operator, exactly."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kpflow.operators import Gramian, Operator
from kpflow.spaces import Space

from .base import check_operator, not_finite
from .products import NotFiniteError, Products, gram

__all__ = ["entries"]

Index: TypeAlias = Tensor | Sequence[int] | Sequence[Sequence[int]]
"""Entries of a space: multi-indices `[K, axes]`, or flat indices `[K]`."""

KEPT_ENTRIES = 2**26
"""Entries of the vectors Fᵀ eᵢ that are kept for a Gramian (512 MB in float64); beyond, whole products are taken."""


def entries(operator: Operator, rows: Index, columns: Index | None = None) -> Float[Tensor, "K L"]:
    """A[rows, columns] = ⟨eᵢ, A eⱼ⟩, a block of the matrix of an operator, without the rest of it.

    One product for each different column, or for each different row with Aᵀ, whichever are fewer. For A = F Fᵀ (or
    F M Fᵀ) one product with Fᵀ for each different index in rows and columns together, ⟨Fᵀ eᵢ, Fᵀ eⱼ⟩, where that is
    less: a product with A is one with Fᵀ and one with F, so it pays where rows and columns share indices, as in a
    principal block, which then takes half. It keeps those vectors, of the size that F takes.

    Args:
        operator: A.
        rows: Entries of the space that A gives: whole numbers, `[K, axes]` with one for each axis, such as trial, time
            and unit, or `[K]` in row-major order. Negative ones count from the end of their axis.
        columns: Entries of the space that A takes; the rows if None.

    Returns:
        The block `[K, L]`, in the operator's dtype. An index given twice is there twice.

    Raises:
        TypeError: `operator` is no operator, or an index no whole number.
        ValueError: An index is out of range or has the wrong number of axes, or `columns` are missing for an operator
            between two spaces.
        FloatingPointError: A product holds NaN or inf.

    References:
        Theory §5.2 (exact alternatives).

    Example:
        >>> from kpflow.operators import Dense
        >>> space = Space.of((2, 2), ("time", "unit"))
        >>> A = Dense(torch.arange(16.0, dtype=torch.float64).reshape(4, 4), (space, space))
        >>> entries(A, [[0, 1], [1, 1]], [[1, 0]])
        tensor([[ 6.],
                [14.]], dtype=torch.float64)
        >>> entries(A, [0, -1])
        tensor([[ 0.,  3.],
                [12., 15.]], dtype=torch.float64)
    """
    check_operator("operator", operator)
    if columns is None and not operator.in_space.same_vectors(operator.out_space):
        raise ValueError(f"`columns` must be given for an operator between two spaces; got {operator!r}.")
    left = _flat("rows", rows, operator.out_space)
    right = left if columns is None else _flat("columns", columns, operator.in_space)
    try:
        return _block(operator, left, right)
    except NotFiniteError as failure:
        raise not_finite("entries", operator, failure.spent) from None


def _block(operator: Operator, rows: Int[Tensor, " K"], columns: Int[Tensor, " L"]) -> Float[Tensor, "K L"]:
    """The block, by the cheapest of three ways."""
    (few_rows, row), (few_columns, column) = (x.unique(return_inverse=True) for x in (rows, columns))
    if isinstance(operator, Gramian):
        both, place = torch.cat([few_rows, few_columns]).unique(return_inverse=True)
        kept = len(both) * operator.factor.in_space.size <= KEPT_ENTRIES
        if kept and len(both) < 2 * min(len(few_rows), len(few_columns)):
            left, right = place[: len(few_rows)], place[len(few_rows) :]
            return _by_factor(operator, both, left, right)[row][:, column]
    if len(few_columns) <= len(few_rows):
        block = _by_columns(operator, few_rows, few_columns)
    else:
        block = _by_columns(operator.T, few_columns, few_rows).mT
    return block[row][:, column]


def _by_columns(operator: Operator, rows: Int[Tensor, " K"], columns: Int[Tensor, " L"]) -> Float[Tensor, "K L"]:
    """A product for each column."""
    products = Products(operator)
    parts = [products(_units(operator.in_space, part))[:, rows] for part in columns.split(products.block)]
    return torch.cat(parts).mT


def _by_factor(
    gramian: Gramian, both: Int[Tensor, " U"], left: Int[Tensor, " K"], right: Int[Tensor, " L"]
) -> Float[Tensor, "K L"]:
    """⟨Fᵀ eᵢ, M Fᵀ eⱼ⟩, a product with Fᵀ for each index."""
    products = Products(gramian.factor.T)
    parts = [products(_units(gramian.in_space, part)) for part in both.split(products.block)]
    images = torch.cat(parts)
    measured = images[right] if gramian.metric is None else Products(gramian.metric)(images[right])
    return gram(images[left], measured).to(images.dtype)


def _units(space: Space, positions: Int[Tensor, " K"]) -> Float[Tensor, "K N"]:
    """Unit vectors, flat."""
    unit = space.zeros(len(positions)).reshape(len(positions), space.size)
    unit[torch.arange(len(positions), device=space.device), positions] = 1
    return unit


def _flat(name: str, index: Any, space: Space) -> Int[Tensor, " K"]:
    """Row-major positions, not negative, from multi-indices or flat ones; checked."""
    try:
        given = torch.as_tensor(index, device=space.device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"`{name}` must hold whole numbers, as many in each row; got {index!r}.") from None
    if given.numel() == 0 and given.ndim == 1:
        return torch.zeros(0, dtype=torch.long, device=space.device)
    if given.dtype.is_floating_point or given.dtype.is_complex or given.dtype == torch.bool:
        raise TypeError(
            f"`{name}` must hold whole numbers; got {given.dtype}. For a mask give mask.nonzero() of a mask of the "
            f"space's shape."
        )
    shape = space.shape if given.ndim == 2 else (space.size,)
    table = given.long() if given.ndim == 2 else given.long()[..., None]
    if given.ndim not in (1, 2) or table.shape[1] != len(shape):
        raise ValueError(
            f"`{name}` must have shape [K, {space.ndim}] ({' × '.join(space.axes)}) or [K]; got {tuple(given.shape)}."
        )
    sizes = torch.tensor(shape, device=space.device)
    wrapped = torch.where(table < 0, table + sizes, table)
    wrong = ((wrapped < 0) | (wrapped >= sizes)).any(1)
    if bool(wrong.any()):
        first = table[wrong][0].tolist()
        raise ValueError(f"`{name}` must lie in {space}; got {first if given.ndim == 2 else first[0]}.")
    strides = torch.tensor([math.prod(shape[i + 1 :]) for i in range(len(shape))], device=space.device)
    return (wrapped * strides).sum(1)
