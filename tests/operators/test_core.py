"""The closed algebra: what is flat, what merges, what is known to be symmetric, what is refused."""

import re

import numpy as np
import pytest
import torch

from helpers import SquareRoot, check_operator, close, randn, without_annotation_checks
from kpflow import Space
from kpflow.operators import Adjoint, Composed, Dense, Identity, LowRank, Restriction, Scaled, Sum, to_dense

A, B, C = (Dense(randn(3, 3, seed=seed)) for seed in (1, 2, 3))
P = Dense(randn(4, 3, seed=4))
K = LowRank(randn(3, 2, seed=5))


def test_chains_are_flat():
    chain = (A @ B) @ (2 * (B @ C))
    assert (chain.scale, chain.base.factors) == (2.0, (A, B, B, C))


def test_sums_are_flat():
    total = (A + B) - (C - (A + B))
    assert isinstance(total, Sum)
    assert len(total.terms) == 5
    assert not any(isinstance(term.base if isinstance(term, Scaled) else term, Sum) for term in total.terms)
    close(to_dense(total), 2 * A.matrix + 2 * B.matrix - C.matrix)


def test_scalars_merge():
    assert (2 * (3 * A)).scale == 6.0
    assert (-A / 4).scale == -0.25
    assert (2 * (3 * A)).base is A
    assert 2 * (A / 2) is A
    chain = (2 * A) @ (3 * B)
    assert (chain.scale, chain.base.factors) == (6.0, (A, B))


def test_scalars_of_other_libraries():
    for two in (2, np.float64(2), np.float32(2), np.int64(2)):
        assert (two * A).scale == (A * two).scale == 2.0


def test_adjoints_undo_each_other():
    assert A.T.T is A
    assert isinstance(A.T, Adjoint)
    assert (A @ B).T.factors[0].base is B
    assert K.T is K
    assert (2 * A).T.base.base is A


SYMMETRIC = {
    "P K Pᵀ": P @ K @ P.T,
    "P J Jᵀ Pᵀ": P @ A @ A.T @ P.T,
    "P (J Jᵀ) Pᵀ": P @ SquareRoot(A) @ P.T,
    "J Jᵀ": A @ A.T,
    "JᵀJ": A.T @ A,
    "2 P K Pᵀ": (2 * P) @ (-K) @ P.T,
    "A + Aᵀ": A + A.T,
    "A + K + Aᵀ − B Bᵀ": A + K + A.T - B @ B.T,
    "(A + B)(A + B)ᵀ": (A + B) @ (A + B).T,
    "(2A − B) K (2A − B)ᵀ": (2 * A - B) @ K @ (2 * A - B).T,
    "A B + Bᵀ Aᵀ": A @ B + B.T @ A.T,
    "symmetric matrix": Dense(A.matrix + A.matrix.mT),
}
NOT_KNOWN = {
    "A": A,
    "A B": A @ B,
    "A K": A @ K,
    "K A Kᵀ": K @ A @ K,
    "P K Qᵀ": P @ K @ Dense(P.matrix.clone()).T,
    "A + B": A + B,
    "A + A + Aᵀ": A + A + A.T,
    "A + 2 Aᵀ": A + 2 * A.T,
    "A A": A @ A,
    "(A + B)(Bᵀ + A)": (A + B) @ (B.T + A),
}


@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetry_is_recognised(name):
    operator = SYMMETRIC[name]
    assert operator.symmetric
    assert operator.T is operator
    close(to_dense(operator), to_dense(Adjoint(operator)))


def test_symmetry_of_a_block_is_recognised():
    R = Restriction(K.in_space, {"axis0": [0, 2]})
    assert (R @ K @ R.T).symmetric
    other = Restriction(K.in_space, {"axis0": [0, 2]})
    assert not (R @ K @ other.T).symmetric  # alike, but not known to be the same


@pytest.mark.parametrize("name", NOT_KNOWN)
def test_symmetry_is_not_invented(name):
    operator = NOT_KNOWN[name]
    assert not operator.symmetric
    if operator.in_space == operator.out_space:
        matrix = to_dense(operator)
        assert name == "P K Qᵀ" or float((matrix - matrix.mT).abs().max()) > 0.1


def test_symmetry_of_a_matrix_is_computed_once(monkeypatch):
    calls, equal = [], torch.equal
    monkeypatch.setattr(torch, "equal", lambda *matrices: calls.append(1) or equal(*matrices))
    matrix = Dense(torch.eye(3))
    assert matrix.symmetric
    assert (matrix @ matrix).symmetric
    assert len(calls) == 1


def test_symmetric_needs_one_space():
    named = Space.of((3,), ("unit",)), Space.of((3,), ("input",))
    assert not Dense(torch.eye(3, dtype=torch.float64), named).symmetric
    assert not LowRank(torch.eye(3, dtype=torch.float64), spaces=named).symmetric
    B = Dense(A.matrix, named)
    assert not (B + B.T).symmetric  # would hand a vector of units back as one of inputs


def test_gramian_is_its_factor_times_itself():
    gramian = SquareRoot(P, K)
    assert gramian.jacobian is P
    assert gramian.metric is K
    assert gramian.in_space == gramian.out_space == P.out_space
    check_operator(gramian, P.matrix @ K.left @ K.left.mT @ P.matrix.mT)


