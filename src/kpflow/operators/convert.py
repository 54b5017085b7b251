"""Operators to and from matrices and SciPy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import Tensor

from kpflow.spaces import Space

from .blocks import block_length, ranges
from .core import Adjoint, Operator
from .gramian import Gramian
from .leaves import Function

__all__ = ["from_scipy", "to_dense", "to_scipy"]

_NUMPY = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
_TORCH = {dtype: ours for ours, dtype in _NUMPY.items()}


def to_dense(operator: Operator) -> Float[Tensor, "out in"]:
    """The matrix A[i, j] = ⟨eᵢ, A eⱼ⟩ of an operator, over the row-major entries of its two spaces.

    Takes as many products as `in_space` has entries, in blocks of at most `MAX_BLOCK_ENTRIES` entries, unless the
    operator's structure gives its matrix for less; the matrix itself takes out × in entries of memory, so this is for
    small operators.

    Args:
        operator: A.

    Returns:
        A as a matrix `[out_space.size, in_space.size]`, in the dtype and on the device of the operator.

    Raises:
        TypeError: `operator` is no Operator.

    Example:
        >>> from kpflow.operators import Identity
        >>> to_dense(2 * Identity(Space.of((2,))))
        tensor([[2., 0.],
                [0., 2.]], dtype=torch.float64)
    """
    _check_operator(operator)
    source, target = operator.in_space, operator.out_space
    structure = operator.structure if isinstance(operator, Gramian) else None
    known = None if structure is None else structure.matrix()
    if known is not None and known.cost < source.size:
        return known.compute()
    matrix = torch.empty(target.size, source.size, dtype=target.dtype, device=target.device)
    for columns in ranges(source.size, block_length(max(source.size, target.size))):
        basis = source.zeros(columns.stop - columns.start)
        basis.view(len(basis), source.size).diagonal(columns.start).fill_(1)  # row i is the unit vector e of start + i
        matrix[:, columns] = operator(basis).reshape(len(basis), target.size).mT
    return matrix


def to_scipy(operator: Operator) -> LinearOperator:
    """The operator for `scipy.sparse.linalg`: eigsh, svds, gmres, lobpcg and others run on it.

    Vectors are flat, in row-major order of the operator's spaces. A matrix `[size, k]` goes through the operator as one
    block of k vectors. Arrays come back on the CPU in the operator's dtype, whatever the operator's device.

    Args:
        operator: A, in float32 or float64.

    Returns:
        A `LinearOperator` of shape `(out_space.size, in_space.size)` with matvec, rmatvec, matmat and rmatmat.

    Raises:
        TypeError: `operator` is no Operator, or its dtype is one that SciPy's algorithms do not know.

    Example:
        >>> from scipy.sparse.linalg import eigsh
        >>> from kpflow.operators import Diagonal
        >>> A = Diagonal(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> eigsh(to_scipy(A), k=1, return_eigenvectors=False).round(4)
        array([4.], dtype=float32)
    """
    _check_operator(operator)
    _check_dtype("operator", operator.in_space.dtype)
    forward, backward = _on_arrays(operator), _on_arrays(Adjoint(operator))
    make: Any = LinearOperator  # whose signature hides that it also makes operators of functions
    return make(
        shape=(operator.out_space.size, operator.in_space.size),
        matvec=forward,
        rmatvec=backward,
        matmat=forward,
        rmatmat=backward,
        dtype=_NUMPY[operator.in_space.dtype],
    )


def from_scipy(
    operator: Any,
    in_space: Space | None = None,
    out_space: Space | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Function:
    """The kpflow operator of a SciPy `LinearOperator`, a sparse matrix or an array; a block of vectors stays one block.

    Products are computed by SciPy on the CPU, and do not carry gradients.

    Args:
        operator: Real, of shape `(out, in)`; the adjoint needs its rmatvec or rmatmat.
        in_space: Space of the vectors it takes; a plain axis if not given.
        out_space: Space of the vectors it gives; a plain axis if not given.
        dtype: Of the plain axes; float32 for a float32 operator, else float64, if not given. Spaces bring their own.
        device: Of the plain axes; the CPU if not given. Spaces bring their own.

    Returns:
        A `Function`; not known to be symmetric.

    Raises:
        TypeError: `operator` is nothing that SciPy can make an operator of, or is complex; `dtype` is neither float32
            nor float64. When the adjoint is applied: the SciPy operator has none.
        ValueError: The sizes of the spaces do not fit, or `dtype` or `device` contradict them.

    Example:
        >>> from scipy.sparse import diags_array
        >>> from_scipy(diags_array([1.0, 2.0]))(torch.ones(2, dtype=torch.float64))
        tensor([1., 2.], dtype=torch.float64)
    """
    linear = _linear_operator(operator)
    given = in_space or out_space
    dtype = dtype or (given.dtype if given else _TORCH.get(linear.dtype, torch.float64))
    device = device or (given.device if given else "cpu")
    _check_dtype("dtype", dtype)
    source = _fitting("in_space", in_space, Space.of((linear.shape[1],), None, dtype, device))
    target = _fitting("out_space", out_space, Space.of((linear.shape[0],), None, dtype, device))
    return Function(_on_blocks(linear.matmat, target), _on_blocks(linear.rmatmat, source), source, target)


def _fitting(name: str, given: Space | None, plain: Space) -> Space:
    """Return the space that is `given`, or else the `plain` one, which it must fit."""
    space = given or plain
    if (space.size, space.dtype, space.device) != (plain.size, plain.dtype, plain.device):
        raise ValueError(f"`{name}` must hold {plain.size} entries, {plain.dtype} on {plain.device}; got {space}.")
    return space


def _check_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype not in _NUMPY:
        raise TypeError(f"`{name}` must be torch.float32 or torch.float64 for SciPy; got {dtype}.")


def _check_operator(operator: Any) -> None:
    if not isinstance(operator, Operator):
        raise TypeError(
            f"`operator` must be an Operator; got {type(operator).__name__}. Wrap a matrix in Dense(matrix)."
        )


def _linear_operator(operator: Any) -> LinearOperator:
    try:
        linear = aslinearoperator(operator)
    except TypeError:
        raise TypeError(
            f"`operator` must be a SciPy LinearOperator, a sparse matrix or an array; got {type(operator).__name__}."
        ) from None
    if linear.dtype is not None and np.issubdtype(linear.dtype, np.complexfloating):
        raise TypeError(f"`operator` must be real; got {linear.dtype}.")
    return linear


def _on_arrays(operator: Operator) -> Callable[[NDArray], NDArray]:
    """`operator` on arrays `[in]`, `[in, 1]` or `[in, k]`, all columns as one block."""
    space = operator.in_space

    def product(array: NDArray) -> NDArray:
        if np.iscomplexobj(array):
            return product(np.real(array)) + 1j * product(np.imag(array))
        columns = np.array(array.T, dtype=_NUMPY[space.dtype], order="C")  # [k, in], a copy: torch may not share it
        block = torch.from_numpy(columns).to(space.device).reshape((*array.shape[1:], *space.shape))
        result = operator(block).detach().cpu().numpy()
        return result.reshape(*array.shape[1:], operator.out_space.size).T

    return product


def _on_blocks(product: Callable[[NDArray], NDArray], space: Space) -> Callable[[Tensor], Tensor]:
    """A SciPy product of columns `[in, k]` on blocks `[k, *in_shape]`, giving blocks of `space`."""

    def apply(block: Tensor) -> Tensor:
        columns = block.detach().cpu().flatten(1).numpy().T  # [in, k]
        try:
            result = product(columns)
        except (NotImplementedError, TypeError) as error:  # what SciPy raises where a product was not given
            message = f"The SciPy operator failed: {error}. If this was its adjoint, give it rmatvec or rmatmat."
            raise TypeError(message) from error
        array = np.array(result.T, dtype=_NUMPY[space.dtype], order="C")
        return torch.from_numpy(array).to(space.device).reshape(len(block), *space.shape)

    return apply
