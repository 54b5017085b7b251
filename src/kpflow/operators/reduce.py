"""Operators that make spaces smaller: Restriction to some entries, PartialTrace over some axes."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias, final

import torch
from torch import Tensor

from kpflow._checks import check_generator, check_positive
from kpflow.spaces import Space

from .blocks import block_length, ranges
from .core import Operator

__all__ = ["DEFAULT_PROBES", "MAX_BASIS", "PartialTrace", "Restriction"]

MAX_BASIS = 256
"""Traced axes of at most this many entries are summed exactly; chosen by experience."""

DEFAULT_PROBES = 64
"""Random sign vectors on larger traced axes, unless `num_probes` says otherwise; chosen by experience."""

Index: TypeAlias = int | slice | Sequence[int] | Tensor
"""Which entries of an axis: one, a slice, several, or a tensor of positions or of booleans."""


@final
class Restriction(Operator):
    """R, which keeps chosen indices along named axes, or chosen parts of a space of several parts.

    Rᵀ embeds with zeros, so R Rᵀ = I, Rᵀ R is a projector, and R A Rᵀ is a block of A.

    Args:
        space: The full space.
        axes: For each axis to restrict, which entries: an int, a slice, a sequence of ints, or a tensor of ints or of
            booleans. Axes stay, also with one entry; negative ints count from the end; none twice.
        parts: Names of the parts to keep, in the order wanted. Give `axes` or `parts`.

    Raises:
        ValueError: Neither or both of `axes` and `parts`, an unknown axis or part, an index out of range or twice, or
            nothing kept.
        TypeError: An index that is none of the above.

    Example:
        >>> space = Space.of((3, 5), ("trial", "time"))
        >>> R = Restriction(space, {"trial": [0, 2], "time": slice(1, 3)})
        >>> R.out_space
        Space(trial 2 × time 2, float64)
        >>> R.T(torch.ones(2, 2, dtype=torch.float64))
        tensor([[0., 1., 1., 0., 0.],
                [0., 0., 0., 0., 0.],
                [0., 1., 1., 0., 0.]], dtype=torch.float64)
    """

    space: Space
    indices: Mapping[int, Tensor]
    parts: tuple[str, ...] | None

    def __init__(
        self, space: Space, axes: Mapping[str, Index] | None = None, parts: Sequence[str] | None = None
    ) -> None:
        """Make R, which keeps `axes` or `parts` of `space`."""
        if (axes is None) == (parts is None):
            raise ValueError("Give `axes` or `parts`, one of them; got " + ("neither." if axes is None else "both."))
        self.space = space
        self.parts = None if parts is None else _checked_parts(space, parts)
        self.indices = {
            space.axis(name): _positions(name, index, space.shape[space.axis(name)], space.device)
            for name, index in (axes or {}).items()
        }
        self._out_space = self._kept_space()

    def _kept_space(self) -> Space:
        space = self.space
        if self.parts is not None:
            by_name = {part.name: part for part in space.parts}
            return Space(tuple(by_name[name] for name in self.parts), space.dtype, space.device, space.flat)
        shape = [len(self.indices[axis]) if axis in self.indices else size for axis, size in enumerate(space.shape)]
        return Space.of(shape, space.axes, space.dtype, space.device)

    @property
    def in_space(self) -> Space:
        return self.space

    @property
    def out_space(self) -> Space:
        return self._out_space

    @property
    def symmetric(self) -> bool:
        return False

    def _apply(self, vector: Tensor) -> Tensor:
        if self.parts is not None:
            tensors = self.space.split(vector)
            return self.out_space.join({name: tensors[name] for name in self.parts})
        for axis, positions in self.indices.items():
            vector = vector.index_select(axis + 1, positions)
        return vector

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        if self.parts is not None:
            zeros = self.space.split(self.space.zeros(len(vector)))
            return self.space.join(zeros | self.out_space.split(vector))
        for axis, positions in self.indices.items():
            shape = (*vector.shape[: axis + 1], self.space.shape[axis], *vector.shape[axis + 2 :])
            vector = vector.new_zeros(shape).index_copy(axis + 1, positions, vector)
        return vector


@final
class PartialTrace(Operator):
    """tr_X A, the trace of a square operator over the axes X: an operator on the remaining axes.

    (tr_X A)[a, b] = Σ_i A[a, i; b, i], with i over the entries of the traced axes; tr (tr_X A) = tr A, and
    tr_X (A ⊗ B) = tr(B) A if B acts on X. The sum is exact, over a basis of X, where X has at most `MAX_BASIS` entries
    and `num_probes` is not given, or is no fewer than those entries. Otherwise, with S vectors s of random signs on X,

        tr_X A ≈ 1/S Σ_s (I ⊗ s)ᵀ A (I ⊗ s),    E (I ⊗ s)ᵀ A (I ⊗ s) = tr_X A.

    The signs are drawn once, so it is one linear operator, symmetric if A is. A product takes as many products of A as
    the basis has entries, or S, in blocks of at most `MAX_BLOCK_ENTRIES` entries.

    Args:
        operator: A, from a space of one part to itself.
        axes: Names of the axes X to trace over.
        num_probes: S; None for the exact sum where X is small and `DEFAULT_PROBES` signs where not.
        generator: Draws the signs; one seeded with 0 if not given.

    Raises:
        ValueError: A is not square or on several parts, an axis is unknown or given twice, or `num_probes` is not a
            positive whole number.

    Source:
        Partial traces: theory §1.5; the signs: Hutchinson's estimator on the traced axes alone. Probing with ones in
        place of signs gives Σ_ij A[a, i; b, j] instead, which is right only where no two entries of X are coupled.

    Example:
        >>> from kpflow.operators import Dense, Identity, Kronecker, to_dense
        >>> core = Dense(torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
        >>> K = Kronecker(core, Identity(Space.of((3,), ("unit",), torch.float32)))
        >>> to_dense(PartialTrace(K, ("unit",)))
        tensor([[6., 3.],
                [3., 9.]])
    """

    operator: Operator
    axes: tuple[str, ...]
    probes: Tensor
    """The basis or the signs, scaled so that their sum of outer products is (on average) I; `[S, *ones and traced]`."""
    exact: bool

    def __init__(
        self,
        operator: Operator,
        axes: Sequence[str] = ("trial", "time"),
        *,
        num_probes: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Make tr_X A of `operator`, with X the `axes`."""
        space = _checked_square(operator)
        traced = _checked_axes(space, axes)
        sizes = [size if axis in traced else 1 for axis, size in enumerate(space.shape)]
        if num_probes is not None:
            check_positive("num_probes", num_probes, integer=True)
        entries, generator = math.prod(sizes), check_generator("generator", generator, space.device)
        count = (MAX_BASIS if entries <= MAX_BASIS else DEFAULT_PROBES) if num_probes is None else num_probes
        self.operator, self.axes, self.exact = operator, tuple(axes), count >= entries
        flat = _basis(entries, space) if self.exact else _signs(count, entries, space, generator)
        self.probes = flat.reshape(len(flat), *sizes)
        self._traced = traced
        self._space = _without(space, traced)

    @property
    def in_space(self) -> Space:
        return self._space

    @property
    def out_space(self) -> Space:
        return self._space

    @property
    def symmetric(self) -> bool:
        return self.operator.symmetric

    def _apply(self, vector: Tensor) -> Tensor:
        return self._contract(self.operator, vector)

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        return self._contract(self.operator.T, vector)

    def _contract(self, operator: Operator, vector: Tensor) -> Tensor:
        """Σ_s (I ⊗ s)ᵀ A (I ⊗ s v) for each v: vectors and probes make one block, in pieces of bounded size."""
        for axis in self._traced:
            vector = vector.unsqueeze(axis + 1)  # [v, *ones and kept]
        length = block_length(operator.in_space.size)
        rows = max(1, length // len(self.probes))
        pieces = [self._contract_rows(operator, vector[part], length) for part in ranges(len(vector), rows)]
        return torch.cat([*pieces, self.in_space.zeros(0)])

    def _contract_rows(self, operator: Operator, vector: Tensor, length: int) -> Tensor:
        result = self.in_space.zeros(len(vector))
        for part in ranges(len(self.probes), length):
            probes = self.probes[part]
            block = vector.unsqueeze(1) * probes  # [v, s, *shape]
            images = operator._apply(block.flatten(0, 1)).reshape(block.shape)
            result = result + (images * probes).sum((1, *(axis + 2 for axis in self._traced)))
        return result


def _checked_parts(space: Space, parts: Sequence[str]) -> tuple[str, ...]:
    known = [part.name for part in space.parts]
    if space.flat is None:
        raise ValueError(f"`parts` needs a space of several parts; got {space}. Restrict its `axes`.")
    if isinstance(parts, str) or not parts or len(set(parts)) != len(parts) or not set(parts) <= set(known):
        raise ValueError(f"`parts` must be some of {known}, none twice; got {parts!r}.")
    return tuple(parts)


def _positions(axis: str, index: Index, size: int, device: torch.device) -> Tensor:
    """`index` along `axis` as non-negative positions, checked."""
    remedy = f"`axes[{axis!r}]` must be an int, a slice, ints or booleans; got {index!r}."
    if isinstance(index, slice):
        index = range(*index.indices(size))
    try:
        positions = torch.atleast_1d(torch.as_tensor(index, device=device))
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(remedy) from None
    if positions.dtype == torch.bool:
        if tuple(positions.shape) != (size,):
            raise ValueError(f"`axes[{axis!r}]` must hold {size} booleans; got shape {tuple(positions.shape)}.")
        positions = positions.nonzero().flatten()
    if positions.numel() == 0:
        raise ValueError(f"`axes[{axis!r}]` keeps nothing of an axis of {size}.")
    if positions.dtype.is_floating_point or positions.dtype.is_complex or positions.ndim != 1:
        raise TypeError(remedy)
    wrapped = torch.where(positions < 0, positions + size, positions).long()
    if int(wrapped.min()) < 0 or int(wrapped.max()) >= size:
        raise ValueError(f"`axes[{axis!r}]` must lie in an axis of {size}; got {positions.tolist()}.")
    if len(wrapped.unique()) != len(wrapped):
        raise ValueError(f"`axes[{axis!r}]` must hold no entry twice; got {positions.tolist()}.")
    return wrapped


def _checked_square(operator: Operator) -> Space:
    space = operator.in_space
    if space != operator.out_space:
        raise ValueError(f"`operator` must be square; got {operator}.")
    if space.flat is not None:
        raise ValueError(f"`operator` must act on a space of one part with named axes; got {space}.")
    return space


def _checked_axes(space: Space, axes: Sequence[str]) -> list[int]:
    if isinstance(axes, str) or len(set(axes)) != len(axes):
        raise ValueError(f"`axes` must be different names of axes, such as ('trial', 'time'); got {axes!r}.")
    return sorted(space.axis(name) for name in axes)


def _without(space: Space, traced: Sequence[int]) -> Space:
    kept = [axis for axis in range(space.ndim) if axis not in traced]
    return Space.of([space.shape[i] for i in kept], [space.axes[i] for i in kept], space.dtype, space.device)


def _basis(entries: int, space: Space) -> Tensor:
    return torch.eye(entries, dtype=space.dtype, device=space.device)


def _signs(count: int, entries: int, space: Space, generator: torch.Generator) -> Tensor:
    """Random signs `[count, entries]`, divided by √count."""
    bits = torch.randint(2, (count, entries), generator=generator, device=space.device)
    return (2 * bits - 1).to(space.dtype) / math.sqrt(count)
