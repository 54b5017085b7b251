"""Exact quantities by structure: which method takes them, when, and that nothing else is computed."""

import dataclasses
import math
from typing import Any, final

import pytest
import torch

import kpflow as kp
from helpers import without_annotation_checks
from kpflow.estimate import Status, effective_rank, frobenius_norm, spectrum, trace
from kpflow.operators import Dense, Exact, Function, Gramian, LowRank, Operator, Structure, to_dense
from models import seeded as seeded_network

from .problems import Counter, FactorGramian, randn


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Declared(Structure):
    """Quantities of an explicit matrix at a price."""

    dense: torch.Tensor
    price: float

    def trace(self) -> Exact[float]:
        return Exact(self.price, lambda: float(self.dense.trace()))

    def matrix(self) -> None:
        return None

    def sampled_trace(self) -> None:
        return None

    def sampled_parts(self) -> None:
        return None

    def diagonal(self) -> Exact[torch.Tensor]:
        return Exact(self.price, self.dense.diagonal)

    def partial_trace(self, axes: tuple[str, ...]) -> Exact[torch.Tensor] | None:
        return Exact(self.price, lambda: torch.diag(torch.tensor([3.0, 1.0]))) if axes == ("unit",) else None

    def squared_norm(self) -> Exact[float]:
        return Exact(self.price, lambda: float(self.dense.square().sum()))

    def spectrum(self) -> Exact[torch.Tensor]:
        return Exact(self.price, lambda: torch.linalg.eigvalsh(self.dense).flip(0))


@final
class Structured(Gramian):
    """F Fᵀ with an explicit F, its structure at a price, and its products counted."""

    def __init__(self, factor: torch.Tensor, price: float, space: kp.Space | None = None) -> None:
        size = factor.shape[1]
        spaces = None if space is None else (kp.Space.of((size,), None, factor.dtype), space)
        self.counter = Counter(Dense(factor, spaces))
        self.matrix = factor @ factor.mT
        self.price = price

    @property
    def jacobian(self) -> Operator:
        return self.counter

    @property
    def factor(self) -> Operator:
        return self.counter

    @property
    def metric(self) -> None:
        return None

    @property
    def structure(self) -> Structure:
        return Declared(self.matrix, self.price)

    @property
    def products(self) -> int:
        return self.counter.total


def structured(price: float, space: kp.Space | None = None) -> Structured:
    return Structured(randn(200, 150, seed=1), price, space)


QUANTITIES = {
    "trace": (trace, lambda a: a.trace()),
    "frobenius_norm": (frobenius_norm, lambda a: a.norm()),
    "effective_rank": (effective_rank, lambda a: a.trace() ** 2 / a.square().sum()),
}


PRICES = {"trace": 1.0, "frobenius_norm": 2.0, "effective_rank": 1.0}
"""What each declared quantity may cost for a product: one-sided ones suffice for the trace, two make a product with A;
the effective rank takes two quantities."""


@pytest.mark.parametrize("name", QUANTITIES)
@pytest.mark.parametrize("method", ["exact", "auto"])
def test_cheap_structure_is_taken_without_a_product(name, method):
    function, expected = QUANTITIES[name]
    a = structured(10.0)
    result = function(a, method=method)
    assert float(result) == pytest.approx(float(expected(a.matrix)), rel=1e-12)
    assert (result.standard_error, result.num_matvecs, result.status, result.method) == (
        0.0,
        0,
        Status.CONVERGED,
        "exact",
    )
    assert a.products == 0


@pytest.mark.parametrize("name", QUANTITIES)
def test_structure_dearer_than_unit_vectors_is_not_taken(name):
    function, expected = QUANTITIES[name]
    a = structured(1e4)
    result = function(a, method="exact")
    assert result.num_matvecs > 0
    assert float(result) == pytest.approx(float(expected(a.matrix)), rel=1e-10)


@pytest.mark.parametrize("name", QUANTITIES)
def test_auto_estimates_where_that_is_cheaper_than_structure(name):
    result = QUANTITIES[name][0](structured(140.0 * PRICES[name]), rtol=0.5)
    assert result.method != "exact"


