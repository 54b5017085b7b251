"""The contract of every operator, and the table of operators that drives its tests."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import final

import jaxtyping
import numpy as np
import torch
from torch import Tensor

from kpflow import Space
from kpflow.operators import (
    Adjoint,
    BlockDiagonal,
    Composed,
    Dense,
    Diagonal,
    Function,
    Gram,
    Gramian,
    Identity,
    Kronecker,
    LowRank,
    Operator,
    PartialTrace,
    Resolvent,
    Restriction,
    Scaled,
    Sum,
    from_scipy,
    to_dense,
)

__all__ = [
    "OPERATORS",
    "Case",
    "SquareRoot",
    "check_operator",
    "close",
    "randn",
    "tolerance",
    "without_annotation_checks",
]

PROBES = ((), (0,), (1,), (5,), (2, 3))


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
    """White noise, the same for the same seed in every dtype and on every device: made on the CPU in float64."""
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise.to(device, dtype)


def tolerance(dtype: torch.dtype) -> float:
    """A few thousand roundings: sums of some hundred terms, through a chain of a few operators."""
    return 4000 * torch.finfo(dtype).eps


def close(got: Tensor, expected: Tensor, tol: float = 1e-12) -> None:
    """Fail unless `got` has the shape of `expected` and differs by at most `tol` of its largest entry (or of 1)."""
    assert tuple(got.shape) == tuple(expected.shape), f"shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    if expected.numel() == 0:
        return
    got, expected = got.detach().cpu().double(), expected.detach().cpu().double()
    error, size = float((got - expected).abs().max()), max(1.0, float(expected.abs().max()))
    assert error <= tol * size, f"differs by {error:.2e}, allowed {tol * size:.2e}"  # also where error is NaN


def check_operator(op: Operator, matrix: Tensor, tol: float | None = None) -> None:
    """Agrees with its matrix, is linear, does blocks, and its adjoint is the adjoint.

    `Adjoint(op)` stands beside `op.T` since the adjoint of a symmetric operator is the operator itself, and a product
    still calls `_apply_adjoint` of its factors.
    """
    tol = tolerance(op.in_space.dtype) if tol is None else tol
    adjoints = (op.T, Adjoint(op))
    _check_matrix(op, matrix, tol)
    for adjoint in adjoints:
        assert (adjoint.in_space, adjoint.out_space) == (op.out_space, op.in_space)
        _check_matrix(adjoint, matrix.mT, tol)
        _check_pairing(op, adjoint, tol)
    _check_linear(op, tol)
    if op.symmetric:
        assert op.in_space == op.out_space
        close(matrix, matrix.mT, tol)


def _check_matrix(op: Operator, matrix: Tensor, tol: float) -> None:
    """`op` is `matrix`, on blocks with any number of probe axes, in memory of any order, which it leaves alone."""
    close(to_dense(op), matrix, tol)
    for probes in PROBES:
        shape = (*probes, *op.in_shape)
        vector = _noise(op.in_space, *reversed(probes), seed=1, transposed=True)
        before = vector.clone()
        result = op(vector)
        assert result.dtype == op.out_space.dtype
        assert result.device == op.out_space.device
        assert torch.equal(vector, before), "changed its input"
        expected = vector.reshape(math.prod(probes), matrix.shape[1]) @ matrix.mT.to(vector)
        close(result, expected.reshape(*shape[: len(probes)], *op.out_shape), tol)


def _check_linear(op: Operator, tol: float) -> None:
    u, v = _noise(op.in_space, 2, seed=2)
    close(op(2 * u - v), 2 * op(u) - op(v), tol)


def _check_pairing(op: Operator, adjoint: Operator, tol: float) -> None:
    u, v = _noise(op.in_space, 6, seed=3), _noise(op.out_space, 6, seed=4)
    close((op(u) * v).sum(), (u * adjoint(v)).sum(), tol * math.sqrt(u.numel()))


def _noise(space: Space, *probes: int, seed: int, transposed: bool = False) -> Tensor:
    """Noise `[*probes, *shape]`, or `[*reversed probes, *shape]` whose entries lie in memory the other way round."""
    shape = (*reversed(space.shape), *probes) if transposed else (*probes, *space.shape)
    noise = randn(*shape, seed=seed, dtype=space.dtype, device=space.device)
    return noise.permute(tuple(reversed(range(noise.ndim)))) if transposed else noise


@contextlib.contextmanager
def without_annotation_checks() -> Iterator[None]:
    """Switch jaxtyping's hook off, as for a user: our own messages must then come."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@final
class SquareRoot(Gramian):
    """A Gramian F M Fᵀ to test the abstract class with."""

    def __init__(self, factor: Operator, metric: Operator | None = None) -> None:
        self._factor = factor
        self.middle = metric

    @property
    def jacobian(self) -> Operator:
        return self._factor

    @property
    def factor(self) -> Operator:
        return self._factor

    @property
    def metric(self) -> Operator | None:
        return self.middle

    @property
    def structure(self) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class Case:
    """An operator and, by another way, its matrix: `build(dtype, device)` makes both."""

    kind: type[Operator]
    build: Callable[[torch.dtype, torch.device], tuple[Operator, Tensor]]


