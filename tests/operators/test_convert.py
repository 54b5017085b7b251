"""To matrices and to SciPy and back: blocks as blocks, dtypes, and SciPy's algorithms on our operators."""

import re

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import LinearOperator, eigsh, gmres, lobpcg, svds

from helpers import close, randn, without_annotation_checks
from kpflow import Space
from kpflow.operators import Dense, Function, Identity, LowRank, blocks, from_scipy, to_dense, to_scipy

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
NUMPY = {torch.float64: np.float64, torch.float32: np.float32}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4}


def counted(matrix, calls):
    """The operator of `matrix` on a [3, 2] and a [4] space; `calls` gets ("forward" or "backward", probes)."""

    def forward(block):
        calls.append(("forward", len(block)))
        return block.flatten(1) @ matrix.mT

    def backward(block):
        calls.append(("backward", len(block)))
        return (block @ matrix).reshape(len(block), 3, 2)

    source = Space.of((3, 2), ("time", "unit"), matrix.dtype)
    return Function(forward, backward, source, Space.of((4,), ("output",), matrix.dtype))


@DTYPES
def test_products_and_blocks_as_blocks(dtype):
    matrix, calls, tol = randn(4, 6, seed=1, dtype=dtype), [], TOLERANCE[dtype]
    linear = to_scipy(counted(matrix, calls))
    assert (linear.shape, linear.dtype) == ((4, 6), NUMPY[dtype])
    x, X, y, Y = (randn(*shape, seed=2).numpy().astype(NUMPY[dtype]) for shape in [(6,), (6, 7), (4,), (4, 5)])
    products = [
        (linear.matvec(x), matrix.numpy() @ x, ("forward", 1)),
        (linear.matvec(x[:, None]), matrix.numpy() @ x[:, None], ("forward", 1)),
        (linear.matmat(X), matrix.numpy() @ X, ("forward", 7)),
        (linear @ X, matrix.numpy() @ X, ("forward", 7)),
        (linear.rmatvec(y), matrix.numpy().T @ y, ("backward", 1)),
        (linear.rmatmat(Y), matrix.numpy().T @ Y, ("backward", 5)),
        (linear.T @ Y, matrix.numpy().T @ Y, ("backward", 5)),
    ]
    for got, expected, _ in products:
        assert (got.dtype, got.shape) == (NUMPY[dtype], expected.shape)
        np.testing.assert_allclose(got, expected, rtol=tol, atol=tol)
    assert calls == [call for *_, call in products]


def test_other_arrays_are_converted():
    linear = to_scipy(Dense(randn(3, 3, seed=1, dtype=torch.float32)))
    matrix = linear @ np.eye(3)
    assert matrix.dtype == np.float32
    frozen = np.arange(3.0)
    frozen.flags.writeable = False
    np.testing.assert_allclose(linear @ frozen, matrix @ frozen, rtol=1e-6)
    np.testing.assert_allclose(linear @ np.array([1, 2, 3]), matrix @ [1, 2, 3], rtol=1e-6)
    np.testing.assert_allclose(linear @ np.array([1j, 2, 3]), matrix @ [1j, 2, 3], rtol=1e-6)


def test_what_scipy_gets_does_not_share_memory():
    linear = to_scipy(Identity(Space.of((3,))))
    x = np.ones(3)
    (linear @ x)[:] = 0
    assert x.tolist() == [1.0, 1.0, 1.0]


def test_a_scalar_space():
    scalar = Identity(Space.of(()))
    assert (to_scipy(2 * scalar) @ np.ones(1)).tolist() == [2.0]
    assert (to_scipy(2 * scalar) @ np.ones((1, 3))).tolist() == [[2.0, 2.0, 2.0]]
    assert to_dense(scalar).tolist() == [[1.0]]


@DTYPES
def test_eigsh(dtype):
    F = randn(30, 6, seed=1, dtype=dtype)
    values, vectors = eigsh(to_scipy(LowRank(F)), k=4, v0=np.ones(30, NUMPY[dtype]))
    expected = torch.linalg.eigvalsh(F.double() @ F.double().mT)[-4:]
    np.testing.assert_allclose(values, expected, rtol=TOLERANCE[dtype])
    np.testing.assert_allclose(
        F.numpy() @ (F.mT.numpy() @ vectors), vectors * values, atol=TOLERANCE[dtype] * values.max()
    )


@DTYPES
def test_svds(dtype):
    matrix = randn(20, 30, seed=1, dtype=dtype)
    values = svds(to_scipy(Dense(matrix)), k=3, return_singular_vectors=False, v0=np.ones(20, NUMPY[dtype]))
    np.testing.assert_allclose(np.sort(values)[::-1], torch.linalg.svdvals(matrix.double())[:3], rtol=TOLERANCE[dtype])


@DTYPES
def test_gmres(dtype):
    A = Identity(Space.of((4, 5), dtype=dtype)) + 0.1 * Dense(randn(20, 20, seed=1, dtype=dtype), _square(dtype))
    b = randn(20, seed=2, dtype=dtype).numpy()
    x, failed = gmres(to_scipy(A), b, rtol=TOLERANCE[dtype] / 100 if dtype == torch.float64 else 1e-6)
    assert failed == 0
    np.testing.assert_allclose(to_dense(A).numpy() @ x, b, atol=TOLERANCE[dtype])


def _square(dtype):
    space = Space.of((4, 5), dtype=dtype)
    return space, space