@pytest.mark.parametrize("name", QUANTITIES)
def test_a_budget_to_be_spent_as_a_whole_pays_for_structure(name):
    price = PRICES[name]
    assert QUANTITIES[name][0](structured(100.0 * price), budget=100).method == "exact"
    assert QUANTITIES[name][0](structured(101.0 * price), budget=100).method != "exact"


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("trace", "hutchinson"),
        ("trace", "one-sided-reverse"),
        ("frobenius_norm", "deflated"),
        ("effective_rank", "deflated"),
    ],
)
def test_a_named_estimator_is_taken_at_its_word(name, method):
    a = structured(0.0)
    assert QUANTITIES[name][0](a, method=method, budget=20).method == method
    assert a.products > 0


def test_trace_turns_to_structure_when_the_first_probes_show_that_it_is_cheaper():
    result = trace(structured(140.0), rtol=1e-3)
    assert result.method == "exact"
    assert result.standard_error == 0
    assert result.num_matvecs == 36


def test_effective_rank_along_axes_by_structure():
    space = kp.Space.of((100, 2), ("time", "unit"), torch.float64)
    a = structured(10.0, space)
    result = effective_rank(a, axes=("unit",))
    assert float(result) == pytest.approx(16 / 10)
    assert a.products == 0
    assert effective_rank(a, axes=("time",), budget=50).method == "deflated"


def test_ratio_without_a_value_is_no_number():
    zero = Structured(torch.zeros(200, 150, dtype=torch.float64), 1.0)
    result = effective_rank(zero, raise_on_failure=False)
    assert result.status is Status.NOT_FINITE
    assert math.isnan(result.value)
    with pytest.raises(FloatingPointError, match="has no value"):
        effective_rank(zero)


@pytest.fixture(scope="module")
def lin():
    model = seeded_network(torch.nn.GRU(3, 6, batch_first=True))
    return kp.linearise(model, randn(30, 10, 3, seed=2))


@pytest.mark.parametrize("kind", [kp.Ntk, kp.ParameterKernel])
def test_kernels_of_a_network(kind, lin):
    operator = kind(lin)
    matrix = to_dense(operator)
    for name, (function, expected) in QUANTITIES.items():
        result = function(operator, method="exact", budget=1000)
        assert float(result) == pytest.approx(float(expected(matrix)), rel=1e-10), name
        by_products = kind is kp.Ntk and name != "trace"
        assert result.num_matvecs == (operator.factor.in_space.size if by_products else 0)
    blocks = matrix.reshape(2 * operator.in_shape)
    over_units = torch.einsum("bthbtk -> hk", blocks)
    result = effective_rank(operator, axes=("unit",), method="exact")
    assert float(result) == pytest.approx(float(over_units.trace() ** 2 / over_units.square().sum()), rel=1e-10)
    assert result.num_matvecs == 0
    values = spectrum(operator)
    assert len(values) < operator.in_space.size
    torch.testing.assert_close(
        values, torch.linalg.eigvalsh(matrix).flip(0)[: len(values)], rtol=1e-9, atol=1e-9 * float(values[0])
    )


def test_spectrum_by_structure_or_from_the_smaller_side():
    a = structured(10.0)
    values = torch.linalg.eigvalsh(a.matrix).flip(0)
    torch.testing.assert_close(spectrum(a), values, rtol=1e-10, atol=1e-10)
    assert a.products == 0
    plain = FactorGramian(Dense(randn(40, 12, seed=3)))
    torch.testing.assert_close(
        spectrum(plain), torch.linalg.eigvalsh(to_dense(plain)).flip(0)[:12], rtol=1e-10, atol=1e-10
    )
    wide = FactorGramian(Dense(randn(12, 40, seed=3)))
    torch.testing.assert_close(spectrum(wide), torch.linalg.eigvalsh(to_dense(wide)).flip(0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_spectrum_of_a_rectangular_operator_is_its_singular_values(shape):
    matrix = randn(*shape, seed=3)
    torch.testing.assert_close(spectrum(Dense(matrix)), torch.linalg.svdvals(matrix))


def test_spectrum_refuses_what_is_too_large_or_not_finite():
    ones = torch.ones(9000, 1)
    with pytest.raises(ValueError, match="a side of at most 8192 entries"):
        spectrum(LowRank(ones))
    broken = Function(lambda v: v / 0, None, kp.Space.of((2,)))
    with pytest.raises(FloatingPointError, match=r"`spectrum` of Function.* is not finite"):
        spectrum(broken)


def test_spectrum_takes_operators():
    value: Any = torch.eye(3)
    with without_annotation_checks(), pytest.raises(TypeError, match="`operator` must be a kpflow operator"):
        spectrum(value)
