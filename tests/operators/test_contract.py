"""Every operator of the table keeps the contract; the contract notices what is broken; random expressions are right."""

import importlib
import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kpflow.operators
from helpers import OPERATORS, Case, check_operator, randn, without_annotation_checks
from kpflow.operators import Dense, Function, Operator, Scaled

EVERY = pytest.mark.parametrize("case", OPERATORS.values(), ids=OPERATORS.keys())


def build(case: Case, dtype: torch.dtype = torch.float64, device: str | torch.device = "cpu"):
    operator, matrix = case.build(dtype, torch.device(device))
    return operator, matrix.to(device, dtype)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_contract(case, dtype, device):
    check_operator(*build(case, dtype, device))


@EVERY
def test_contract_of_the_adjoint(case, device):
    operator, matrix = build(case, device=device)
    check_operator(operator.T, matrix.mT)


def test_every_class_is_in_the_table():
    classes = {value for _, value in inspect.getmembers(kpflow.operators, inspect.isclass)}
    operators = {kind for kind in classes if issubclass(kind, Operator) and kind is not Operator}
    assert {case.kind for case in OPERATORS.values()} == operators
    assert {kind for kind in Operator.__subclasses__() if kind.__module__.startswith("kpflow.operators")} <= operators


def test_every_case_is_of_its_class():
    for name, case in OPERATORS.items():
        assert isinstance(build(case)[0], case.kind), name


def test_everything_public_is_exported():
    internal = {"block_length", "ranges"}
    for name in ("blocks", "convert", "core", "kronecker", "leaves", "reduce"):
        module = importlib.import_module(f"kpflow.operators.{name}")
        assert set(module.__all__) - internal <= set(kpflow.operators.__all__), name
    assert {name for name in vars(kpflow.operators) if name in kpflow.operators.__all__} == set(
        kpflow.operators.__all__
    )


@EVERY
@pytest.mark.parametrize("factor", [-1.0, 1.0001, 0.0])
def test_contract_notices_a_wrong_adjoint(case, factor, monkeypatch):
    right = case.kind._apply_adjoint
    monkeypatch.setattr(case.kind, "_apply_adjoint", lambda self, vector: factor * right(self, vector))
    with pytest.raises(AssertionError, match="differs by"):
        check_operator(*build(case))


@EVERY
def test_contract_notices_a_wrong_product(case, monkeypatch):
    right = case.kind._apply
    monkeypatch.setattr(case.kind, "_apply", lambda self, vector: 1.0001 * right(self, vector))
    with pytest.raises(AssertionError, match="differs by"):
        check_operator(*build(case))


def function(forward, backward) -> Function:
    space = Dense(torch.eye(3, dtype=torch.float64)).in_space
    return Function(forward, backward, space)


MATRIX = randn(3, 3, seed=1)
BROKEN = {
    "adjoint transposed": function(lambda v: v @ MATRIX.mT, lambda v: v @ MATRIX.mT),
    "not linear": function(lambda v: v @ MATRIX.mT + 1e-6 * v.square(), lambda v: v @ MATRIX),
    "probes mixed": function(lambda v: v.flip(0) @ MATRIX.mT, lambda v: v @ MATRIX),
    "not symmetric": function(lambda v: v @ MATRIX.mT, None),
    "not a number": function(lambda v: v @ MATRIX.mT * float("nan"), lambda v: v @ MATRIX),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_contract_notices_other_faults(broken):
    with pytest.raises(AssertionError, match="differs by"):
        check_operator(broken, MATRIX)


def test_contract_notices_a_changed_input():
    with pytest.raises(AssertionError, match="changed its input"):
        check_operator(function(lambda v: v.mul_(2), lambda v: 2 * v), 2 * torch.eye(3, dtype=torch.float64))


def leaves(rows: int, columns: int) -> list[tuple[Operator, torch.Tensor]]:
    matrices = [torch.round(4 * randn(rows, columns, seed=seed)) for seed in (1, 2)]
    return [(Dense(matrix), matrix) for matrix in matrices]


LEAVES = {shape: leaves(*shape) for shape in [(2, 2), (2, 3), (3, 2), (3, 3)]}
for n in (2, 3):
    LEAVES[n, n] += [(A + A.T, a + a.mT) for A, a in LEAVES[n, n]]


def expression(draw, rows: int, columns: int, depth: int = 3) -> tuple[Operator, torch.Tensor]:
    """A tree of + - * / @ .T over leaves of whole numbers, and its matrix, computed beside it."""
    kind = draw(st.sampled_from(["leaf", "+", "-", "*", "/", "@", "T", "sandwich", "neg"])) if depth else "leaf"
    if kind == "leaf":
        return draw(st.sampled_from(LEAVES[rows, columns]))
    if kind in "+-":
        (A, a), (B, b) = (expression(draw, rows, columns, depth - 1) for _ in range(2))
        return (A + B, a + b) if kind == "+" else (A - B, a - b)
    if kind in "*/":
        A, a = expression(draw, rows, columns, depth - 1)
        scale = draw(st.sampled_from([-2, -1, 0.5, 1, 3]))
        return (draw(st.sampled_from([scale * A, A * scale])), a * scale) if kind == "*" else (A / scale, a / scale)
    if kind == "@":
        middle = draw(st.sampled_from([2, 3]))
        A, a = expression(draw, rows, middle, depth - 1)
        B, b = expression(draw, middle, columns, depth - 1)
        return A @ B, a @ b
    if kind == "sandwich" and rows == columns:
        middle = draw(st.sampled_from([2, 3]))
        P, p = expression(draw, rows, middle, depth - 1)
        K, k = expression(draw, middle, middle, depth - 1)
        return P @ K @ P.T, p @ k @ p.mT
    A, a = expression(draw, columns, rows, depth - 1)
    return (A.T, a.mT) if kind != "neg" else (-A.T, -a.mT)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from([2, 3]), st.sampled_from([2, 3]))
def test_random_expressions(data, rows, columns):
    with without_annotation_checks():  # which take most of the time here; the table above runs with them
        operator, matrix = expression(data.draw, rows, columns)
        check_operator(operator, matrix, 1e-12)
    chain = operator.base if isinstance(operator, Scaled) else operator
    parts = getattr(chain, "factors", ()) or getattr(chain, "terms", ())
    assert not any(isinstance(part, type(chain)) for part in parts), "not flat"
    assert repr(operator).endswith(f": {operator.in_space} → {operator.out_space}")