def _dense(rows: int, columns: int, seed: int, like: tuple) -> Dense:
    return Dense(randn(rows, columns, seed=seed, dtype=like[0], device=like[1]))


def _state(*like) -> Space:
    return Space.of((2, 3, 2), ("trial", "time", "unit"), *like)


def _on_state(seed: int, like: tuple, symmetric: bool = False) -> Dense:
    matrix = randn(12, 12, seed=seed, dtype=like[0], device=like[1])
    return Dense(matrix + matrix.mT if symmetric else matrix, (_state(*like), _state(*like)))


def _identity(*like):
    return Identity(_state(*like)), torch.eye(12)


def _plain_dense(*like):
    A = _dense(3, 4, 1, like)
    return A, A.matrix


def _symmetric_dense(*like):
    A = _on_state(1, like, symmetric=True)
    return A, A.matrix


def _named_dense(*like):
    spaces = Space.of((2, 2), None, *like), Space.of_parts({"w": (2,), "b": ()}, "parameter", *like)
    A = Dense(randn(3, 4, seed=2, dtype=like[0], device=like[1]), spaces)
    return A, A.matrix


def _diagonal(*like):
    values = randn(2, 3, 2, seed=1, dtype=like[0], device=like[1])
    return Diagonal(values, _state(*like)), torch.diag(values.flatten())


def _low_rank(*like):
    U, V = (randn(n, 2, seed=n, dtype=like[0], device=like[1]) for n in (5, 12))
    return LowRank(U, V, (_state(*like), Space.of((5,), None, *like))), U @ V.mT


def _gram(*like):
    U = randn(4, 2, seed=1, dtype=like[0], device=like[1])
    return LowRank(U), U @ U.mT


def _shift(*like):
    line = Space.of((4,), ("unit",), *like)
    return Function(lambda v: v.roll(1, -1), lambda v: v.roll(-1, -1), line), torch.eye(4).roll(1, 0)


def _reversal(*like):
    return Function(lambda v: v.flip(-1), None, Space.of((4,), ("unit",), *like)), torch.eye(4).flip(0)


def _difference(*like):
    source, target = Space.of((3,), ("unit",), *like), Space.of((2,), ("step",), *like)
    matrix = torch.tensor([[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0]])
    A = Function(lambda v: v.diff(dim=-1), lambda v: -torch.nn.functional.pad(v, (1, 1)).diff(dim=-1), source, target)
    return A, matrix


def _from_scipy(*like):
    matrix = randn(3, 4, seed=7)
    return from_scipy(matrix.numpy(), dtype=like[0], device=like[1]), matrix


def _adjoint(*like):
    A = _dense(3, 4, 1, like)
    return A.T, A.matrix.mT


def _composed(*like):
    A, B, C = _dense(2, 3, 1, like), _dense(3, 4, 2, like), _dense(4, 5, 3, like)
    return A @ B @ C, A.matrix @ B.matrix @ C.matrix


def _sandwich(*like):
    P, K = _dense(3, 4, 1, like), LowRank(randn(4, 2, seed=2, dtype=like[0], device=like[1]))
    return P @ K @ P.T, P.matrix @ K.left @ K.left.mT @ P.matrix.mT


def _sum(*like):
    A, B = _dense(3, 4, 1, like), _dense(4, 3, 2, like)
    return A + B.T, A.matrix + B.matrix.mT


def _symmetric_sum(*like):
    A = _dense(3, 3, 1, like)
    return A + A.T, A.matrix + A.matrix.mT


def _scaled(*like):
    A = _dense(3, 4, 1, like)
    return -0.5 * A, -0.5 * A.matrix


def _gramian(*like):
    F = _dense(3, 4, 1, like)
    return SquareRoot(F), F.matrix @ F.matrix.mT


def _gramian_with_metric(*like):
    F, M = _dense(3, 4, 1, like), Diagonal(randn(4, seed=2, dtype=like[0], device=like[1]))
    return SquareRoot(F, M), F.matrix @ torch.diag(M.diagonal) @ F.matrix.mT


def _gram_of_any(*like):
    F = _named_dense(*like)[0]
    return Gram(F), F.matrix @ F.matrix.mT


def _gram_with_metric(*like):
    F, M = _low_rank(*like)[0], _on_state(2, like, symmetric=True)
    matrix = F.left @ F.right.mT
    return Gram(F, M), matrix @ M.matrix @ matrix.mT


def _gram_with_diagonal(*like):
    F, weights = _named_dense(*like)[0], randn(2, 2, seed=2, dtype=like[0], device=like[1])
    return Gram(F, weights), F.matrix @ torch.diag(weights.flatten()) @ F.matrix.mT