def test_lobpcg_passes_blocks():
    calls, F = [], randn(60, 60, seed=1)
    gram = F @ F.mT

    def forward(block):
        calls.append(len(block))
        return block @ gram

    start = randn(60, 3, seed=2).numpy()
    operator = Function(forward, None, Space.of((60,)))
    values, _ = lobpcg(to_scipy(operator), start, tol=1e-8, maxiter=300)
    np.testing.assert_allclose(np.sort(values), torch.linalg.eigvalsh(gram)[-3:], rtol=1e-8)
    assert max(calls) == 3


def test_gradients_do_not_reach_scipy():
    matrix = torch.eye(3, dtype=torch.float64, requires_grad=True)
    assert (to_scipy(Dense(matrix)) @ np.ones(3)).tolist() == [1.0, 1.0, 1.0]
    assert to_dense(Dense(matrix)).requires_grad


@DTYPES
def test_to_dense_is_row_major_in_the_dtype_of_the_operator(dtype):
    matrix = randn(4, 6, seed=1, dtype=dtype)
    dense = to_dense(counted(matrix, []))
    assert torch.equal(dense, matrix)
    assert dense.dtype == dtype


@pytest.mark.parametrize(("limit", "blocks_used"), [(1, [1] * 6), (12, [2] * 3), (24, [4, 2]), (10**6, [6])])
def test_to_dense_in_blocks(limit, blocks_used, monkeypatch):
    monkeypatch.setattr(blocks, "MAX_BLOCK_ENTRIES", limit)
    matrix, calls = randn(4, 6, seed=1), []
    close(to_dense(counted(matrix, calls)), matrix)
    assert calls == [("forward", probes) for probes in blocks_used]


@DTYPES
def test_there_and_back(dtype):
    A = counted(randn(4, 6, seed=1, dtype=dtype), [])
    back = from_scipy(to_scipy(A), A.in_space, A.out_space)
    assert (back.in_space, back.out_space) == (A.in_space, A.out_space)
    assert torch.equal(to_dense(back), to_dense(A))
    assert torch.equal(to_dense(back.T), to_dense(A.T))
    assert from_scipy(to_scipy(A)).in_space == Space.of((6,), dtype=dtype)


def test_from_scipy_passes_blocks():
    calls, matrix = [], randn(4, 6, seed=1).numpy()

    def product(name, A):
        return lambda x: calls.append((name, x.shape)) or A @ x

    linear = LinearOperator(
        (4, 6),
        matvec=product("matvec", matrix),
        rmatvec=product("rmatvec", matrix.T),
        matmat=product("matmat", matrix),
        rmatmat=product("rmatmat", matrix.T),
        dtype=np.float64,
    )
    A = from_scipy(linear)
    A(randn(2, 5, 6, seed=1))
    A.T(randn(4, seed=1))
    assert calls == [("matmat", (6, 10)), ("rmatmat", (4, 1))]


def test_from_sparse_matrices_and_arrays():
    sparse = scipy.sparse.random_array((5, 4), density=0.5, rng=np.random.default_rng(0), dtype=np.float32)
    for matrix in (sparse, sparse.toarray(), scipy.sparse.csr_matrix(sparse)):
        A = from_scipy(matrix)
        assert A.in_space.dtype == torch.float32
        np.testing.assert_array_equal(to_dense(A), sparse.toarray())
        assert from_scipy(matrix, dtype=torch.float64)(torch.ones(4, dtype=torch.float64)).dtype == torch.float64
    assert from_scipy(np.eye(3, dtype=np.int64)).in_space.dtype == torch.float64
    assert not from_scipy(np.eye(3)).symmetric


ONE_WAY = LinearOperator((2, 3), matvec=lambda x: x[:2].ravel(), dtype=np.float64)
HALF = Space.of((3,), dtype=torch.float16)
REFUSED = {
    "matrix to dense": (lambda: to_dense(torch.eye(2)), TypeError, "`operator` must be an Operator; got Tensor. Wrap"),
    "matrix to SciPy": (lambda: to_scipy(np.eye(2)), TypeError, "`operator` must be an Operator; got ndarray. Wrap"),
    "half": (
        lambda: to_scipy(Identity(HALF)),
        TypeError,
        "must be torch.float32 or torch.float64 for SciPy; got torch",
    ),
    "half back": (lambda: from_scipy(np.eye(3), HALF), TypeError, "`dtype` must be torch.float32 or torch.float64 for"),
    "text": (
        lambda: from_scipy("eye"),
        TypeError,
        "must be a SciPy LinearOperator, a sparse matrix or an array; got str.",
    ),
    "complex": (lambda: from_scipy(np.eye(2) * 1j), TypeError, "`operator` must be real; got complex128."),
    "size": (
        lambda: from_scipy(np.eye(3), Space.of((2, 2))),
        ValueError,
        "`in_space` must hold 3 entries, torch.float64 on cpu; got Space(axis0 2 × axis1 2, float64).",
    ),
    "out size": (lambda: from_scipy(np.eye(3), None, Space.of((2,))), ValueError, "`out_space` must hold 3 entries"),
    "dtype": (
        lambda: from_scipy(np.eye(3), Space.of((3,)), dtype=torch.float32),
        ValueError,
        "`in_space` must hold 3 entries, torch.float32 on cpu; got Space(axis0 3, float64).",
    ),
    "no adjoint": (
        lambda: from_scipy(ONE_WAY).T(torch.ones(2, dtype=torch.float64)),
        TypeError,
        "If this was its adjoint, give it rmatvec or rmatmat.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, kind, message = REFUSED[name]
    with without_annotation_checks(), pytest.raises(kind, match=re.escape(message)):
        call()