FORMULAS = {
    "Dense @ LowRank @ Dense.T": P @ K @ P.T,
    "(Dense + Dense) @ Dense": (A + B) @ C,
    "2 * Dense @ Dense": 2 * A @ B,
    "-Dense": -A,
    "Dense - Dense - 3 * Dense": A - B - 3 * C,
    "-0.5 * (Dense + Dense)": (A + B) / -2,
    "(Dense @ Dense).T": Adjoint(A @ B),
    "Dense @ (2 * Dense)": Composed((A, 2 * B)),
    "Dense + (Dense + Dense)": Sum((A, A + B)),
}


@pytest.mark.parametrize("formula", FORMULAS)
def test_repr_is_the_formula_and_the_spaces(formula):
    operator = FORMULAS[formula]
    assert repr(operator) == f"{formula}: {operator.in_space} → {operator.out_space}"


def test_repr_names_axes_and_sizes():
    line = Space.of((3,), ("unit",), torch.float32)
    assert repr(2 * Identity(line)) == "2 * Identity: Space(unit 3, float32) → Space(unit 3, float32)"


V = torch.ones(3, dtype=torch.float64)
MISUSE = {
    "A @ v": (lambda: A @ V, "`A @ B` needs two operators; got Tensor for B. To apply A to a tensor v, call it: A(v)."),
    "A @ array": (lambda: A @ np.ones(3), "got ndarray for B. Wrap a matrix in Dense(matrix)"),
    "A @ 2": (lambda: A @ 2, "`A @ B` needs two operators; got int"),
    "A + 1": (lambda: A + 1, "`A + B` needs two operators; got int for B. Wrap"),
    "A - v": (lambda: A - V, "`A - B` needs two operators; got Tensor"),
    "1 + A": (lambda: 1 + A, "unsupported operand type(s) for +: 'int' and 'Dense'"),
    "v @ A": (lambda: V @ A, "unsupported operand type(s) for @: 'Tensor' and 'Dense'"),
    "array @ A": (lambda: np.ones(3) @ A, "unsupported operand type(s) for @: 'numpy.ndarray' and 'Dense'"),
    "A * B": (lambda: A * B, "`A * c` needs a real number c; got Dense. For the product of operators write A @ B."),
    "A * v": (lambda: A * V, "`A * c` needs a real number c; got Tensor. Convert it with float(c)."),
    "v * A": (lambda: V * A, "`A * c` needs a real number c; got Tensor"),
    "A * True": (lambda: A * True, "`A * c` needs a real number c; got bool"),
    "A * 1j": (lambda: A * 1j, "`A * c` needs a real number c; got complex"),
    "A / B": (lambda: A / B, "`A / c` needs a real number c; got Dense"),
    "A('v')": (lambda: A("v"), "`vector` must be a torch.Tensor; got str."),
    "float32": (lambda: A(V.float()), "`vector` must be torch.float64; got torch.float32. Convert it with"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_is_a_clear_type_error(name):
    call, message = MISUSE[name]
    with without_annotation_checks(), pytest.raises(TypeError, match=re.escape(message)):
        call()


def single(operator: Dense) -> Dense:
    return Dense(operator.matrix.float())


MISFITS = {
    "shapes": (
        lambda: P @ P,
        "The spaces of `Dense @ Dense` do not match: the left one takes Space(axis0 3, float64), ",
    ),
    "dtypes": (
        lambda: A @ single(B),
        "the left one takes Space(axis0 3, float64), the other has Space(axis0 3, float32)",
    ),
    "sum": (lambda: A + P, "The spaces of `Dense + Dense` do not match: the first one gives Space(axis0 3, float64)"),
    "sum, inputs": (lambda: A + P.T, "do not match: the first one takes"),
    "sum, dtypes": (lambda: A + single(B), "Shape, dtype and device must agree."),
    "vector": (
        lambda: P(torch.ones(2, 4, dtype=torch.float64)),
        "`vector` must have shape [*, 3] (axis0); got (2, 4).",
    ),
    "too few axes": (lambda: Identity(Space.of((2, 3)))(V), "must have shape [*, 2, 3] (axis0 × axis1); got (3,)."),
    "no factors": (lambda: Composed(()), "`factors` must hold at least one operator; got none."),
    "no terms": (lambda: Sum(()), "`terms` must hold at least one operator; got none."),
    "infinite": (lambda: A * float("inf"), "`scale` must be finite; got inf."),
    "not a number": (lambda: float("nan") * A, "`scale` must be finite; got nan."),
}


@pytest.mark.parametrize("name", MISFITS)
def test_misfits_are_clear_value_errors(name):
    call, message = MISFITS[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_devices_must_agree():
    elsewhere = Identity(Space.of((3,), device="meta"))
    with pytest.raises(ValueError, match=r"do not match: the left one takes .*, the other has Space\(.*, meta\)"):
        A @ elsewhere
    with pytest.raises(ValueError, match=r"`vector` must be on meta; got cpu. Move it with .to\('meta'\)."):
        elsewhere(V)


def test_division_by_zero():
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        A / 0