def _kron(*matrices: Tensor) -> Tensor:
    result = np.ones((1, 1))
    for matrix in matrices:
        result = np.kron(result, matrix.cpu().double().numpy())
    return torch.from_numpy(result)


def _kronecker(*like):
    A, B, C = _dense(2, 3, 1, like), _dense(4, 2, 2, like), _dense(3, 1, 3, like)
    return Kronecker(A, B, C), _kron(A.matrix, B.matrix, C.matrix)


def _core(*like):
    core = _on_state(1, like, symmetric=True)
    return Kronecker(core, Identity(Space.of((2,), ("feature",), *like))), _kron(core.matrix, torch.eye(2))


def _blocks(*like):
    A, _ = _named_dense(*like)
    B, C = _low_rank(*like)[0], _dense(1, 2, 3, like)
    return BlockDiagonal([A, B, C], ["a", "b", "c"]), torch.block_diag(A.matrix, to_dense(B), C.matrix)


def _rows(keep: list[int], size: int) -> Tensor:
    """The rows `keep` of the identity."""
    matrix = torch.zeros(len(keep), size)
    for row, column in enumerate(keep):
        matrix[row, column] = 1
    return matrix


def _restriction(*like):
    """Trial 1 alone, times 2 and 0 in this order, both units of [2, 3, 2]: entries 1·6 + t·2 + u."""
    R = Restriction(_state(*like), {"trial": 1, "time": [2, 0]})
    return R, _rows([10, 11, 6, 7], 12)


def _restriction_to_parts(*like):
    space = Space.of_parts({"w": (2, 2), "b": (1,), "v": (3,)}, "parameter", *like)
    return Restriction(space, parts=["v", "w"]), _rows([5, 6, 7, 0, 1, 2, 3], 8)


def _partial_trace(*like):
    """Over the outer and the inner axis of [2, 3, 2] at once: what is left is in between."""
    A = _on_state(5, like)
    tensor = A.matrix.reshape(2, 3, 2, 2, 3, 2)
    matrix = sum(tensor[b, :, h, b, :, h] for b in range(2) for h in range(2))
    return PartialTrace(A, ("unit", "trial")), matrix


def _sampled_partial_trace(*like):
    """Frozen signs: Σ_s (I ⊗ s)ᵀ A (I ⊗ s) / S as a dense matrix, from the same draw of signs."""
    A = _on_state(6, like, symmetric=True)
    operator = PartialTrace(A, ("time",), num_probes=2, generator=torch.Generator(like[1]).manual_seed(1))
    bits = torch.randint(2, (2, 3), generator=torch.Generator(like[1]).manual_seed(1), device=like[1])
    signs = (2 * bits - 1).to(like[0])
    matrix = torch.einsum("st, bthcik, si -> bhck", signs, A.matrix.reshape(2, 3, 2, 2, 3, 2), signs)
    return operator, matrix.reshape(4, 4) / 2


def _resolvent(*like):
    operator, matrix = _gram_of_any(*like)
    inverse = torch.linalg.inv(matrix + 0.5 * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))
    return Resolvent(operator, 0.5, tolerance=1e-14), inverse


OPERATORS = {
    "identity": Case(Identity, _identity),
    "dense": Case(Dense, _plain_dense),
    "dense, symmetric": Case(Dense, _symmetric_dense),
    "dense between named spaces": Case(Dense, _named_dense),
    "diagonal": Case(Diagonal, _diagonal),
    "low rank": Case(LowRank, _low_rank),
    "low rank, one factor": Case(LowRank, _gram),
    "function": Case(Function, _shift),
    "function, symmetric": Case(Function, _reversal),
    "function between two spaces": Case(Function, _difference),
    "function of a SciPy operator": Case(Function, _from_scipy),
    "adjoint": Case(Adjoint, _adjoint),
    "product": Case(Composed, _composed),
    "product, symmetric": Case(Composed, _sandwich),
    "sum": Case(Sum, _sum),
    "sum, symmetric": Case(Sum, _symmetric_sum),
    "multiple": Case(Scaled, _scaled),
    "Gramian": Case(Gramian, _gramian),
    "Gramian with a metric": Case(Gramian, _gramian_with_metric),
    "Gram": Case(Gram, _gram_of_any),
    "Gram with a metric": Case(Gram, _gram_with_metric),
    "Gram with a diagonal metric": Case(Gram, _gram_with_diagonal),
    "Kronecker": Case(Kronecker, _kronecker),
    "Kronecker with an identity": Case(Kronecker, _core),
    "direct sum": Case(BlockDiagonal, _blocks),
    "restriction along axes": Case(Restriction, _restriction),
    "restriction to parts": Case(Restriction, _restriction_to_parts),
    "partial trace": Case(PartialTrace, _partial_trace),
    "resolvent": Case(Resolvent, _resolvent),
    "partial trace by signs": Case(PartialTrace, _sampled_partial_trace),
}
